"""The rows of a table for people: from PostgreSQL where readers find it there, else from Delta."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from lakehouse_engine import printed
from lakehouse_engine.database import Database, known, plain
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import LakehouseError, UsageError
from lakehouse_engine.sinks import delta, postgres
from lakehouse_engine.spec.environment import Environment
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

    def text(self) -> str:
        """For people."""
        from rich import box
        from rich.table import Table

        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in self.columns:
            made.add_column(column, justify="right" if self._is_number(column) else "left")
        for row in self.rows:
            made.add_row(*map(_text, row))
        count = f"the first {len(self.rows):,} rows" if self.more else f"{len(self.rows):,} rows"
        return "\n".join([*printed.lines(made), f"{count} of {self.table} in {self.store}"])

    def _is_number(self, column: str) -> bool:
        place = self.columns.index(column)
        return all(row[place] is None or isinstance(row[place], int | float) for row in self.rows)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read(table: str, environment: Environment, limit: int, jars: Callable[[], Sequence[Path]],
         report: Callable[[str], None]) -> Shown:  # fmt: skip
    """The first ``limit`` rows, the greatest of the first three columns first (a window's start, a day).

    ``jars`` are for Spark, which is started where the table is in Delta alone. Raises ``UsageError`` UNKNOWN_TABLE.
    """
    path = delta.table_path(Path(environment.storage).resolve(), table)
    in_delta = DeltaLog(path).version() is not None
    database = Database(environment.postgres_dsn)
    try:
        if known(database, [table]):
            return _of_postgres(database, table, limit)
    except LakehouseError:
        if not in_delta:
            raise
    finally:
        database.close()
    if not in_delta:
        raise UsageError("UNKNOWN_TABLE", f"there is no table {table}, neither in PostgreSQL nor at {path}; has its"
                         " pipeline run?")  # fmt: skip
    from lakehouse_engine import session

    report("starting Spark")
    spark = session.start("show", jars=jars(), settings=environment.spark)
    try:
        return _of_delta(spark, table, path, limit)
    finally:
        spark.stop()


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
    texts = {name: _readable(sql_name(name)) for name, kind in frame.dtypes if kind == "binary"}
    first = frame.orderBy(*sorted_by).limit(limit + 1).withColumns({name: F.expr(text) for name, text in texts.items()})
    rows = [tuple(row.values()) for row in delta.plain_rows(first)]
    return Shown(table, "delta", tuple(frame.columns), rows[:limit], len(rows) > limit)


def _readable(column: str) -> str:
    """SQL: bytes as text where they are one, else in hex, as ``plain`` has those of PostgreSQL."""
    return f"coalesce(try_validate_utf8(cast({column} as string)), concat('\\\\x', lower(hex({column}))))"
