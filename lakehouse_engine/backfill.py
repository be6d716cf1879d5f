"""``lakehouse backfill``: a job's slices recomputed one by one, each in a commit of its own that says how far it is.

A slice is replaced whole, so an interrupted backfill leaves slices that are done and slices that are as before. Called
again it goes on after the last one done: the commits on top of the table say which. What the job has read, as its
incremental runs understand it, does not move; only the last commit of a ``--full`` one sets it, to the version that all
slices were computed from.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine import further, jobs, sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.incremental import Decision, as_read, decide, in_order, other_versions, source_version
from lakehouse_engine.plan import Job
from lakehouse_engine.request import Span
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.environment import Environment

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]


def check(job: Job, span: Span) -> None:
    """Raises ``PlanError`` NOT_LOCAL when a part of the table cannot be recomputed on its own."""
    if not span.full and (not job.local or job.slice_by is None):
        raise PlanError("NOT_LOCAL", f"a part of {job.name} cannot be recomputed on its own: {job.reason}; use --full",
                        where=job.spec.where("sink"))  # fmt: skip


def backfill(spark: SparkSession, job: Job, span: Span, storage: Path, dsn: str | None, report: Report,
             stopped: Callable[[], bool] = lambda: False,
             done: Callable[[jobs.Outcome], None] = lambda _: None,
             environment: Environment | None = None) -> int:  # fmt: skip
    """Recomputes the slices of ``span``; returns how many. ``stopped`` is asked before each, ``done`` told after it.

    Raises what ``jobs.run`` raises, ``PlanError`` NOT_LOCAL, ``RunError`` BAD_RANGE for bounds that are no values of
    the column, STOPPED.
    """
    check(job, span)
    if not job.local or job.slice_by is None or (span.full and job.others):
        reason = job.reason if not job.local else "all slices are held against one version of the other tables"
        outcome = jobs.run(spark, job, storage, dsn, full=True, environment=environment)
        done(outcome)
        report(f"{job.name}: {outcome.rows:,} rows, all at once: {reason}")
        return 1
    with jobs.held(spark, job, storage):
        count = _Backfill(spark, job, span, storage, dsn, report, done).execute(stopped)
        further.bring(spark, job, storage, environment)
        return count


class _Backfill:
    def __init__(self, spark: SparkSession, job: Job, span: Span, storage: Path, dsn: str | None,
                 report: Report, done: Callable[[jobs.Outcome], None]) -> None:  # fmt: skip
        self._spark, self._job, self._span, self._storage, self._dsn = spark, job, span, storage, dsn
        self._report, self._done = report, done
        self._target = DeltaLog(delta_sink.table_path(storage, job.name))
        self._source = DeltaLog(delta_sink.table_path(storage, job.source))
        text = f"{job.fingerprint} {span} {self._source.table_id()}"
        self._id = hashlib.sha256(text.encode()).hexdigest()[:16]

    def execute(self, stopped: Callable[[], bool]) -> int:
        done, version, kept = self._begun()
        wanted = self._slices(version)
        left = [slice_ for slice_ in wanted if slice_ not in done]
        if done:
            self._report(f"{self._job.name}: going on after {len(done)} of {len(wanted)} slices")
        elif not left:
            self._report(f"{self._job.name}: there is no {self._job.slice_by} in {self._span}")
        for number, slice_ in enumerate(left, start=len(wanted) - len(left) + 1):
            if stopped():
                raise RunError("STOPPED", f"{number - 1} of {len(wanted)} slices are done; the same command goes on",
                               where=self._job.name)  # fmt: skip
            began = time.monotonic()
            outcome = jobs.execute(self._spark, self._job, self._part(slice_, number, len(wanted), version, kept),
                                   self._storage, self._dsn)  # fmt: skip
            self._done(outcome)
            self._report(f"{self._job.name}: {number} of {len(wanted)}: {self._job.slice_by} {slice_}:"
                         f" {outcome.rows:,} rows in {time.monotonic() - began:.1f} s")  # fmt: skip
        return len(left)

    def _part(self, slice_: str | None, number: int, of: int, version: int, kept: Any) -> Decision:
        finished = number == of
        state = {"id": self._id, "slice": slice_, "finished": finished, "version": version, "kept": kept}
        others = other_versions(self._job, self._storage, version)
        read = as_read(self._job, self._storage, version, others)
        sources, fingerprint = (read, self._job.fingerprint) if finished and self._span.full else kept
        return Decision("slices", f"backfill of {self._span}", version, (slice_,), sources, fingerprint, state,
                        others=others)  # fmt: skip

    def _begun(self) -> tuple[set[str | None], int, Any]:
        """Slices done by this very backfill, the version that they were computed from, and the progress to keep."""
        done: set[str | None] = set()
        state: dict[str, Any] | None = None
        for version in reversed(self._target.versions()):
            record = self._target.record_of(version)
            if record is None and not self._target.changes_rows(version):
                continue  # a compaction in between
            found = (record or {}).get("backfill") or {}
            if found.get("id") != self._id or found["finished"]:
                break
            state = state or found
            done.add(found["slice"])
        now = source_version(self._job, self._source)
        if state is not None and self._source.commit_id(state["version"]) is not None:
            return done, state["version"] if self._span.full else now, state["kept"]
        before = decide(self._job, self._storage)  # of a table: others are filled back as a whole
        record = self._target.record() or {}
        # without a position to keep the next run is a full one, as it would have been without this backfill
        kept = ({}, None) if before.kind == "full" else (record["sources"], record["fingerprint"])
        return set(), now, kept

    def _slices(self, version: int) -> tuple[str | None, ...]:
        """Those of the source, of inputs with the column and, so that what has vanished vanishes, of the target."""
        slice_by = self._job.slice_by or ""
        kind = (self._source.columns() or {}).get(self._job.slice_by or "", "string")
        ends = ((">=", self._span.first), ("<=", self._span.last))
        read = [(str(self._source.path), version, slice_by)]
        versions = other_versions(self._job, self._storage, version)
        read += [(str(delta_sink.table_path(self._storage, one.table)), versions[one.name], one.slice_by)
                 for one in self._job.others if one.slice_by is not None]  # fmt: skip
        if self._target.version() is not None:
            read.append((str(self._target.path), self._target.version() or 0, slice_by))
        found: set[str | None] = set()
        try:
            for path, at, name in read:
                column = sql.name(name)
                bounds = [f"{column} {sign} cast({sql.string(end)} as {kind})" for sign, end in ends if end is not None]
                frame = self._spark.read.format("delta").option("versionAsOf", at).load(path)
                frame = frame.filter(" and ".join(bounds) or "true")
                values = frame.selectExpr(f"cast({column} as string) as v").distinct().collect()
                found |= {row["v"] for row in values}
        except Exception as error:
            if "CAST_INVALID_INPUT" not in str(error):
                raise
            raise RunError("BAD_RANGE", f"{self._span} are not values of {self._job.slice_by}, which is {kind}",
                           where=self._job.spec.where("sink")) from None  # fmt: skip
        return in_order(found)
