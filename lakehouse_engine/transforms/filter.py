"""``filter``: keeps the rows for which a condition is true; null is not. ``filter: event_type = 'click'``."""

from __future__ import annotations

from lakehouse_engine.component import Component, Expression
from lakehouse_engine.rows import FILTERED, Rows, Verdict


class Filter(Component):
    """A row that is dropped counts as ``filtered``."""

    #: rows for which it is true stay
    condition: Expression

    @classmethod
    def short(cls, value: object) -> object:
        return {"condition": value}

    def row(self, rows: Rows, step: str) -> Rows:
        return rows.refuse(Verdict(step, FILTERED, f"not coalesce({rows.resolve(self.condition)}, false)"))

    def expressions(self) -> list[str]:
        return [self.condition]
