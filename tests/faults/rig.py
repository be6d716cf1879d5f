"""A lakehouse whose processes are held at a step, meet a fault there, and are judged by an oracle afterwards.

The oracle is ``demo/reconcile.py``: plain Python that shares no code with the engine, reads the topic, believes of the
ledger only which offsets a batch read and when it began, and judges lateness itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyspark.sql import SparkSession

from demo import reconcile
from lakehouse_engine import progress
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.local import stack as local
from lakehouse_engine.local.stack import Services
from lakehouse_engine.log import Log
from lakehouse_engine.request import Request
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.spec.environment import Environment
from tests.faults.holds import Hold, Holds
from tests.faults.steps import At
from tests.faults.wire import Wire
from tests.platform import Platform, platform

STREAMS = ("pipelines/bronze", "pipelines/realtime")
WINDOWS = ("events_per_minute", "logins_per_source", "purchases_per_minute")
_SOURCE = "source: {kafka: {topic: user-events, history: bronze.user_events}}\ntransforms:\n  - parse: user_event\n"
_PLACED = '  - select: [event_id, "_partition as place", "_offset as nr"]\n'
_BY_SECOND = """  - watermark: {column: timestamp, delay: 1 second}
  - window: {tumbling: 1 second, by: [event_type], measures: {n: count(*)}, emit: EMIT}
sink: postgres
trigger: {every: 100 ms}
"""
#: members of the real-time scan beside the platform's: rows into Delta and PostgreSQL, windows that are sent once
MEMBERS = {
    "landed": f"{_SOURCE}  - filter: event_type <> 'login'\n{_PLACED}sink: delta\ntrigger: {{every: 100 ms}}\n",
    "exploded": f"""{_SOURCE}  - derive: {{parts: "if(event_type = 'click', array(1, 2), array())"}}
  - explode: {{column: parts, as: part, empty: drop}}
  - select: [event_id, part, "_partition as place", "_offset as nr"]
