"""Where the micro-batches of a query with state end: rows, what is kept aside, and its batch's number in one commit.

Into PostgreSQL one transaction with a row of ``lakehouse.queries`` that is compared and set: a batch that comes again
is known by its number, and a process that was taken for dead is refused. Into Delta the number stands in the commit's
``userMetadata``; what is kept aside goes before it in commits of their own, each with the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2

from lakehouse_engine import definitions, ledger, progress, sql
from lakehouse_engine.checkpoints import Held
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import FencedError, PlanError, RunError
from lakehouse_engine.inserts import QUARANTINED
from lakehouse_engine.maintenance import Keeper
from lakehouse_engine.progress import Position, Record, from_micros
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks import upsert as postgres_upsert
from lakehouse_engine.sinks.delta_scd2 import Scd2
from lakehouse_engine.sinks.delta_upsert import DELETES, Upsert
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.stages import Query

if TYPE_CHECKING:
    from pyspark.sql import DataFrame



@dataclass(frozen=True)
class Batch:
    """``good`` has ``columns``, then ``_at_partition`` and ``_at_offset``; ``rows`` is their number.

    ``refused`` has ``step, reasons, origin, partition, offset, key, value, row``; ``late`` has ``step, origin,
    partition, offset, row`` and in microseconds ``time`` and ``missed``. Each None where there is no row.
    """

    number: int
    record: Record
    #: the positions of other inputs
    others: tuple[Record, ...]
    columns: tuple[str, ...]
    good: DataFrame
    rows: int
    refused: DataFrame | None
    late: DataFrame | None
    #: rows and bytes of state before the batch, where they are known
    state: tuple[int, int] | None = None


class Ending(Protocol):
    """``held``: what the sink says, read without changing anything; ``claim`` takes it over for a checkpoint."""

    batch_id: int
    epoch: int

    def held(self) -> Held | None: ...

    def claim(self, checkpoint: str, kinds: Mapping[str, str]) -> None: ...

    def positions(self, topic: TopicState, starts: Mapping[int, int]) -> Mapping[int, Position]:
        """How far the topic has been read; partitions that were not begin at ``starts``."""
        ...

    def write(self, batch: Batch) -> Mapping[str, Any]:
        """What is to be told of the table afterwards."""
        ...

    def close(self) -> None: ...


class IntoPostgres:
    """Raises ``PlanError`` COLUMN_TYPE, TABLE_DIFFERS, STATE_DIFFERS; ``RunError`` POSTGRES_UNREACHABLE, FENCED."""

    def __init__(self, query: Query, dsn: str, writer: str, reset: str) -> None:
        self._query, self._writer, self._reset = query, writer, reset
        self._connection = postgres_sink.connect(dsn)
        self._checkpoint, self._number = "", -1
        self._held: Held | None = None
        self._upsert: postgres_upsert.Upsert | None = None
        self._stamp: Mapping[str, str] = {}
        self.batch_id, self.epoch = 0, 1

    def held(self) -> Held | None:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("select to_regclass('lakehouse.queries') is not null,"
                           " to_regclass('lakehouse.positions') is not null,"
                           " to_regclass('lakehouse.definitions') is not null")  # fmt: skip
            queries, positions, defined = _one(cursor)
            self.epoch = progress.epoch_of(cursor, self._query.name) if defined else 1
            key = (self._query.name, self.epoch)
            if queries:
                mine = "where pipeline = %s and epoch = %s"
                cursor.execute(f"select checkpoint, batch from lakehouse.queries {mine}", key)
                found = cursor.fetchone()
                if found is not None:
                    self._held = Held(*found) if found[1] >= 0 else None
                    return self._held
            if positions:
                cursor.execute("select 1 from lakehouse.positions where pipeline = %s and epoch = %s limit 1", key)
                if cursor.fetchone() is not None:
                    raise _was_without_state(self._query, self._reset)
        return None

    def claim(self, checkpoint: str, kinds: Mapping[str, str]) -> None:
        query, where = self._query, self._query.spec.where("sink")
        sink = query.spec.sink
        assert isinstance(sink, Postgres)
        columns = {name: postgres_sink.pg_type(kind, where) for name, kind in kinds.items() if name != DELETES}
        upserts = sink.mode == "upsert" or (sink.mode is None and query.window is not None)
        with self._connection, self._connection.cursor() as cursor:
            ledger.make(cursor)
            if upserts:
                keys = query.spec.key_columns
                self._upsert = postgres_upsert.Upsert(query.table, columns, keys, sink.order_by, sink.updated_at,
                                      sink.delete_when is not None)  # fmt: skip
                self._upsert.ensure(cursor, where)
            else:  # of windows that are added it is known when, as of those that the database merges
                self._stamp = {"updated_at": "timestamptz"} if query.window and sink.updated_at else {}
                postgres_sink.ensure_table(cursor, query.table, {**columns, **self._stamp}, [], where)
            for suffix, ddl in (("quarantine", postgres_sink.QUARANTINE), ("late", postgres_sink.LATE)):
                aside = postgres_sink.identifier(postgres_sink.side_table(query.table, suffix))
                cursor.execute(psycopg2.sql.SQL(ddl).format(aside))
            cursor.execute(
                "insert into lakehouse.queries as q (pipeline, epoch, checkpoint, batch, writer)"
                " values (%s, %s, %s, -1, %s) on conflict (pipeline, epoch) do update set writer = excluded.writer,"
                " checkpoint = case when q.batch < 0 then excluded.checkpoint else q.checkpoint end"
                " returning checkpoint, batch", (query.name, self.epoch, checkpoint, self._writer))  # fmt: skip
            self._checkpoint, self._number = _one(cursor)
            if Held(self._checkpoint, self._number) != (self._held or Held(checkpoint, -1)):
                # between the two looks another process began, with a checkpoint of its own, and committed
                raise _fenced(query)
            definitions.hold(cursor, query.name, self.epoch, definitions.of(query.spec, columns))
            cursor.execute("select coalesce(max(batch_id), 0) from lakehouse.batches"
                           " where pipeline = %s and epoch = %s", (query.name, self.epoch))  # fmt: skip
            (self.batch_id,) = _one(cursor)

    def positions(self, topic: TopicState, starts: Mapping[int, int]) -> Mapping[int, Position]:
        with self._connection, self._connection.cursor() as cursor:
            claim = progress.claim(cursor, self._query.name, topic.id, topic.name, starts, self._writer,
                                   on_state=True, several=topic.several, firsts=topic.firsts)  # fmt: skip
        return claim.positions

    def write(self, batch: Batch) -> Mapping[str, Any]:
        table = self._query.table
        try:
            with self._connection, self._connection.cursor() as cursor:
                self._move(cursor, batch)
                if batch.rows:
                    self._rows(cursor, batch)
                for suffix, columns, rows in (("quarantine", QUARANTINED, _refused(batch)),
                                              ("late", postgres_sink.LATE_COLUMNS, _late(batch))):  # fmt: skip
                    aside = postgres_sink.identifier(postgres_sink.side_table(table, suffix))
                    postgres_sink.copy(cursor, aside, columns, rows)
                progress.move(cursor, batch.others, self._writer)
                progress.commit(cursor, [batch.record], self._writer)
        except psycopg2.DataError as error:  # a row that its column cannot hold comes again, and again
            raise RunError("ROW_REFUSED", str(error).strip().splitlines()[0], where=self._query.name) from error
        self._number, self.batch_id = batch.number, batch.record.batch_id
        return {}

    def _move(self, cursor: Any, batch: Batch) -> None:
        cursor.execute(
            "update lakehouse.queries set batch = %s, state_rows = coalesce(%s, state_rows),"
            " state_bytes = coalesce(%s, state_bytes) where pipeline = %s and epoch = %s and checkpoint = %s"
            " and batch = %s and writer = %s",
            (batch.number, *(batch.state or (None, None)), self._query.name, self.epoch, self._checkpoint, self._number,
             self._writer))  # fmt: skip
        if cursor.rowcount != 1:
            raise _fenced(self._query)

    def _rows(self, cursor: Any, batch: Batch) -> None:
        names = [sql.name(name) for name in batch.columns]
        if self._upsert is not None:
            place = ["coalesce(_at_partition, 0) as _at_partition", "coalesce(_at_offset, 0L) as _at_offset"]
            self._upsert.write(cursor, postgres_sink.python_rows(batch.good.selectExpr(*names, *place)))
            return
        now = [batch.record.began_at] * len(self._stamp)
        rows = ([*row, *now] for row in postgres_sink.python_rows(batch.good.select(*names)))
        postgres_sink.copy(cursor, postgres_sink.identifier(self._query.table), [*batch.columns, *self._stamp], rows)

    def close(self) -> None:
        self._connection.close()


def _fenced(query: Query) -> FencedError:
    return FencedError("FENCED", f"{query.name}: written by another process; this one stops. Nothing was lost or"
                       " doubled", where="connection postgres")  # fmt: skip


def _was_without_state(query: Query, reset: str) -> PlanError:
    return PlanError("STATE_DIFFERS", f"{query.table} was written without state of Spark's until now ({query.reason})."
                     f" Nothing was changed; to begin anew: {reset}", where=query.spec.where("transforms"))  # fmt: skip


def _one(cursor: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = cursor.fetchone()
    return found


def _refused(batch: Batch) -> Iterator[Sequence[Any]]:
    if batch.refused is None:
        return
    now = batch.record.began_at
    for step, reasons, origin, partition, offset, key, value, row in batch.refused.toLocalIterator():
        yield (now, batch.record.batch_id, step, list(reasons), origin, partition, offset, key, value, row)


def _late(batch: Batch) -> Iterator[Sequence[Any]]:
    if batch.late is None:
        return
    now, watermark = batch.record.began_at, from_micros(batch.record.watermark)
    for step, origin, partition, offset, row, time, missed in batch.late.toLocalIterator():
        windows = None if missed is None else [from_micros(start) for start in missed]
        yield (now, batch.record.batch_id, step, from_micros(time), watermark, windows, origin, partition, offset, row)


class IntoDelta:
    """The table's lock, held by the JVM that writes, is what keeps others out."""

    def __init__(self, query: Query, storage: Path, reset: str) -> None:
        self._query, self._reset = query, reset
        self._path = delta_sink.table_path(storage, query.name)
        policy = query.spec.maintain
        aside = policy.model_copy(update={"zorder_by": ()})
        self._keepers = [Keeper(self._path, policy)]
        sides = ("quarantine", "late", *(["deleted"] if query.spec.merges else []))
        self._keepers += [Keeper(delta_sink.beside(self._path, side), aside) for side in sides]
        self._checkpoint = ""
        self._record: Mapping[str, Any] | None = None
        self._definition: Mapping[str, Any] | None = None
        self._said = False
        self.batch_id, self.epoch = 0, delta_sink.epoch_of(self._path)

    def held(self) -> Held | None:
        record = self._record = DeltaLog(self._path).record()
        if record is None:
            return None
        self.batch_id = int(record.get("batch_id", 0))
        if "checkpoint" not in record:
            raise _was_without_state(self._query, self._reset)
        return Held(record["checkpoint"], int(record["query_batch"]))

    def claim(self, checkpoint: str, kinds: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._definition = definitions.of(self._query.spec, [name for name in kinds if name != DELETES]).as_json()

    def positions(self, topic: TopicState, starts: Mapping[int, int]) -> Mapping[int, Position]:
        if self._record is None or self._record["topic_id"] != topic.id:
            # of the other inputs the commits do not tell: Spark's checkpoint does
            return {partition: Position(offset) for partition, offset in starts.items()}
        return progress.going_on(progress.from_user_metadata(self._record, topic.topics)[1], starts, topic.firsts)

    def write(self, batch: Batch) -> Mapping[str, Any]:
        state = {} if batch.state is None else {"state_rows": batch.state[0], "state_bytes": batch.state[1]}
        said = definitions.said(self._definition, batch.record.batch_id, already=self._said)
        text = batch.record.user_metadata(checkpoint=self._checkpoint, query_batch=batch.number, **state, **said)
        now = f"timestamp'{batch.record.began_at.isoformat()}'"
        if batch.refused is not None:
            self._keep("quarantine", batch, text, batch.refused.selectExpr(
                f"{now} as quarantined_at", f"{batch.record.batch_id}L as batch_id", "step", "reasons", "origin",
                "partition", "offset", "key", "value", "row", "cast(null as string) as unit"))  # fmt: skip
        if batch.late is not None:
            assert batch.record.watermark is not None
            self._keep("late", batch, text, batch.late.selectExpr(
                f"{now} as arrived_at", f"{batch.record.batch_id}L as batch_id", "step",
                "timestamp_micros(time) as event_time", f"timestamp_micros({batch.record.watermark}L) as watermark",
                "transform(missed, start -> timestamp_micros(start)) as missed", "origin", "partition", "offset", "row",
                "cast(null as timestamp) as applied_at"))  # fmt: skip
        sink = self._query.spec.sink
        assert isinstance(sink, Delta)
        properties = delta_sink.FED if self._query.fed else {}
        if self._query.spec.merges:
            self._merge(sink, batch, text, properties)
        else:
            delta_sink.append(batch.good.select(*map(sql.name, batch.columns)).coalesce(1), self._path, text,
                              partition_by=sink.partition_by, cluster_by=sink.cluster_by,
                              properties=properties)  # fmt: skip
        self.batch_id, self._said = batch.record.batch_id, True
        for keeper in self._keepers:
            keeper.after(batch.good.sparkSession)
        return DeltaLog(self._path).standing()

    def _merge(self, sink: Delta, batch: Batch, text: str, properties: Mapping[str, str]) -> None:
        from pyspark.sql import functions as F

        layout = (self._path, self._query.spec.key_columns, sink.order_by, sink.partition_by, sink.cluster_by,
                  sink.updated_at, properties)  # fmt: skip
        at, columns = batch.record.began_at, [*map(sql.name, batch.columns)]
        if sink.mode == "scd2":
            Scd2(*layout).write(batch.good.select(*columns), text, at)
            return
        # several rows may have one place, or none
        found = batch.good.select(*columns, "_at_offset", "_at_partition").withColumn("_row", F.to_json(F.struct("*")))
        Upsert(*layout).write(found, text, at, ["_at_offset", "_at_partition", "_row"])

    def _keep(self, suffix: str, batch: Batch, text: str, frame: DataFrame) -> None:
        """A commit of its own before the main one; after a crash between the two its rows are not added again."""
        path = delta_sink.beside(self._path, suffix)
        record = DeltaLog(path).record() or {}
        if record.get("checkpoint") == self._checkpoint and record.get("query_batch") == batch.number:
            return
        delta_sink.append(frame.coalesce(1), path, text)

    def close(self) -> None:
        pass


class Shown:
    """Rows are printed, nothing is kept: a run begins where ``start`` says."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self.batch_id, self.epoch = 0, 1

    def held(self) -> Held | None:
        return None

    def claim(self, checkpoint: str, kinds: Mapping[str, str]) -> None:
        pass

    def positions(self, topic: TopicState, starts: Mapping[int, int]) -> Mapping[int, Position]:
        return {partition: Position(offset) for partition, offset in starts.items()}

    def write(self, batch: Batch) -> Mapping[str, Any]:
        sink = self._query.spec.sink
        assert isinstance(sink, Console)
        if batch.rows:
            batch.good.select(*map(sql.name, batch.columns)).limit(sink.rows).show(sink.rows, truncate=False)
        self.batch_id = batch.record.batch_id
        return {}

    def close(self) -> None:
        pass
