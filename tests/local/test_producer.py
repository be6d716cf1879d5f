"""The producer sends what it says, at the pace it was given, each record once."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from lakehouse_engine import contract
from lakehouse_engine.contract import file
from lakehouse_engine.errors import RunError, UsageError
from lakehouse_engine.local import kafka, producer
from lakehouse_engine.local.process import recorded
from lakehouse_engine.local.process import stop as stop_process
from lakehouse_engine.local.producer import BREAKAGES, Record, produce, records
from lakehouse_engine.local.services import Services

CONTRACT = Path(__file__).parents[2] / "pipelines" / "contracts" / "user_event.yaml"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def user_event() -> contract.Contract:
    return file.build("user_event", CONTRACT.name, yaml.safe_load(CONTRACT.read_text()), {})


@pytest.fixture
def topic() -> str:
    return f"events-{uuid.uuid4()}"


def consume(bootstrap: str, topic: str, deadline: float = 60.0) -> list[tuple[int, int, bytes, bytes | None]]:
    """(partition, record's timestamp in ms, key, value) of every record, in order within a partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    due = sum(consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    found: list[tuple[int, int, bytes, bytes | None]] = []
    limit = time.monotonic() + deadline
    try:
        while len(found) < due:
            assert time.monotonic() < limit, f"{len(found)} of {due} records"
            for message in consumer.consume(10_000, 1.0):
                assert message.error() is None
                found.append((message.partition(), message.timestamp()[1], message.key(), message.value()))
    finally:
        consumer.close()
    return found


def taken(number: int, seed: int = 7, **shares: float) -> list[Record]:
    return list(itertools.islice(records(seed, lambda n: 1_767_225_600_000 + n, **shares), number))


def test_good_events_keep_the_contract_and_look_like_a_site(user_event: contract.Contract) -> None:
    values = [value for _, _, value in taken(20_000)]
    assert [reasons for value in values if (reasons := user_event.judge(value))] == []
    found = [json.loads(value or b"") for value in values]
    types = Counter(event["event_type"] for event in found)
    assert [kind for kind, _ in types.most_common()] == ["click", "login", "purchase", "logout"]
    assert {event["source"] for event in found} == {"web", "mobile"}
    assert len({uuid.UUID(event["event_id"]) for event in found}) == 20_000
    assert uuid.UUID(found[0]["event_id"]).version == 4
    assert max(event["user_id"] for event in found[:500]) <= 100
    assert 110 < max(event["user_id"] for event in found) <= 140
    active = sum(event["user_id"] <= 70 for event in found[:500])
    assert active / 500 == pytest.approx(0.8, abs=0.08)


def test_the_key_is_the_user() -> None:
    assert all(json.loads(value or b"")["user_id"] == int(key) for _, key, value in taken(1_000))


@pytest.mark.parametrize("kind", BREAKAGES)
def test_every_kind_of_malformed_record_breaks_the_contract(kind: str, user_event: contract.Contract) -> None:
    (_, _, value) = taken(1)[0]
    assert value is not None
    broken = BREAKAGES[kind](value)
    assert broken != value
    assert user_event.judge(broken) != []


def test_shares_are_of_all_records_and_repetitions_are_exact() -> None:
    made = taken(50_000, duplicates=0.05, late=0.10, malformed=0.03)
    counts = Counter(kind for kind, _, _ in made)
    assert counts["duplicate"] / 50_000 == pytest.approx(0.05, rel=0.1)
    assert counts["late"] / 50_000 == pytest.approx(0.10, rel=0.1)
    assert counts["malformed"] / 50_000 == pytest.approx(0.03, rel=0.1)

    seen: dict[bytes | None, int] = {}
    distances = []
    for index, (kind, _, value) in enumerate(made):
        if kind == "duplicate":
            distances.append(index - seen[value])
        elif kind != "malformed":
            assert value not in seen
            seen[value] = index
    assert sum(distance < 10 for distance in distances) > len(distances) / 4
    assert sum(distance > 1_000 for distance in distances) > len(distances) / 4


def test_late_events_are_older_than_any_window_waits_for_and_a_few_are_three_days_old() -> None:
    ages = []
    for index, (kind, _, value) in enumerate(taken(50_000, late=0.2)):
        happened = datetime.fromisoformat(json.loads(value or b"")["timestamp"].replace("Z", "+00:00"))
        age = START + timedelta(milliseconds=index) - happened
        assert (age > timedelta(0)) == (kind == "late")
        ages += [age] if kind == "late" else []
    very_late = [age for age in ages if age == timedelta(days=3)]
    assert len(very_late) / len(ages) == pytest.approx(0.02, rel=0.4)
    others = [age for age in ages if age != timedelta(days=3)]
    assert timedelta(minutes=4) <= min(others) < timedelta(minutes=5)
    assert timedelta(minutes=29) < max(others) <= timedelta(minutes=30)


def test_a_seed_gives_the_same_records_but_for_their_time() -> None:
    shares = {"duplicates": 0.1, "late": 0.1, "malformed": 0.1}
    once, again = taken(5_000, **shares), taken(5_000, **shares)
    assert once == again
    assert taken(100, seed=8) != once[:100]
    later = list(itertools.islice(records(7, lambda n: 0, **shares), 5_000))
    assert [(kind, key) for kind, key, _ in later] == [(kind, key) for kind, key, _ in once]
    assert [_id(value) for _, _, value in later] == [_id(value) for _, _, value in once]


def _id(value: bytes | None) -> bytes:
    return (value or b"")[:51]


def test_what_was_sent_is_in_the_topic(stack: Services, topic: str) -> None:
    before = int(time.time() * 1000)
    shares = {"duplicates": 0.05, "late": 0.05, "malformed": 0.05}
    summary = produce(stack.bootstrap_servers, topic, rate=None, events=20_000, seed=3, start=START, **shares)
    after = int(time.time() * 1000)
    made = list(itertools.islice(records(3, lambda n: 1_767_225_600_000 + n, **shares), 20_000))
    counts = Counter(kind for kind, _, _ in made)
    assert (summary.sent, summary.duplicates, summary.late, summary.malformed) == (
        20_000, counts["duplicate"], counts["late"], counts["malformed"])  # fmt: skip

    found = consume(stack.bootstrap_servers, topic)
    assert Counter((key, value) for _, _, key, value in found) == Counter((k.encode(), v) for _, k, v in made)
    assert {partition for partition, _, _, _ in found} == {0, 1, 2}
    # The record's time is that of sending, whatever the event says.
    times = [sent for _, sent, _, _ in found]
    assert before - 1_000 <= min(times) <= max(times) <= after + 1_000


def test_a_users_events_stay_in_order(stack: Services, topic: str) -> None:
    produce(stack.bootstrap_servers, topic, rate=None, events=3_000, seed=3, start=START)
    last: dict[bytes, tuple[int, str]] = {}
    for partition, _, key, value in consume(stack.bootstrap_servers, topic):
        now = (partition, json.loads(value or b"")["timestamp"])
        assert key not in last or (last[key][0] == partition and last[key][1] < now[1])
        last[key] = now


def test_the_topic_keeps_a_day_in_three_partitions(stack: Services, topic: str) -> None:
    produce(stack.bootstrap_servers, topic, rate=None, events=1)
    client = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    assert len(client.list_topics(topic, timeout=10).topics[topic].partitions) == 3
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    config = client.describe_configs([resource])[resource].result(10)
    assert config["retention.ms"].value == "86400000"
    produce(stack.bootstrap_servers, topic, rate=None, events=1, partitions=5)
    assert len(client.list_topics(topic, timeout=10).topics[topic].partitions) == 3


@pytest.mark.parametrize("rate", [50.0, 2_000.0])
def test_a_rate_is_kept_evenly(stack: Services, topic: str, rate: float) -> None:
    summary = produce(stack.bootstrap_servers, topic, rate=rate, events=int(rate * 2) + 1)
    assert summary.seconds == pytest.approx(2.0, rel=0.1)
    found = consume(stack.bootstrap_servers, topic)
    happened = sorted(json.loads(value or b"")["timestamp"] for _, _, _, value in found)
    times = [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in happened]
    middle = times[0] + (times[-1] - times[0]) / 2
    assert sum(moment <= middle for moment in times) / len(times) == pytest.approx(0.5, abs=0.05)


def test_with_a_start_the_events_follow_it_at_the_rate(stack: Services, topic: str) -> None:
    produce(stack.bootstrap_servers, topic, rate=200.0, events=101, start=START)
    found = {json.loads(value or b"")["timestamp"] for _, _, _, value in consume(stack.bootstrap_servers, topic)}
    assert min(found) == "2026-01-01T00:00:00.000Z"
    assert max(found) == "2026-01-01T00:00:00.500Z"
    assert len(found) == 101


def test_a_stop_delivers_what_is_under_way(stack: Services, topic: str) -> None:
    stop = threading.Event()
    told: list[str] = []

    def report(text: str) -> None:
        told.append(text)
        stop.set()

    summary = produce(stack.bootstrap_servers, topic, rate=500.0, stopped=stop.is_set, report=report)
    assert told == [f"{summary.sent:,} records sent"]
    assert len(consume(stack.bootstrap_servers, topic)) == summary.sent


def test_ctrl_c_delivers_what_is_under_way(stack: Services, topic: str) -> None:
    def report(text: str) -> None:
        if text.endswith("records sent"):
            raise KeyboardInterrupt

    summary = produce(stack.bootstrap_servers, topic, rate=None, report=report)
    assert summary.sent > 0
    assert len(consume(stack.bootstrap_servers, topic)) == summary.sent


def test_progress_is_told_about_once_a_second(stack: Services, topic: str) -> None:
    told: list[str] = []
    produce(stack.bootstrap_servers, topic, rate=1_000.0, events=2_500, report=told.append)
    assert len(told) == 2


@pytest.fixture
def broker(root: Path) -> Iterator[tuple[int, str]]:
    """A broker of this test's own: (process id, address)."""
    folder = root / "kafka"
    process, bootstrap = kafka.start(folder, root / "kafka.log")
    yield process.pid, bootstrap
    left = recorded(folder / "process.json")
    assert left is not None
    stop_process(left, kafka.STOP, kafka.PATIENCE, print)


def test_a_record_sent_twice_is_stored_once(
    broker: tuple[int, str], topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, bootstrap = broker
    # The broker hangs for longer than the producer waits, which then sends the same records again.
    monkeypatch.setitem(producer.SETTINGS, "request.timeout.ms", 1_000)
    monkeypatch.setitem(producer.SETTINGS, "socket.timeout.ms", 1_000)
    hung = threading.Event()

    def report(text: str) -> None:
        if not hung.is_set():
            hung.set()
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(4.0, os.kill, (pid, signal.SIGCONT)).start()

    summary = produce(bootstrap, topic, rate=2_000.0, events=12_000, seed=5, report=report)
    assert hung.is_set()
    found = consume(bootstrap, topic)
    assert len(found) == summary.sent
    assert len({value for _, _, _, value in found}) == summary.sent


def test_what_could_not_be_delivered_is_an_error(
    broker: tuple[int, str], topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, bootstrap = broker
    monkeypatch.setitem(producer.SETTINGS, "message.timeout.ms", 2_000)

    def report(text: str) -> None:
        os.kill(pid, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(RunError, match=r"[\d,]+ of [\d,]+ records did not reach") as raised:
        produce(bootstrap, topic, rate=100.0, report=report)
    assert raised.value.code == "DELIVERY_FAILED"
    assert time.monotonic() - began < 20


def test_a_broker_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(RunError) as raised:
        produce("127.0.0.1:1", rate=None, events=1)
    assert raised.value.code == "KAFKA_UNREACHABLE"


@pytest.mark.parametrize(
    "wrong", [{"duplicates": 0.6, "late": 0.6}, {"malformed": -0.1}, {"late": float("nan")}, {"rate": 0.0}]
)
def test_shares_and_rates_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError) as raised:
        produce("127.0.0.1:1", events=1, **{"rate": None, **wrong})  # type: ignore[arg-type]
    assert raised.value.code == "BAD_VALUE"