sink: postgres
trigger: {{every: 100 ms}}
""",
    "seconds_final": _SOURCE + _BY_SECOND.replace("EMIT", "final"),
    "seconds": _SOURCE + _BY_SECOND.replace("EMIT", "updates"),
}
ONCE = f"""{_SOURCE}  - watermark: {{column: timestamp, delay: 20 days}}
  - dedupe: [event_id]
{_PLACED}sink: postgres
trigger: {{every: 0 s}}
"""
#: seconds that anything may take that has to come
LIMIT = 60.0


class Disk:
    """A small tmpfs in the place of a folder, which can be full; ``there``: whether this user may mount one."""

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._filler = folder, folder / "_filler"
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.there = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.there:
            subprocess.run(["umount", "-l", str(self._folder)], check=True)


@dataclass
class Rig:
    """``lake`` is reached by processes by way of ``wire``; its storage lies on ``disk``."""

    lake: Platform
    root: Path
    spark: SparkSession
    holds: Holds
    wire: Wire
    disk: Disk
    #: a stream on Spark's state is there
    state: bool
    seed: int = 0
    jobs: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    # what comes

    def send(self, events: int = 40) -> None:
        """Good, late, repeated and malformed events, and one that is surely malformed."""
        self.seed += 1
        self.lake.produce(events, seed=self.seed, duplicates=0.1, late=0.1, malformed=0.1)
        self.lake.send("not json", partition=self.seed % 3)

    # who runs

    @property
    def process(self) -> subprocess.Popen[str]:
        return self.lake.processes[-1]

    def start(self) -> None:
        self.lake.start("run", *STREAMS)

    def running(self) -> None:
        """The streams run and have read all there is."""
        if not self.lake.processes or self.process.poll() is not None:
            if not self.seed:
                self.send()
            self.start()
        self.lake.until(lambda: all(at == self.lake.ends() for at in self.positions()), "everything is read", LIMIT)

    def positions(self) -> list[dict[int, int]]:
        """Of each pipeline."""
        inside = [*WINDOWS, *(name for name in MEMBERS if name != "landed"), *(["once"] if self.state else [])]
        found = [self.lake.reached(f"realtime.{name}") for name in inside]
        return found + [self._landed(name) for name in ("bronze/user_events", "realtime/landed")]

    def _landed(self, name: str) -> dict[int, int]:
        record = DeltaLog(self.lake.storage / name).record()
        return {} if record is None else progress.offsets(progress.from_user_metadata(record)[1])

    def hold(self, at: At) -> Hold:
        return self.wire.hold(at.act, at.pattern, at.within) if at.on_wire else self.holds.hold(at.act, at.pattern)

    def here(self, command: str, specs: Iterable[Path], storage: Path) -> int:
        """What another process does, here where Spark is warm: the exit status; what it says is in ``said``."""
        return performed(self.lake, self.spark, command, specs, storage, self.said.append)

    # what breaks

    def restart(self, service: str, way: signal.Signals) -> Callable[[], None]:
        """Ends it at once; call the answer to have it start again."""
        services = local.services(self.root)
        assert services is not None
        os.kill(services.pids[service], way)
        deadline = time.monotonic() + LIMIT
        while local.health(self.root)[service] != "dead":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return lambda: _same(local.up(self.root), services)

    def log(self) -> str:
        return self.lake.log(self.process)

    # what is right

    def wrong(self, *parts: str) -> list[str]:
        """What the oracle has to say against it, each line beginning with a pipeline's name."""
        lake = self.lake
        checks = reconcile.reconcile(lake.bootstrap_servers, lake.dsn, lake.storage, lake.topic, parts)
        if "gold" in parts:  # of gold this one alone is run
            kept = ("silver.", "gold.daily_active_users")
            checks = [one for one in checks if not one.name.startswith("gold.") or one.name.startswith(kept)]
        if "realtime" in parts:
            topic = reconcile.read_topic(lake.bootstrap_servers, lake.topic)
            checks += [*self._rows(topic), self._windows(), *(self._once(topic) if self.state else ())]
        return [str(check) for check in checks if not check.ok]

    def _rows(self, topic: reconcile.Topic) -> Iterator[reconcile.Check]:
        due = [event.place for event in topic.good() if event.kind != "login"]
        found = reconcile.rows_of(reconcile.read_log(self.lake.storage / "realtime" / "landed"), "place", "nr")
        yield reconcile.once("realtime.landed: each good record once", due, found)
        parts = [(*event.place, part) for event in topic.good() if event.kind == "click" for part in (1, 2)]
        rows = self.lake.query("select place, nr, part from realtime.exploded")
        yield reconcile.once("realtime.exploded: each part once", parts, rows)

    def _windows(self) -> reconcile.Check:
        """Windows sent once, with those that are open, are those that were sent on each change."""
        columns = "select window_start, event_type, n from realtime.seconds"
        final = f"({columns}_final union all {columns}_final__state)"
        off = self.lake.query(f"({final} except all {columns}) union all ({columns} except all {final})")
        return reconcile.equal("realtime.seconds_final: windows that differ from realtime.seconds", 0, len(off))

    def _once(self, topic: reconcile.Topic) -> Iterator[reconcile.Check]:
        rows = self.lake.query("select event_id, place, nr from realtime.once")
        ids = {event.id for event in topic.good()}
        yield reconcile.once("realtime.once: each event once", ids, [name for name, _, _ in rows])
        strangers = {((p, o), name) for name, p, o in rows} - {(e.place, e.id) for e in topic.good()}
        yield reconcile.equal("realtime.once: rows that are no record", 0, len(strangers))

    # jobs

    def job(self, *commands: str) -> int | None:
        """What the child that runs jobs answers; None where it was killed."""
        self.ask(*commands)
        return self.answer()

    def started(self) -> None:
        """The child that runs jobs is there."""
        if self.jobs is None or self.jobs.poll() is not None:
            log = (self.lake.folder / "jobs.log").open("a")
            self.jobs = subprocess.Popen([sys.executable, "-m", "tests.faults.jobs_child"], cwd=self.lake.folder,
                                         env=self.lake.environment, text=True, stdin=subprocess.PIPE, stderr=log,
                                         stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
            log.close()
            assert self.jobs.stdout is not None
            assert self.jobs.stdout.readline().strip() == "ready", self.jobs_log()

    def ask(self, *commands: str) -> None:
        self.started()
        assert self.jobs is not None
        assert self.jobs.stdin is not None
        self.jobs.stdin.write(f"{' '.join(commands)}\n")
        self.jobs.stdin.flush()

    def answer(self) -> int | None:
        assert self.jobs is not None
        assert self.jobs.stdout is not None
        line = self.jobs.stdout.readline().strip()
        return int(line) if line else None

    def jobs_log(self) -> str:
        return (self.lake.folder / "jobs.log").read_text()

    def kill_jobs(self) -> None:
        assert self.jobs is not None
        os.killpg(self.jobs.pid, signal.SIGKILL)
        self.jobs.wait(30)


def performed(lake: Platform, spark: SparkSession, command: str, specs: Iterable[Path], storage: Path,
              report: Callable[[str], None] = lambda _: None) -> int:  # fmt: skip
    """A command of ``lakehouse`` in this process: its exit status. Streams end when they have read what is there."""
    environment = Environment(storage=str(storage), embedded={"postgres": lake.dsn, "kafka": lake.bootstrap_servers})
    runner, specs = Runner(environment, tuple, Log(report), session=spark.newSession()), tuple(specs)
    try:
        return runner.perform(planned(specs, environment), Request(command, specs, available_now=True))  # type: ignore[arg-type]
    finally:
        runner.close()


def _same(found: Services, before: Services) -> None:
    assert (found.dsn, found.bootstrap_servers) == (before.dsn, before.bootstrap_servers)


@contextmanager
def rig(stack: Services, root: Path, spark: SparkSession, jar: Path, folder: Path, *, state: bool) -> Iterator[Rig]:
    """``root``: of the stack. ``state``: also a stream on Spark's state."""
    folder.mkdir()
    with platform(stack, folder / "lake") as lake:
        disk, wire = Disk(lake.storage), Wire(lake.dsn)
        holds = Holds(folder / "holds", jar)
        options = os.environ.get("SPARK_SUBMIT_OPTS", "")
        lake.variables |= {**holds.variables, "SPARK_SUBMIT_OPTS": f"{options} {holds.option}"}
        services = lake.folder / ".lakehouse" / "services.json"
        services.write_text(json.dumps({**json.loads(services.read_text()), "postgres": {"dsn": wire.dsn}}))
        pipelines = lake.folder / "pipelines"
        for name, text in {**MEMBERS, **({"once": ONCE} if state else {})}.items():
            text = text.replace("topic: user-events", f"topic: {lake.topic}")
            (pipelines / "realtime" / f"{name}.yaml").write_text(text)
        for file, before, after in (("bronze/user_events", "10 seconds", "0 s"),
                                    *((f"realtime/{name}", "1 second", "100 ms") for name in WINDOWS)):  # fmt: skip
            text = (pipelines / f"{file}.yaml").read_text()
            assert before in text
            (pipelines / f"{file}.yaml").write_text(text.replace(f"every: {before}", f"every: {after}"))
        made = Rig(lake, root, spark, holds, wire, disk, state)
        try:
            yield made
        finally:
            for process in [*lake.processes, *([made.jobs] if made.jobs else [])]:
                if process.poll() is None:
                    lake.kill(process)
            wire.close()
            disk.close()
