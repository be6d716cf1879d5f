"""``kafka``: the records of one topic; in a stream all that come, in a job those of a range.

Columns: ``_key binary, _value binary, _topic string, _partition int, _offset bigint, _timestamp timestamp``, and
``_headers array<struct<key: string, value: binary>>``, null for a record that has none.

**Delivery guarantees**: reads committed records only, from the position that the sink's own ledger holds; ``start``
counts when there is none yet. A record is never skipped: a position that the topic no longer holds stops the run.

A job reads each record of its range once a run, and its commit names the topic's id and the offsets. While these are as
they were there is nothing to do; else it computes everything anew. Records of the range that the topic no longer holds
stop it, by their offsets where a run has read them, also where the topic is made anew: what it has written stays.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Component, ConnectionName, Table, Topic, Whole, utc
from lakehouse_engine.connections import kafka_key
from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COLUMNS = {"_key": "binary", "_value": "binary", "_topic": "string", "_partition": "int", "_offset": "bigint",
           "_timestamp": "timestamp", "_headers": "array<struct<key: string, value: binary>>"}  # fmt: skip


def _bound(value: object) -> object:
    if isinstance(value, dict):
        good = all(re.fullmatch("[0-9]{1,6}", str(p)) and isinstance(o, int) and not isinstance(o, bool) and o >= 0
                   for p, o in value.items())  # fmt: skip
        if not good or not value:
            raise PydanticCustomError("BAD_TIME", "offsets are whole numbers by partition, e.g. {0: 1200, 1: 0}")
        return {int(p): o for p, o in value.items()}
    if not isinstance(value, str) or value in ("earliest", "latest"):
        return value
    try:
        return utc(value)
    except ValueError:
        raise PydanticCustomError("BAD_TIME", "{value} is neither earliest, latest, a time like 2026-01-01T00:00:00Z,"
                                  " nor offsets by partition", {"value": repr(value)}) from None  # fmt: skip


#: ``earliest``, ``latest``, a time (ISO) of a record's arrival, or offsets by partition; others begin at the first
Bound = Annotated[str | dict[int, int], BeforeValidator(_bound), WithJsonSchema(
    {"type": ["string", "object"], "title": "time or offsets"})]  # fmt: skip


class Kafka(Component):
    """The records of one topic: for streams, and between ``start`` and ``end`` for jobs."""

    later: ClassVar[frozenset[str]] = frozenset({"topics", "pattern"})

    #: its name; there must be one
    topic: Topic
    #: of the environment: ``eu`` is its connection ``kafka.eu``; default: ``kafka``
    connection: ConnectionName | None = None
    #: the pipeline that lands this topic; it keeps the records that ``parse`` refuses, the others only count them
    history: Table | None = None
    #: ``earliest``, ``latest``, a time, or offsets by partition (``{0: 1200}``): where the first start begins; later
    #: ones go on where the sink's ledger says; a job begins there at each run
    start: Bound = "earliest"
    #: of a job: what it does not read any more; a time, ``latest`` (what is there at the run), or offsets by partition:
    #: of those that are not named it reads nothing
    end: Bound | None = None
    #: records that a micro-batch takes at most
    max_per_trigger: Annotated[Whole, Field(ge=1, json_schema_extra={"minimum": 1})] = 500_000

    @property
    def reached(self) -> str:
        """The connection, in words."""
        return f"connection {kafka_key(self.connection)}"

    @property
    def origin(self) -> str:
        """What people call it; of two sources the same where they read the same records."""
        return self.topic if self.connection is None else f"{self.connection}:{self.topic}"


@dataclass(frozen=True)
class TopicState:
    """A topic as the broker describes it: its id (a recreated one has another), per partition (first, next) offset."""

    name: str
    id: str
    offsets: dict[int, tuple[int, int]]


def describe(bootstrap_servers: str, topic: str, *, timeout: float = 8.0,
             where: str = "connection kafka") -> TopicState:  # fmt: skip
    """Raises ``RunError`` KAFKA_UNREACHABLE or MISSING_TOPIC within about ``timeout`` seconds."""
    from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
    from confluent_kafka.admin import AdminClient

    quiet: dict[str, str | int | float | bool] = {
        "bootstrap.servers": bootstrap_servers, "log_level": 0, "socket.connection.setup.timeout.ms": 4000}  # fmt: skip
    admin = AdminClient(quiet)
    try:
        future = admin.describe_topics(TopicCollection([topic]), request_timeout=timeout)[topic]
        description = future.result(timeout=timeout + 1)
    except (KafkaException, TimeoutError) as error:
        if isinstance(error, KafkaException) and "UNKNOWN_TOPIC" in error.args[0].name():
            raise RunError("MISSING_TOPIC", f"there is no topic {topic}; create it, or send events with: lakehouse"
                           " produce", where=where) from None  # fmt: skip
        raise RunError("KAFKA_UNREACHABLE", f"no broker answers at {bootstrap_servers}; check the connection, or start"
                       " the stack with: lakehouse up", where=where) from None  # fmt: skip
    consumer = Consumer({**quiet, "group.id": "lakehouse-describe", "isolation.level": "read_committed"})
    try:
        offsets = {p.id: _ends(consumer, TopicPartition(topic, p.id), timeout) for p in description.partitions}
    except KafkaException as error:
        raise RunError("KAFKA_UNREACHABLE", f"{topic}: {error.args[0].str()}", where=where) from None
    finally:
        consumer.close()
    return TopicState(topic, str(description.topic_id), offsets)


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
    found = _asked(bootstrap_servers, topic, lambda consumer, places: consumer.offsets_for_times(places, timeout=8.0),
                   dict.fromkeys(topic.offsets, millis))  # fmt: skip
    # -1: all that is there came before
    return {at.partition: at.offset if at.offset >= 0 else topic.offsets[at.partition][1] for at in found}


def _asked(bootstrap_servers: str, topic: TopicState, ask: Callable[[Any, Any], Any], at: Mapping[int, int]) -> Any:
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "log_level": 0, "group.id": "lakehouse-describe",
                         "isolation.level": "read_committed", "enable.auto.commit": False})  # fmt: skip
    try:
        return ask(consumer, [TopicPartition(topic.name, partition, value) for partition, value in at.items()])
    except KafkaException as error:
        raise RunError("KAFKA_UNREACHABLE", f"{topic.name}: {error.args[0].str()}", where="connection kafka") from None
    finally:
        consumer.close()


@dataclass(frozen=True)
class Range:
    """What a job reads of a topic: per partition from an offset (included) to another (not included)."""

    topic_id: str
    offsets: Mapping[int, tuple[int, int]]

    def told(self) -> dict[str, Any]:
        """As a commit has it."""
        return {"topic_id": self.topic_id, "offsets": {str(p): list(at) for p, at in sorted(self.offsets.items())}}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Range:
        return cls(told["topic_id"], {int(p): (at[0], at[1]) for p, at in told["offsets"].items()})

    def read(self, spark: SparkSession, topic: str, bootstrap_servers: str) -> DataFrame:
        starts, ends = ({p: at[index] for p, at in self.offsets.items()} for index in (0, 1))
        return read_range(spark, topic, bootstrap_servers, starts, ends)


def bounded(source: Kafka, bootstrap_servers: str, before: Range | None, where: str) -> Range:
    """The range as the topic has it now. ``before``: what the last run has read.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC, DATA_LOST, TOPIC_RECREATED.
    """
    topic = describe(bootstrap_servers, source.topic, where=source.reached)
    assert source.end is not None
    starts, ends = (offsets_at(bootstrap_servers, topic, bound) for bound in (source.start, source.end))
    found = Range(topic.id, {p: (at, max(at, min(ends[p], topic.offsets[p][1]))) for p, at in starts.items()})
    again = "; lakehouse backfill --full writes what is there in its place"
    if before is not None and before.topic_id != topic.id:
        read = ", ".join(f"{first} to {after - 1} of partition {p}" for p, (first, after) in before.offsets.items()
                         if after > first)  # fmt: skip
        raise RunError("TOPIC_RECREATED", f"{source.topic} is another topic than the one of which offsets"
                       f" {read or 'none'} were read: those records are gone{again}", where=where)  # fmt: skip
    for partition, (first, _) in sorted(topic.offsets.items()):
        wanted = source.start.get(partition, first) if isinstance(source.start, Mapping) else first
        had = before.offsets.get(partition, (first, first)) if before is not None else (first, first)
        least = min(wanted, had[0] if had[0] < had[1] else first)
        if least < first:
            raise RunError("DATA_LOST", f"{source.topic} partition {partition} no longer holds offsets {least} to"
                           f" {first - 1} of the range: retention has passed{again if before is not None else ''}",
                           where=where)  # fmt: skip
        by_time = isinstance(source.start, str) and source.start not in ("earliest", "latest")
        if before is None and by_time and starts[partition] == first > 0:
            raise RunError("DATA_LOST", f"{source.topic} partition {partition} begins at offset {first}: records of the"
                           f" range may have been before it; say start: earliest, or {{{partition}: {first}}}, to read"
                           " what is there", where=where)  # fmt: skip
    return found


def starting_offsets(topic: TopicState, positions: Iterable[Mapping[int, int]]) -> str:
    """Spark's ``startingOffsets``: the least position of all members, per partition.

    Who has none in a partition that was added begins it at 0, though another one may have read there already.
    """
    members = list(positions)
    least = {str(p): min((member.get(p, 0) for member in members), default=first)
             for p, (first, _) in topic.offsets.items()}  # fmt: skip
    return json.dumps({topic.name: least})


def check_held(topic: TopicState, positions: Mapping[int, int], pipeline: str) -> None:
    """Raises ``RunError`` DATA_LOST or POSITION_BEYOND_TOPIC: the topic no longer holds, or never held, a position."""
    for partition in sorted({*topic.offsets, *positions}):
        first, after = topic.offsets.get(partition, (0, 0))
        offset = positions.get(partition, 0)  # of one that was added meanwhile
        if offset < first:
            raise RunError("DATA_LOST", f"{topic.name} partition {partition} no longer holds offsets {offset} to"
                           f" {first - 1}, which {pipeline} has not read: retention has passed",
                           where=pipeline)  # fmt: skip
        if offset > after:
            raise RunError("POSITION_BEYOND_TOPIC", f"{pipeline} has read {topic.name} partition {partition} up to"
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


def read(spark: SparkSession, source: Kafka, bootstrap_servers: str, starting: str) -> DataFrame:
    """The topic as a streaming frame with the columns of ``COLUMNS``."""
    stream = (spark.readStream.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers)
              .option("subscribe", source.topic).option("startingOffsets", starting)
              .option("maxOffsetsPerTrigger", source.max_per_trigger).option("kafka.isolation.level", "read_committed")
              .option("failOnDataLoss", "true").option("kafkaConsumer.pollTimeoutMs", "60000")
              # Spark seeks before each poll, which throws away what was fetched and not yet given out
              .option("kafka.max.poll.records", 100_000).option("kafka.max.partition.fetch.bytes", 4 << 20)
              .option("includeHeaders", "true").option("kafka.fetch.max.wait.ms", 20)
              .option("maxRecordsPerPartition", 20_000).load())  # fmt: skip
    return stream.selectExpr(*[f"{name[1:]} as {name}" for name in COLUMNS])


def read_range(spark: SparkSession, topic: str, bootstrap_servers: str, starts: Mapping[int, int],
               ends: Mapping[int, int]) -> DataFrame:  # fmt: skip
    """The records from ``starts`` (included) to ``ends`` (not included), offsets by partition; as ``read`` gives."""
    frame = (spark.read.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers).option("subscribe", topic)
             .option("startingOffsets", json.dumps({topic: {str(p): o for p, o in starts.items()}}))
             .option("endingOffsets", json.dumps({topic: {str(p): o for p, o in ends.items()}}))
             .option("kafka.isolation.level", "read_committed").option("failOnDataLoss", "true")
             .option("includeHeaders", "true").load())  # fmt: skip
    return frame.selectExpr(*[f"{name[1:]} as {name}" for name in COLUMNS])


#: SQL of a relation with the columns of a record and without a row
NO_RECORDS = f"(select {', '.join(f'cast(null as {kind}) as {name}' for name, kind in COLUMNS.items())} where false)"
