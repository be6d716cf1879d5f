"""Sessions into PostgreSQL: merged like tumbling windows, put together and sent once when they are over.

Rows are cut into buckets by ``floor(t / gap)``. Two rows of a key in one bucket are less than ``gap`` apart, so they
are of one session, and a batch's partial aggregates by (bucket, key) are of one session each, with the first and the
last event time beside the measures. In ``<table>__state`` stands a row for each session so far. What a batch brings is
put in order with the rows of its keys, by first event time; where the next one begins at most ``gap`` after the last
row before it, both are one session. Two rows that are one session stay one, whatever comes, so that is never undone.

**A session is sent when it cannot change any more.** Let ``W`` be the watermark of the next batch. A row is late there
if and only if ``t < W``, and watermarks never go back; so every row that may still count has ``t >= W``. A session
whose last row ``m`` has ``m + gap < W`` is over: such a row is more than ``gap`` after ``m``, so it does not extend the
session, and it does not lie within or before it. With ``m + gap = W`` a row at ``W`` would be of the session, so it
stays.

When a batch commits, ``W`` follows from the positions in the same transaction (as with ``emit: final``), and rows of
the batch itself were judged with the watermark before, so they have merged into the state by then. What is over goes
from there into the table, in that transaction. A start takes for the watermark at least what closed the newest session
of the table, so a ``delay`` that was made longer does not let a row into a session that was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.component import format_duration
from lakehouse_engine.progress import from_micros, to_micros
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.postgres import identifier, side_table

#: columns of the state beside the measures: event times of a bucket's first and last row
FIRST, LAST = "session__first", "session__last"
#: what a session is looked up by
KEY = "session__key"


@dataclass(frozen=True)
class SessionMerge(FinalMerge):
    """``size`` is the gap; ``window_start`` is that of a session, in the state of what it is so far."""

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

    @cached_property
    def _statement(self) -> Composable:
        """The rows of the batch's keys, in order, numbered by session: each session's become one."""
        by = [sql.Identifier(name) for name in self.keys if name != "window_start"]
        # null is a key like any other: records compare so, and unlike `is not distinct from` they hash
        key = sql.SQL("row({})").format(sql.SQL(", ").join(by)) if by else sql.SQL("0")
        merged = [sql.SQL("{}({})::{}").format(sql.SQL(_aggregate(function, kind)), sql.Identifier(name), sql.SQL(kind))
                  for name, (function, kind) in self.base.items()]  # fmt: skip
        return sql.SQL(
            "with before as (delete from {state} using (select distinct {key} as {known} from {stage}) as staged"
            "  where {key} = staged.{known} returning {names}),"
            " every as (select {names} from before union all select {names} from {stage}),"
            " apart as (select *, coalesce({first} > max({last}) over ({part} order by {first}, {last}"
            "  rows between unbounded preceding and 1 preceding) + {gap}, true) as begins from every),"
            " numbered as (select *, count(*) filter (where begins) over ({part} order by {first}, {last}"
            "  rows unbounded preceding) as session from apart)"
            " insert into {state} ({names}) select {values} from numbered group by {groups} order by {groups}"
        ).format(
            state=identifier(side_table(self.table, "state")), stage=self._stage, key=key,
            known=sql.Identifier(KEY), names=self._names,
            first=sql.Identifier(FIRST), last=sql.Identifier(LAST), gap=self._gap,
            part=sql.SQL("partition by {}").format(sql.SQL(", ").join(by)) if by else sql.SQL(""),
            values=sql.SQL(", ").join([sql.SQL("min({})").format(sql.Identifier(FIRST)), *by, *merged]),
            groups=sql.SQL(", ").join([*by, sql.Identifier("session")]))  # fmt: skip

    @property
    def _gap(self) -> Composable:
        return sql.SQL("interval '{} microseconds'").format(sql.SQL(str(self.size)))

    @property
    def _closed(self) -> Composable:
        return sql.SQL(
            "closed as (delete from {state} where {last} < %(begun)s returning *, {last} + {gap} as window_end)"
        ).format(state=identifier(side_table(self.table, "state")), last=sql.Identifier(LAST), gap=self._gap)


def _aggregate(function: str, kind: str) -> str:
    """PostgreSQL has no least and greatest of booleans."""
    return {"min": "bool_and", "max": "bool_or"}[function] if kind == "boolean" else function
