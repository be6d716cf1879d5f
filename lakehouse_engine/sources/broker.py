"""What brokers say of topics: their ids, partitions and offsets, and what a position there means."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lakehouse_engine import places
from lakehouse_engine.errors import RunError

#: of a client that says nothing itself
QUIET: dict[str, str | int | float | bool] = {"log_level": 0, "socket.connection.setup.timeout.ms": 4000}


@dataclass(frozen=True)
class TopicState:
    """A topic as the broker describes it: its id (a recreated one has another), per partition (first, next) offset."""

    name: str
    id: str
    offsets: dict[int, tuple[int, int]]
    #: where it is several, by whose places ``offsets`` are
    several: places.Topics | None = None

    @property
    def topics(self) -> places.Topics:
        return self.several or places.one(self.id, self.name)

    @property
    def firsts(self) -> dict[int, int]:
        """The first offset that is there, by place."""
        return {place: first for place, (first, _) in self.offsets.items()}


def describe(bootstrap_servers: str, topic: str, *, timeout: float = 8.0,
             where: str = "connection kafka") -> TopicState:  # fmt: skip
    """Raises ``RunError`` KAFKA_UNREACHABLE or MISSING_TOPIC within about ``timeout`` seconds."""
    return describe_all(bootstrap_servers, [topic], timeout=timeout, where=where)[0]


def describe_all(bootstrap_servers: str, names: Sequence[str], *, timeout: float = 8.0,
                 where: str = "connection kafka") -> list[TopicState]:  # fmt: skip
    """In their order. Raises ``RunError`` KAFKA_UNREACHABLE or MISSING_TOPIC."""
    from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
    from confluent_kafka.admin import AdminClient

    quiet = {**QUIET, "bootstrap.servers": bootstrap_servers}
    admin = AdminClient(quiet)
    try:
        asked = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout)
        found = {name: asked[name].result(timeout=timeout + 1) for name in names}
    except (KafkaException, TimeoutError) as error:
        if isinstance(error, KafkaException) and "UNKNOWN_TOPIC" in error.args[0].name():
            missing = next(one for one in names if asked[one].done() and asked[one].exception() is not None)
            raise RunError("MISSING_TOPIC", f"there is no topic {missing}; create it, or send events with: lakehouse"
                           " produce", where=where) from None  # fmt: skip
        raise unreachable(bootstrap_servers, where) from None
    consumer = Consumer({**quiet, "group.id": "lakehouse-describe", "isolation.level": "read_committed"})
    try:
        return [TopicState(name, str(one.topic_id), {
            p.id: _ends(consumer, TopicPartition(name, p.id), timeout) for p in one.partitions
        }) for name, one in found.items()]  # fmt: skip
    except KafkaException as error:
        raise RunError("KAFKA_UNREACHABLE", f"{', '.join(names)}: {error.args[0].str()}", where=where) from None
    finally:
        consumer.close()


class Ids:
    """Asks, by one request to a connection that is kept, whether topics are those that were described."""

    def __init__(self, bootstrap_servers: str, where: str) -> None:
        self._servers, self._where = bootstrap_servers, where
        self._admin: Any = None

    def check(self, topic: TopicState) -> None:
        """Of several topics those that were there. Raises ``RunError`` TOPIC_RECREATED, KAFKA_UNREACHABLE."""
        from confluent_kafka import KafkaException, TopicCollection
        from confluent_kafka.admin import AdminClient

        if self._admin is None:
            self._admin = AdminClient({**QUIET, "bootstrap.servers": self._servers})
        parts = {topic.topics.at(place)[0] for place in topic.offsets}
        asked = self._admin.describe_topics(TopicCollection([part.name for part in parts]), request_timeout=8.0)
        for part in parts:
            try:
                found = str(asked[part.name].result(9.0).topic_id)
            except (KafkaException, TimeoutError) as error:
                if isinstance(error, KafkaException) and "UNKNOWN_TOPIC" in error.args[0].name():
                    raise recreated(part.name) from None
                raise unreachable(self._servers, self._where) from None
            if found != part.id:
                raise recreated(part.name)


def recreated(name: str) -> RunError:
    return RunError("TOPIC_RECREATED", f"{name} was deleted while it was read: what this batch has read is not written,"
                    " and the next start reads the topic that is called so then from where it begins", where=name)


def unreachable(bootstrap_servers: str, where: str) -> RunError:
    return RunError("KAFKA_UNREACHABLE", f"no broker answers at {bootstrap_servers}; check the connection, or start"
                    " the stack with: lakehouse up", where=where)  # fmt: skip


def _ends(consumer: Any, at: Any, timeout: float) -> tuple[int, int]:
    """The first and the next offset; a partition that has no leader for now, as of a new topic, is waited for."""
    from confluent_kafka import KafkaError, KafkaException

    moving = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    deadline = time.monotonic() + timeout
    while True:
        try:
            first, after = consumer.get_watermark_offsets(at, timeout=timeout)
            return first, after
        except KafkaException as error:
            if error.args[0].code() not in moving or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def offsets_at(bootstrap_servers: str, topic: TopicState, bound: str | Mapping[int, int]) -> dict[int, int]:
    """The offsets by partition that a ``start`` or an ``end`` stands for: of the first records that lie beyond.

    Raises ``RunError`` KAFKA_UNREACHABLE.
    """
    if isinstance(bound, Mapping):
        return {p: bound.get(p, first) for p, (first, _) in topic.offsets.items()}
    if bound in ("earliest", "latest"):
        return {p: first if bound == "earliest" else after for p, (first, after) in topic.offsets.items()}
    millis = int(datetime.fromisoformat(bound).timestamp() * 1000)
    return _first_since(bootstrap_servers, topic, millis)


def _first_since(bootstrap_servers: str, topic: TopicState, millis: int) -> dict[int, int]:
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    ask = {place: (part.name, partition) for place in topic.offsets for part, partition in [topic.topics.at(place)]}

    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "log_level": 0, "group.id": "lakehouse-describe",
                         "isolation.level": "read_committed", "enable.auto.commit": False})  # fmt: skip
    try:
        found = consumer.offsets_for_times([TopicPartition(*at, millis) for at in ask.values()], timeout=8.0)
        since = {(at.topic, at.partition): at.offset for at in found}
        # -1: all that is there came before
        return {place: since[at] if since[at] >= 0 else topic.offsets[place][1] for place, at in ask.items()}
    except KafkaException as error:
        raise RunError("KAFKA_UNREACHABLE", f"{topic.name}: {error.args[0].str()}", where="connection kafka") from None
    finally:
        consumer.close()


def starting_offsets(topic: TopicState, positions: Iterable[Mapping[int, int]]) -> str:
    """Spark's ``startingOffsets``: the least position of all members, per partition.

    Who has none in a partition that was added begins it at 0, though another one may have read there already.
    """
    members = list(positions)
    return by_topic(topic.topics, {place: min((member.get(place, 0) for member in members), default=first)
                                   for place, (first, _) in topic.offsets.items()})  # fmt: skip


def by_topic(topics: places.Topics, offsets: Mapping[int, int]) -> str:
    """Offsets by place, as Spark takes them."""
    found: dict[str, dict[str, int]] = {}
    for place, offset in offsets.items():
        part, partition = topics.at(place)
        found.setdefault(part.name, {})[str(partition)] = offset
    return json.dumps(found)


def check_held(topic: TopicState, positions: Mapping[int, int], pipeline: str) -> None:
    """Raises ``RunError`` DATA_LOST or POSITION_BEYOND_TOPIC: the topic no longer holds, or never held, a position."""
    for place in sorted({*topic.offsets, *positions}):
        first, after = topic.offsets.get(place, (0, 0))
        offset, said = positions.get(place, 0), topic.topics.said(place)  # 0: of one that was added meanwhile
        if offset < first:
            raise RunError("DATA_LOST", f"{said} no longer holds offsets {offset} to"
                           f" {first - 1}, which {pipeline} has not read: retention has passed",
                           where=pipeline)  # fmt: skip
        if offset > after:
            raise RunError("POSITION_BEYOND_TOPIC", f"{pipeline} has read {said} up to"
                           f" {offset}, and the topic ends at {after}: it was truncated", where=pipeline)  # fmt: skip


def records_between(bootstrap_servers: str, topic: str, ranges: Mapping[int, tuple[int, int]], *,
                    timeout: float = 60.0) -> int | None:  # fmt: skip
    """How many committed records the topic holds in ``ranges``: by partition the first offset and the one after the
    last. None when it no longer holds them all, or is not there. Marks of transactions and records that were aborted or
    compacted away have offsets and are none.

    Raises ``RunError`` KAFKA_UNREACHABLE, also where the broker does not give them within ``timeout`` seconds.
    """
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    try:
        held = describe(bootstrap_servers, topic).offsets
    except RunError as error:
        if error.code != "MISSING_TOPIC":
            raise
        return None
    if any(p not in held or since < held[p][0] or until > held[p][1] for p, (since, until) in ranges.items()):
        return None
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "log_level": 0, "group.id": "lakehouse-records",
                         "isolation.level": "read_committed", "enable.partition.eof": True,
                         "enable.auto.commit": False})  # fmt: skip
    left = {p: until for p, (since, until) in ranges.items() if since < until}
    count, deadline = 0, time.monotonic() + timeout
    try:
        consumer.assign([TopicPartition(topic, p, ranges[p][0]) for p in left])
        while left and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 0.5):
                failed, partition, offset = message.error(), message.partition(), message.offset()
                if partition not in left or offset is None:
                    continue
                if failed is not None and failed.code() != KafkaError._PARTITION_EOF:
                    continue  # it asks again until the deadline
                if failed is None and offset < left[partition]:
                    count += 1
                if failed is not None or offset >= left[partition] - 1:
                    del left[partition]
    finally:
        consumer.close()
    if left:
        raise RunError("KAFKA_UNREACHABLE", f"{topic}: partition {min(left)} was not given to its end within"
                       f" {timeout:.0f} s", where="connection kafka")  # fmt: skip
    return count
