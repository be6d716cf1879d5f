"""What all checks of a whole result have in common. They cannot quarantine: there is no one row that is at fault.

``on_fail``: ``fail`` (default) stops before anything is written, ``warn`` writes and counts.
"""

from __future__ import annotations

from typing import Literal

from lakehouse_engine.component import Component, Expression


class TableCheck(Component):
    """With ``replace_by`` a check sees the part that a run recomputes."""

    #: what the check is called in messages and warnings
    name: str | None = None
    #: only rows for which this is true are judged
    where: Expression | None = None
    #: what becomes of a run that fails the check
    on_fail: Literal["warn", "fail"] = "fail"
