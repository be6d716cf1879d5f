"""What tests run on, started when first needed and once for all: Spark, Kafka, PostgreSQL, a temporary folder."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from lakehouse_engine import session
from lakehouse_engine.errors import RunError
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import broker

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

Report = Callable[[str], None]
Record = tuple[bytes | None, int, bytes | None, Sequence[tuple[str, bytes | None]]]
Received = tuple[bytes | None, bytes | None, list[Any]]
#: seconds that the broker may take to create a topic or to accept a batch
PATIENCE = 20.0
#: a topic keeps what it is given, whatever the clock of its records says
_TOPIC = {"message.timestamp.type": "CreateTime", "retention.ms": "-1",
          "message.timestamp.after.max.ms": str(2**63 - 1)}  # fmt: skip
#: tests are over before the second compiler has paid for itself; the first alone would get room for 48 MB of code,
#: which fifty tests fill, and then Java compiles no more
_SPARK = {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=192m"}


class Services(Protocol):
    @property
    def bootstrap_servers(self) -> str: ...
    @property
    def dsn(self) -> str: ...


class Stack(Protocol):
    """The module that starts and stops Kafka and PostgreSQL below a folder."""

    def up(self, root: Path, kafka_port: None, postgres_port: None, report: Report, /) -> Services: ...
    def down(self, root: Path, report: Report, /) -> bool: ...


class Bench:
    """``close`` stops whatever was started."""

    def __init__(self, jars: Callable[[Report], Sequence[Path]], stack: Stack, report: Report) -> None:
        self._jars, self._stack, self._report = jars, stack, report
        # not closed to others: as root, PostgreSQL runs as another user
        self.folder = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
        self.folder.chmod(0o755)
        self._spark: SparkSession | None = None
        self._spark_was_there = _spark_runs()
        self._services: Services | None = None
        self._asked_for_stack = self._closed = False
        self._starting = threading.RLock()
        self._schemas: dict[str, StructType] = {}
        self._schemas_lock = threading.RLock()  # the columns of one table are found by those of another

    @property
    def spark(self) -> SparkSession:
        with self._starting:
            if self._spark is None:
                self._check_open()
                self._report("starting Spark")
                self._spark = session.start("lakehouse-test", jars=self._jars(self._report), settings=_SPARK)
            return self._spark

    @property
    def services(self) -> Services:
        with self._starting:
            if self._services is None:
                self._check_open()
                self._asked_for_stack = True
                self._services = self._stack.up(self.folder, None, None, self._report)
            return self._services

    def _check_open(self) -> None:
        if self._closed:
            raise RunError("STOPPED", "the tests were asked to stop")

    def schema(self, key: str, found: Callable[[], StructType]) -> StructType:
        """The columns of a table that jobs read: found once for all tests."""
        with self._schemas_lock:
            if key not in self._schemas:
                self._schemas[key] = found()
            return self._schemas[key]

    def storage(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(prefix="storage-", dir=self.folder))

    def topic(self, pipeline: str, name: str | None = None) -> str:
        """A new topic of one partition that takes records of any time; ``name``: one that nobody has."""
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        name = name or f"test-{pipeline}-{uuid.uuid4().hex[:12]}"
        admin = AdminClient({"bootstrap.servers": self.services.bootstrap_servers, "log_level": 0})
        admin.create_topics([NewTopic(name, 1, 1, config=_TOPIC)])[name].result(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                broker.describe(self.services.bootstrap_servers, name)
                return name
            except RunError:  # a broker answers before it knows of its own new topic
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def send(self, topic: str, records: Sequence[Record]) -> None:
        """Raises ``RunError`` NOT_DELIVERED."""
        from confluent_kafka import Producer

        failed: list[str] = []
        producer = Producer({"bootstrap.servers": self.services.bootstrap_servers, "acks": "all", "log_level": 0})
        for value, timestamp, key, headers in records:
            producer.produce(topic, value=value, partition=0, timestamp=timestamp, key=key, headers=list(headers),
                             on_delivery=lambda error, _: failed.append(str(error)) if error else None)  # fmt: skip
        if producer.flush(PATIENCE) or failed:
            reason = failed[0] if failed else f"no answer in {PATIENCE:.0f} s"
            raise RunError("NOT_DELIVERED", reason, where="connection kafka")

    def received(self, topic: str) -> list[Received]:
        """All that a topic of one partition holds, in order: key, value and headers."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.services.bootstrap_servers, "group.id": "lakehouse-test",
                             "enable.auto.commit": False, "log_level": 0})  # fmt: skip
        try:
            place = TopicPartition(topic, 0, 0)
            _, end = consumer.get_watermark_offsets(place, timeout=PATIENCE)
            consumer.assign([place])
            found: list[Received] = []
            deadline = time.monotonic() + PATIENCE
            while len(found) < end:
                for message in consumer.consume(end - len(found), timeout=1.0):
                    found.append((message.key(), message.value(), list(message.headers() or ())))
                if time.monotonic() > deadline:
                    raise RunError("KAFKA_UNREACHABLE", f"{topic} gives {len(found)} of {end} messages",
                                   where="connection kafka")  # fmt: skip
            return found
        finally:
            consumer.close()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The DSN of a new database, dropped at the end."""
        from psycopg2.extensions import make_dsn

        name = f"test_{uuid.uuid4().hex[:12]}"
        self._administer(f"create database {name}")
        try:
            yield make_dsn(self.services.dsn, dbname=name)
        finally:
            self._administer(f"drop database {name} with (force)")

    def _administer(self, statement: str) -> None:
        connection = postgres_sink.connect(self.services.dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def close(self) -> None:
        with self._starting:
            self._closed = True
        try:
            if self._spark is not None and not self._spark_was_there:
                self._spark.stop()
        finally:
            try:
                if self._asked_for_stack:
                    self._stack.down(self.folder, self._report)
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)


def _spark_runs() -> bool:
    from pyspark.sql import SparkSession

    return SparkSession.getActiveSession() is not None


@contextmanager
def opened(jars: Callable[[Report], Sequence[Path]], stack: Stack, report: Report) -> Iterator[Bench]:
    """A bench that is closed whatever happens, SIGTERM included."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, end) if main else None
    bench = Bench(jars, stack, report)
    try:
        yield bench
    finally:
        bench.close()
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def encoded(value: object) -> bytes | None:
    """A row as Kafka gets it."""
    if value is None or isinstance(value, str):
        return value if value is None else value.encode()
    return json.dumps(value, ensure_ascii=False).encode()
