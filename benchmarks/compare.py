"""Measures the engine beside hand-written PySpark, on a broker and a database of its own. ``make bench`` runs it all.

- ``backlog``: a topic of events into 1-minute windows in PostgreSQL; wall time from process start to the last commit,
  cold, the engine and stock PySpark in turn, medians.
- ``live``: 100 events/s at a 1 s trigger; Spark's own batch time (triggerExecution) after the first 20 batches.
- ``members``: one window metric, then twelve on the same topic, at 1,000 events/s, in one Spark application.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
sys.path.insert(0, str(PROJECT))

from lakehouse_engine import session  # noqa: E402
from lakehouse_engine.local import classes, stack  # noqa: E402
from lakehouse_engine.local.jars import engine_jars  # noqa: E402
from lakehouse_engine.local.java import find_java  # noqa: E402
from lakehouse_engine.local.kafka import ensure_topic  # noqa: E402
from lakehouse_engine.local.producer import produce  # noqa: E402
from lakehouse_engine.plan import compile_plan  # noqa: E402
from lakehouse_engine.spec.environment import load_environment  # noqa: E402
from lakehouse_engine.spec.loader import load  # noqa: E402
from lakehouse_engine.streams import Connections, ScanRun  # noqa: E402

DIMENSIONS = ([], ["event_type"], ["source"], ["page"], ["event_type", "source"], ["event_type", "page"],
              ["source", "page"], ["event_type", "source", "page"])  # fmt: skip
WARM_UP = 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bed:
    """The services, and a folder whose ``pipelines`` are the reference ones."""

    root: Path
    bootstrap_servers: str
    dsn: str

    def topic(self, name: str) -> str:
        ensure_topic(self.bootstrap_servers, name)
        return name

    def execute(self, text: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(text)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def jdbc(self) -> str:
        parts = urlsplit(self.dsn)
        return (f"jdbc:postgresql://{parts.hostname}:{parts.port}{parts.path}"
                f"?user={parts.username}&password={parts.password}")  # fmt: skip

    def plain(self, mode: str, topic: str, *more: str) -> list[str]:
        """Stock PySpark's command; each call has a checkpoint of its own."""
        checkpoint = tempfile.mkdtemp(dir=self.root)
        jars = ",".join(map(str, engine_jars()))
        return [sys.executable, str(HERE / "plain.py"), mode, "--jars", jars, "--bootstrap-servers",
                self.bootstrap_servers, "--topic", topic, "--jdbc", self.jdbc(), "--checkpoint", checkpoint,
                *more]  # fmt: skip


@contextmanager
def bed() -> Iterator[Bed]:
    root = Path(tempfile.mkdtemp(prefix="lakehouse-bench-"))
    root.chmod(0o755)
    try:
        classes.prepare(engine_jars(), say)  # as `lakehouse up` does
        services = stack.up(root, report=say)
        shutil.copytree(PROJECT / "pipelines", root / "pipelines")
        yield Bed(root, services.bootstrap_servers, services.dsn)
    finally:
        stack.down(root, say)
        shutil.rmtree(root)


