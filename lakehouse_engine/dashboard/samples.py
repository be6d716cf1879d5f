"""The newest rows that a pipeline kept aside: beside its table in PostgreSQL, or in Delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psycopg2 import sql

from lakehouse_engine.database import Database, plain
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.sinks import delta, postgres

#: rows shown; characters of one value; files of a Delta table that are opened, and how large they may be
MOST, LONGEST, FILES, LARGEST = 20, 2000, 10, 64 * 1024 * 1024
_ORDER = {"late": "arrived_at", "quarantine": "quarantined_at"}


def of_postgres(database: Database, table: str, what: str) -> list[dict[str, Any]]:
    """``what`` is ``late`` or ``quarantine``; newest first; empty where there is no such table."""
    side = postgres.side_table(table, what)
    schema, _, name = side.partition(".")
    if database.ask("select to_regclass(%s)", (f'"{schema}"."{name}"',)).rows == [(None,)]:
        return []
    found = database.ask(sql.SQL("select * from {} order by {} desc limit %s").format(
        postgres.identifier(side), sql.Identifier(_ORDER[what])), (MOST,), limit=MOST)  # fmt: skip
    return [_row(dict(zip(found.columns, row, strict=True))) for row in found.rows]


def of_delta(storage: Path, table: str) -> list[dict[str, Any]]:
    """Rows of ``<table>__quarantine``, newest first, from the files that its newest commits added.

    A file whose rows were rewritten without some of them is not one of them any more.
    """
    import pyarrow.parquet as parquet

    path = delta.table_path(storage, f"{table}__quarantine")
    log, found, opened, gone = DeltaLog(path), [], 0, set[str]()
    for version in reversed(log.versions()):
        actions = list(log.actions(version))
        gone |= {action["remove"]["path"] for action in actions
                 if "remove" in action and action["remove"].get("dataChange", True)}  # fmt: skip
        for action in actions:
            added = action.get("add")
            if added is None or added["path"] in gone or added.get("size", 0) > LARGEST:
                continue
            if not added.get("dataChange", True):
                continue
            file = path / added["path"]
            if file.is_file():  # compacted away, else: its rows are in a file that only moves rows about
                opened += 1
                found += parquet.ParquetFile(file).read().slice(0, 10 * MOST).to_pylist()
        if len(found) >= MOST or opened >= FILES:
            break
    found.sort(key=lambda row: row["quarantined_at"], reverse=True)
    return [_row(row) for row in found[:MOST]]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    short = {name: plain(value) for name, value in row.items()}
    return {name: value[:LONGEST] + "…" if isinstance(value, str) and len(value) > LONGEST else value
            for name, value in short.items()}  # fmt: skip
