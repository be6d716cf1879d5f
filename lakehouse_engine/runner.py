"""Executes a plan on Spark. Also the script for spark-submit:

``spark-submit --driver-class-path "$(lakehouse jars --dir)/*" --jars "$(lakehouse jars --list)"
lakehouse_engine/runner.py SPEC... [--env NAME] [--available-now]``
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script, with the package not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lakehouse_engine import backfill as backfills
from lakehouse_engine import jobs, maintenance, serving
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import FencedError, LakehouseError, RunError, UsageError
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.plan import Job, Plan, Scan, always_judged, compile_plan
from lakehouse_engine.request import Request, Span
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import kafka
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.loader import load

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lakehouse_engine.streams import ScanRun

Report = Callable[[str], None]
#: restarts of a query without a batch in between, before it is given up
MAX_RESTARTS = 5
#: tables that are copied to PostgreSQL side by side
LOADS_AT_ONCE = 4


@dataclass
class Runner:
    """One call of ``run`` or ``serve``. ``jars`` are put on the class path unless spark-submit ``submitted`` us."""

    environment: Environment
    jars: Callable[[], Sequence[Path]]
    report: Report
    submitted: bool = False
    #: Spark will run many requests
    warm: bool = False
    #: a session that is there already and stays
    session: SparkSession | None = None
    failures: list[str] = field(default_factory=list)
    _spark: SparkSession | None = None
    _stop: bool = False

    @property
    def storage(self) -> Path:
        return Path(self.environment.storage).resolve()

    def perform(self, plan: Plan, request: Request) -> int:
        """Does what the request says with its plan; the exit status."""
        if request.command == "run":
            return self.run(plan, available_now=request.available_now)
        if request.command == "serve":
            return self.serve(plan)
        if request.command == "maintain":
            return self.maintain(plan, apply=request.apply)
        assert request.span is not None
        return self.backfill(plan, request.span)

    def run(self, plan: Plan, *, available_now: bool) -> int:
        """Streams, then jobs; the exit status. A job whose source failed does not run.

        Raises ``UsageError`` STREAMS_AND_JOBS for endless streams and jobs in one call.
        """
        if plan.scans and plan.jobs and not available_now:
            raise UsageError("STREAMS_AND_JOBS", "endless streams and jobs cannot run in one call: jobs would never"
                             " begin; say --available-now, or name them apart")  # fmt: skip
        self._preflight(plan)
        if plan.scans:
            self._streams(plan.scans, available_now=available_now)
        failed = {failure.partition(":")[0] for failure in self.failures}
        for job in plan.jobs:
            if self._stop:
                break
            self._job(job, failed)
        for failure in self.failures:
            self.report(f"failed: {failure}")
        return 1 if self.failures else 0

    def _preflight(self, plan: Plan) -> None:
        """Services that this run needs answer, or it ends here, before Spark starts and anything is touched."""
        for topic in sorted({scan.source.topic for scan in plan.scans}):
            kafka.describe(self.environment.kafka_bootstrap, topic)
        sinks = [m.spec.sink for scan in plan.scans for m in scan.members] + [job.spec.sink for job in plan.jobs]
        if any(isinstance(sink, Postgres) for sink in sinks):
            postgres_sink.connect(self.postgres()).close()

    def postgres(self) -> str:
        return self.environment.postgres_dsn()

    def spark(self) -> SparkSession:
        if self.session is not None:
            return self.session
        if self._spark is None:
            from lakehouse_engine import session

            self.report("starting Spark")
            self.storage.mkdir(parents=True, exist_ok=True)
            jars = () if self.submitted else self.jars()
            self._spark = session.start("lakehouse", jars=jars, settings=self.environment.spark,
                                        submitted=self.submitted, warm=self.warm)  # fmt: skip
        return self._spark

    def _streams(self, scans: Sequence[Scan], *, available_now: bool) -> None:
        from lakehouse_engine import streams

        needs_postgres = any(isinstance(m.spec.sink, Postgres) for scan in scans for m in scan.members)
        to = streams.Connections(
            self.environment.kafka_bootstrap, self.postgres() if needs_postgres else None,
            self.storage, f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}")  # fmt: skip
        running: dict[str, _Supervised] = {}
        try:
            for scan in scans:
                running[scan.name] = _Supervised(scan, self.spark(), to, self.report, available_now)
                running[scan.name].start()
                self.report(f"{scan.name}: reading {scan.source.topic} for {', '.join(m.name for m in scan.members)}")
            with _Signals(self):
                while not self._stop and any(not s.done for s in running.values()):
                    for supervised in running.values():
                        supervised.look()
                    time.sleep(0.05)
        finally:
            for supervised in running.values():
                supervised.stop()
        for supervised in running.values():
            self.failures += supervised.failures

    def stop(self) -> None:
        self._stop = True

    def _job(self, job: Job, failed: set[str]) -> None:
        before = next((table for table in job.spec.reads if table in failed), None)
        if before is not None:
            failed.add(job.name)
            self.failures.append(f"{job.name}: not run, because {before} failed")
            return
        try:
            self._attempt(job)
        except LakehouseError as error:
            failed.add(job.name)
            self.failures.append(f"{job.name}: {error}")

    def _attempt(self, job: Job) -> None:
        decision = decide(job, self.storage)
        if decision.kind == "nothing" and not always_judged(job.spec):
            self.report(f"{job.name}: nothing new ({decision.reason})")
            return
        began = time.monotonic()

        def announce(made: Decision) -> None:
            self.report(f"{job.name}: {made.kind} ({made.reason})")

        outcome = jobs.run(self.spark(), job, self.storage, self._dsn_of(job), announce=announce)
        for name, number in outcome.warnings.items():
            if number:
                self.report(f"{job.name}: warning: {name} fails ({number:,})")
        self.report(f"{job.name}: {outcome.rows:,} rows in {time.monotonic() - began:.1f} s")

    def _dsn_of(self, job: Job) -> str | None:
        return self.postgres() if isinstance(job.spec.sink, Postgres) else None

    def backfill(self, plan: Plan, span: Span) -> int:
        """Recomputes the jobs' slices, upstream first; the first failure ends it. Raises ``UsageError`` NOT_YET."""
        if plan.scans or not plan.jobs:
            raise UsageError("NOT_YET", "only jobs can be filled back; the backfill of a stream comes with a later"
                             " version")  # fmt: skip
        for job in plan.jobs:
            backfills.check(job, span)
        with _Signals(self):
            for job in plan.jobs:
                began = time.monotonic()
                count = backfills.backfill(self.spark(), job, span, self.storage, self._dsn_of(job), self.report,
                                           lambda: self._stop)  # fmt: skip
                self.report(f"{job.name}: {count} slices of {span} in {time.monotonic() - began:.1f} s")
        return 0

    def serve(self, plan: Plan) -> int:
        """Loads what ``serve: postgres`` asks for; tables whose copy is current are left alone."""
        dsn = self.postgres()
        stale = serving.stale(plan.served, self.storage, dsn) if plan.served else []
        if stale:
            spark = self.spark()
            from pyspark import inheritable_thread_target

            load_one = inheritable_thread_target(serving.load)  # cancelled with the command that asked for it
            with ThreadPoolExecutor(LOADS_AT_ONCE) as pool:
                loads = [(item, pool.submit(load_one, spark, item, self.storage, dsn)) for item in stale]
            for item, load in loads:
                done = load.result()
                self.report(f"{item.spec.name}: {done.rows:,} rows ({done.reason}), version {item.version}:"
                            f" {done.total:,} rows in postgres")  # fmt: skip
        self.report(f"{len(plan.served)} tables of gold are current in postgres")
        return 0

    def maintain(self, plan: Plan, *, apply: bool) -> int:
        """Compacts, orders, checkpoints and vacuums the plan's tables; without ``apply`` says what it would do."""
        specs = [member.spec for scan in plan.scans for member in scan.members] + [job.spec for job in plan.jobs]
        kept = [s for s in specs if isinstance(s.sink, Delta)]
        for spec in kept:
            if DeltaLog(delta_sink.table_path(self.storage, spec.name)).version() is not None:
                maintenance.maintain(self.spark(), spec, self.storage, self.report, apply=apply)
        if not apply:
            self.report("nothing was changed; say --apply")
        return 0

    def close(self) -> None:
        if self._spark is not None:
            self._spark.stop()


