"""What all checks of a whole result have in common. They cannot quarantine: there is no one row that is at fault.

``on_fail``: ``fail`` (default) stops before anything is written, ``warn`` writes and counts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lakehouse_engine.component import Component, Expression


class TableCheck(Component):
    """With ``replace_by`` a check sees the part that a run recomputes."""

    name: str | None = Field(None, description="What the check is called in messages and warnings.")
    where: Expression | None = Field(None, description="Only rows for which this is true are judged.")
    on_fail: Literal["warn", "fail"] = Field("fail", description="What becomes of a run that fails the check.")