def backlog(on: Bed, events: int, repeat: int) -> dict[str, Any]:
    topic = on.topic("user-events")
    say(f"sending {events:,} events")
    produce(on.bootstrap_servers, topic, rate=None, events=events, seed=1,
            start=datetime(2026, 1, 1, tzinfo=timezone.utc))  # fmt: skip
    contenders: dict[str, Callable[[], float]] = {
        "engine": lambda: _engine_backlog(on, events),
        "stock": lambda: _plain_backlog(on, topic, events),
        "tuned": lambda: _plain_backlog(on, topic, events, "--tuned"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeat):
        for name, run in contenders.items():
            seconds[name].append(round(run(), 2))
            say(f"backlog {number + 1} of {repeat}: {name} {seconds[name][-1]} s")
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {"events": events, "seconds": seconds, "median": median,
            "times_stock": round(median["stock"] / median["engine"], 2),
            "times_tuned": round(median["tuned"] / median["engine"], 2)}  # fmt: skip


def _engine_backlog(on: Bed, events: int) -> float:
    """The whole engine: contract, quarantine, late rows, ledger."""
    on.execute("drop schema if exists lakehouse, realtime cascade")
    shutil.rmtree(on.root / ".lakehouse" / "storage", ignore_errors=True)
    began = time.time()
    _checked([sys.executable, "-m", "lakehouse_engine.cli", "run", "--available-now",
              "pipelines/realtime/events_per_minute.yaml"], on.root)  # fmt: skip
    (found,) = on.execute("select extract(epoch from max(committed_at))::float8,"
                          " (select sum(event_count) from realtime.events_per_minute)::bigint,"
                          " sum(late)::bigint from lakehouse.batches")  # fmt: skip
    last, counted, late = found
    assert counted == events, f"{counted} counted and {late} late of {events}"
    return last - began


def _plain_backlog(on: Bed, topic: str, events: int, *more: str) -> float:
    on.execute("drop table if exists plain_events_per_minute")
    began = time.time()
    said = json.loads(_checked(on.plain("backlog", topic, *more), on.root).splitlines()[-1])
    assert said["rows"] == events
    return said["last_commit"] - began


def _checked(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=_variables(), text=True, capture_output=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def _variables() -> dict[str, str]:
    return {**os.environ, **find_java().environment(), "PYTHONPATH": str(PROJECT)}


@contextmanager
def traffic(on: Bed, topic: str, rate: float) -> Iterator[None]:
    stop = threading.Event()
    sending = threading.Thread(target=lambda: produce(
        on.bootstrap_servers, topic, rate=rate, seed=2, stopped=stop.is_set))  # fmt: skip
    sending.start()
    try:
        yield
    finally:
        stop.set()
        sending.join(30)


def metrics(on: Bed, topic: str, number: int) -> Path:
    """A folder with so many window pipelines on one topic."""
    folder = Path(tempfile.mkdtemp(dir=on.root)) / "pipelines"
    shutil.copytree(PROJECT / "pipelines" / "contracts", folder / "contracts")
    (folder / "live").mkdir()
    for i in range(number):
        by = json.dumps(DIMENSIONS[(i + 1) % len(DIMENSIONS)])
        (folder / "live" / f"{topic.replace('-', '_')}_{i}.yaml").write_text(
            f"source: {{kafka: {{topic: {topic}, history: bronze.user_events, start: latest}}}}\n"
            "transforms:\n  - parse: user_event\n  - watermark: {column: timestamp, delay: 2 minutes}\n"
            f"  - window: {{tumbling: 1 minute, by: {by}, measures: {{event_count: count(*)}}}}\n"
            "sink: postgres\ntrigger: {every: 1 second}\n")  # fmt: skip
    return folder


def batches(on: Bed, spark: Any, folder: Path, number: int) -> list[float]:
    """Spark's batch times in seconds of so many batches with rows, after the warm-up."""
    plan = compile_plan(load([folder], environment=load_environment(None, on.root)))
    (scan,) = plan.scans
    to = Connections(on.bootstrap_servers, on.dsn, on.root / ".lakehouse" / "storage", f"bench/{time.time()}")
    run = ScanRun(spark, scan, to, lambda text: None)
    run.start(available_now=False)
    try:
        while run.query is not None and run.query.isActive:
            done = [p["durationMs"]["triggerExecution"] / 1000 for p in run.query.recentProgress if p["numInputRows"]]
            if len(done) >= WARM_UP + number:
                return done[WARM_UP:]
            time.sleep(0.2)
        raise SystemExit(f"the query ended: {run.error}")
    finally:
        run.stop()
        run.release()


def summary(found: list[float]) -> dict[str, float]:
    ordered = sorted(found)
    return {"batches": len(found), "p50": statistics.median(ordered), "p95": ordered[int(len(ordered) * 0.95)]}


def live(on: Bed, number: int) -> dict[str, Any]:
    topic = on.topic("live")
    with traffic(on, topic, 100):
        say("live: the engine")
        spark = session.start("bench", jars=engine_jars())
        ours = summary(batches(on, spark, metrics(on, topic, 1), number))
        spark.stop()
        say(f"live: engine {ours}; stock PySpark, the same number of batches")
        # a batch of stock PySpark takes seconds: fewer of them
        few = max(number // 4, 3)
        text = _checked(on.plain("live", topic, "--batches", str(few + 3)), on.root)
    stock = summary(json.loads(text.splitlines()[-1])["batches"][3:])
    return {"engine": ours, "stock": stock, "times_stock": round(stock["p50"] / ours["p50"], 1)}


def members(on: Bed, number: int) -> dict[str, Any]:
    spark = session.start("bench", jars=engine_jars())
    found: dict[str, list[float]] = {"1": [], "12": []}
    with traffic(on, on.topic("many"), 1000):
        folders = {"1": metrics(on, "many", 1), "12": metrics(on, "many", 12)}
        batches(on, spark, folders["12"], 1)  # compiled code for both
        for _ in range(2):  # in turn, so that neither has the warmer machine
            for name, folder in folders.items():
                found[name] += batches(on, spark, folder, number // 2)
                say(f"members: {name}: {summary(found[name])}")
    spark.stop()
    one, twelve = summary(found["1"]), summary(found["12"])
    return {"one": one, "twelve": twelve, "ratio": round(twelve["p50"] / one["p50"], 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=[], help="backlog, live, members; all without one")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    wanted = options.what or ["backlog", "live", "members"]
    if unknown := set(wanted) - {"backlog", "live", "members"}:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    os.environ.update(find_java().environment())
    found: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine()}
    with bed() as on:
        if "backlog" in wanted:
            found["backlog"] = backlog(on, options.events, options.repeat)
        if "live" in wanted:
            found["live"] = live(on, options.batches)
        if "members" in wanted:
            found["members"] = members(on, options.batches)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
