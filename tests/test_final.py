"""Into PostgreSQL: a window of ``emit: final`` once, with all that counted in it; of a key the row with most order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from lakehouse_engine.errors import PlanError
from lakehouse_engine.progress import to_micros
from lakehouse_engine.sinks.final import FinalMerge, emit_changed, mark_of
from lakehouse_engine.sinks.postgres import Merge, connect
from lakehouse_engine.sinks.upsert import Upsert

MINUTE = 60_000_000
TEN = datetime(2026, 1, 1, 10, tzinfo=timezone.utc)
KEYS = {"window_start": "timestamptz", "kind": "text"}
MEASURES = {"n": ("count", "bigint"), "mean": ("avg", "double precision")}


def at(minute: float) -> datetime:
    return TEN + timedelta(minutes=minute)


def micros(minute: float) -> int:
    found = to_micros(at(minute))
    assert found is not None
    return found


def partial(minute: float, kind: str | None, n: int, total: float) -> list[Any]:
    """A window's key, then count, sum and count of its rows."""
    return [at(minute), kind, n, total, n]


@pytest.fixture
def cursor(database: str) -> Iterator[Any]:
    with closing(connect(database)) as connection, connection.cursor() as found:
        yield found


def started(cursor: Any, merge: FinalMerge) -> FinalMerge:
    merge.ensure(cursor, "x.yaml:1")
    merge.stage(cursor)
    return merge


def rows(cursor: Any, table: str = "live.n") -> list[tuple[Any, ...]]:
    cursor.execute(f"select window_start, kind, n, mean from {table} order by 1, 2")
    return [tuple(row) for row in cursor.fetchall()]


def send(cursor: Any, merge: FinalMerge, *partials: list[Any]) -> None:
    merge.write(cursor, partials)
    cursor.execute(f"truncate {merge._stage.as_string(cursor)}")  # the commit would


@pytest.mark.parametrize("append", [False, True])
def test_a_window_is_sent_once_with_all_that_counted_in_it(cursor: Any, append: bool) -> None:
    merge = started(cursor, FinalMerge("live.n", KEYS, MEASURES, True, MINUTE, append))
    send(cursor, merge, partial(0, "a", 1, 2.0), partial(1, None, 1, 5.0))
    assert merge.close(cursor, None) == 0
    assert merge.close(cursor, micros(1) - 1) == 0
    assert rows(cursor) == []
    send(cursor, merge, partial(0, "a", 3, 6.0), partial(0, None, 2, 1.0))
    assert merge.close(cursor, micros(1)) == 2
    assert merge.close(cursor, micros(1)) == 0
    assert rows(cursor) == [(at(0), "a", 4, 2.0), (at(0), None, 2, 0.5)]
    cursor.execute("select count(*), bool_and(window_start = %s) from live.n__state", (at(1),))
    assert cursor.fetchone() == (1, True)
    assert merge.closed_until(cursor) == micros(1)


def test_the_table_says_how_far_windows_have_been_closed_and_nothing_while_it_is_empty(cursor: Any) -> None:
    merge = started(cursor, FinalMerge("live.n", KEYS, MEASURES, False, 5 * MINUTE))
    assert merge.closed_until(cursor) is None
    send(cursor, merge, partial(0, "a", 1, 1.0), partial(1, "a", 1, 1.0))
    merge.close(cursor, micros(6))
    assert merge.closed_until(cursor) == micros(6)


def test_a_table_of_the_other_way_is_refused_until_it_is_gone(cursor: Any) -> None:
    updates = Merge("live.n", KEYS, MEASURES)
    final = FinalMerge("live.n", KEYS, MEASURES, True, MINUTE)
    updates.ensure(cursor, "x.yaml:1")
    with pytest.raises(PlanError) as raised:
        final.ensure(cursor, "x.yaml:7")
    assert (raised.value.code, raised.value.where) == ("EMIT_CHANGED", "x.yaml:7")
    assert mark_of(cursor, "live.n__state") is None  # an average's state holds windows that were sent
    cursor.execute("drop table live.n, live.n__state")
    final.ensure(cursor, "x.yaml:1")
    final.ensure(cursor, "x.yaml:1")
    assert mark_of(cursor, "live.n__state") == "emit final"
    assert "emit: final" in str(emit_changed("live.n", "emit final", ""))


ORDERED = {"id": "int", "note": "text", "version": "int", "part": "int"}


def test_the_row_with_the_greatest_order_stays_whatever_the_order_of_arrival(cursor: Any) -> None:
    upsert = Upsert("live.orders", ORDERED, ["id"], ["version", "part"], updated_at=True)
    upsert.ensure(cursor, "x.yaml:1")

    def arrive(*values: tuple[int | None, str, int | None, int | None]) -> dict[Any, str]:
        upsert.write(cursor, [[*value, 0, offset] for offset, value in enumerate(values)])
        cursor.execute("drop table lakehouse_upsert, lakehouse_newest")  # the commit would
        cursor.execute("select id, note from live.orders")
        return dict(cursor.fetchall())

    assert arrive((1, "a", 2, 1), (1, "b", 1, 9), (None, "c", None, None)) == {1: "a", None: "c"}
    assert arrive((1, "older", 1, 1), (1, "less", 2, None), (None, "again", None, None)) == {1: "a", None: "again"}
    assert arrive((1, "equal", 2, 1), (1, "equal, later", 2, 1)) == {1: "equal, later", None: "again"}
    assert arrive((1, "newer", 3, None), (2, "new", 1, 1)) == {1: "newer", 2: "new", None: "again"}
    assert arrive((None, "first", 0, None), (None, "second", 0, 0)) == {1: "newer", 2: "new", None: "second"}


def test_rows_that_are_keys_alone_are_there_once(cursor: Any) -> None:
    upsert = Upsert("live.seen", {"id": "int"}, ["id"], ["id"], updated_at=False)
    upsert.ensure(cursor, "x.yaml:1")
    assert upsert.write(cursor, [[1, 0, 0], [1, 0, 1], [2, 0, 2]]) == 2
    cursor.execute("select id from live.seen order by 1")
    assert cursor.fetchall() == [(1,), (2,)]
