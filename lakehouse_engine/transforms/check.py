"""``check``: row checks in the middle of the steps. ``check: [{not_null: [user_id]}]``.

The list is that of ``checks``, with the same options. Here rows are judged before what follows sees them: a window, a
dedupe or an aggregate does not count what is quarantined, and a watermark does not move by it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks import Check as AnyCheck
from lakehouse_engine.checks import RowCheck, judge
from lakehouse_engine.component import Component
from lakehouse_engine.rows import Rows


class Check(Component):
    """Checks of a whole result (``unique``, ``row_count``, ``freshness``) and of other tables are no steps."""

    #: row checks; a row fails the step when it fails one of them
    checks: Annotated[tuple[AnyCheck, ...], Field(json_schema_extra={"minItems": 1})]

    @classmethod
    def short(cls, value: object) -> object:
        return {"checks": value}

    @field_validator("checks")
    @classmethod
    def _some(cls, checks: tuple[AnyCheck, ...]) -> tuple[AnyCheck, ...]:
        if not checks:
            raise PydanticCustomError("BAD_CHECK", "a check step needs at least one check")
        return checks

    @property
    def conditions(self) -> list[RowCheck]:
        """The row checks; ``spec/check.py`` refuses others here."""
        return [check for check in self.checks if isinstance(check, RowCheck)]

    def row(self, rows: Rows, step: str) -> Rows:
        return judge(rows, [(f"{step}[{index}]", check) for index, check in enumerate(self.conditions)], step)

    def expressions(self) -> list[str]:
        return [text for check in self.conditions for text in check.expressions()]
