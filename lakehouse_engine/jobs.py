"""Runs a batch job: what changed (see ``incremental.py``) is computed by Spark and written with its progress."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import (
    arrivals,
    checks,
    definitions,
    deletions,
    further,
    ledger,
    noted,
    outside,
    progress,
    rows,
    sql,
    steps,
    table_checks,
)
from lakehouse_engine import plan as plans
from lakehouse_engine.arrivals import MustRecompute
from lakehouse_engine.computed import Computed, Reads, projected
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError, SpecError, said_by_spark
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.locks import acquire
from lakehouse_engine.plan import Job
from lakehouse_engine.rows import Rows
from lakehouse_engine.segments import Segment, conserved
from lakehouse_engine.sinks import Console, Delta, Postgres, Unkept
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.delta_scd2 import Scd2
from lakehouse_engine.sinks.delta_upsert import DELETES, Upsert
from lakehouse_engine.sources import Kafka as Topics
from lakehouse_engine.sources import delta as changes
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.transforms import Aggregate, Dedupe, Join, Sql, Union, Window

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
    warnings: Mapping[str, int] = field(default_factory=dict)
    further: Sequence[further.Brought] = ()


def run(spark: SparkSession, job: Job, storage: Path, dsn: str | None, *, full: bool = False,
        announce: Callable[[Decision], None] = lambda _: None, now: datetime | None = None,
        environment: Environment | None = None) -> Outcome:  # fmt: skip
    """Decides, computes and writes; ``announce`` is told the decision. Nothing is written when a table check fails.

    ``now``: the moment that ``freshness`` is judged at; default: the run's start. ``environment``: how to reach what is
    neither the storage nor the database at ``dsn``.

    Then the further sinks are given what they lack.

    Raises ``PlanError`` EXPRESSION_TYPE, ``RunError`` MISSING_TABLE, AS_OF_GONE, CHECK_FAILED, LOCKED; of further sinks
    POSTGRES_UNREACHABLE, MIRROR_DIFFERS.
    """
    with held(spark, job, storage):
        outcome = _run(spark, job, storage, dsn, full, announce, now, environment)
        return replace(outcome, further=further.bring(spark, job, storage, environment))


def _run(spark: SparkSession, job: Job, storage: Path, dsn: str | None, full: bool,
         announce: Callable[[Decision], None], now: datetime | None,
         environment: Environment | None) -> Outcome:  # fmt: skip
    if isinstance(job.spec.sink, Delta):
        deletions.apply(spark, storage, job.name)
    decision = decide(job, storage, full=full, environment=environment)  # under the lock: another may have done it
    announce(decision)
    if unfed(job, storage):
        path = delta_sink.table_path(storage, job.name)
        delta_sink.feed(spark, path, DeltaLog(path).record())
    if decision.kind == "nothing":
        return _Run(spark, job, decision, storage, dsn, now).judge_what_is_there()
    return execute(spark, job, decision, storage, dsn, now, announce, environment)


def asked(job: Job, storage: Path) -> bool:
    """Whether there is something to do to the job's table, whatever its source says."""
    log = DeltaLog(delta_sink.table_path(storage, job.name))
    there = isinstance(job.spec.sink, Delta) and log.version() is not None
    return there and (unfed(job, storage) or bool(deletions.waiting(storage, job.name, deletions.done(log))))


def unfed(job: Job, storage: Path) -> bool:
    """Whether another pipeline reads what changes in the job's table, which is there and does not keep it."""
    log = DeltaLog(delta_sink.table_path(storage, job.name))
    return job.fed and log.version() is not None and not delta_sink.keeps_changes(log)


def held(spark: SparkSession, job: Job, storage: Path) -> AbstractContextManager[object]:
    """The lock of the job's table while the context lasts. A run that is about to end is waited for."""
    if not isinstance(job.spec.sink, Delta | Unkept):
        return nullcontext()
    return closing(acquire(spark, storage, job.name, job.name, patience=LOCK_PATIENCE))


def execute(spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None,
            now: datetime | None = None, announce: Callable[[Decision], None] = lambda _: None,
            environment: Environment | None = None) -> Outcome:  # fmt: skip
    """Does what ``decision`` says, or tells ``announce`` what else has to be done; the caller holds the table."""
    try:
        return _Run(spark, job, decision, storage, dsn, now, environment).execute()
    except MustRecompute as found:  # before anything was written
        whole = replace(decision, kind="slices", reason=f"{decision.reason}, but {found}")
        announce(whole)
        return _Run(spark, job, whole, storage, dsn, now, environment).execute()


