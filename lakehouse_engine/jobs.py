"""Runs a batch job: what changed (see ``incremental.py``) is computed by Spark and written with its progress."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import arrivals, rows, sql
from lakehouse_engine import plan as plans
from lakehouse_engine.arrivals import MustRecompute
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.locks import acquire
from lakehouse_engine.plan import EPOCH, Job
from lakehouse_engine.rows import Rows
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.transforms import Aggregate, Dedupe

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: seconds that a run waits for another one of its table: a task that was killed and cleared meets its own end
LOCK_PATIENCE = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a run of a job did; ``rows`` written."""

    decision: Decision
    rows: int
    counters: Mapping[str, int]


def run(spark: SparkSession, job: Job, storage: Path, dsn: str | None, *, full: bool = False,
        announce: Callable[[Decision], None] = lambda _: None) -> Outcome:  # fmt: skip
    """Decides, computes and writes; ``announce`` is told the decision. Nothing is written when a table check fails.

    Raises ``PlanError`` EXPRESSION_TYPE, ``RunError`` MISSING_TABLE, AS_OF_GONE, CHECK_FAILED, LOCKED.
    """
    with held(spark, job, storage):
        decision = decide(job, storage, full=full)  # under the lock: who held it before may have done the work
        announce(decision)
        if decision.kind == "nothing":
            return Outcome(decision, 0, {})
        return execute(spark, job, decision, storage, dsn, announce)


def held(spark: SparkSession, job: Job, storage: Path) -> AbstractContextManager[object]:
    """The lock of the job's table while the context lasts. A run that is about to end is waited for."""
    if not isinstance(job.spec.sink, Delta):
        return nullcontext()
    return closing(acquire(spark, storage, job.name, job.name, patience=LOCK_PATIENCE))


def execute(spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None,
            announce: Callable[[Decision], None] = lambda _: None) -> Outcome:  # fmt: skip
    """Does what ``decision`` says, or tells ``announce`` what else has to be done; the caller holds the table."""
    try:
        return _Run(spark, job, decision, storage, dsn).execute()
    except MustRecompute as found:  # before anything was written
        whole = replace(decision, kind="slices", reason=f"{decision.reason}, but {found}")
        announce(whole)
        return _Run(spark, job, whole, storage, dsn).execute()


