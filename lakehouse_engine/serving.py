"""Copies of a job's Delta table in PostgreSQL: ``lakehouse serve``, and a further sink. One transaction per table,
which can be rebuilt at any time.

``lakehouse.served(pipeline, table_id, version, commit_id, served_at, rows, checksum)`` says which version of which
Delta table PostgreSQL holds; it is written in the transaction that replaces the rows, so a version that is there is not
loaded again. Only the slices that changed since are replaced, where the table's log tells which; readers see all of it
or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2.sql import SQL, Composed

from lakehouse_engine import ledger, sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.incremental import in_order
from lakehouse_engine.sinks import Delta, Sink
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.postgres import Loaded, Part
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Mirror:
    """A copy in ``table`` of the pipeline's Delta table, of the rows for which ``where`` is true.

    ``key``: its name in the ledger. ``place``: where in the file it is asked for.
    """

    spec: PipelineSpec
    table: str
    key: str
    place: str
    where: str | None = None
    updated_at: bool = True
    #: where it is, if that is not PostgreSQL's table of this name
    sink: Sink | None = None

    def of(self, table_id: str | None) -> str | None:
        """What the ledger says is copied: with other rows or columns it is another table."""
        if self.where is None and self.updated_at:
            return table_id
        said = hashlib.sha256(repr((self.where, self.updated_at)).encode()).hexdigest()[:16]
        return f"{table_id}/{said}"


def served(spec: PipelineSpec) -> Mirror:
    """What ``serve: postgres`` asks for."""
    return Mirror(spec, spec.name, spec.name, "serve")


@dataclass(frozen=True)
class Stale:
    """A table whose copy is behind: the version to load, and the part that changed (None: all of it, by ``reason``)."""

    mirror: Mirror
    version: int
    table_id: str | None
    commit_id: str | None
    part: Part | None
    reason: str

    @property
    def spec(self) -> PipelineSpec:
        return self.mirror.spec


@dataclass(frozen=True)
class Served:
    """What a load did: ``rows`` written of ``total`` that the copy now holds."""

    rows: int
    total: int
    reason: str


def stale(mirrors: Sequence[Mirror], storage: Path, dsn: str) -> list[Stale]:
    """The tables to load, decided from the logs and the ledger. Raises ``RunError`` MISSING_TABLE."""
    with closing(postgres_sink.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        ledger.ensure(cursor)
        cursor.execute("select pipeline, table_id, version, commit_id from lakehouse.served")
        held = {row[0]: row[1:] for row in cursor.fetchall()}
        for one in mirrors:  # here and not by the loads, which would wait for each other
            postgres_sink.ensure_schema(cursor, one.table)
    compared = [compare(one, DeltaLog(delta_sink.table_path(storage, one.spec.name)), held.get(one.key))
                for one in mirrors]  # fmt: skip
    return [item for item in compared if item is not None]


def compare(mirror: Mirror, log: DeltaLog, held: Any) -> Stale | None:
    """What the copy lacks, by the table's id, the version and its commit that it says to hold; None for nothing."""
    spec, version = mirror.spec, log.version()
    if version is None:
        raise RunError("MISSING_TABLE", f"there is no table {spec.name} yet; run it first",
                       where=spec.where(mirror.place))  # fmt: skip
    table_id, commit_id = mirror.of(log.table_id()), log.commit_id(version)

    def behind(part: Part | None, reason: str) -> Stale:
        return Stale(mirror, version, table_id, commit_id, part, reason)

    if held is None:
        return behind(None, "first load")
    held_id, held_version, held_commit = held
    then = log.commit_id(held_version)
    if held_id != table_id or held_version > version or (then and held_commit and then != held_commit):
        return behind(None, "the table is another one than before")
    if held_version == version:
        return None
    column = spec.sink.replace_by if isinstance(spec.sink, Delta) else None
    if column is None:
        return behind(None, "the table has no replace_by")
    change = log.changed(held_version, column)
    if change.slices is None:
        return behind(None, change.reason)
    return behind(Part(column, in_order(change.slices)), f"{len(change.slices)} of {column} changed")


def load(spark: SparkSession, item: Stale, storage: Path, dsn: str) -> Served:
    """Brings one table's copy to its version. Readers see the old copy until the transaction commits.

    The rows written are read back and compared by a checksum, and the whole copy by its number of rows; a copy that is
    off (somebody has changed it by hand) is loaded in whole. Raises ``RunError`` MIRROR_DIFFERS.
    """
    mirror, reason = item.mirror, item.reason
    frame = rows_of(spark, item, storage)
    with closing(postgres_sink.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        # the ledger's row is the order of writers: a second one waits here and then writes the same
        cursor.execute("insert into lakehouse.served (pipeline, version, rows) values (%s, -1, 0) on conflict"
                       " (pipeline) do update set served_at = excluded.served_at", (mirror.key,))  # fmt: skip
        loaded = _write(cursor, item, frame, item.part)
        total = loaded.rows if item.part is None else frame.count()
        if _rows(cursor, mirror.table) != total and item.part is not None:
            reason = "the copy had been changed by another hand"
            loaded = _write(cursor, item, frame, None)
        held = _rows(cursor, mirror.table)
        if held != total:
            raise RunError("MIRROR_DIFFERS", f"the copy would hold {held:,} rows and the table has {total:,}; nothing"
                           " was changed", where=mirror.spec.where(mirror.place))  # fmt: skip
        cursor.execute(
            "update lakehouse.served set table_id = %s, version = %s, commit_id = %s, rows = %s, checksum = %s,"
            " served_at = clock_timestamp() where pipeline = %s",
            (item.table_id, item.version, item.commit_id, total, loaded.checksum, mirror.key))  # fmt: skip
    return Served(loaded.rows, total, reason)


def rows_of(spark: SparkSession, item: Stale, storage: Path) -> DataFrame:
    """All that the copy has to hold."""
    mirror = item.mirror
    path = str(delta_sink.table_path(storage, mirror.spec.name))
    frame = spark.read.format("delta").option("versionAsOf", item.version).load(path)
    frame = frame if mirror.where is None else frame.filter(mirror.where)
    return frame if mirror.updated_at else frame.drop("updated_at")


def part_of(frame: DataFrame, part: Part | None) -> DataFrame:
    if part is None:
        return frame
    return frame.filter(sql.among(part.column, dict(frame.dtypes)[part.column], part.slices))


def _write(cursor: Any, item: Stale, frame: DataFrame, part: Part | None) -> Loaded:
    frame = part_of(frame, part)
    mirror = item.mirror
    loaded = postgres_sink.load(cursor, mirror.table, frame, mirror.spec.where(mirror.place), part)
    sink = item.spec.sink
    if part is None and isinstance(sink, Delta) and sink.replace_by:
        postgres_sink.ensure_index(cursor, mirror.table, sink.replace_by)
    return loaded


def _rows(cursor: Any, table: str) -> int:
    cursor.execute(Composed([SQL("select count(*) from "), postgres_sink.identifier(table)]))
    return int(cursor.fetchone()[0])
