"""Closed windows in PostgreSQL, replaced by what was counted anew, in the caller's transaction.

Windows that the stream has not closed stay as they are. What is written goes the way of the stream's own batches: into
the state, and from there, where windows are sent once, into the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.progress import from_micros, to_micros
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.postgres import Merge, copy, identifier, side_table
from lakehouse_engine.sinks.sessions import SessionMerge

#: window start (microseconds; of sessions a bucket's), keys as text, base aggregates; of sessions then the first and
#: the last event time (microseconds)
Partial = Sequence[Any]


@dataclass(frozen=True)
class Span:
    """The day or days whose windows are replaced: event times from ``first`` (included) to ``end`` (not included).

    ``since``: where the whole recount began; ``watermark``: what ends at or before it is closed. All in microseconds.
    """

    first: int
    end: int
    since: int
    watermark: int


@dataclass(frozen=True)
class Session:
    """``first`` and ``last`` event time (microseconds) of its rows; ``parts``: its buckets."""

    key: tuple[str | None, ...]
    first: int
    last: int
    parts: tuple[Partial, ...]


def sessions(partials: Iterable[Partial], keys: int, gap: int) -> list[Session]:
    """The sessions that the buckets make; ``keys``: how many columns they have beside their start."""
    found: list[Session] = []
    ordered = sorted(partials, key=lambda p: ([(k is None, k or "") for k in p[1 : 1 + keys]], p[0]))
    for part in ordered:
        key, last = tuple(part[1 : 1 + keys]), found[-1] if found else None
        if last is not None and last.key == key and part[-2] <= last.last + gap:
            found[-1] = Session(key, last.first, part[-1], (*last.parts, part))
        else:
            found.append(Session(key, part[-2], part[-1], (part,)))
    return found


def replace_windows(cursor: Any, merge: Merge, size: int, partials: Iterable[Partial], span: Span) -> int:
    """Tumbling and sliding windows that begin in the span and are closed; returns the rows that are there then."""
    until = min(span.end - 1, span.watermark - size)
    bounds = (from_micros(span.first), from_micros(until))
    for table in (merge.table, *([side_table(merge.table, "state")] if merge.has_state else [])):
        cursor.execute(sql.SQL("delete from {} where window_start between %s and %s").format(identifier(table)), bounds)
    closed = [[from_micros(p[0]), *p[1:]] for p in partials if span.first <= p[0] <= until]
    merge.write(cursor, closed)
    if isinstance(merge, FinalMerge):
        merge.close(cursor, span.watermark)
    cursor.execute(sql.SQL(
        "update {} set applied_at = now() where applied_at is null and missed[1] >= %s"
        " and missed[cardinality(missed)] between %s and %s").format(identifier(side_table(merge.table, "late"))),
        (from_micros(span.since), *bounds))  # fmt: skip
    return len(closed)


def replace_sessions(cursor: Any, merge: SessionMerge, found: Sequence[Session], span: Span,
                     fields: Sequence[str] | None) -> int:  # fmt: skip
    """``found``: every session that touches the span, whole. Those that are over take the place of all that began
    within them; what began within one that is not over stays, as do the late rows that would join it.

    ``fields``: what the key columns are called in the JSON of a late row; None where it does not have them. Returns
    the number of sessions written.
    """
    over = [s for s in found if s.last + merge.size < span.watermark]
    open_ = [s for s in found if s.last + merge.size >= span.watermark]
    by = {name: kind for name, kind in merge.keys.items() if name != "window_start"}
    recounted = sql.Identifier("recounted_sessions")
    columns = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in by.items()]
    times = [sql.SQL(f"{name} timestamptz") for name in ("session_first", "session_last")]
    cursor.execute(sql.SQL("create temp table {} ({}) on commit drop").format(
        recounted, sql.SQL(", ").join([*columns, *times, sql.SQL("session_over boolean")])))  # fmt: skip
    names = [*by, "session_first", "session_last", "session_over"]
    copy(cursor, recounted, names, ([*s.key, from_micros(s.first), from_micros(s.last), is_over]
                                    for some, is_over in ((over, True), (open_, False)) for s in some))  # fmt: skip

    def same(one: str) -> Composable:
        """A null is a key like any other; texts of whole keys are hashed, which `is not distinct from` is not."""
        keys = (sql.SQL("row({})::text").format(sql.SQL(", ").join(sql.Identifier(t, name) for name in by))
                for t in (one, "s"))  # fmt: skip
        return sql.SQL(" = ").join(keys) if by else sql.SQL("true")

    values = {"first": from_micros(span.first), "end": from_micros(span.end), "watermark": from_micros(span.watermark),
              "gap": timedelta(microseconds=merge.size)}  # fmt: skip
    for statement in (
        "delete from {table} t using {s} s where s.session_over and {same}"
        " and t.window_start between s.session_first and s.session_last",
        "delete from {table} t where t.window_start >= %(first)s and t.window_start < %(end)s"
        " and t.window_end < %(watermark)s and not exists (select from {s} s where not s.session_over and {same}"
        "  and t.window_start between s.session_first and s.session_last)",
        "delete from {state} t using {s} s where s.session_over and {same}"
        " and t.window_start > s.session_first - %(gap)s and t.window_start <= s.session_last",
    ):
        cursor.execute(sql.SQL(statement).format(
            table=identifier(merge.table), state=identifier(side_table(merge.table, "state")), s=recounted,
            same=same("t")), values)  # fmt: skip
    merge.write(cursor, [[from_micros(p[0]), *p[1:]] for s in over for p in s.parts])
    merge.close(cursor, span.watermark)
    if fields is not None:
        ours = sql.SQL(", ").join(sql.SQL("({})::{}").format(_of_json(field, kind), sql.SQL(kind))
                                  for field, kind in zip(fields, by.values(), strict=True))  # fmt: skip
        theirs = sql.SQL(", ").join(sql.Identifier("s", name) for name in by)
        cursor.execute(sql.SQL(
            "update {late} t set applied_at = now() from {s} s where t.applied_at is null and s.session_over"
            " and t.event_time between s.session_first and s.session_last and row({ours})::text = row({theirs})::text"
        ).format(late=identifier(side_table(merge.table, "late")), s=recounted, ours=ours, theirs=theirs))  # fmt: skip
    return len(over)


def _of_json(field: str, kind: str) -> Composable:
    text = sql.SQL("t.row ->> {}").format(sql.Literal(field))
    return sql.SQL("decode({}, 'base64')").format(text) if kind == "bytea" else text


def days(cursor: Any, table: str) -> list[int]:
    """The starts (microseconds) of the days in which a window of the table begins."""
    return _days(cursor, "select distinct date_trunc('day', window_start) from {}", table)


def late_days(cursor: Any, table: str) -> list[int]:
    """Those of the windows that late rows have missed and that were not counted anew since.

    The late row of a session has missed none that has a name: its own time stands for it.
    """
    return _days(cursor, "select distinct date_trunc('day', missing) from {} t, lateral"
                 " unnest(coalesce(t.missed, array[t.event_time])) missing where t.applied_at is null",
                 side_table(table, "late"))  # fmt: skip


def _days(cursor: Any, query: str, table: str) -> list[int]:
    cursor.execute(sql.SQL(query).format(identifier(table)))
    return [found for (day,) in cursor.fetchall() if (found := to_micros(day)) is not None]
