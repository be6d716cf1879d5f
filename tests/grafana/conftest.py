from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from lakehouse_engine.dashboard.macros import Range, expand
from lakehouse_engine.local.stack import Services
from tests.grafana.seed import Seed, fill
from tests.platform import PROJECT, empty_database

#: names and types of the columns, and the rows
Answer = tuple[dict[str, str], list[tuple[Any, ...]]]
Ask = Callable[[str, Range], Answer]


@contextmanager
def as_reader(dsn: str) -> Iterator[Connection]:
    """A connection as Grafana has it: as the role of reader.sql, which has run there."""
    password = secrets.token_urlsafe(24)
    with closing(psycopg2.connect(dsn)) as administrator, administrator, administrator.cursor() as cursor:
        cursor.execute(f"alter role lakehouse_reader password '{password}'")
    with closing(psycopg2.connect(dsn, user="lakehouse_reader", password=password)) as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture(scope="module")
def year(stack: Services) -> Iterator[Seed]:
    """A year of minutes, days and batches, up to now."""
    with empty_database(stack) as dsn:
        yield fill(dsn, PROJECT / "grafana" / "reader.sql")


@pytest.fixture(scope="module")
def grafana_connection(year: Seed) -> Iterator[Connection]:
    with as_reader(year.dsn) as connection:
        yield connection


@pytest.fixture(scope="module")
def ask(grafana_connection: Connection) -> Ask:
    """Expands a query, runs it as the reader, answers its columns and rows."""

    def answer(text: str, shown: Range) -> Answer:
        with grafana_connection.cursor() as cursor:
            cursor.execute(expand(text, shown))
            columns, rows = cursor.description, cursor.fetchall()
            cursor.execute("select oid, typname from pg_type where oid = any(%s)", ([c.type_code for c in columns],))
            types = dict(cursor.fetchall())
        assert len({c.name for c in columns}) == len(columns), "two columns of one name"
        return {c.name: types[c.type_code] for c in columns}, rows

    return answer
