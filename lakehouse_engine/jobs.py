"""Runs a batch job: what changed (see ``incremental.py``) is computed by Spark and written with its progress."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import arrivals, checks, rows, sql, table_checks
from lakehouse_engine import plan as plans
from lakehouse_engine.arrivals import MustRecompute
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError, SpecError
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.locks import acquire
from lakehouse_engine.plan import EPOCH, Job
from lakehouse_engine.rows import Rows
from lakehouse_engine.segments import Segment, judges, layered, named, texts_read
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.transforms import Aggregate, Dedupe, Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from lakehouse_engine.spec.pipeline import PipelineSpec

#: seconds that a run waits for another one of its table: a task that was killed and cleared meets its own end
LOCK_PATIENCE = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a run of a job did; ``rows`` written."""

    decision: Decision
    rows: int
    counters: Mapping[str, int]
    warnings: Mapping[str, int] = field(default_factory=dict)


def run(spark: SparkSession, job: Job, storage: Path, dsn: str | None, *, full: bool = False,
        announce: Callable[[Decision], None] = lambda _: None, now: datetime | None = None) -> Outcome:  # fmt: skip
    """Decides, computes and writes; ``announce`` is told the decision. Nothing is written when a table check fails.

    ``now``: the moment that ``freshness`` is judged at; default: the run's start.

    Raises ``PlanError`` EXPRESSION_TYPE, ``RunError`` MISSING_TABLE, AS_OF_GONE, CHECK_FAILED, LOCKED.
    """
    with held(spark, job, storage):
        decision = decide(job, storage, full=full)  # under the lock: who held it before may have done the work
        announce(decision)
        if decision.kind == "nothing":
            return _Run(spark, job, decision, storage, dsn, now).judge_what_is_there()
        return execute(spark, job, decision, storage, dsn, now, announce)


def held(spark: SparkSession, job: Job, storage: Path) -> AbstractContextManager[object]:
    """The lock of the job's table while the context lasts. A run that is about to end is waited for."""
    if not isinstance(job.spec.sink, Delta):
        return nullcontext()
    return closing(acquire(spark, storage, job.name, job.name, patience=LOCK_PATIENCE))


def execute(spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None,
            now: datetime | None = None, announce: Callable[[Decision], None] = lambda _: None) -> Outcome:  # fmt: skip
    """Does what ``decision`` says, or tells ``announce`` what else has to be done; the caller holds the table."""
    try:
        return _Run(spark, job, decision, storage, dsn, now).execute()
    except MustRecompute as found:  # before anything was written
        whole = replace(decision, kind="slices", reason=f"{decision.reason}, but {found}")
        announce(whole)
        return _Run(spark, job, whole, storage, dsn, now).execute()


