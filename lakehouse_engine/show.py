"""The rows of a table for people: from PostgreSQL where readers find it there, else from Delta."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from rich.table import Table as Grid

from lakehouse_engine.database import Database, known, plain
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import UsageError
from lakehouse_engine.sinks import delta, postgres
from lakehouse_engine.sql import name as sql_name

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_IN_ORDER = ("timestamp", "date", "string", "int", "bigint", "double")


@dataclass(frozen=True)
class Shown:
    """``rows`` of ``store`` (postgres or delta) as JSON holds their values; ``more``: there are others."""

    table: str
    store: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    more: bool

    def as_json(self) -> dict[str, Any]:
        return {"table": self.table, "store": self.store, "more": self.more,
                "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows]}  # fmt: skip

    def grid(self) -> Grid:
        made = Grid(title=f"{self.table} in {self.store}", title_justify="left")
        for column in self.columns:
            made.add_column(column, overflow="fold")
        for row in self.rows:
            made.add_row(*(_text(value) for value in row))
        if self.more:
            made.caption = f"the first {len(self.rows):,} rows"
        return made


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read(table: str, dsn: str | None, storage: Path, spark: Callable[[], SparkSession], limit: int) -> Shown:
    """The first ``limit`` rows, the greatest of the first three columns first (a window's start, a day).

    ``dsn`` None: there is no database. ``spark`` is asked for a session where the table is in Delta alone.
    Raises ``UsageError`` UNKNOWN_TABLE.
    """
    if dsn is not None:
        database = Database(lambda: dsn)
        try:
            if known(database, [table]):
                return _of_postgres(database, table, limit)
        finally:
            database.close()
    path = delta.table_path(storage, table)
    if DeltaLog(path).version() is None:
        raise UsageError("UNKNOWN_TABLE", f"there is no table {table} in PostgreSQL, nor at {path}; has it run?")
    return _of_delta(spark(), table, path, limit)


def _of_postgres(database: Database, table: str, limit: int) -> Shown:
    named = postgres.identifier(table)
    columns = database.ask(sql.SQL("select * from {} limit 0").format(named)).columns
    order = sql.SQL(", ").join(sql.SQL("{} desc nulls last").format(sql.Identifier(one)) for one in columns[:3])
    found = database.ask(sql.SQL("select * from {} order by {} limit %s").format(named, order), (limit + 1,), limit)
    return Shown(table, "postgres", found.columns, [plain(row) for row in found.rows], found.more)


def _of_delta(spark: SparkSession, table: str, path: Path, limit: int) -> Shown:
    from pyspark.sql import functions as F

    frame = spark.read.format("delta").load(str(path))
    sorted_by = [F.col(sql_name(name)).desc_nulls_last() for name, kind in frame.dtypes[:3] if kind in _IN_ORDER]
    # as text: Python's own times would be in the zone of this machine
    as_json = F.to_json(F.struct("*"), {"ignoreNullFields": "false"})
    texts = frame.orderBy(*sorted_by).limit(limit + 1).select(as_json).collect()
    rows = [tuple(json.loads(text[0]).values()) for text in texts]
    return Shown(table, "delta", tuple(frame.columns), rows[:limit], len(rows) > limit)


