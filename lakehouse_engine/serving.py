"""``lakehouse serve``: the copy of gold in PostgreSQL. One transaction per table, which can be rebuilt at any time.

``lakehouse.served(pipeline, table_id, version, served_at, rows)`` says which version of which Delta table PostgreSQL
holds; it is written in the transaction that replaces the rows, so a version that is there is not loaded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DDL = """create schema if not exists lakehouse;
create table if not exists lakehouse.served (pipeline text primary key, table_id text, version bigint not null,
  served_at timestamptz not null default clock_timestamp(), rows bigint not null)"""


@dataclass(frozen=True)
class Stale:
    """A table whose copy is behind: the version to load."""

    spec: PipelineSpec
    version: int
    table_id: str | None


def stale(specs: Sequence[PipelineSpec], storage: Path, dsn: str) -> list[Stale]:
    """The tables to load, decided from the logs and the ledger. Raises ``RunError`` MISSING_TABLE."""
    connection = postgres_sink.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(7241203)")
            cursor.execute(DDL)
            cursor.execute("select pipeline, table_id, version from lakehouse.served")
            held = {pipeline: (table_id, version) for pipeline, table_id, version in cursor.fetchall()}
    finally:
        connection.close()
    found = []
    for spec in specs:
        log = DeltaLog(delta_sink.table_path(storage, spec.name))
        version = log.version()
        if version is None:
            raise RunError(
                "MISSING_TABLE", f"there is no table {spec.name} yet; run it first", where=spec.where("serve")
            )
        if held.get(spec.name) != (log.table_id(), version):
            found.append(Stale(spec, version, log.table_id()))
    return found


def load(spark: SparkSession, item: Stale, storage: Path, dsn: str) -> int:
    """Replaces one table's copy; returns its number of rows. Readers see the old copy until it commits."""
    path = str(delta_sink.table_path(storage, item.spec.name))
    frame = spark.read.format("delta").option("versionAsOf", item.version).load(path)
    where = item.spec.where("serve")
    columns = {f.name: postgres_sink.pg_type(f.dataType.simpleString(), where) for f in frame.schema.fields}
    connection = postgres_sink.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            postgres_sink.ensure_table(cursor, item.spec.name, columns, [], where)
            rows = postgres_sink.replace(cursor, item.spec.name, columns, (list(r) for r in frame.toLocalIterator()))
            cursor.execute(
                "insert into lakehouse.served (pipeline, table_id, version, rows) values (%s, %s, %s, %s)"
                " on conflict (pipeline) do update set table_id = excluded.table_id, version = excluded.version,"
                " rows = excluded.rows, served_at = excluded.served_at",
                (item.spec.name, item.table_id, item.version, rows))  # fmt: skip
        return rows
    finally:
        connection.close()
