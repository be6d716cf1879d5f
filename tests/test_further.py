"""Several sinks: each takes what it lacks after a crash between two, whichever it is that lacks it."""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from pyspark.sql import SparkSession

from lakehouse_engine import inserts, noted, producing, serving, streams
from lakehouse_engine.errors import RunError
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.log import Log
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.runner import Runner
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from tests.lab import SILVER, Lab

JOB = """
source: silver.events
transforms:
  - aggregate: {by: [day], measures: {users: count(distinct user)}}
sink:
  - delta: {replace_by: day}
  - postgres: {table: gold.busy, updated_at: false}
    where: %s
  - delta: {table: gold.quiet, partition_by: [day], updated_at: false}
    where: users = 1
schedule: daily
"""


class Killed(Exception):
    """What stands for the end of the process."""


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def rows(dsn: str, text: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(text)
        return sorted(cursor.fetchall(), key=str)


def test_a_job_that_ends_between_its_sinks_gives_the_second_what_it_lacks(
    spark: SparkSession, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(spark, tmp_path, silver=SILVER, gold=JOB % "users > 1")
    lab.append((1, "2026-01-05", 1, 1), (2, "2026-01-05", 2, 1), (3, "2026-01-06", 1, 1))
    lab.run("silver.events")
    with monkeypatch.context() as patch:
        patch.setattr(serving, "load", kill)
        with pytest.raises(Killed):
            lab.run("gold.events", dsn=database)
    version = lab.log("gold.events").version()
    (outcome,) = lab.run("gold.events", dsn=database)
    assert outcome.decision.kind == "nothing"
    assert lab.log("gold.events").version() == version
    assert [(one.target, one.rows) for one in outcome.further] == [("postgres gold.busy", 1), ("delta gold.quiet", 1)]
    assert quiet(lab) == [("2026-01-06", 1)]
    assert rows(database, "select day::text, users from gold.busy") == [("2026-01-05", 2)]
    (outcome,) = lab.run("gold.events", dsn=database)
    assert not outcome.further
    # another condition is another copy
    lab.write("gold/events.yaml", JOB % "users = 1")
    (outcome,) = lab.run("gold.events", dsn=database)
    assert outcome.decision.kind == "nothing"
    assert rows(database, "select day::text, users from gold.busy") == [("2026-01-06", 1)]
    # a copy gets the slice that changed, and is written anew where another hand has changed it
    lab.append((4, "2026-01-05", 1, 1), (5, "2026-01-07", 7, 1), (6, "2026-01-06", 2, 1))
    lab.run("silver.events")
    (outcome,) = lab.run("gold.events", dsn=database)
    assert [one.reason for one in outcome.further if one.target == "delta gold.quiet"] == ["3 of day changed"]
    assert quiet(lab) == [("2026-01-07", 1)]
    lab.spark.sql(f"delete from delta.`{lab.path('gold.quiet')}`")
    (outcome,) = lab.run("gold.events", dsn=database)
    assert [one.target for one in outcome.further] == ["delta gold.quiet"]
    assert quiet(lab) == [("2026-01-07", 1)]


def quiet(lab: Lab) -> list[tuple[str, int]]:
    frame = lab.spark.read.format("delta").load(str(lab.path("gold.quiet")))
    assert frame.columns == ["day", "users"]
    return sorted((str(row["day"]), row["users"]) for row in frame.collect())


LANDING = """
source: {kafka: {topic: TOPIC}}
transforms:
  - derive: {n: try_cast(cast(_value as string) as bigint)}
sink:
  - delta
  - postgres: {table: realtime.numbers}
    where: n >= 10
  - delta: {table: silver.few}
    where: n < 10
trigger: {every: 1 second}
"""


def made_topic(stack: Services, partitions: int = 2) -> str:
    name = f"further-{uuid.uuid4().hex[:12]}"
    ensure_topic(stack.bootstrap_servers, name, partitions=partitions, retention_ms=-1)
    return name


class Stream:
    """A stream over a topic of its own; each ``step`` is a new start, which knows only what its sinks hold."""

    def __init__(self, spark: SparkSession, stack: Services, folder: Path, dsn: str, text: str) -> None:
        self.spark, self.topic, self.target = spark, made_topic(stack), made_topic(stack, 1)
        self.producer = Producer({"bootstrap.servers": stack.bootstrap_servers, "log_level": 0})
        file = folder / "pipelines" / "bronze" / "numbers.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text.replace("TOPIC", self.topic).replace("MESSAGES", self.target))
        (self.scan,) = compile_plan(load([file])).scans
        self.to = streams.Connections(stack.bootstrap_servers, dsn, folder / "storage", "test")
        self.storage, self.dsn = folder / "storage", dsn

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.producer.produce(self.topic, str(number).encode(), partition=number % 2)
        assert self.producer.flush(20) == 0

    def step(self) -> None:
        run = streams.ScanRun(self.spark, self.scan, self.to, lambda _: None)
        run.start(available_now=True)
        assert run.query is not None
        try:
            run.query.awaitTermination()
        except Exception:
            raise (run.error or RuntimeError("it stopped")) from None
        finally:
            run.stop()
            run.release()

    def messages(self) -> list[str]:
        """What the topic that is written holds, in order."""
        consumer = Consumer({"bootstrap.servers": self.to.bootstrap_servers, "group.id": self.target, "log_level": 0})
        place = TopicPartition(self.target, 0, 0)
        try:
            _, count = consumer.get_watermark_offsets(place, timeout=20)
            consumer.assign([place])
            return [message.value().decode() for message in consumer.consume(count, timeout=20)]
        finally:
            consumer.close()

    def landed(self, table: str = "bronze.numbers") -> list[int]:
        frame = self.spark.read.format("delta").load(str(self.storage / table.replace(".", "/")))
        return sorted(row["n"] for row in frame.select("n").collect())


@pytest.mark.parametrize("lacks", ["the second", "the first"])
def test_a_stream_that_ends_between_its_sinks_loses_and_doubles_nothing(
    lacks: str, spark: SparkSession, stack: Services, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 12 of the kill matrix; and, after it, a first sink that is behind the second."""
    stream = Stream(spark, stack, tmp_path, database, LANDING)
    stream.send(1, 10, 11)
    stream.step()
    stream.send(2, 12, 13)
    with monkeypatch.context() as patch:
        patch.setattr(*(inserts.progress, "commit", kill) if lacks == "the second" else (delta_sink, "append", kill))
        with pytest.raises(Killed):
            stream.step()
    if lacks == "the first":  # another process of the same pipeline had only that one written: its rows come first
        (landing, *others) = stream.scan.members
        monkeypatch.setattr(stream, "scan", replace(stream.scan, members=tuple(others)))
        stream.step()
        monkeypatch.setattr(stream, "scan", replace(stream.scan, members=(landing, *others)))
    stream.send(3, 14)
    stream.step()
    assert stream.landed() == [1, 2, 3, 10, 11, 12, 13, 14]
    assert stream.landed("silver.few") == [1, 2, 3]
    assert rows(database, "select n from realtime.numbers") == [(10,), (11,), (12,), (13,), (14,)]
    counted = "select pipeline, sum(counted)::int, sum(filtered)::int from lakehouse.batches group by 1"
    assert rows(database, counted) == [("bronze.numbers>realtime.numbers", 5, 3)]


ELSEWHERE = """
source: {kafka: {topic: TOPIC}}
transforms:
  - derive: {n: try_cast(cast(_value as string) as bigint)}
sink: {jdbc: {connection: dwh, table: numbers}}
trigger: {every: 1 second}
"""


def test_a_batch_that_another_database_has_and_that_is_not_noted_comes_again(
    spark: SparkSession, stack: Services, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(spark, stack, tmp_path, database, ELSEWHERE)
    dwh = Environment(storage="lake", embedded={"jdbc.dwh": database}).jdbc("dwh")
    stream.to = replace(stream.to, jdbc={"dwh": dwh})
    stream.send(1, 2)
    stream.step()
    stream.send(3)
    with monkeypatch.context() as patch:
        patch.setattr(noted, "write", kill)
        with pytest.raises(Killed):
            stream.step()
    stream.send(4)
    stream.step()
    stream.step()
    assert rows(database, "select n from numbers") == [(1,), (2,), (3,), (3,), (4,)]


MINUTES = """
source: {kafka: {topic: TOPIC}}
transforms:
  - derive: {n: try_cast(cast(_value as string) as bigint)}
  - derive: {at: timestamp_seconds(n * 60), k: "concat(char(36), '{env:HOME}')"}
  - watermark: {column: at, delay: 1 hour}
  - window: {tumbling: 1 minute, by: [k], measures: {n: count(*)}}
sink:
  - postgres: {table: realtime.minutes}
  - kafka: {topic: MESSAGES, value: "concat(unix_seconds(window_start), ' ', n, ' ', k)"}
trigger: {every: 1 second}
"""


def test_changes_of_windows_that_were_not_sent_are_sent_by_the_next_start(
    spark: SparkSession, stack: Services, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(spark, stack, tmp_path, database, MINUTES)
    stream.send(1, 2, 2)
    stream.step()
    stream.send(3, 2)
    with monkeypatch.context() as patch:
        patch.setattr(producing.Topic, "send", kill)
        with pytest.raises(Killed):
            stream.step()
    assert rows(database, "select count(*) from lakehouse.outbox") == [(2,)]
    with monkeypatch.context() as patch:  # sent, and the process ends before that is written down
        sent = producing.Topic.send
        patch.setattr(producing.Topic, "send", lambda *given: kill(sent(*given)))
        with pytest.raises(Killed):
            stream.step()
    stream.step()
    assert rows(database, "select count(*) from lakehouse.outbox") == [(0,)]
    assert rows(database, "select extract(epoch from window_start)::int, n from realtime.minutes") == [
        (120, 3), (180, 1), (60, 1)]  # fmt: skip
    found = [text.removesuffix(" ${env:HOME}") for text in stream.messages()]  # as it is: no variable
    assert sorted(found[:2]) == ["120 2", "60 1"]
    assert sorted(found[2:4]) == sorted(found[4:]) == ["120 3", "180 1"]


def test_a_topic_that_is_not_there_is_said_before_anything_is_touched(stack: Services, tmp_path: Path) -> None:
    source = made_topic(stack)
    file = tmp_path / "pipelines" / "bronze" / "numbers.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"source: {{kafka: {{topic: {source}}}}}\nsink:\n  - delta\n"
                    "  - kafka: {topic: none-such, connection: eu}\ntrigger: {every: 1 second}\n")  # fmt: skip
    clusters = dict.fromkeys(("kafka", "kafka.eu"), stack.bootstrap_servers)
    environment = Environment(storage=str(tmp_path / "lake"), embedded=clusters)
    with pytest.raises(RunError) as refused:
        Runner(environment, kill, Log(lambda _: None)).run(compile_plan(load([file])), available_now=True)
    assert (refused.value.code, refused.value.where) == ("MISSING_TOPIC", f"{file}:4")
    assert not (tmp_path / "lake").exists()


def test_a_broker_that_does_not_confirm_and_a_topic_that_is_not_there_stop_with_a_code(
    stack: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError) as refused:
        producing.Topic(stack.bootstrap_servers, f"none-{uuid.uuid4().hex}", "x.yaml:3")
    assert (refused.value.code, refused.value.where) == ("MISSING_TOPIC", "x.yaml:3")
    name = made_topic(stack)
    topic = producing.Topic(stack.bootstrap_servers, name, "x.yaml:3")
    assert topic.send([(b"k", b"v", [("h", b"x")]), (None, None, [])]) == 2
    with pytest.raises(RunError) as refused:
        topic.send([(None, b"x" * 2_000_000, [])])
    assert refused.value.code == "NOT_DELIVERED"
    monkeypatch.setattr(producing, "PATIENCE", 0.5)
    monkeypatch.setitem(producing._SETTINGS, "delivery.timeout.ms", 500)
    monkeypatch.setattr(topic, "_servers", "127.0.0.1:9")
    with pytest.raises(RunError) as refused:
        topic.send([(b"k", b"v", [])])
    assert refused.value.code == "KAFKA_UNREACHABLE"
