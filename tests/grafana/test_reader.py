"""The role that dashboards read with: it reads results and ledger, changes nothing, and does not run for long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege, QueryCanceled, ReadOnlySqlTransaction
from psycopg2.extensions import connection as Connection

from tests.grafana.conftest import as_reader
from tests.grafana.seed import tables
from tests.platform import PROJECT

TEXT = (PROJECT / "grafana" / "reader.sql").read_text()


@pytest.fixture
def engine(database: str) -> Iterator[Connection]:
    """A connection as the engine has it; the reader's role is made first, then tables and a row."""
    with closing(psycopg2.connect(database)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(TEXT)
            tables(cursor)
            cursor.execute("insert into gold.daily_active_users values ('2026-01-01', 5, now())")
        yield connection


@pytest.fixture
def reader(engine: Connection, database: str) -> Iterator[Connection]:
    with as_reader(database) as connection:
        yield connection


def test_it_reads_what_is_there_and_what_comes_later(reader: Connection, engine: Connection) -> None:
    with engine.cursor() as cursor:
        cursor.execute("create table gold.made_later as select 5 as n")
        cursor.execute("select schemaname || '.' || tablename from pg_tables where schemaname in"
                       " ('realtime', 'gold', 'lakehouse')")  # fmt: skip
        tables_there = [table for (table,) in cursor.fetchall()]
    assert len(tables_there) > 10
    with reader.cursor() as cursor:
        for table in tables_there:
            cursor.execute(f"select count(*) from {table}")
            assert cursor.fetchone() == (int(table in ("gold.made_later", "gold.daily_active_users")),)


@pytest.mark.parametrize("statement", [
    "insert into lakehouse.served (pipeline, version, rows) values ('x', 1, 1)",
    "update gold.daily_active_users set dau_count = 0",
    "delete from lakehouse.positions",
    "truncate lakehouse.batches",
    "create table gold.mine (n int)",
    "create table public.mine (n int)",
    "drop table gold.daily_active_users",
])  # fmt: skip
def test_it_changes_nothing_even_where_it_asks_for_writing(reader: Connection, statement: str) -> None:
    with reader.cursor() as cursor:
        with pytest.raises((ReadOnlySqlTransaction, InsufficientPrivilege)):
            cursor.execute(statement)
        cursor.execute("set default_transaction_read_only = off")
        with pytest.raises(InsufficientPrivilege):
            cursor.execute(statement)


def test_a_slow_query_is_ended_after_ten_seconds(reader: Connection) -> None:
    with reader.cursor() as cursor:
        cursor.execute("show statement_timeout")
        assert cursor.fetchone() == ("10s",)
        cursor.execute("set statement_timeout = '100ms'")  # the same limit, sooner
        with pytest.raises(QueryCanceled, match="statement timeout"):
            cursor.execute("select pg_sleep(60)")


def test_it_may_be_run_again_and_holds_no_password(engine: Connection, database: str) -> None:
    with engine.cursor() as cursor:
        cursor.execute(TEXT)
    assert "password" not in re.sub(r"--.*", "", TEXT).lower()
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(database, user="lakehouse_reader", password="lakehouse_reader")