def planned(specs: Sequence[Path], environment: Environment) -> Plan:
    """The plan of these files and folders; of ``pipelines`` without any. Raises ``SpecError``."""
    return compile_plan(load(list(specs) or [Path("pipelines")], environment=environment))


class _Supervised:
    """A scan that is started again when it fails, with growing pauses, and given up when that does not help."""

    def __init__(self, scan: Scan, spark: SparkSession, to: Any, report: Report, available_now: bool) -> None:
        self._scan, self._spark, self._to, self._report = scan, spark, to, report
        self._available_now = available_now
        self._run: ScanRun | None = None
        self._restarts = 0
        self._again_at: float | None = None
        self.failures: list[str] = []
        self.done = False

    def start(self) -> None:
        from lakehouse_engine.streams import ScanRun

        self._run = ScanRun(self._spark, self._scan, self._to, self._report)
        self._run.start(available_now=self._available_now)

    def look(self) -> None:
        if self.done:
            return
        if self._again_at is not None:
            if time.monotonic() >= self._again_at:
                self._again_at = None
                try:
                    self.start()
                except RunError as refused:
                    self._failed(refused)
            return
        run = self._run
        if run is None or run.query is None or run.query.isActive:
            return
        error = run.error or run.query.exception()
        if error is None:
            self.done = True
            return
        if run.batches:
            self._restarts = 0
        run.release()
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, LakehouseError) else f"STREAM_FAILED: {_first_line(error)}"
        self._restarts += 1
        fatal = isinstance(error, FencedError) or (
            isinstance(error, LakehouseError) and not isinstance(error, RunError)
        )
        if fatal or self._restarts > MAX_RESTARTS:
            self.failures += [f"{member.name}: {text}" for member in self._scan.members]
            self.done = True
            return
        pause = min(2.0 ** (self._restarts - 1), 30.0)
        self._report(f"{self._scan.name}: {text}; starting again in {pause:.0f} s ({self._restarts} of {MAX_RESTARTS})")
        self._again_at = time.monotonic() + pause

    def stop(self) -> None:
        if self._run is not None:
            self._run.stop()
            self._run.release()
            self.failures += [f"{name}: {error}" for name, error in self._run.detached.items()]
        self.done = True


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


class _Signals:
    """SIGTERM and Ctrl-C let the current batch commit; a second one ends the process at once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def handle(number: int, _: object) -> None:
            self._runner.report("stopping after the current batch")
            self._runner.stop()
            signal.signal(number, self._before.get(number) or signal.SIG_DFL)

        with suppress(ValueError):  # not the main thread: whoever calls us stops us
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """The script: same options as ``lakehouse run``."""
    import argparse

    parser = argparse.ArgumentParser(prog="runner.py", description="Runs pipelines under spark-submit.")
    parser.add_argument("specs", nargs="+", type=Path)
    parser.add_argument("--env")
    parser.add_argument("--available-now", action="store_true")
    options = parser.parse_args(arguments)

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        environment = load_environment(options.env, Path.cwd())
        plan = planned(options.specs, environment)
        runner = Runner(environment, lambda: (), report, submitted=True)
        try:
            return runner.run(plan, available_now=options.available_now)
        finally:
            runner.close()
    except LakehouseError as error:
        report(str(error))
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
