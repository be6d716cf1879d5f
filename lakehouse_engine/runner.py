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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script, with the package not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lakehouse_engine import analysis, further, jobs, journal, maintenance, retention, serving, starts
from lakehouse_engine import backfill as backfills
from lakehouse_engine import recount as recounts
from lakehouse_engine import replay as replays
from lakehouse_engine.connections import Connections, Database
from lakehouse_engine.definitions import Definition
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import LakehouseError, RunError, SpecError, UsageError
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.journal import Run
from lakehouse_engine.log import Log
from lakehouse_engine.plan import Job, Member, Plan, Scan, always_judged, compile_plan
from lakehouse_engine.producing import Topic
from lakehouse_engine.progress import now_micros
from lakehouse_engine.request import Request, Span, metrics_address
from lakehouse_engine.rows import COUNTED
from lakehouse_engine.sinks import Delta, Jdbc, Kafka, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Files, jdbc, kafka, topics
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.further import branches
from lakehouse_engine.spec.further import place as sink_place
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.reached import lacking, reaching
from lakehouse_engine.stages import Query
from lakehouse_engine.told import Told

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lakehouse_engine.supervise import Supervised


#: tables that are copied to PostgreSQL side by side
LOADS_AT_ONCE = 4


@dataclass
class Runner:
    """One call of ``run`` or ``serve``. ``jars`` are put on the class path unless spark-submit ``submitted`` us."""

    environment: Environment
    jars: Callable[[], Sequence[Path]]
    report: Log
    submitted: bool = False
    #: Spark will run many requests
    warm: bool = False
    #: a session that is there already and stays
    session: SparkSession | None = None
    failures: list[str] = field(default_factory=list)
    _told: Told = field(init=False)
    _spark: SparkSession | None = None
    _stop: bool = False
    #: by what the tables of what runs were made, as far as their sinks say
    _made_by: Mapping[str, Definition] = field(default_factory=dict)
    #: what Spark has not analysed yet, and what it refused
    _unjudged: list[PipelineSpec] = field(default_factory=list)
    _refused: SpecError | None = None

    def __post_init__(self) -> None:
        self._told = Told(self.report)

    @property
    def storage(self) -> Path:
        return Path(self.environment.storage).resolve()

    def perform(self, plan: Plan, request: Request) -> int:
        """Does what the request says with its plan; the exit status."""
        self._told.open(plan, request, self.environment, self.storage)
        if request.command == "run":
            return self.run(plan, available_now=request.available_now)
        if request.command == "serve":
            return self.serve(plan)
        if request.command == "maintain":
            return self.maintain(plan, apply=request.apply)
        if request.command == "replay":
            return self.replay(plan)
        assert request.span is not None
        return self.backfill(plan, request.span)

    def run(self, plan: Plan, *, available_now: bool) -> int:
        """Streams, then jobs; the exit status. A job whose source failed does not run.

        Raises ``UsageError`` STREAMS_AND_JOBS for endless streams and jobs in one call.
        """
        if any(not stream.ends for stream in plan.streams) and plan.jobs and not available_now:
            raise UsageError("STREAMS_AND_JOBS", "endless streams and jobs cannot run in one call: jobs would never"
                             " begin; say --available-now, or name them apart")  # fmt: skip
        started_at = now_micros()
        self._unjudged = list(plan.specs)
        try:
            self._preflight(plan)
            self._made_by = starts.compare(plan.specs, self.storage, self.postgres, self.report)
            if plan.streams:
                self.spark()
        except LakehouseError as error:
            for scan in plan.streams:
                self._stream_failed(scan, started_at, error)
            raise
        if plan.streams:
            self._streams(plan.streams, available_now=available_now)
        failed = {failure.partition(":")[0] for failure in self.failures}
        for job in plan.jobs:
            if self._stop:
                break
            self._job(job, failed)
        for failure in self.failures:
            self.report.progress(f"failed: {failure}")
        return 1 if self.failures else 0

    def _preflight(self, plan: Plan) -> None:
        """Services that this run needs answer, or it ends here, before Spark starts and anything is touched."""
        unknown = [one for spec in plan.specs for one in lacking(spec, self.environment)]
        if unknown:
            raise SpecError(unknown)
        sources = [*plan.reads, *(job.spec.source for job in plan.jobs)]
        read = {source.origin: source for source in sources if isinstance(source, kafka.Kafka)}
        for _, source in sorted(read.items()):
            topics.describe(source, self.environment.kafka(source.connection))
        for spec in plan.specs:
            for number, sink in enumerate(spec.sinks):
                if isinstance(sink, Kafka):
                    Topic(self.environment.kafka(sink.connection), sink.topic, spec.where(sink_place(number)))
        self._databases(plan.specs)
        if any(isinstance(sink, Postgres) for spec in plan.specs for sink in spec.sinks):
            postgres_sink.connect(self.postgres()).close()

    def _databases(self, specs: Iterable[PipelineSpec]) -> dict[str, Database]:
        """Those of others that the pipelines read or write, by name."""
        names = {part.connection for spec in specs for _, part in reaching(spec) if isinstance(part, Jdbc | jdbc.Jdbc)}
        return {name: self.environment.jdbc(name) for name in sorted(names)}

    def postgres(self) -> str:
        return self.environment.postgres_dsn()

    def spark(self) -> SparkSession:
        """The session, on which what is about to run has been analysed: nothing is touched before.

        Raises ``SpecError`` with all that Spark refuses.
        """
        found, specs = self._started(), self._unjudged
        self._unjudged = []
        if specs:
            try:
                results = analysis.require(found, specs, self.environment).results
                starts.compare_columns(specs, results, self._made_by, self.storage, self.postgres, self.report)
            except SpecError as error:
                self._refused = error
                raise
        return found

    def _started(self) -> SparkSession:
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

    def _streams(self, scans: Sequence[Scan | Query], *, available_now: bool) -> None:
        from lakehouse_engine.supervise import Supervised

        needs_postgres = any(isinstance(m.spec.sink, Postgres) for scan in scans for m in scan.members)
        to = self._connections(self.postgres() if needs_postgres else None,
                               [member.spec for scan in scans for member in scan.members])  # fmt: skip
        running: dict[str, Supervised] = {}
        keeping: retention.Keeping | None = None
        try:
            if to.postgres_dsn is not None and not available_now:
                keeping = retention.Keeping(to.postgres_dsn, [m.spec for scan in scans for m in scan.members],
                                            self.report)  # fmt: skip
            for scan in scans:
                started_at = now_micros()
                ready = self._ready(scan, scans, running, ends=available_now or scan.ends)
                running[scan.name] = Supervised(scan, self.spark(), to, self._told, available_now or scan.ends, ready)
                if ready is not None:
                    self.report(f"{scan.name}: waits for {_source(scan)}")
                    continue
                try:
                    running[scan.name].start()
                except Exception as error:
                    self._stream_failed(scan, started_at, error)
                    raise
                self.report(f"{scan.name}: reading {_source(scan)} for {', '.join(m.name for m in scan.members)}")
            with _Signals(self):
                while not self._stop and any(not s.done for s in running.values()):
                    for supervised in running.values():
                        supervised.look()
                    time.sleep(0.05)
        finally:
            if keeping is not None:
                keeping.close()
            for supervised in running.values():
                supervised.stop()
        for supervised in running.values():
            self.failures += supervised.failures

    def _ready(self, scan: Scan | Query, scans: Sequence[Scan | Query], running: Mapping[str, Supervised], *,
               ends: bool) -> Callable[[], bool] | None:  # fmt: skip
        """Asks whether a stream over tables that others of this call write may begin; None where it need not wait.

        One that ends begins when those have ended, another when their tables are there.
        """
        tables = {source.table for source in scan.reads if isinstance(source, DeltaSource)}
        before = {one.name: member.name for one in scans for member in one.members if member.name in tables}
        if ends and before:
            return lambda: all(running[name].done for name in before)
        logs = [DeltaLog(delta_sink.table_path(self.storage, table)) for table in before.values()]
        if all(log.version() is not None for log in logs):
            return None
        return lambda: all(log.version() is not None for log in logs)

    def _connections(self, dsn: str | None, specs: Sequence[PipelineSpec]) -> Connections:
        """What these pipelines reach."""
        reached = [part for spec in specs for _, part in reaching(spec)]
        names = {part.connection for part in reached if isinstance(part, Kafka | kafka.Kafka)}
        clusters = {name: self.environment.kafka(name) for name in names}
        return Connections(clusters.get(None, ""), dsn, self.storage,
                           f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}", self._databases(specs),
                           {name: servers for name, servers in clusters.items() if name is not None})  # fmt: skip

    def _stream_failed(self, scan: Scan | Query, started_at: int, error: BaseException) -> None:
        for member in scan.members:
            self._told.see(journal.failed(member.name, "stream", started_at, error, step="given_up"))

    def stop(self) -> None:
        self._stop = True

    def _job(self, job: Job, failed: set[str]) -> None:
        started_at = now_micros()
        before = next((table for table in job.spec.reads if table in failed), None)
        try:
            if before is not None:
                raise RunError("SOURCE_FAILED", f"not run, because {before} failed")
            self._told.see(self._attempt(job, started_at))
        except LakehouseError as error:
            failed.add(job.name)
            self._told.see(journal.failed(job.name, "job", started_at, error))
            if error is self._refused:
                raise
            self.failures.append(f"{job.name}: {error}")
        except Exception as error:
            self._told.see(journal.failed(job.name, "job", started_at, error))
            raise

    def _attempt(self, job: Job, started_at: int) -> Run:
        if isinstance(job.spec.source, Files) and job.spec.source.elsewhere:
            self.spark()  # lists them
        decision = decide(job, self.storage, environment=self.environment)
        idle = decision.kind == "nothing" and not always_judged(job.spec) and not jobs.asked(job, self.storage)
        if idle and not further.lacking(job, self.storage, self.environment):
            self.report.progress(f"{job.name}: nothing new ({decision.reason})")
            return self._job_run(job, "job", started_at, None)
        began = time.monotonic()
        self._told.began(job.name, "job")

        def announce(made: Decision) -> None:
            self.report.progress(f"{job.name}: {made.kind} ({made.reason})")

        outcome = jobs.run(self.spark(), job, self.storage, self._dsn_of(job), announce=announce,
                           environment=self.environment)  # fmt: skip
        for name, number in outcome.warnings.items():
            if number:
                self.report(f"{job.name}: warning: {name} fails ({number:,})")
        self.report.progress(f"{job.name}: {outcome.rows:,} rows in {time.monotonic() - began:.1f} s")
        for one in outcome.further:
            self.report.progress(f"{job.name}: {one.rows:,} rows to {one.target} ({one.reason})")
        return self._job_run(job, "job", started_at, outcome if outcome.decision.kind != "nothing" else None)

    def _job_run(self, job: Job, kind: journal.Kind, started_at: int, outcome: jobs.Outcome | None) -> Run:
        """A run that went well; without an ``outcome`` there was nothing to do."""
        return Run(job.name, kind, "nothing" if outcome is None else "committed", started_at,
                   rows=outcome.rows if outcome else None, counters=outcome.counters if outcome else {},
                   sink=job.spec.sink.key,
                   **DeltaLog(delta_sink.table_path(self.storage, job.name)).standing())  # fmt: skip

    def _dsn_of(self, job: Job | Member) -> str | None:
        return self.postgres() if any(isinstance(sink, Postgres) for sink in job.spec.sinks) else None

    def backfill(self, plan: Plan, span: Span) -> int:
        """Recomputes the jobs' slices and the streams' windows, upstream first; the first failure ends it.

        Raises ``UsageError`` NOT_YET.
        """
        if plan.queries:
            raise UsageError("NOT_YET", f"{plan.queries[0].name} has its state in Spark; its backfill comes with a"
                             " later version")  # fmt: skip
        members = [member for scan in plan.scans for member in scan.members]
        if not members and not plan.jobs:
            raise UsageError("NOT_YET", "there is nothing here that can be filled back")
        for job in plan.jobs:
            backfills.check(job, span)
        for member in members:
            recounts.check(member, span)
        starts.compare(plan.specs, self.storage, self.postgres, self.report)
        with _Signals(self):
            for member in members:
                began = time.monotonic()
                count = self._recount(member, span)
                self.report(f"{member.name}: {count} days of {span} in {time.monotonic() - began:.1f} s")
            for job in plan.jobs:
                began = time.monotonic()
                count = self._backfill(job, span)
                self.report(f"{job.name}: {count} slices of {span} in {time.monotonic() - began:.1f} s")
        return 0

    def replay(self, plan: Plan) -> int:
        """Judges again what streams have refused; the first failure ends it. Raises ``PlanError`` NOT_YET."""
        asked = {spec.name for spec in plan.specs}
        members = [member for scan in plan.scans for member in scan.members if member.name in asked]
        if len(members) != len(asked):
            raise UsageError("NOT_YET", "a replay is for streams whose state is not Spark's; a job judges anew whenever"
                             " its source changes: lakehouse run, or lakehouse backfill --full")  # fmt: skip
        for member in members:
            replays.check(member)
        starts.compare(plan.specs, self.storage, self.postgres, lambda _: None)  # it is why they are judged again
        with _Signals(self):
            for member in members:
                began, started_at = time.monotonic(), now_micros()
                to = self._connections(self._dsn_of(member), [member.spec])
                try:
                    found = replays.replay(self.spark(), member, to, self.report)
                except Exception as error:
                    self._told.see(journal.failed(member.name, "backfill", started_at, error))
                    raise
                added = found.outcomes.get(COUNTED, 0)
                self._told.see(Run(member.name, "backfill", "committed", started_at, rows=added,
                                   sink=member.spec.sink.key))  # fmt: skip
                self.report.progress(f"{member.name}: {found.text()}, in {time.monotonic() - began:.1f} s")
        return 0

    def _backfill(self, job: Job, span: Span) -> int:
        started_at = now_micros()

        def slice_done(outcome: jobs.Outcome) -> None:
            nonlocal started_at
            self._told.see(self._job_run(job, "backfill", started_at, outcome))
            started_at = now_micros()

        try:
            return backfills.backfill(self.spark(), job, span, self.storage, self._dsn_of(job), self.report,
                                      lambda: self._stop, slice_done, self.environment)  # fmt: skip
        except Exception as error:
            self._told.see(journal.failed(job.name, "backfill", started_at, error))
            raise

    def _recount(self, member: Member, span: Span) -> int:
        started_at = now_micros()
        try:
            to = self._connections(self.postgres(), [member.spec])
            return recounts.recount(self.spark(), member, self._lander(member), span, to, self.report,
                                    lambda: self._stop, self._told.see)  # fmt: skip
        except Exception as error:
            self._told.see(journal.failed(member.name, "backfill", started_at, error))
            raise

    def _lander(self, member: Member) -> PipelineSpec | None:
        """The pipeline that lands the member's topic, if its source names one."""
        source = member.spec.source
        if not isinstance(source, kafka.Kafka) or source.history is None:
            return None
        layer, _, name = source.history.partition(".")
        file = Path(member.spec.file).parent.parent / layer / f"{name}.yaml"
        return load([file], environment=self.environment)[0] if file.is_file() else None

    def serve(self, plan: Plan) -> int:
        """Loads what ``serve: postgres`` asks for; tables whose copy is current are left alone."""
        dsn = self.postgres()
        started_at = now_micros()
        stale = self._stale(plan, dsn, started_at)
        if stale:
            spark = self.spark()
            from pyspark import inheritable_thread_target

            load_one = inheritable_thread_target(serving.load)  # cancelled with the command that asked for it
            with ThreadPoolExecutor(LOADS_AT_ONCE) as pool:
                loads = [(item, pool.submit(self._load, load_one, spark, item, dsn)) for item in stale]
            for item, load in loads:
                done = load.result()
                self.report.progress(f"{item.spec.name}: {done.rows:,} rows ({done.reason}), version {item.version}:"
                                     f" {done.total:,} rows in postgres")  # fmt: skip
        self.report(f"{len(plan.served)} tables of gold are current in postgres")
        return 0

    def _stale(self, plan: Plan, dsn: str, started_at: int) -> list[serving.Stale]:
        """The copies to load; of the others it is seen that there is nothing to do."""
        try:
            stale = serving.stale(list(map(serving.served, plan.served)), self.storage, dsn) if plan.served else []
        except LakehouseError as error:
            for spec in plan.served:
                self._told.see(journal.failed(spec.name, "serve", started_at, error))
            raise
        behind = {item.spec.name for item in stale}
        for spec in plan.served:
            if spec.name not in behind:
                self._told.see(Run(spec.name, "serve", "nothing", started_at, sink="postgres"))
        return stale

    def _load(self, load: Callable[..., serving.Served], spark: SparkSession, item: serving.Stale,
              dsn: str) -> serving.Served:  # fmt: skip
        started_at = now_micros()
        self._told.began(item.spec.name, "serve")
        try:
            done = load(spark, item, self.storage, dsn)
        except Exception as error:
            self._told.see(journal.failed(item.spec.name, "serve", started_at, error))
            raise
        self._told.see(Run(item.spec.name, "serve", "committed", started_at, version=item.version, rows=done.rows,
                     sink="postgres"))  # fmt: skip
        return done

    def maintain(self, plan: Plan, *, apply: bool) -> int:
        """Compacts, orders, checkpoints and vacuums the plan's Delta tables, deletes what is old in PostgreSQL; without
        ``apply`` says what it would do."""
        kept = [s for spec in plan.specs for s in (spec, *branches(spec)) if isinstance(s.sink, Delta)]
        for spec in kept:
            if DeltaLog(delta_sink.table_path(self.storage, spec.table)).version() is not None:
                maintenance.maintain(self.spark(), spec, self.storage, self.report, apply=apply)
        if any(spec.is_stream and isinstance(spec.sink, Postgres) for spec in plan.specs):
            retention.keep(self.postgres(), plan.specs, self.report, apply=apply)
        if not apply:
            self.report("nothing was changed; say --apply")
        return 0

    def close(self) -> None:
        if self._spark is not None:
            self._spark.stop()
        self._told.close()


def _source(scan: Scan | Query) -> str:
    return " and ".join(dict.fromkeys(source.origin for source in scan.reads))


def planned(specs: Sequence[Path], environment: Environment) -> Plan:
    """The plan of these files and folders; of ``pipelines`` without any. Raises ``SpecError``."""
    return compile_plan(load(list(specs) or [Path("pipelines")], environment=environment))


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
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--metrics-host", default="127.0.0.1")
    parser.add_argument("--json-log", action="store_true", default=os.environ.get("LAKEHOUSE_LOG") == "json")
    options = parser.parse_args(arguments)

    def write(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    log = Log(write, as_json=options.json_log)
    try:
        environment = load_environment(options.env, Path.cwd())
        plan = planned(options.specs, environment)
        runner = Runner(environment, lambda: (), log, submitted=True)
        try:
            request = Request("run", tuple(options.specs), options.env, available_now=options.available_now,
                              metrics=metrics_address(options.metrics_host, options.metrics_port))  # fmt: skip
            return runner.perform(plan, request)
        finally:
            runner.close()
    except LakehouseError as error:
        log.error(error)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
