"""A Spark cluster as others run it: a master and two workers, each a process, on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyspark
import pytest

from lakehouse_engine import progress
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.local.jars import engine_dir, engine_jars
from lakehouse_engine.local.java import find_java
from tests.platform import PROJECT, Platform
from tests.test_platform import off, ran

SCRIPTS = Path(sysconfig.get_path("scripts"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(condition: Callable[[], object], what: str, limit: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come true in {limit:.0f} s\n{said()}"
        time.sleep(0.1)


@dataclass
class Cluster:
    folder: Path
    master: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *words: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        variables = {**os.environ, **find_java().environment(), "SPARK_LOCAL_IP": "127.0.0.1",
                     "SPARK_HOME": str(Path(pyspark.__file__).parent), "PYSPARK_PYTHON": sys.executable,
                     "SPARK_WORKER_DIR": str(self.folder / "work")}  # fmt: skip
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([str(SCRIPTS / words[0]), *words[1:]], cwd=cwd or self.folder, env=variables,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def submit(self, name: str, lake: Platform, *words: str) -> subprocess.Popen[bytes]:
        """The runner on this cluster, one core and the least memory for each of two executors."""
        jars = ",".join(map(str, engine_jars()))
        settings = ["--driver-memory", "1g", "--executor-memory", "512m", "--executor-cores", "1",
                    "--conf", "spark.executor.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"]  # fmt: skip
        return self.start(name, "spark-submit", "--master", self.master, *settings, "--driver-class-path",
                          f"{engine_dir()}/*", "--jars", jars, "--conf", "spark.driver.host=127.0.0.1",
                          str(PROJECT / "lakehouse_engine" / "runner.py"), *words, cwd=lake.folder)  # fmt: skip

    def executors(self) -> list[int]:
        """The pids of the executors' JVMs."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    line, at = (folder / "cmdline").read_bytes(), (folder / "cwd").resolve()
                except OSError:
                    continue  # it has ended since
                if b"CoarseGrainedExecutorBackend" in line and at.is_relative_to(self.folder):
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
        for pid in self.executors():  # an executor is a session of its own
            os.kill(pid, signal.SIGKILL)


def landed(lake: Platform) -> dict[int, int]:
    record = DeltaLog(lake.storage / "bronze" / "user_events").record()
    return {} if record is None else {p: at.next_offset for p, at in progress.from_user_metadata(record)[1].items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder, port = tmp_path / "cluster", free_port()
    folder.mkdir()
    made = Cluster(folder, f"spark://127.0.0.1:{port}")
    try:
        deploy = "org.apache.spark.deploy"
        made.start("master", "spark-class", f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port),
                   "--webui-port", "0")  # fmt: skip
        for number in (1, 2):
            made.start(f"worker{number}", "spark-class", f"{deploy}.worker.Worker", "--host", "127.0.0.1", "--cores",
                       "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(folder / f"work{number}"),
                       made.master)  # fmt: skip
        until(lambda: len(re.findall("Registering worker", made.log("master"))) == 2, "both workers are there", 60,
              lambda: made.log("master"))  # fmt: skip
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
def test_on_a_cluster_the_numbers_are_right_though_an_executor_dies(cluster: Cluster, lake: Platform) -> None:
    lake.produce(300, seed=1)
    streams = cluster.submit("streams", lake, "pipelines/bronze", "pipelines/realtime")

    def said() -> str:
        return cluster.log("streams")[-3000:]

    until(lambda: lake.reached() == lake.ends(), "the streams are up", 120, said)
    until(lambda: len(cluster.executors()) == 2, "both executors are there", 30, said)
    victim, *_ = cluster.executors()
    lake.produce(3000, rate=3000, seed=2, duplicates=0.05, late=0.05, malformed=0.05)
    os.kill(victim, signal.SIGKILL)
    lake.produce(2000, rate=3000, seed=3)
    until(lambda: lake.reached() == landed(lake) == lake.ends(), "everything is read", 120, said)
    assert victim not in cluster.executors()
    assert streams.poll() is None, said()
    os.killpg(streams.pid, signal.SIGTERM)
    streams.wait(60)
    jobs = cluster.submit("jobs", lake, "pipelines/silver", "pipelines/gold")
    assert jobs.wait(180) == 0, cluster.log("jobs")[-3000:]
    ran(lake.lakehouse("serve"))
    assert off(lake) == []
