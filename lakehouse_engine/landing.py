"""A stream without a window into Delta: each row is added once, or merged by its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lakehouse_engine import definitions, deletions, progress, rows, sql
from lakehouse_engine.aside import Aside
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.journal import Run, seen
from lakehouse_engine.judged import Counts
from lakehouse_engine.maintenance import Keeper
from lakehouse_engine.plan import LANDING_COLUMNS, Member, Scan
from lakehouse_engine.progress import Record
from lakehouse_engine.rowwise import RowWise
from lakehouse_engine.sinks import Delta, delta_upsert
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks.delta_scd2 import Scd2
from lakehouse_engine.sinks.delta_upsert import Upsert
from lakehouse_engine.sources.reading import Reading

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Report = Callable[[str], None]
#: rows up to which a batch is written as one file per partition value
ONE_FILE_ROWS = 100_000


class Landing(RowWise):
    """A stream into Delta: refused rows first, then the rest, each commit with its position."""

    def __init__(self, member: Member, read: Reading, scan: Scan, to: Connections) -> None:
        landed = {n: n for n in LANDING_COLUMNS if n in member.rows.columns and member.spec.lands}
        super().__init__(member, read, {**member.merged, **landed}, scan.every)
        self._path = delta_sink.table_path(to.storage, member.table)
        self._aside = Aside(to.storage, member.table, read)
        record = DeltaLog(self._path).record()
        if record is not None and "checkpoint" in record:
            raise progress.state_differs(self.name, "lakehouse reset")
        self._goes_on(record)
        self._epoch = delta_sink.epoch_of(self._path)
        self._definition = definitions.of(member.spec, self._judge.columns).as_json()
        self._said = False
        self._properties = delta_sink.FED if member.fed else {}
        self._storage = to.storage
        self._deletes = deletions.done(DeltaLog(self._path))
        if member.spec.deletes_from:
            deletions.announce(to.storage, member.spec.deletes_from, member.name)
        policy = member.spec.maintain
        beside = policy.model_copy(update={"zorder_by": ()})
        self._keepers = [Keeper(self._path, policy), Keeper(self._aside.path, beside)]
        if member.spec.merges:
            self._keepers.append(Keeper(delta_upsert.deleted_path(self._path), beside))

    def delete(self, spark: SparkSession, report: Report) -> None:
        """What other pipelines ask to be deleted from the table."""
        waiting = deletions.waiting(self._storage, self.name, self._deletes)
        if waiting:
            done = deletions.apply(spark, self._storage, self.name)
            self._deletes = done or self._deletes
            if done:
                report(f"{self.name}: deleted what {', '.join(one.pipeline for one in waiting)} asked for")

    def _seen(self, record: Record, spark: SparkSession) -> Run:
        ended_at = progress.now_micros()
        for keeper in self._keepers:
            keeper.after(spark)
        return seen(record, self._trigger, "delta", ended_at=ended_at, **DeltaLog(self._path).standing())

    def _put(self, judged: DataFrame, counts: Counts, record: Record) -> Record:
        record = replace(record, deletes=self._deletes)
        self._read.still()
        if self._member.keeps and self._aside.wanted(counts, record):
            self._aside.keep(judged, record)
        self._store(judged.filter(f"_outcome = '{rows.COUNTED}'"), record, few=counts.rows < ONE_FILE_ROWS)
        self._said = True
        return replace(record, behind=self._ends.behind(record.offsets))

    def _metadata(self, record: Record) -> str:
        return record.user_metadata(**definitions.said(self._definition, record.batch_id, already=self._said))

    def _store(self, good: DataFrame, record: Record, *, few: bool) -> None:
        sink = self._member.spec.sink
        assert isinstance(sink, Delta)
        if self._member.spec.merges:
            self._merge(sink, good, record)
            return
        good = good.select(*map(sql.name, self._judge.columns))
        if self._member.spec.deletes_from:
            good = deletions.keys_and_request(good.distinct(), good.columns, record.batch_id, record.began_at)
        delta_sink.append(good.coalesce(1) if few else good, self._path, self._metadata(record),
                          partition_by=sink.partition_by, cluster_by=sink.cluster_by,
                          properties=self._properties)  # fmt: skip

    def _merge(self, sink: Delta, good: DataFrame, record: Record) -> None:
        from pyspark.sql import functions as F

        at = record.began_at
        columns = [*map(sql.name, self._judge.columns)]
        layout = (self._path, self._member.spec.key_columns, sink.order_by, sink.partition_by, sink.cluster_by,
                  sink.updated_at, self._properties)  # fmt: skip
        if sink.mode == "scd2":
            Scd2(*layout).write(good.select(*columns).drop("_later"), self._metadata(record), at)
            return
        ties = ["_at_offset", self._judge.key]
        found = good.select(*columns, *ties)
        if self._member.spec.reads_changes:  # of those of a key and an order the last is the newest
            found, ties = good.select(*columns), ["_later"]
        elif self._member.rows.expanded or not self._member.spec.placed:  # several rows of one place
            found, ties = found.withColumn("_row", F.to_json(F.struct("*"))), [*ties, "_row"]
        Upsert(*layout).write(found, self._metadata(record), at, ties)
