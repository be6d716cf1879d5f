"""Rows that replace each other in PostgreSQL: a function of the rows that came, not of their order or their batches."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakehouse_engine.sinks.upsert import Upsert

COLUMNS = {"id": "text", "n": "bigint", "value": "text"}
#: id, order, value, whether it deletes; of an id and an order there is one row
EVENTS = st.tuples(st.sampled_from(["a", "b", None]), st.one_of(st.none(), st.integers(0, 6))).map(
    lambda at: (at[0], at[1], f"{at[0]}{at[1]}", (at[1] or 0) % 3 == 2))  # fmt: skip


def write(dsn: str, upsert: Upsert, rows: Sequence[Sequence[Any]]) -> int:
    """One micro-batch; how many rows have changed."""
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            upsert.ensure(cursor, "here")
            return upsert.write(cursor, [(*row, 0, offset) for offset, row in enumerate(rows)])
    finally:
        connection.close()


def held(dsn: str, table: str, columns: str = "id, n, value") -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"select {columns} from {table}")
            return sorted(cursor.fetchall(), key=str)
    finally:
        connection.close()


@given(batches=st.lists(st.lists(EVENTS, max_size=6), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_newest_row_of_a_key_stays_and_what_was_deleted_does_not_come_back(
    database: str, batches: list[list[tuple[str | None, int | None, str, bool]]]
) -> None:
    upsert = Upsert(f"silver.t{uuid.uuid4().hex[:12]}", COLUMNS, ["id"], ["n"], deletes=True)
    newest: dict[str | None, tuple[str | None, int | None, str, bool]] = {}
    for batch in batches:
        write(database, upsert, batch)
        for row in batch:
            before = newest.setdefault(row[0], row)
            if (row[1] is not None, row[1] or 0) > (before[1] is not None, before[1] or 0):
                newest[row[0]] = row
    expected = sorted((row[:3] for row in newest.values() if not row[3]), key=str)
    assert held(database, upsert.table) == expected
    stamps = held(database, upsert.table, "id, updated_at")
    assert write(database, upsert, [row for batch in batches[::-1] for row in batch]) == 0
    assert held(database, upsert.table, "id, updated_at") == stamps


def test_rows_that_never_delete_come_without_saying_so(database: str) -> None:
    upsert = Upsert("silver.one", COLUMNS, ["id"], ["n"])
    assert write(database, upsert, [("a", 1, "x"), ("a", 2, "y"), (None, 1, "z")]) == 2
    assert write(database, upsert, [("a", 1, "old"), (None, 1, "as new"), ("a", 2, "y")]) == 1
    assert held(database, "silver.one") == [("a", 2, "y"), (None, 1, "as new")]
    assert held(database, "pg_tables where tablename = 'one__deleted'", "tablename") == []
