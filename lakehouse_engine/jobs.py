"""Runs a batch job: what changed is found in the logs, computed by Spark, and written in one commit with its progress.

``decide`` is plain Python over the logs: a job with nothing new never starts Spark.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lakehouse_engine import plan as plans
from lakehouse_engine import rows, sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.locks import acquire
from lakehouse_engine.plan import EPOCH, Job
from lakehouse_engine.rows import Rows
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.transforms import Aggregate, Dedupe

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Decision:
    """What a run of a job has to do. ``slices`` (kind ``slices``): values of ``replace_by`` as the log writes them."""

    kind: Literal["nothing", "slices", "full"]
    reason: str
    version: int = 0
    table_id: str | None = None
    slices: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run of a job did; ``rows`` written."""

    decision: Decision
    rows: int
    counters: Mapping[str, int]


def decide(job: Job, storage: Path, *, full: bool = False) -> Decision:
    """Compares the source's log with what the last commit says it has read. Raises ``RunError`` MISSING_TABLE."""
    source = DeltaLog(delta_sink.table_path(storage, job.source))
    version = source.version()
    if version is None:
        raise RunError("MISSING_TABLE", f"there is no table {job.source} yet; run the pipeline that writes it first",
                       where=job.spec.where("source"))  # fmt: skip
    table_id = source.table_id()

    def everything(reason: str) -> Decision:
        return Decision("full", reason, version or 0, table_id)

    if full:
        return everything("asked for")
    if not isinstance(job.spec.sink, Delta):
        return everything("this sink keeps no progress")
    target = DeltaLog(delta_sink.table_path(storage, job.name))
    newest, record = target.version(), target.record()
    if newest is None:
        return everything("first run")
    if record is None or record["version"] != newest or record["pipeline"] != job.name:
        return everything("the newest commit is not this pipeline's")
    if record.get("fingerprint") != job.fingerprint or record.get("epoch") != EPOCH:
        return everything("the pipeline has changed")
    before = record["sources"].get(job.source, {})
    if before.get("id") != table_id or before.get("version", -1) > version:
        return everything(f"{job.source} is another table than before")
    if before["version"] == version:
        return Decision("nothing", f"{job.source} is still at version {version}", version, table_id)
    if not job.local or job.slice_by is None:
        return everything(job.reason)
    change = source.changed(before["version"], job.slice_by)
    if change is None:
        return everything(f"the log of {job.source} does not tell which {job.slice_by} changed")
    if not change.slices:
        return Decision("nothing", f"{job.source} has no changed rows", version, table_id)
    slices = tuple(sorted(change.slices, key=lambda s: (s is not None, s or "")))
    return Decision("slices", f"{len(slices)} of {job.slice_by} changed", version, table_id, slices)


def run(spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None) -> Outcome:
    """Computes and writes what ``decision`` says. Nothing is written when a table check fails.

    Raises ``PlanError`` EXPRESSION_TYPE, ``RunError`` CHECK_FAILED, LOCKED.
    """
    lock = acquire(spark, storage, job.name, job.name) if isinstance(job.spec.sink, Delta) else None
    try:
        return _Run(spark, job, decision, storage, dsn).execute()
    finally:
        if lock is not None:
            lock.release()


