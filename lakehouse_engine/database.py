"""PostgreSQL as it is looked at, by the dashboard and for `lakehouse status`.

A few read-only connections whose queries end, answers shared for a moment, and values as JSON holds them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, TypeVar

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.sql import Composable

from lakehouse_engine.errors import RunError
from lakehouse_engine.sinks import postgres

T = TypeVar("T")
#: seconds that a query may take; without the compiler, which costs more than it gives at this size
TIMEOUT = 5
_OPTIONS = f"-c timezone=UTC -c default_transaction_read_only=on -c statement_timeout={TIMEOUT}s -c jit=off"
CONNECTIONS = 4


@dataclass(frozen=True)
class Answer:
    """``columns`` and ``rows``; ``more``: there were others beyond the limit."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool = False


class Database:
    """At most ``CONNECTIONS`` connections, made when they are needed. A broken one is replaced once."""

    def __init__(self, dsn: Callable[[], str]) -> None:
        self._dsn = dsn
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        #: queries sent so far
        self.queries = 0

    def ask(self, text: str | Composable, values: Any = None, limit: int = 1000) -> Answer:
        """The first ``limit`` rows of one query, in a read-only transaction of its own.

        Raises ``RunError`` POSTGRES_UNREACHABLE, POSTGRES_REFUSED, POSTGRES_BUSY, QUERY_TIMEOUT, and what psycopg2
        raises for a query that PostgreSQL refuses.
        """
        if not self._free.acquire(timeout=TIMEOUT):
            raise RunError("POSTGRES_BUSY", f"all {CONNECTIONS} connections are at work; try again",
                           where="connection postgres")  # fmt: skip
        try:
            connection, used = self._take()
            try:
                return self._answer(connection, text, values, limit)
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if isinstance(error, errors.QueryCanceled):
                    raise RunError("QUERY_TIMEOUT", f"the query took longer than {TIMEOUT} s; ask for less",
                                   where="connection postgres") from None  # fmt: skip
                if not used:  # one of ours may have died while it lay idle; a new one has not
                    raise RunError("POSTGRES_UNREACHABLE", f"the connection broke: {str(error).strip()}",
                                   where="connection postgres") from None  # fmt: skip
            self.close()
            return self._answer(self._open(), text, values, limit)
        finally:
            self._free.release()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> tuple[Connection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return self._open(), False

    def _open(self) -> Connection:
        connection = postgres.connect(self._dsn(), _OPTIONS, "lakehouse dashboard")
        connection.set_session(readonly=True)
        return connection

    def _answer(self, connection: Connection, text: str | Composable, values: Any, limit: int) -> Answer:
        kept = False
        try:
            with connection.cursor() as cursor:
                self.queries += 1
                cursor.execute(text, values)
                rows = cursor.fetchmany(limit + 1)
                columns = tuple(column.name for column in cursor.description or ())
            connection.rollback()
            kept = True
            return Answer(columns, rows[:limit], len(rows) > limit)
        except (psycopg2.ProgrammingError, psycopg2.DataError):
            connection.rollback()
            kept = True
            raise
        finally:
            if kept:
                with self._lock:
                    self._idle.append(connection)
            else:
                with suppress(psycopg2.Error):
                    connection.close()


class Shared:
    """Answers that several viewers ask for at once are made once, and hold for a moment.

    A moment is ``LASTS`` seconds, or ten times what the answer took: however many look, a slow question takes a tenth
    of one connection at most. An error holds as long.
    """

    LASTS = 0.9

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, tuple[Future[Any], list[float]]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            future, until = self._held.get(key, (None, [0.0]))
            mine = future is None or (future.done() and until[0] <= time.monotonic())
            if mine:
                future, until = Future(), [0.0]
                self._held[key] = (future, until)
                self._held.move_to_end(key)
                while len(self._held) > self._most:
                    self._held.popitem(last=False)
        assert future is not None
        if mine:
            began = time.monotonic()
            try:
                made = make()
            except Exception as error:
                until[0] = began + self.LASTS
                future.set_exception(error)
            else:
                until[0] = began + max(self.LASTS, 10 * (time.monotonic() - began))
                future.set_result(made)
        found: T = future.result()
        return found


def known(database: Database, tables: Sequence[str]) -> set[str]:
    """Those of the tables (``schema.name``) that are there."""
    text = "select t from unnest(%s::text[]) t where to_regclass(t) is not null"
    return {row[0] for row in database.ask(text, (list(tables),)).rows}


def plain(value: Any) -> Any:
    """A value of PostgreSQL or Parquet as JSON holds it: times in UTC, exact decimals as text, bytes as text or hex."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, memoryview | bytes | bytearray):
        raw = bytes(value)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "\\x" + raw.hex()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)
