"""Sessions into PostgreSQL: merged like tumbling windows, put together and sent once when they are over.

Rows are cut into buckets by ``floor(t / gap)``. Two rows of a key in one bucket are less than ``gap`` apart, so they
are of one session, and a batch's partial aggregates by (bucket, key) merge in ``<table>__state`` as those of tumbling
windows do, with the first and the last event time beside the measures. Two rows at most ``gap`` apart are in one bucket
or in neighbouring ones; so the sessions of a key are the runs of its buckets, in order, in each of which the next
bucket's first row is at most ``gap`` after the last row of the one before.

**A session is sent when it cannot change any more.** Let ``W`` be the watermark of the next batch. A row is late there
if and only if ``t < W``, and watermarks never go back; so every row that may still count has ``t >= W``. A session
whose last row ``m`` has ``m + gap < W`` is over: such a row is more than ``gap`` after ``m``, so it does not extend the
session, and it does not lie within or before it. Nor does it fall into a bucket of the session: ``t > m + gap`` is in
a later one. With ``m + gap = W`` a row at ``W`` would be of the session, so it stays.

When a batch commits, ``W`` follows from the positions in the same transaction (as with ``emit: final``), and rows of
the batch itself were judged with the watermark before, so they have merged into the state by then. What is over goes
from there into the table, in that transaction. A start takes for the watermark at least what closed the newest session
of the table, so a ``delay`` that was made longer does not let a row into a session that was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.component import format_duration
from lakehouse_engine.progress import from_micros, to_micros
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.postgres import identifier, side_table

#: columns of the state beside the measures: event times of a bucket's first and last row
FIRST, LAST = "session__first", "session__last"


@dataclass(frozen=True)
class SessionMerge(FinalMerge):
    """``size`` is the gap, ``window_start`` in the state the start of a bucket, in the table that of a session."""

    @property
    def mark(self) -> str:
        return f"sessions, gap {format_duration(self.size)}"

    @property
    def base(self) -> dict[str, tuple[str, str]]:
        return {**super().base, FIRST: ("min", "timestamptz"), LAST: ("max", "timestamptz")}

    @property
    def columns(self) -> dict[str, str]:
        return {"window_start": "timestamptz", "window_end": "timestamptz", **super().columns}

    @property
    def results(self) -> tuple[list[str], list[Composable]]:
        columns, values = super().results
        return ["window_end", *columns], [sql.Identifier("window_end"), *values]

    def write(self, cursor: Any, rows: Sequence[Sequence[Any]]) -> None:
        """``rows`` end with the first and the last event time, in microseconds."""
        super().write(cursor, [[*row[:-2], from_micros(row[-2]), from_micros(row[-1])] for row in rows])

    def closed_until(self, cursor: Any) -> int | None:
        cursor.execute(sql.SQL("select max(window_end) from {}").format(identifier(self.table)))
        end = to_micros(cursor.fetchone()[0])
        return None if end is None else end + 1

    @property
    def _closed(self) -> Composable:
        """Of keys that have a bucket old enough, the buckets in order, numbered by session; and out of the state."""
        by = [sql.Identifier(name) for name in self.keys if name != "window_start"]
        # null is a key like any other: records compare so, and unlike `is not distinct from` they hash
        key = sql.SQL("row({})").format(sql.SQL(", ").join(by)) if by else sql.SQL("0")
        merged = [sql.SQL("{function}({name})::{kind} as {name}").format(
            function=sql.SQL(_aggregate(function, kind)), name=sql.Identifier(name), kind=sql.SQL(kind))
            for name, (function, kind) in self.base.items()]  # fmt: skip
        return sql.SQL(
            "begun as (select *, ctid as place, {key} as session_key from {state} where window_start < %(watermark)s),"
            " apart as (select *, {first} <= lag({last}) over ordered + {gap} as joined from begun"
            "  where session_key in (select session_key from begun where {last} < %(begun)s)"
            "  window ordered as (partition by session_key order by window_start)),"
            " numbered as (select *, count(*) filter (where joined is not true)"
            "  over (partition by session_key order by window_start) as session from apart),"
            " closed as (select min({first}) as window_start, max({last}) + {gap} as window_end, {by}{merged},"
            "  array_agg(place) as places from numbered group by {by}session having max({last}) < %(begun)s),"
            " gone as (delete from {state} where ctid in (select unnest(places) from closed))"
        ).format(
            key=key, state=identifier(side_table(self.table, "state")), first=sql.Identifier(FIRST),
            last=sql.Identifier(LAST), gap=sql.SQL("interval '{} microseconds'").format(sql.SQL(str(self.size))),
            by=sql.SQL("").join(sql.SQL("{}, ").format(name) for name in by),
            merged=sql.SQL(", ").join(merged))  # fmt: skip


def _aggregate(function: str, kind: str) -> str:
    """PostgreSQL has no least and greatest of booleans."""
    return {"min": "bool_and", "max": "bool_or"}[function] if kind == "boolean" else function