class _Run:
    def __init__(self, spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None,
                 now: datetime | None, environment: Environment | None = None) -> None:  # fmt: skip
        # what a merge says to Delta, it says in its session's settings: other jobs run beside this one
        self._spark = spark.newSession() if job.spec.merges else spark
        self._job, self._decision, self._storage, self._dsn = job, decision, storage, dsn
        self._spec, self._environment = job.spec, environment
        self._counters: dict[str, int] = {}
        self._warnings: dict[str, int] = {}
        self._run_id = uuid.uuid4().hex
        self._started = datetime.now(timezone.utc)
        self._now = now or self._started
        self._epoch = delta_sink.epoch_of(delta_sink.table_path(storage, job.name))
        self._where = self._slices()
        slices = None if self._where is None else decision.slices
        source = self._changes if job.changes else self._new if self._only_new else self._stored
        if outside.is_outside(job.spec):
            source = self._outside
        self._rows = Computed(job, Reads(source, self._other, slices, self._unseen if self._only_new else None))

    def execute(self) -> Outcome:
        try:
            result = self._analysed()
            self._rows.check_lookups(self._as_before())
            count = self._count()
            self._table_checks(result)
            self._keep_aside()
            self._write(result)
            return Outcome(self._decision, count, dict(self._counters), dict(self._warnings))
        finally:
            self._rows.release()

    def _as_before(self) -> set[str]:
        """The tables that are looked up and are as the last run left them: else this one were a full one."""
        if self._decision.kind == "full" or self._decision.backfill is not None:
            return set()
        return {one.name for one in self._job.others if one.slice_by is None and not one.ignored}

    def _analysed(self) -> DataFrame:
        from pyspark.errors import PySparkException

        try:
            result = self._rows.result()
            result.schema  # noqa: B018  (analysis happens here, before anything is written)
        except PySparkException as error:
            raise PlanError("EXPRESSION_TYPE", said_by_spark(error), where=self._spec.where("transforms")) from None
        except steps.StepError as error:  # the columns of a table that no file here writes are known only now
            raise SpecError([error.problem]) from None
        return result

    def _slices(self) -> str | None:
        """SQL that selects the slices that changed, in the source and in the target; None for all, and for changes."""
        if self._decision.kind in ("full", "changes") or outside.is_outside(self._spec):
            return None
        column = self._job.slice_by or ""
        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        return sql.among(column, (log.columns() or {}).get(column, "string"), self._decision.slices)

    @property
    def _only_new(self) -> bool:
        return self._decision.kind == "rows"

    def _new(self) -> DataFrame:
        """What came to the source since it was last read."""
        from pyspark.errors import PySparkException

        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        try:
            return arrivals.read(self._spark, log, self._decision.added, self._decision.version).drop("updated_at")
        except PySparkException as error:  # deleted since, after a compaction
            raise MustRecompute(said_by_spark(error)) from error

    def _outside(self) -> DataFrame:
        told, only = self._decision.sources[self._job.source], self._decision.added if self._only_new else None
        return outside.rows(self._spark, self._spec, told, self._environment, only)

    def _unseen(self, once: DataFrame, before: Rows | None, dedupe: Dedupe) -> DataFrame:
        from pyspark.errors import PySparkException

        try:
            old = projected(self._stored(since=True), before)
            return arrivals.unseen(self._rows.keep(once), old, dedupe, self._rows.keep)
        except PySparkException as error:  # the source as it was is not there any more
            raise MustRecompute(said_by_spark(error)) from error

    def _changes(self) -> DataFrame:
        """What changed in the source since it was last read; all of it, as inserts, at first."""
        from pyspark.errors import PySparkException

        decision, log = self._decision, DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        if decision.kind == "full":
            at = datetime.fromtimestamp(log.info(decision.version).get("timestamp", 0) / 1000, timezone.utc)
            return changes.read_all(self._stored(), decision.version, at)
        try:
            return changes.read_changes(self._spark, log, decision.since, decision.version)
        except PySparkException as error:
            raise RunError("CHANGES_GONE", f"{said_by_spark(error)}; lakehouse reset {self._spec.file} begins anew"
                           " with the table as it is",
                           where=self._spec.where("source")) from None  # fmt: skip

    def _stored(self, *, since: bool = False) -> DataFrame:
        """What the source holds in the slices that changed, or held before; all of it for a full run."""
        frame = self._table(self._job.source, self._decision.since if since else self._decision.version)
        return frame if self._where is None else frame.filter(self._where)

    def _other(self, name: str) -> DataFrame:
        other = next(one for one in self._job.others if one.name == name)
        return self._table(other.table, self._decision.others[name])

    def _table(self, table: str, version: int) -> DataFrame:
        path = str(delta_sink.table_path(self._storage, table))
        return self._spark.read.format("delta").option("versionAsOf", version).load(path).drop("updated_at")

    def _count(self) -> int:
        """Counts what became of every row; returns the number of rows that will be written."""
        segments = self._rows.segments
        for segment in [*segments, *self._rows.inputs]:
            if segment.judged is not None:
                self._tally(segment, segment.judged)
        last = segments[-1]
        if last.judged is None:
            last.seen = last.out = last.passed.count()
        assert last.out is not None
        self._counters[rows.COUNTED] = last.out
        refusing = [segment for segment in [*segments, *self._rows.inputs] if segment.refuses]
        if refusing:
            self._counters[rows.QUARANTINED] = sum(segment.quarantined for segment in refusing)
        if any(isinstance(t, Aggregate | Window | Join | Union | Sql) for t in self._spec.transforms):
            return last.out  # a row of the result stands for many of the source, or for none
        self._counters |= conserved(segments)
        return last.out

    def _tally(self, segment: Segment, judged: DataFrame) -> None:
        """One pass: rows per outcome, and what its watched conditions ask."""
        assert segment.current is not None
        good = f"_outcome = '{rows.COUNTED}'"
        tallies = rows.tallies(segment.current, good)
        sums = [f"count_if({good})", f"count_if(_outcome = '{rows.QUARANTINED}')", "count(*)"]
        sums += [f"count_if({tally.condition})" for tally in tallies]
        (found,) = judged.selectExpr(*[f"{text} as n{index}" for index, text in enumerate(sums)]).collect()
        segment.out, segment.quarantined, segment.seen = found[:3]
        warnings, stop = rows.concluded(zip(tallies, found[3:], strict=True))
        for name, number in warnings.items():
            self._warnings[name] = self._warnings.get(name, 0) + number
        if stop is not None:
            raise self._failed(stop.message, stop.place)

    def _failed(self, message: str, place: str) -> RunError:
        return RunError("CHECK_FAILED", f"{message}; nothing was written", where=self._spec.where(place))

    def _table_checks(self, result: DataFrame) -> None:
        for place, check in steps.table_checks(self._spec):
            name, number, message = table_checks.judge(check, self._spec.key_columns, result, self._stays, self._now)
            self._warnings[name] = number
            if number and check.on_fail == "fail":
                raise self._failed(message, place)

    def _stays(self) -> DataFrame | None:
        """The rows of the table that this run leaves as they are."""
        path = delta_sink.table_path(self._storage, self._job.name)
        if not isinstance(self._spec.sink, Delta) or self._decision.kind == "full" or DeltaLog(path).version() is None:
            return None
        frame = self._spark.read.format("delta").load(str(path))
        return frame if self._where is None else frame.filter(f"not coalesce({self._where}, false)")

    def judge_what_is_there(self) -> Outcome:
        """A run that has nothing to do: how fresh the table is. Raises ``RunError`` CHECK_FAILED."""
        for place, check in steps.table_checks(self._spec):
            stays = self._stays()
            if isinstance(check, checks.Freshness) and stays is not None:
                name, number, message = table_checks.judge(check, (), stays, lambda: None, self._now)
                self._warnings[name] = number
                if number and check.on_fail == "fail":
                    raise self._failed(message, place)
        return Outcome(self._decision, 0, {}, dict(self._warnings))

    @property
    def _target(self) -> DeltaLog:
        return DeltaLog(delta_sink.table_path(self._storage, self._job.name))

    def _request(self) -> int:
        """The number of this run's requests to delete."""
        return int((self._target.record() or {}).get(deletions.REQUEST, 0)) + 1

    def _record(self) -> str:
        decision = self._decision
        record = {
            "pipeline": self._job.name, "epoch": self._epoch, "run_id": self._run_id, "kind": "job",
            "started_at": self._started.isoformat(), "fingerprint": decision.fingerprint,
            "sources": dict(decision.sources), "slice_by": self._job.slice_by,
            "slices": None if decision.kind in ("full", "changes") else list(decision.slices),
            "appended": self._only_new, "reason": decision.reason,
            "counters": self._counters, "warnings": self._warnings,
            "definition": definitions.of(self._spec).as_json(),
        }  # fmt: skip
        done = deletions.done(self._target)
        record |= {"deletes": done} if done else {}
        record |= {deletions.REQUEST: self._request()} if self._spec.deletes_from else {}
        if decision.backfill is not None:
            record |= {"kind": "backfill", "backfill": dict(decision.backfill)}
        return json.dumps(record)

    def _keep_aside(self) -> None:
        """Refused rows replace those of the same slices, or join them, in a commit before the main one."""
        path = delta_sink.table_path(self._storage, self._job.name + "__quarantine")
        exists = DeltaLog(path).version() is not None
        refusing = [segment for segment in [*self._rows.segments, *self._rows.inputs] if segment.refuses]
        if self._only_new:  # what the inputs refuse has been kept: they are as they were
            refusing = [segment for segment in refusing if not segment.input]
        adds = self._only_new or self._decision.kind == "changes"
        if not refusing or (not self._counters.get(rows.QUARANTINED) and (adds or not exists)):
            return
        kept = self._refused(refusing[0])
        for segment in refusing[1:]:
            kept = kept.unionAll(self._refused(segment))
        if self._decision.kind == "changes":  # a run that died after this commit has kept those up to its version
            held = (DeltaLog(path).record() or {}).get("sources", {}).get(self._job.source, {}).get("version", -1)
            kept = kept.filter(f"cast(unit as bigint) > {held}")
        if adds:
            delta_sink.append(kept.coalesce(1), path, self._record(), run=self._txn())
            return
        where = None
        if self._where is not None and exists:
            whole = {segment.input for segment in refusing if segment.input and segment.unit is None}
            asked = [sql.among("unit", "string", self._decision.slices)]
            asked += [f"startswith(step, {sql.string(f'inputs.{name}.')})" for name in sorted(whole)]
            where = " or ".join(f"({one})" for one in asked)
        delta_sink.replace(kept.coalesce(1), path, self._record(), where=where, run=self._txn())

    def _refused(self, segment: Segment) -> DataFrame:
        """The quarantined rows as they are kept."""
        current, judged = segment.current, segment.judged
        assert current is not None
        assert judged is not None
        step, reasons = rows.first_reasons(current.verdicts)
        unit = current.stored.get(segment.unit or "", "null")
        if self._job.changes:
            unit = current.columns.get("_version", "null")
        at = {n: current.columns.get(n, "null") for n in plans.LANDING_COLUMNS}
        record = {name: current.columns.get(name, "null") for name in ("_key", "_value")}
        several = isinstance(self._spec.source, Topics) and self._spec.source.several and not segment.input
        origin = at["_topic"] if several else sql.string(segment.origin)
        return judged.filter(f"_outcome = '{rows.QUARANTINED}'").selectExpr(
            f"timestamp'{self._started.isoformat()}' as quarantined_at", "0L as batch_id", f"{step} as step",
            f"{reasons} as reasons", f"{origin} as origin",
            f"cast({at['_partition']} as int) as partition", f"cast({at['_offset']} as bigint) as offset",
            f"cast({record['_key']} as binary) as key", f"cast({record['_value']} as binary) as value",
            f"{rows.first_row(current.verdicts)} as row", f"cast({unit} as string) as unit")  # fmt: skip

    def _txn(self) -> str:
        return f"{self._job.name}/{self._epoch}/{self._run_id}"

    def _write(self, result: DataFrame) -> None:
        from pyspark.sql import functions as F

        sink = self._spec.sink
        if isinstance(sink, Console):
            result.limit(sink.rows).show(sink.rows, truncate=False)
            return
        if isinstance(sink, Unkept):
            further.write(result, sink, self._spec, self._environment, self._storage)
            noted.write(self._storage, self._job.name, self._record())
            return
        if isinstance(sink, Delta) and (self._spec.merges or self._spec.deletes_from):
            self._merge(sink, result)
            return
        if isinstance(sink, Delta):
            result = deletions.without(result, self._storage, self._job.name)
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
                properties=delta_sink.FED if self._job.fed else None,
            )
            return
        assert isinstance(sink, Postgres)
        assert self._dsn is not None
        table, where = self._spec.table, self._spec.where("sink")
        with closing(postgres_sink.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            ledger.ensure(cursor)
            postgres_sink.load(cursor, table, result, where)
            epoch = progress.epoch_of(cursor, self._job.name)
            definitions.hold(cursor, self._job.name, epoch, definitions.of(self._spec, result.columns))


    def _merge(self, sink: Delta, result: DataFrame) -> None:
        path = delta_sink.table_path(self._storage, self._job.name)
        if self._spec.deletes_from:
            deletions.announce(self._storage, self._spec.deletes_from, self._job.name)
            asked = deletions.keys_and_request(result.distinct(), result.columns, self._request(), self._started)
            delta_sink.append(asked, path, self._record(), run=self._txn())
            return
        properties = delta_sink.FED if self._job.fed else {}
        layout = (path, self._spec.key_columns, sink.order_by, sink.partition_by, sink.cluster_by, sink.updated_at,
                  properties, self._txn())  # fmt: skip
        ties = [name for name in ("_later",) if name in result.columns]
        kinds = {name: kind for name, kind in result.dtypes if name not in (*ties, DELETES)}
        delta_sink.widen(self._spark, path, kinds, self._spec.where("sink"))
        if sink.mode == "scd2":
            Scd2(*layout).write(result.drop(*ties), self._record(), self._started)
        else:
            Upsert(*layout).write(result, self._record(), self._started, ties)
