"""Sessions: what is in the table is what plain Python makes of the rows that were not late, whatever died between."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from lakehouse_engine.errors import PlanError
from lakehouse_engine.progress import Position, from_micros, next_watermark, to_micros
from lakehouse_engine.sinks import recounted
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.postgres import connect
from lakehouse_engine.sinks.sessions import SessionMerge
from lakehouse_engine.transforms import Window
from lakehouse_engine.transforms.watermark import EVENT_TIME

KEYS = {"window_start": "timestamptz", "kind": "text"}
MEASURES = {"n": ("count", "bigint"), "mean": ("avg", "double precision"), "most": ("max", "bigint"),
            "ok": ("min", "boolean")}  # fmt: skip
Row = tuple[int, str | None, int]  # event time in microseconds, key, value


def sessions(rows: Iterable[Row], gap: int) -> list[tuple[Any, ...]]:
    """By definition: rows of a key, one after the other at most ``gap`` apart."""
    found: list[list[Row]] = []
    last: Row | None = None
    for row in sorted(rows, key=lambda r: (r[1] or "", r[1] is None, r[0])):
        if last is None or last[1] != row[1] or row[0] - last[0] > gap:
            found.append([])
        found[-1].append(row)
        last = row
    return [(s[0][0], s[-1][0] + gap, s[0][1], len(s), sum(r[2] for r in s) / len(s), max(r[2] for r in s),
             all(r[2] > 0 for r in s)) for s in found]  # fmt: skip


def partials(rows: Iterable[Row], gap: int) -> list[list[Any]]:
    """What a micro-batch sends: aggregates by bucket and key."""
    buckets: dict[tuple[int, str | None], list[Row]] = {}
    for row in rows:
        buckets.setdefault((row[0] - row[0] % gap, row[1]), []).append(row)
    return [[from_micros(start), kind, len(b), sum(r[2] for r in b), len(b), max(r[2] for r in b),
             all(r[2] > 0 for r in b), min(r[0] for r in b), max(r[0] for r in b)]
            for (start, kind), b in buckets.items()]  # fmt: skip


@dataclass
class Stream:
    """A stream as its sink sees it: position and watermark commit with the rows, and a start takes them from there."""

    dsn: str
    merge: SessionMerge
    delay: int
    greatest: int | None = None
    watermark: int | None = None
    counted: list[Row] = field(default_factory=list)
    connection: Any = None

    def start(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = connect(self.dsn)
        with self.connection, self.connection.cursor() as cursor:
            self.merge.ensure(cursor, "x.yaml:1")
            self.merge.stage(cursor)
            known = [w for w in (self.watermark, self.merge.closed_until(cursor)) if w is not None]
        self.watermark = max(known, default=None)

    def _reached(self, greatest: int | None) -> int | None:
        positions = [] if greatest is None else [Position(0, greatest)]
        return next_watermark(positions, self.delay, self.watermark)

    def batch(self, rows: list[Row], dies: bool) -> None:
        now = self._reached(self.greatest)
        fresh = [row for row in rows if now is None or row[0] >= now]
        greatest = max((row[0] for row in rows), default=self.greatest)
        greatest = greatest if self.greatest is None or greatest is None else max(greatest, self.greatest)
        for last in [False, True] if dies else [True]:
            with self.connection.cursor() as cursor:
                self.merge.write(cursor, partials(fresh, self.merge.size))
                before, self.watermark = self.watermark, now
                self.merge.close(cursor, self._reached(greatest))
            if not last:
                self.watermark = before
                self.connection.close()
                self.start()
        self.connection.commit()
        self.greatest, self.counted = greatest, self.counted + fresh

    def table(self) -> list[tuple[Any, ...]]:
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("select window_start, window_end, kind, n, mean, most, ok from live.visits")
            return [(to_micros(r[0]), to_micros(r[1]), *r[2:]) for r in cursor.fetchall()]

    def expected(self) -> list[tuple[Any, ...]]:
        reached = self._reached(self.greatest)
        return [s for s in sessions(self.counted, self.merge.size) if reached is not None and s[1] < reached]


def in_order(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda r: (r[0], r[2] or "", r[2] is None))


#: times close to multiples of a small gap, before 1970 too: rows exactly a gap apart, and in neighbouring buckets
EVENT = st.tuples(st.integers(-30, 90), st.sampled_from(["a", "b", None]), st.integers(-3, 9))
BATCH = st.tuples(st.lists(EVENT, max_size=8), st.booleans(), st.none() | st.integers(0, 40))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BATCH, min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 25))
def test_the_table_holds_the_sessions_of_all_rows_that_were_not_late_each_once(
    database: str, batches: list[tuple[list[Row], bool, int | None]], gap: int, delay: int
) -> None:
    with closing(connect(database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("drop schema if exists live cascade")
    stream = Stream(database, SessionMerge("live.visits", KEYS, MEASURES, False, gap, append=True), delay)
    stream.start()
    try:
        for rows, dies, again in batches:
            if again is not None:  # a new start with another delay
                stream.delay = again
                stream.start()
            stream.batch(rows, dies)
            assert in_order(stream.table()) == in_order(stream.expected())
        stream.batch([(10**6, "end", 1)], False)
        found = [row for row in stream.table() if row[2] != "end"]
        assert in_order(found) == in_order(sessions([r for r in stream.counted if r[1] != "end"], gap))
        with stream.connection, stream.connection.cursor() as cursor:
            cursor.execute("select kind, n from live.visits__state")
            assert cursor.fetchall() == [("end", 1)]
    finally:
        stream.connection.close()


@given(st.lists(EVENT, max_size=25), st.integers(1, 12))
def test_buckets_make_the_sessions_that_the_rows_make(events: list[Row], gap: int) -> None:
    raw = [[to_micros(p[0]), *p[1:]] for p in partials(events, gap)]
    found = recounted.sessions(raw, 1, gap)
    assert sorted((s.first, s.last + gap, repr(s.key[0]), sum(p[2] for p in s.parts)) for s in found) == sorted(
        (s[0], s[1], repr(s[2]), s[3]) for s in sessions(events, gap))  # fmt: skip


def test_sessions_of_everybody_are_one_row_after_the_other(database: str) -> None:
    merge = SessionMerge("live.all", {"window_start": "timestamptz"}, {"n": ("count", "bigint")}, True, 10)
    with closing(connect(database)) as connection, connection.cursor() as cursor:
        merge.ensure(cursor, "x.yaml:1")
        merge.stage(cursor)
        merge.write(cursor, [[from_micros(0), 2, 0, 9], [from_micros(10), 1, 19, 19], [from_micros(30), 1, 30, 30]])
        assert merge.close(cursor, 29) == 0
        assert merge.close(cursor, 30) == 1
        cursor.execute("select window_start, window_end, n, updated_at is not null from live.all")
        assert cursor.fetchall() == [(from_micros(0), from_micros(29), 3, True)]


def test_a_gap_that_was_changed_is_refused_until_the_table_is_gone(database: str) -> None:
    merge = SessionMerge("live.visits", KEYS, MEASURES, True, 60_000_000)
    with closing(connect(database)) as connection, connection.cursor() as cursor:
        merge.ensure(cursor, "x.yaml:1")
        merge.ensure(cursor, "x.yaml:1")
        for other in (replace(merge, size=120_000_000), FinalMerge("live.visits", KEYS, MEASURES, True, 60_000_000)):
            with pytest.raises(PlanError, match="was filled with sessions, gap 1 minute") as raised:
                other.ensure(cursor, "x.yaml:7")
            assert (raised.value.code, raised.value.where) == ("EMIT_CHANGED", "x.yaml:7")


def test_two_rows_a_gap_apart_are_of_one_session_to_spark_too(spark: SparkSession) -> None:
    """The definition is Spark's: what the oracle, PostgreSQL and a job's window say is one thing."""
    rows: list[Row] = [(0, "a", 1), (10, "a", 2), (21, "a", 3), (30, None, 4), (40, None, 5), (-20, "b", 6),
                       (-9, "b", 7)]  # fmt: skip
    frame = spark.createDataFrame([(t, k, v) for t, k, v in rows], "t bigint, kind string, v bigint")
    measures = {"n": "count(*)", "mean": "avg(v)", "most": "max(v)", "ok": "min(v > 0)", "d": "count(distinct v)"}
    window = Window.model_validate({"session": {"gap": "10 ms"}, "by": ["kind"], "measures": measures})
    found = window.apply(frame.selectExpr(f"timestamp_micros(t * 1000) as {EVENT_TIME}", "kind", "v"))
    assert found.columns == ["window_start", "window_end", "kind", "n", "mean", "most", "ok", "d"]
    micros = found.selectExpr("unix_micros(window_start) div 1000", "unix_micros(window_end) div 1000", "kind", "n",
                              "mean", "most", "ok", "d").collect()  # fmt: skip
    assert in_order(tuple(r)[:7] for r in micros) == in_order(sessions(rows, 10))
    assert all(row["d"] == row["n"] for row in micros)
