"""A lakehouse of its own for a test: fresh topic, database and folder on the shared broker and server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.producer import produce
from lakehouse_engine.local.stack import Services

PROJECT = Path(__file__).resolve().parent.parent


@dataclass
class Platform:
    """The reference pipelines in ``folder``, on ``topic`` and the database of ``dsn``."""

    folder: Path
    bootstrap_servers: str
    dsn: str
    topic: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    #: environment variables of the commands, beside those of the tests
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        return self.folder / ".lakehouse" / "storage"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **self.variables}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lakehouse_engine.cli", *words]

    def lakehouse(self, *words: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=timeout)  # fmt: skip

    def start(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """A command that goes on; its messages go to ``<n>.log`` in the folder."""
        log = (self.folder / f"{len(self.processes)}.log").open("w")
        process = subprocess.Popen(self.command(*words), cwd=cwd or self.folder, env=self.environment, text=True,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        log.close()
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"{self.processes.index(process)}.log").read_text()

    def produce(self, events: int, **options: Any) -> Any:
        return produce(self.bootstrap_servers, self.topic, rate=options.pop("rate", None), events=events, **options)

    def send(self, *events: dict[str, Any] | str | None, partition: int = 0) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap_servers})
        for event in events:
            value = json.dumps(event) if isinstance(event, dict) else event
            producer.produce(self.topic, value=value, partition=partition)
        assert producer.flush(10) == 0

    def ends(self) -> dict[int, int]:
        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "test"})
        ends = {p: consumer.get_watermark_offsets(TopicPartition(self.topic, p))[1] for p in range(3)}
        consumer.close()
        return ends

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(text, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def reached(self, pipeline: str = "realtime.events_per_minute") -> dict[int, int]:
        """The pipeline's position in PostgreSQL, empty before the first start."""
        if self.query("select to_regclass('lakehouse.positions')") == [(None,)]:
            return {}
        return dict(self.query("select partition, next_offset from lakehouse.positions where pipeline = %s", pipeline))

    def batches(self) -> int:
        if self.query("select to_regclass('lakehouse.batches')") == [(None,)]:
            return 0
        return self.query("select count(*) from lakehouse.batches")[0][0]

    def versions(self) -> dict[str, int]:
        """Every Delta table's number of commits."""
        tables = self.storage.glob("*/*/_delta_log")
        return {f"{t.parts[-3]}.{t.parts[-2]}": len(list(t.glob("*.json"))) for t in tables}

    def counts(self) -> dict[str, int]:
        """Every PostgreSQL table's number of rows."""
        tables = self.query("select schemaname || '.' || tablename from pg_tables where schemaname in"
                            " ('realtime', 'gold', 'lakehouse')")  # fmt: skip
        return {table: self.query(f"select count(*) from {table}")[0][0] for (table,) in tables}

    def until(self, condition: Callable[[], bool], what: str, limit: float = 120) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            logs = "\n".join(self.log(p)[-1500:] for p in self.processes[-2:])
            assert time.monotonic() < deadline, f"{what} has not come true in {limit:.0f} s\n{logs}"
            assert not self.processes or self.processes[-1].poll() is None, f"{what} will not come true\n{logs}"
            time.sleep(0.1)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9 of the process and its JVM."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def user_event(number: int, at: datetime, **fields: Any) -> dict[str, Any]:
    """A good event; ``fields`` replace or (None) remove."""
    event = {"event_id": f"event-{number}", "user_id": number % 50 + 1, "event_type": "click", "page": "/home",
             "timestamp": at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z"), "source": "web"}  # fmt: skip
    return {key: value for key, value in {**event, **fields}.items() if value is not None}


@contextmanager
def platform(stack: Services, folder: Path) -> Iterator[Platform]:
    name = f"t{uuid.uuid4().hex[:10]}"
    shutil.copytree(PROJECT / "pipelines", folder / "pipelines")
    for file in (folder / "pipelines").rglob("*.yaml"):
        file.write_text(file.read_text().replace("topic: user-events", f"topic: {name}"))
    (folder / ".lakehouse").mkdir()
    ensure_topic(stack.bootstrap_servers, name)
    with empty_database(stack) as dsn:
        services = {"kafka": {"bootstrap_servers": stack.bootstrap_servers}, "postgres": {"dsn": dsn}, "pids": {}}
        (folder / ".lakehouse" / "services.json").write_text(json.dumps(services))
        made = Platform(folder, stack.bootstrap_servers, dsn, name)
        try:
            yield made
        finally:
            for process in made.processes:
                if process.poll() is None:
                    made.kill(process)
            AdminClient({"bootstrap.servers": stack.bootstrap_servers}).delete_topics([name])
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def empty_database(stack: Services) -> Iterator[str]:
    """The address of a database that is dropped afterwards."""
    name = f"t{uuid.uuid4().hex[:10]}"
    _administer(stack, f"create database {name}")
    try:
        yield f"{stack.dsn.rpartition('/')[0]}/{name}"
    finally:  # by a connection of its own: a test may have restarted the server
        _administer(stack, f"drop database {name} with (force)")


def _administer(stack: Services, statement: str) -> None:
    with closing(psycopg2.connect(stack.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
