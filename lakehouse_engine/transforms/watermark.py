"""``watermark``: names the event time and how late a row may be.

``watermark: {column: timestamp, delay: 2 minutes, max_ahead: 1 hour}``. A row without event time, or more than
``max_ahead`` after its record's ``_timestamp``, is quarantined here: one timestamp in the far future would otherwise
close every window.

In a job nothing is late: there it names the event time of windows, and refuses the same rows. Where the rows have no
``_timestamp``, the clock stands for it; with ``replace_by`` a slice must not depend on that, and how far ahead a row is
is not judged.
"""

from __future__ import annotations

from dataclasses import replace

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Component, Duration
from lakehouse_engine.rows import QUARANTINED, EventTime, Rows, Verdict

HOUR = 3_600_000_000
#: a job's column with the event time, which travels to its window and is never stored
EVENT_TIME = "__event_time"


class Watermark(Component):
    """The watermark itself is the engine's: see ``progress.next_watermark``."""

    #: the event time, a timestamp
    column: Column
    #: how late a row may be
    delay: Duration
    #: a row further ahead of its record than this is quarantined
    max_ahead: Duration = HOUR

    def row(self, rows: Rows, step: str, clock: str | None = "current_timestamp()") -> Rows:
        """``clock``: SQL, stands for ``_timestamp`` where there is none; None: then nothing is too far ahead."""
        time = rows.resolve(self.column)
        clock = rows.columns.get("_timestamp", clock)
        ahead = f"unix_micros({time}) - unix_micros({clock}) > {self.max_ahead}" if clock else "false"
        name = sql.string(f"watermark: {self.column}")
        verdict = Verdict(
            step,
            QUARANTINED,
            f"({time} is null or coalesce({ahead}, false))",
            f"array(if({time} is null, {name} || ' is null', {name} || ' is too far in the future'))",
        )
        rows = rows.refuse(verdict)
        return replace(rows, event_time=EventTime(self.column, time, self.delay, self.max_ahead, len(rows.verdicts)))

    def expressions(self) -> list[str]:
        return [self.column]
