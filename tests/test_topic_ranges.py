"""What a job reads of a topic: offsets between two times or offsets, refused where the topic no longer holds them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from lakehouse_engine import noted
from lakehouse_engine.errors import RunError
from lakehouse_engine.incremental import decide
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.places import one
from lakehouse_engine.plan import Job, compile_plan
from lakehouse_engine.sources import broker
from lakehouse_engine.sources.kafka import Kafka
from lakehouse_engine.sources.ranges import Range, bounded
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


class Topic:
    """Two partitions; a record a minute from noon on, into the one and the other."""

    def __init__(self, servers: str) -> None:
        self.servers, self.name = servers, f"ranges-{uuid.uuid4().hex[:12]}"
        self.admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        config = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
        self.admin.create_topics([NewTopic(self.name, 2, 1, config=config)])[self.name].result(20)
        ensure_topic(servers, self.name)

    def send(self, minutes: range) -> None:
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 0})
        for minute in minutes:
            millis = int(NOON.timestamp() * 1000) + minute * 60_000
            producer.produce(self.name, str(minute).encode(), partition=minute % 2, timestamp=millis)
        assert producer.flush(20) == 0

    def forget(self, partition: int, before: int) -> None:
        """As retention does."""
        (done,) = self.admin.delete_records([TopicPartition(self.name, partition, before)]).values()
        done.result(20)

    def range(self, start: Any, end: Any, before: Range | None = None) -> dict[int, tuple[int, int]]:
        source = Kafka(topic=self.name, start=start, end=end)
        return dict(bounded(source, self.servers, before, "x.yaml:1").offsets)

    def refused(self, start: Any, end: Any, before: Range | None = None) -> tuple[str, str]:
        with pytest.raises(RunError) as error:
            self.range(start, end, before)
        return error.value.code, error.value.message


@pytest.fixture
def topic(stack: Services) -> Iterator[Topic]:
    made = Topic(stack.bootstrap_servers)
    made.send(range(10))
    yield made
    made.admin.delete_topics([made.name])[made.name].result(20)


def test_bounds_are_times_offsets_and_what_is_there(topic: Topic) -> None:
    assert topic.range("earliest", "latest") == {0: (0, 5), 1: (0, 5)}
    assert topic.range("2026-01-01T12:02:00Z", "2026-01-01T14:05:00+02:00") == {0: (1, 3), 1: (1, 2)}
    assert topic.range("2026-01-01T12:09:30Z", "2027-01-01T00:00:00Z") == {0: (5, 5), 1: (5, 5)}
    assert topic.range({0: 2}, {0: 4, 1: 99}) == {0: (2, 4), 1: (0, 5)}
    assert topic.range({"1": 3}, "2026-01-01T12:02:00Z") == {0: (0, 1), 1: (3, 3)}


def test_what_the_topic_no_longer_holds_of_a_range_is_named(topic: Topic) -> None:
    state = broker.describe(topic.servers, topic.name)
    read = Range(state.topics, {0: (1, 5), 1: (0, 5)})
    topic.forget(0, 3)
    gone = f"{topic.name} partition 0 no longer holds offsets 1 to 2 of the range: retention has passed"
    assert topic.refused("earliest", "latest", read) == (
        "DATA_LOST", f"{gone}; lakehouse backfill --full writes what is there in its place")  # fmt: skip
    assert topic.refused({0: 1}, "latest") == ("DATA_LOST", gone)
    assert topic.refused("2026-01-01T12:00:00Z", "latest")[0] == "DATA_LOST"
    assert topic.range("2026-01-01T12:08:00Z", "latest") == {0: (4, 5), 1: (4, 5)}
    assert topic.range("earliest", "latest") == {0: (3, 5), 1: (0, 5)}
    other = Range(one("another", topic.name), {0: (1, 5), 1: (0, 0)})
    code, message = topic.refused("earliest", "latest", other)
    assert (code, "offsets 1 to 4 of partition 0 were read" in message) == ("TOPIC_RECREATED", True)


def test_a_job_over_a_topic_decides_by_what_its_last_commit_has_read(topic: Topic, tmp_path: Path) -> None:
    file = tmp_path / "pipelines" / "silver" / "some.yaml"
    file.parent.mkdir(parents=True)

    def job(start: str) -> Job:
        source = f"{{kafka: {{topic: {topic.name}, start: {start}, end: latest}}}}"
        file.write_text(f"source: {source}\nsink: {{kafka: {{topic: numbers}}}}\nschedule: daily\n")
        return compile_plan(load([file])).jobs[0]

    environment = Environment(storage=str(tmp_path), embedded={"kafka": topic.servers})
    first = job("earliest")
    decision = decide(first, tmp_path, environment=environment)
    assert (decision.kind, decision.reason) == ("full", "first run")
    record = {"fingerprint": decision.fingerprint, "epoch": 1, "sources": dict(decision.sources)}
    noted.write(tmp_path, "silver.some", json.dumps(record))
    assert decide(first, tmp_path, environment=environment).kind == "nothing"
    topic.send(range(10, 11))
    assert decide(first, tmp_path, environment=environment).reason == "what it reads is not as it was"
    topic.forget(0, 2)
    with pytest.raises(RunError) as refused:
        decide(first, tmp_path, environment=environment)
    assert (refused.value.code, refused.value.where) == ("DATA_LOST", f"{file}:1")
    assert decide(first, tmp_path, full=True, environment=environment).kind == "full"
    assert decide(job("{0: 2}"), tmp_path, environment=environment).reason == "the pipeline has changed"
