"""``expression``: a condition in Spark SQL. ``expression: timestamp <= _timestamp + interval 1 hour``."""

from __future__ import annotations

from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import Expression


class ExpressionCheck(RowCheck):
    """True for a good row; give it a ``name``, or its text is one."""

    #: True for a good row; null is not true
    condition: Expression

    @classmethod
    def short(cls, value: object) -> object:
        return {"condition": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"expression({self.condition})", f"({self.condition})")]


ExpressionCheck.key = "expression"
