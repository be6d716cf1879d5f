"""``unique``: one row per value of the columns, in jobs. ``unique``, of the pipeline's keys, or ``unique: [a, b]``."""

from __future__ import annotations

from lakehouse_engine.checks.table import TableCheck
from lakehouse_engine.component import Columns


class Unique(TableCheck):
    """A warning counts the values that are there more than once. Null is a value like any other."""

    #: the columns; default: the pipeline's keys
    columns: Columns | None = None

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def expressions(self) -> list[str]:
        return [*(self.columns or ()), *([self.where] if self.where else [])]