class _Run:
    def __init__(self, spark: SparkSession, job: Job, decision: Decision, storage: Path, dsn: str | None,
                 now: datetime | None) -> None:  # fmt: skip
        self._spark, self._job, self._decision, self._storage, self._dsn = spark, job, decision, storage, dsn
        self._spec = job.spec
        self._counters: dict[str, int] = {}
        self._warnings: dict[str, int] = {}
        self._persisted: list[DataFrame] = []
        self._run_id = uuid.uuid4().hex
        self._segments: list[Segment] = []
        self._started = datetime.now(timezone.utc)
        self._now = now or self._started
        self._where = self._slices()

    def execute(self) -> Outcome:
        try:
            result = self._analysed()
            count = self._count()
            self._table_checks(result)
            self._keep_aside()
            self._write(result)
            return Outcome(self._decision, count, dict(self._counters), dict(self._warnings))
        finally:
            for frame in self._persisted:
                frame.unpersist()

    def _analysed(self) -> DataFrame:
        from pyspark.errors import PySparkException

        try:
            result = self._compute()
            result.schema  # noqa: B018  (analysis happens here, before anything is written)
        except PySparkException as error:
            raise PlanError("EXPRESSION_TYPE", _reason(error), where=self._spec.where("transforms")) from None
        except plans.StepError as error:  # the columns of a table that no file here writes are known only now
            raise SpecError([error.problem]) from None
        return result

    def _slices(self) -> str | None:
        """SQL that selects the slices that changed, in the source and in the target; None for a full run."""
        if self._decision.kind == "full":
            return None
        column = self._job.slice_by or ""
        log = DeltaLog(delta_sink.table_path(self._storage, self._job.source))
        return sql.among(column, (log.columns() or {}).get(column, "string"), self._decision.slices)

    def _compute(self) -> DataFrame:
        """The result, persisted or made from what is."""
        frame = self._source = self._new() if self._only_new else self._stored(self._decision.version)
        current: Rows | None = None
        for index, transform in enumerate(self._spec.transforms):
            if isinstance(transform, Aggregate | Dedupe | Window):
                segment, before = self._end(frame, current), current
                frame, current = transform.apply(segment.passed), None
                if isinstance(transform, Dedupe) and self._only_new:
                    frame = self._unseen(frame, before, transform)
            else:
                current = plans.row_step(self._spec, current or Rows.identity(dict(frame.dtypes)), index)
        current = self._with_related(current or Rows.identity(dict(frame.dtypes)))
        return self._end(frame, plans.with_checks(current, self._spec), last=True).passed

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
        """The rows that pass, with all their columns."""
        if current is None:
            return frame
        frame = layered(frame, current)
        kept = frame.filter(rows.passing(current.verdicts)) if current.verdicts else frame
        return kept.selectExpr(*named(current.columns))

    def _end(self, frame: DataFrame, current: Rows | None, *, last: bool = False) -> Segment:
        """The rows up to a step that looks at many of them, or to the end. They are judged once where a step asks."""
        judged = None
        if current is None or not judges(current, last):
            passed = self._project(frame, current)
            if last:
                assert current is not None
                passed = self._keep(layered(frame, current).selectExpr(*named(current.stored)))
        else:
            judged = self._judge(frame, current)
            columns = current.stored if last else current.columns
            passed = judged.filter(f"_outcome = '{rows.COUNTED}'").selectExpr(*named(columns))
        self._segments.append(Segment(frame, current, judged, passed))
        return self._segments[-1]

    def _judge(self, frame: DataFrame, current: Rows) -> DataFrame:
        """Kept for several readings: what the expressions read, not what they give; reasons are for few rows."""
        frame = self._related(layered(frame, current), current)
        inputs = [sql.name(name) for name in frame.columns]
        if not current.layers:
            read = {column for text in texts_read(current) for column in sql.columns(text)}
            inputs = [sql.name(name) for name in frame.columns if name.lower() in read]
        return self._keep(frame.selectExpr(*inputs, f"{rows.outcome(current.verdicts)} as _outcome"))

    def _with_related(self, current: Rows) -> Rows:
        """Columns that say whether a value is in another table; ``_related`` joins them."""
        names = [checks.related(table, column, ours) for ours, table, column in _relationships(self._spec)]
        return replace(current, columns={**current.columns, **{name: name for name in names}})

    def _related(self, frame: DataFrame, current: Rows) -> DataFrame:
        from pyspark.sql import functions as F

        for ours, table, column in _relationships(self._spec):
            name = checks.related(table, column, ours)
            if name not in current.columns:
                continue  # before a dedupe or an aggregate: checks come at the end
            path = str(delta_sink.table_path(self._storage, table))
            theirs = self._spark.read.format("delta").option("versionAsOf", self._decision.related[table]).load(path)
            keys = theirs.select(F.col(sql.name(column)).alias("_theirs")).filter("_theirs is not null").distinct()
            value = F.expr(current.resolve(ours))
            self._comparable(frame.select(value.alias("x")), keys, ours, f"{table}.{column}")
            joined = frame.join(keys, value == F.col("_theirs"), "left")
            frame = joined.withColumn(name, F.expr("_theirs is not null")).drop("_theirs")
        return frame

    def _comparable(self, ours: DataFrame, theirs: DataFrame, one: str, other: str) -> None:
        """ANSI SQL compares a text with a number by reading it as one, and stops at the first that is none."""
        kinds = [frame.dtypes[0][1] for frame in (ours, theirs)]
        if kinds[0] != kinds[1] and not set(kinds) <= {"tinyint", "smallint", "int", "bigint"}:
            raise PlanError("COLUMN_TYPE", f"{one} is {kinds[0]} and {other} is {kinds[1]}; cast one of them",
                            where=self._spec.where("checks"))  # fmt: skip

    def _count(self) -> int:
        """Counts what became of every row; returns the number of rows that will be written."""
        for segment in self._segments:
            if segment.judged is not None:
                self._tally(segment, segment.judged)
        last = self._segments[-1]
        if last.judged is None:
            last.seen = last.out = last.passed.count()
        assert last.out is not None
        self._counters[rows.COUNTED] = last.out
        if any(segment.refuses for segment in self._segments):
            self._counters[rows.QUARANTINED] = sum(segment.quarantined for segment in self._segments)
        if any(isinstance(t, Aggregate | Window) for t in self._spec.transforms):
            return last.out  # a row of the result stands for many of the source
        self._conserve()
        return last.out

    def _conserve(self) -> None:
        """What was filtered, dropped as a duplicate and added by explode: the difference between two counts."""
        filtered = duplicate = exploded = 0
        before: int | None = None
        for segment in self._segments:
            into = segment.into
            if before is not None:
                duplicate += before - into
            passed = segment.passes(into)
            if segment.judged is not None:
                exploded += segment.seen - into
                filtered += segment.seen - segment.quarantined - passed
            else:
                filtered += into - passed
            before = passed
        self._counters[rows.FILTERED] = filtered
        if len(self._segments) > 1:
            self._counters[rows.DUPLICATE] = duplicate
        if any(segment.expands for segment in self._segments):
            self._counters["exploded"] = exploded

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
        for place, check in plans.table_checks(self._spec):
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
        for place, check in plans.table_checks(self._spec):
            stays = self._stays()
            if isinstance(check, checks.Freshness) and stays is not None:
                name, number, message = table_checks.judge(check, (), stays, lambda: None, self._now)
                self._warnings[name] = number
                if number and check.on_fail == "fail":
                    raise self._failed(message, place)
        return Outcome(self._decision, 0, {}, dict(self._warnings))

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

    def _keep_aside(self) -> None:
        """Refused rows replace those of the same slices, or join them, in a commit before the main one."""
        path = delta_sink.table_path(self._storage, self._job.name + "__quarantine")
        exists = DeltaLog(path).version() is not None
        refusing = [segment for segment in self._segments if segment.refuses]
        if not refusing or (not self._counters.get(rows.QUARANTINED) and (self._only_new or not exists)):
            return
        kept = self._refused(refusing[0])
        for segment in refusing[1:]:
            kept = kept.unionAll(self._refused(segment))
        if self._only_new:
            delta_sink.append(kept.coalesce(1), path, self._record(), run=self._txn())
            return
        where = None
        if self._where is not None and exists:
            where = sql.among("unit", "string", self._decision.slices)
        delta_sink.replace(kept.coalesce(1), path, self._record(), where=where, run=self._txn())

    def _refused(self, segment: Segment) -> DataFrame:
        """The quarantined rows as they are kept."""
        current, judged = segment.current, segment.judged
        assert current is not None
        assert judged is not None
        step, reasons = rows.first_reasons(current.verdicts)
        slice_by = self._job.slice_by
        unit = current.stored.get(slice_by or "", "null")
        at = {n: current.columns.get(n, "null") for n in plans.LANDING_COLUMNS}
        return judged.filter(f"_outcome = '{rows.QUARANTINED}'").selectExpr(
            f"timestamp'{self._started.isoformat()}' as quarantined_at", "0L as batch_id", f"{step} as step",
            f"{reasons} as reasons", f"{sql.string(self._job.source)} as origin",
            f"cast({at['_partition']} as int) as partition", f"cast({at['_offset']} as bigint) as offset",
            "cast(null as binary) as key", "cast(null as binary) as value",
            f"{rows.first_row(current.verdicts)} as row", f"cast({unit} as string) as unit")  # fmt: skip

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


def _relationships(spec: PipelineSpec) -> list[tuple[str, str, str]]:
    return [other for check in spec.checks if isinstance(check, checks.Relationship) for other in check.others()]


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0].split(" SQLSTATE")[0]