class _Run:
    def __init__(self, spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None) -> None:
        self._spark, self._job, self._decision, self._storage, self._dsn = spark, job, decision, storage, dsn
        self._spec = job.spec
        self._counters: dict[str, int] = {}
        self._warnings: dict[str, int] = {}
        self._persisted: list[DataFrame] = []
        self._run_id = uuid.uuid4().hex
        self._deduped: DataFrame | None = None  # the rows as they came into the dedupe
        self._started = datetime.now(timezone.utc)
        self._where = self._slices()

    def execute(self) -> Outcome:
        from pyspark.errors import PySparkException

        try:
            result, refused = self._compute()
            result.schema  # noqa: B018  (analysis happens here, before anything is written)
        except PySparkException as error:
            reason = str(error).split("\n")[0].split(" SQLSTATE")[0]
            raise PlanError("EXPRESSION_TYPE", reason, where=self._spec.where("transforms")) from None
        try:
            count = result.count()
            self._table_checks(result)
            self._counters[rows.COUNTED] = self._read(result, refused, count)
            if refused is not None:
                self._keep_aside(refused)
            self._write(result)
            return Outcome(self._decision, count, dict(self._counters))
        finally:
            for frame in self._persisted:
                frame.unpersist()

    def _slices(self) -> str | None:
        """SQL that selects the slices to recompute, in the source and in the target; None for a full run."""
        if self._decision.kind != "slices":
            return None
        column = sql.name(self._job.slice_by or "")
        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        kind = (log.columns() or {}).get(self._job.slice_by or "", "string")
        values = [f"cast({sql.string(v)} as {kind})" for v in self._decision.slices if v is not None]
        parts = [f"{column} in ({', '.join(values)})"] if values else []
        parts += [f"{column} is null"] if None in self._decision.slices else []
        return " or ".join(parts)

    def _compute(self) -> tuple[DataFrame, DataFrame | None]:
        """The result, and the rows that its checks refused (None without checks)."""
        path = str(delta_sink.table_path(self._storage, self._job.source))
        frame = self._spark.read.format("delta").option("versionAsOf", self._decision.version).load(path)
        if self._where is not None:
            frame = frame.filter(self._where)
        frame = frame.drop("updated_at")
        self._source = frame
        current: Rows | None = None
        for index, transform in enumerate(self._spec.transforms):
            if isinstance(transform, Aggregate | Dedupe):
                frame, current = self._project(frame, current), None
                if isinstance(transform, Dedupe):
                    self._deduped = frame
                frame = transform.apply(frame)
            else:
                current = plans.row_step(self._spec, current or Rows.identity(dict(frame.dtypes)), index)
        current = plans.with_checks(current or Rows.identity(dict(frame.dtypes)), self._spec)
        return self._judge(frame, current)

    def _project(self, frame: DataFrame, current: Rows | None) -> DataFrame:
        if current is None:
            return frame
        kept = frame.filter(rows.passing(current.verdicts)) if current.verdicts else frame
        return kept.selectExpr(*[f"{text} as {sql.name(name)}" for name, text in current.columns.items()])

    def _judge(self, frame: DataFrame, current: Rows) -> tuple[DataFrame, DataFrame | None]:
        stored = [f"{text} as {sql.name(name)}" for name, text in current.stored.items()]
        place = [n for n in plans.LANDING_COLUMNS if n in current.columns]
        warned = [f"{w.failed} as _warned{i}" for i, w in enumerate(current.warnings)]
        if not current.verdicts and not warned:
            result = frame.selectExpr(*stored).persist()
            self._persisted.append(result)
            return result, None
        step, reasons = rows.first_reasons(current.verdicts)
        extra = [f"{current.columns[n]} as `_at{n}`" for n in place]
        judged = frame.selectExpr(*stored, *extra, *warned, f"{rows.outcome(current.verdicts)} as _outcome",
                                  f"{step} as _step", f"{reasons} as _reasons").persist()  # fmt: skip
        self._persisted.append(judged)
        self._judged, self._place = (judged, current), place
        result = judged.filter(f"_outcome = '{rows.COUNTED}'").select(*[sql.name(n) for n in current.stored])
        return result, judged.filter(f"_outcome = '{rows.QUARANTINED}'")

    def _read(self, result: DataFrame, refused: DataFrame | None, count: int) -> int:
        """Counts what became of every source row; returns ``counted``."""
        quarantined = 0
        if refused is not None:
            quarantined = self._counters[rows.QUARANTINED] = refused.count()
            self._warn()
        if any(isinstance(t, Aggregate) for t in self._spec.transforms):
            return count  # a row of the result stands for many of the source
        total = self._source.count()
        if self._deduped is not None:
            before = self._deduped.count()
            self._counters[rows.FILTERED] = total - before
            self._counters[rows.DUPLICATE] = before - count - quarantined
        else:
            self._counters[rows.FILTERED] = total - count - quarantined
        return count

    def _warn(self) -> None:
        judged, current = self._judged
        for index, warning in enumerate(current.warnings):
            number = judged.filter(f"_warned{index} and _outcome = '{rows.COUNTED}'").count()
            self._warnings[warning.name] = number
            if number and warning.stops:
                raise RunError("CHECK_FAILED", f"{number} rows fail {warning.name}; nothing was written",
                               where=self._spec.where("checks"))  # fmt: skip

    def _table_checks(self, result: DataFrame) -> None:
        for check in plans.table_checks(self._spec):
            columns = check.columns or self._spec.key_columns
            frame = result.filter(check.where) if check.where else result
            twice = frame.groupBy(*[sql.name(c) for c in columns]).count().filter("count > 1").count()
            name = check.name or f"unique({', '.join(columns)})"
            self._warnings[name] = twice
            if twice and check.on_fail == "fail":
                raise RunError("CHECK_FAILED", f"{twice} values fail {name}; nothing was written",
                               where=self._spec.where("checks"))  # fmt: skip

    def _record(self) -> str:
        decision = self._decision
        return json.dumps({
            "pipeline": self._job.name, "epoch": EPOCH, "run_id": self._run_id, "kind": "job",
            "started_at": self._started.isoformat(), "fingerprint": self._job.fingerprint,
            "sources": {self._job.source: {"id": decision.table_id, "version": decision.version}},
            "slices": list(decision.slices) if decision.kind == "slices" else None, "reason": decision.reason,
            "counters": self._counters, "warnings": self._warnings,
        })  # fmt: skip

    def _keep_aside(self, refused: DataFrame) -> None:
        """Refused rows replace those of the same slices, in a commit before the main one."""
        path = delta_sink.table_path(self._storage, self._job.name + "__quarantine")
        exists = DeltaLog(path).version() is not None
        if not self._counters.get(rows.QUARANTINED) and not exists:
            return
        _, current = self._judged
        slice_by = self._job.slice_by
        unit = f"cast({sql.name(slice_by)} as string)" if slice_by in current.stored else "cast(null as string)"
        at = {n: f"`_at{n}`" if n in self._place else "null" for n in plans.LANDING_COLUMNS}
        stored = ", ".join(f"{sql.string(n)}, {sql.name(n)}" for n in current.stored)
        kept = refused.selectExpr(
            f"timestamp'{self._started.isoformat()}' as quarantined_at", "0L as batch_id", "_step as step",
            "_reasons as reasons", f"{sql.string(self._job.source)} as origin",
            f"cast({at['_partition']} as int) as partition", f"cast({at['_offset']} as bigint) as offset",
            "cast(null as binary) as key", "cast(null as binary) as value",
            f"to_json(named_struct({stored})) as row", f"{unit} as unit")  # fmt: skip
        where = None
        if self._where is not None and exists:
            values = [sql.string(v) for v in self._decision.slices if v is not None]
            parts = [f"unit in ({', '.join(values)})"] if values else []
            parts += ["unit is null"] if None in self._decision.slices else []
            where = " or ".join(parts)
        delta_sink.replace(kept.coalesce(1), path, self._record(), where=where, run=self._txn())

    def _txn(self) -> str:
        return f"{self._job.name}/{EPOCH}/{self._run_id}"

    def _write(self, result: DataFrame) -> None:
        from pyspark.sql import functions as F

        sink = self._spec.sink
        if isinstance(sink, Console):
            result.limit(sink.rows).show(sink.rows, truncate=False)
            return
        if sink.updated_at:
            result = result.withColumn("updated_at", F.lit(self._started))
        if isinstance(sink, Delta):
            path = delta_sink.table_path(self._storage, self._job.name)
            where = self._where if DeltaLog(path).version() is not None else None
            delta_sink.replace(
                result, path, self._record(), partition_by=sink.partition_by, where=where, run=self._txn()
            )
            return
        assert isinstance(sink, Postgres)
        assert self._dsn is not None
        replace_table(self._dsn, sink.table or self._job.name, result, self._spec.where("sink"))


def replace_table(dsn: str, table: str, frame: DataFrame, where: str) -> int:
    """Writes the frame in place of the PostgreSQL table's rows, in one transaction; returns the number of rows."""
    columns = {f.name: postgres_sink.pg_type(f.dataType.simpleString(), where) for f in frame.schema.fields}
    connection = postgres_sink.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            postgres_sink.ensure_table(cursor, table, columns, [], where)
            return postgres_sink.replace(cursor, table, columns, (list(row) for row in frame.toLocalIterator()))
    finally:
        connection.close()


__all__: list[Any] = ["Decision", "Outcome", "decide", "replace_table", "run"]