class _Run:
    def __init__(self, spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None) -> None:
        self._spark, self._job, self._decision, self._storage, self._dsn = spark, job, decision, storage, dsn
        self._spec = job.spec
        self._counters: dict[str, int] = {}
        self._warnings: dict[str, int] = {}
        self._persisted: list[DataFrame] = []
        self._run_id = uuid.uuid4().hex
        self._deduped: DataFrame | None = None  # the rows as they came into the dedupe
        self._judged: tuple[DataFrame, Rows] | None = None  # rows with the verdicts of their checks
        self._started = datetime.now(timezone.utc)
        self._where = self._slices()

    def execute(self) -> Outcome:
        try:
            result, refused = self._analysed()
            count = self._count(result)
            self._table_checks(result)
            if refused is not None:
                self._keep_aside(refused)
            self._write(result)
            return Outcome(self._decision, count, dict(self._counters))
        finally:
            for frame in self._persisted:
                frame.unpersist()

    def _analysed(self) -> tuple[DataFrame, DataFrame | None]:
        from pyspark.errors import PySparkException

        try:
            result, refused = self._compute()
            result.schema  # noqa: B018  (analysis happens here, before anything is written)
        except PySparkException as error:
            raise PlanError("EXPRESSION_TYPE", _reason(error), where=self._spec.where("transforms")) from None
        return result, refused

    def _slices(self) -> str | None:
        """SQL that selects the slices that changed, in the source and in the target; None for a full run."""
        if self._decision.kind == "full":
            return None
        column = self._job.slice_by or ""
        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        return sql.among(column, (log.columns() or {}).get(column, "string"), self._decision.slices)

    def _compute(self) -> tuple[DataFrame, DataFrame | None]:
        """The result, and the rows that its checks refused (None without checks)."""
        frame = self._source = self._new() if self._only_new else self._stored(self._decision.version)
        current: Rows | None = None
        for index, transform in enumerate(self._spec.transforms):
            if isinstance(transform, Aggregate | Dedupe):
                projected, before = self._project(frame, current), current
                frame, current = transform.apply(projected), None
                if isinstance(transform, Dedupe):
                    self._deduped = projected
                    frame = self._unseen(frame, before, transform) if self._only_new else frame
            else:
                current = plans.row_step(self._spec, current or Rows.identity(dict(frame.dtypes)), index)
        current = plans.with_checks(current or Rows.identity(dict(frame.dtypes)), self._spec)
        return self._judge(frame, current)

    @property
    def _only_new(self) -> bool:
        return self._decision.kind == "rows"

    def _keep(self, frame: DataFrame) -> DataFrame:
        """Persisted until the run ends."""
        self._persisted.append(frame.persist())
        return frame

    def _new(self) -> DataFrame:
        """What came to the source since it was last read."""
        from pyspark.errors import PySparkException

        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        try:
            return arrivals.read(self._spark, log, self._decision.added, self._decision.version).drop("updated_at")
        except PySparkException as error:  # deleted since, after a compaction
            raise MustRecompute(_reason(error)) from error

    def _unseen(self, once: DataFrame, before: Rows | None, dedupe: Dedupe) -> DataFrame:
        from pyspark.errors import PySparkException

        try:
            old = self._project(self._stored(self._decision.since), before)
            return arrivals.unseen(self._keep(once), old, dedupe, self._keep)
        except PySparkException as error:  # the source as it was is not there any more
            raise MustRecompute(_reason(error)) from error

    def _stored(self, version: int) -> DataFrame:
        """What the source held in the slices that changed; in all of it for a full run."""
        path = str(delta_sink.table_path(self._storage, self._job.source))
        frame = self._spark.read.format("delta").option("versionAsOf", version).load(path)
        return (frame if self._where is None else frame.filter(self._where)).drop("updated_at")

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
            return self._keep(frame.selectExpr(*stored)), None
        # kept for three readings: what the expressions below read, not what they give; reasons are for few rows
        read = {column for text in [*current.columns.values(), *(v.refused for v in current.verdicts)]
                for column in sql.columns(text)}  # fmt: skip
        inputs = [sql.name(name) for name in frame.columns if name.lower() in read]
        judged = self._keep(frame.selectExpr(*inputs, *warned, f"{rows.outcome(current.verdicts)} as _outcome"))
        self._judged, self._place = (judged, current), place
        step, reasons = rows.first_reasons(current.verdicts)
        at = [f"{current.columns[n]} as `_at{n}`" for n in place]
        refused = judged.filter(f"_outcome = '{rows.QUARANTINED}'")
        return (judged.filter(f"_outcome = '{rows.COUNTED}'").selectExpr(*stored),
                refused.selectExpr(*stored, *at, f"{step} as _step", f"{reasons} as _reasons"))  # fmt: skip

    def _count(self, result: DataFrame) -> int:
        """Counts what became of every source row; returns the number of rows that will be written."""
        count = result.count() if self._judged is None else self._outcomes(*self._judged)
        self._counters[rows.COUNTED] = count
        if any(isinstance(t, Aggregate) for t in self._spec.transforms):
            return count  # a row of the result stands for many of the source
        seen = count + self._counters.get(rows.QUARANTINED, 0)
        total = self._source.count()
        if self._deduped is None:
            self._counters[rows.FILTERED] = total - seen
        else:
            before = total if self._deduped is self._source else self._deduped.count()
            self._counters[rows.FILTERED] = total - before
            self._counters[rows.DUPLICATE] = before - seen
        return count

    def _outcomes(self, judged: DataFrame, current: Rows) -> int:
        """One pass: rows per outcome, and the written rows that each warning names."""
        good = f"_outcome = '{rows.COUNTED}'"
        sums = [f"count_if({good})", f"count_if(_outcome = '{rows.QUARANTINED}')"]
        sums += [f"count_if(_warned{index} and {good})" for index in range(len(current.warnings))]
        (found,) = judged.selectExpr(*[f"{text} as n{index}" for index, text in enumerate(sums)]).collect()
        if current.verdicts:
            self._counters[rows.QUARANTINED] = found[1]
        for warning, number in zip(current.warnings, found[2:], strict=True):
            self._warnings[warning.name] = number
            if number and warning.stops:
                raise RunError("CHECK_FAILED", f"{number} rows fail {warning.name}; nothing was written",
                               where=self._spec.where("checks"))  # fmt: skip
        return int(found[0])

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
        record = {
            "pipeline": self._job.name, "epoch": EPOCH, "run_id": self._run_id, "kind": "job",
            "started_at": self._started.isoformat(), "fingerprint": decision.fingerprint,
            "sources": dict(decision.sources), "slice_by": self._job.slice_by,
            "slices": None if decision.kind == "full" else list(decision.slices), "appended": self._only_new,
            "reason": decision.reason,
            "counters": self._counters, "warnings": self._warnings,
        }  # fmt: skip
        if decision.backfill is not None:
            record |= {"kind": "backfill", "backfill": dict(decision.backfill)}
        return json.dumps(record)

    def _keep_aside(self, refused: DataFrame) -> None:
        """Refused rows replace those of the same slices, or join them, in a commit before the main one."""
        path = delta_sink.table_path(self._storage, self._job.name + "__quarantine")
        exists = DeltaLog(path).version() is not None
        if not self._counters.get(rows.QUARANTINED) and (self._only_new or not exists):
            return
        assert self._judged is not None
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
        if self._only_new:
            delta_sink.append(kept.coalesce(1), path, self._record(), run=self._txn())
            return
        where = None
        if self._where is not None and exists:
            where = sql.among("unit", "string", self._decision.slices)
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
            if self._only_new:
                delta_sink.append(result.coalesce(1), path, self._record(), run=self._txn())
                return
            where = self._where if DeltaLog(path).version() is not None else None
            delta_sink.replace(
                result,
                path,
                self._record(),
                partition_by=sink.partition_by,
                cluster_by=sink.cluster_by,
                where=where,
                run=self._txn(),
            )
            return
        assert isinstance(sink, Postgres)
        assert self._dsn is not None
        table, where = sink.table or self._job.name, self._spec.where("sink")
        with closing(postgres_sink.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            postgres_sink.load(cursor, table, result, where)


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0].split(" SQLSTATE")[0]
