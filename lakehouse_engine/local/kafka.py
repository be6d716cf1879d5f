"""A real single-node Kafka broker (KRaft) on loopback, without containers.

Delivery guarantees: what a producer saw acknowledged survives a stop, a kill and a restart of the broker; like any
Kafka it leaves writing to the disk to the operating system, so a power cut can lose the last seconds.
"""

from __future__ import annotations

import base64
import json
import signal
import time
import uuid
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, silent, write_atomically
from lakehouse_engine.local.jars import broker_jars
from lakehouse_engine.local.java import find_java
from lakehouse_engine.local.process import Process, alive, choose_port, last_lines, run, spawn, stop

DAY_MS = 24 * 60 * 60 * 1000
STOP = (signal.SIGTERM, signal.SIGKILL)
PATIENCE = 20.0

HEAP = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss",
)

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
# Seen from the folder that the broker is started in: no path needs escaping, and the folder may move.
log.dirs=data
auto.create.topics.enable=false
num.partitions=3
# One node: a second copy would be waited for in vain.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=3
group.initial.rebalance.delay.ms=0
# Records may say any time, long ago or ahead; ensure_topic keeps retention from looking at it.
log.message.timestamp.before.max.ms=9223372036854775807
log.message.timestamp.after.max.ms=9223372036854775807
log.retention.check.interval.ms=300000
# A killed broker may register again only once its old session is over.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


def start(folder: Path, log: Path, port: int | None = None, report: Report = silent) -> tuple[Process, str]:
    """Start the broker kept in ``folder``; answers its process and ``host:port``, ready for clients.

    Raises PORT_IN_USE, KAFKA_NOT_FORMATTED, KAFKA_NOT_READY and the errors of jars and Java.
    """
    java, jars = find_java(), broker_jars(report)
    folder.mkdir(parents=True, exist_ok=True)
    node, cluster_id = _node(folder), _cluster_id(folder)
    node["port"] = choose_port(port, node.get("port"), "Kafka", report)
    node["controller_port"] = choose_port(None, node.get("controller_port"), "Kafka's controller", report)
    while node["controller_port"] == node["port"]:
        node["controller_port"] = choose_port(None, None, "Kafka's controller", report)
    properties, bootstrap = folder / "server.properties", f"127.0.0.1:{node['port']}"
    write_atomically(properties, PROPERTIES.format(**node))
    write_atomically(folder / "node.json", json.dumps(node))

    report(f"starting Kafka on {bootstrap}")
    command = [str(java.binary), *HEAP, *LOGGING, "-Duser.timezone=UTC", "-cp", ":".join(map(str, jars))]
    if not (folder / "data" / "meta.properties").exists():
        arguments = ["format", "--ignore-formatted", "-t", cluster_id, "-c", str(properties)]
        formatted = run([*command, "kafka.tools.StorageTool", *arguments], None, folder)
        if formatted.returncode != 0:
            said = (formatted.stderr or formatted.stdout).strip().splitlines()
            raise RunError("KAFKA_NOT_FORMATTED", said[-1] if said else "no reason given", where=str(folder))
    written = log.stat().st_size if log.exists() else 0
    process = spawn([*command, "kafka.Kafka", str(properties)], log, folder / "process.json", mark=str(properties))
    try:
        _wait(process, bootstrap, cluster_id, log, written)
    except BaseException:
        stop(process, STOP, PATIENCE, report)
        raise
    return process, bootstrap


def answers(bootstrap: str, timeout: float = 5.0) -> str | None:
    """The cluster id that a broker at ``bootstrap`` gives, None when none answers within ``timeout`` seconds."""
    return _cluster(_client(bootstrap), timeout)


def ensure_topic(bootstrap: str, topic: str, partitions: int = 3, retention_ms: int = DAY_MS) -> int:
    """Create ``topic`` unless it exists; answers its number of partitions, all with a leader. Raises TOPIC_FAILED.

    Records carry the time of their arrival (``LogAppendTime``): retention is then about what arrived when, and a
    producer that back-dates its records does not have them deleted at once.
    """
    client, limit = _client(bootstrap), time.monotonic() + 30
    config = {"retention.ms": str(retention_ms), "message.timestamp.type": "LogAppendTime"}
    try:
        wanted = NewTopic(topic, num_partitions=partitions, config=config)
        try:
            client.create_topics([wanted], request_timeout=20)[topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        while True:
            found = client.list_topics(topic, timeout=10).topics[topic].partitions
            if found and all(partition.leader >= 0 for partition in found.values()):
                return len(found)
            if time.monotonic() > limit:
                raise RunError("TOPIC_FAILED", f"topic {topic} has no leader after 30 s", where=bootstrap)
            time.sleep(0.02)
    except KafkaException as error:
        raise RunError(
            "TOPIC_FAILED", f"topic {topic}: {error.args[0].str()}; is the broker up?", where=bootstrap
        ) from error


def _node(folder: Path) -> dict[str, int]:
    try:
        node: dict[str, int] = json.loads((folder / "node.json").read_text(encoding="utf-8"))
        return node
    except FileNotFoundError:
        return {}


def _cluster_id(folder: Path) -> str:
    """The one the data was formatted with, else a new one."""
    try:
        formatted = (folder / "data" / "meta.properties").read_text(encoding="utf-8").splitlines()
        return next(line.partition("=")[2] for line in formatted if line.startswith("cluster.id="))
    except FileNotFoundError:
        # Kafka's own form of an id; one that starts with a dash would be read as an option.
        return "L" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _wait(process: Process, bootstrap: str, cluster_id: str, log: Path, written: int, deadline: float = 90.0) -> None:
    client, limit = _client(bootstrap), time.monotonic() + deadline
    # The cluster's id tells our broker from one that somebody else has on this port.
    while _cluster(client, 0.5) != cluster_id:
        if not alive(process):
            raise RunError("KAFKA_NOT_READY", f"the broker ended: {last_lines(log, written)}", where=bootstrap)
        if time.monotonic() > limit:
            raise RunError(
                "KAFKA_NOT_READY", f"no answer in {deadline:.0f} s: {last_lines(log, written)}", where=bootstrap
            )
        time.sleep(0.02)


def _cluster(client: AdminClient, timeout: float) -> str | None:
    try:
        metadata = client.list_topics(timeout=timeout)
    except KafkaException:
        return None
    return str(metadata.cluster_id) if metadata.brokers else None


def _client(bootstrap: str) -> AdminClient:
    # A broker that does not listen yet is no news.
    quiet: dict[str, Any] = {"log_level": 0, "error_cb": lambda _error: None}
    quick = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
    return AdminClient({"bootstrap.servers": bootstrap, **quick, **quiet})
