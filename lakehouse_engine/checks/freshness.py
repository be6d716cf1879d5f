"""``freshness``: the newest row is not older than so much. ``freshness: {column: timestamp, max_age: 2 hours}``.

In a job the whole table is judged as it will be, at each run, also at one that finds nothing to do: a source that
stands still is what the check is for. In a stream a micro-batch is judged, at its start, and ``on_fail`` must be
``warn``: a stream that is behind reads old rows, and would stop for ever.
"""

from __future__ import annotations

from lakehouse_engine.checks.table import TableCheck
from lakehouse_engine.component import Column, Duration


class Freshness(TableCheck):
    """A table without any row is not fresh. A warning counts 1."""

    #: a timestamp or a date (its midnight in UTC)
    column: Column
    #: how old the newest row may be
    max_age: Duration

    def expressions(self) -> list[str]:
        return [self.column, *([self.where] if self.where else [])]

    @property
    def time(self) -> str:
        """SQL over a row: its time in microseconds, null where it is not judged."""
        time = f"unix_micros(cast({self.column} as timestamp))"
        return f"if({self.where}, {time}, null)" if self.where else time

    def accepts(self, newest: int | None, now: int) -> bool:
        """Both in microseconds."""
        return newest is not None and now - newest <= self.max_age
