"""``kafka``: the records of one topic.

Columns: ``_key binary, _value binary, _topic string, _partition int, _offset bigint, _timestamp timestamp``.

**Delivery guarantees**: reads committed records only, from the position that the sink's own ledger holds; ``start``
counts when there is none yet. A record is never skipped: a position that the topic no longer holds stops the run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Component, Table, Whole
from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COLUMNS = {"_key": "binary", "_value": "binary", "_topic": "string", "_partition": "int", "_offset": "bigint",
           "_timestamp": "timestamp"}  # fmt: skip


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value):
        raise PydanticCustomError("BAD_NAME", "{value} is not a topic's name: letters, digits, . _ - only",
                                  {"value": repr(value)})  # fmt: skip
    return value


Topic = Annotated[str, AfterValidator(_topic), WithJsonSchema(
    {"type": "string", "title": "topic", "pattern": "^[A-Za-z0-9._-]{1,249}$"})]  # fmt: skip


class Kafka(Component):
    """The records of one topic, for streams."""

    later: ClassVar[frozenset[str]] = frozenset({"topics", "pattern", "end", "connection"})

    #: its name; there must be one
    topic: Topic
    #: the pipeline that lands this topic; it keeps the records that ``parse`` refuses, the others only count them
    history: Table | None = None
    #: where the first start begins; later ones go on where the sink's ledger says
    start: Literal["earliest", "latest"] = "earliest"
    #: records that a micro-batch takes at most
    max_per_trigger: Annotated[Whole, Field(ge=1, json_schema_extra={"minimum": 1})] = 500_000

    @property
    def origin(self) -> str:
        """What people call it."""
        return self.topic


@dataclass(frozen=True)
class TopicState:
    """A topic as the broker describes it: its id (a recreated one has another), per partition (first, next) offset."""

    name: str
    id: str
    offsets: dict[int, tuple[int, int]]


def describe(bootstrap_servers: str, topic: str, *, timeout: float = 8.0) -> TopicState:
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
                           " produce", where="connection kafka") from None  # fmt: skip
        raise RunError("KAFKA_UNREACHABLE", f"no broker answers at {bootstrap_servers}; check the connection, or start"
                       " the stack with: lakehouse up", where="connection kafka") from None  # fmt: skip
    consumer = Consumer({**quiet, "group.id": "lakehouse-describe", "isolation.level": "read_committed"})
    try:
        offsets = {p.id: consumer.get_watermark_offsets(TopicPartition(topic, p.id), timeout=timeout)
                   for p in description.partitions}  # fmt: skip
    except KafkaException as error:  # a partition that has no leader for now
        raise RunError("KAFKA_UNREACHABLE", f"{topic}: {error.args[0].str()}", where="connection kafka") from None
    finally:
        consumer.close()
    return TopicState(topic, str(description.topic_id), offsets)


def starting_offsets(topic: TopicState, positions: Iterable[Mapping[int, int]]) -> str:
    """Spark's ``startingOffsets``: the least position of all members, per partition."""
    least: dict[int, int] = {}
    for member in positions:
        for partition, offset in member.items():
            least[partition] = min(offset, least.get(partition, offset))
    return json.dumps({topic.name: {str(p): least.get(p, first) for p, (first, _) in topic.offsets.items()}})


def check_held(topic: TopicState, positions: Mapping[int, int], pipeline: str) -> None:
    """Raises ``RunError`` DATA_LOST or POSITION_BEYOND_TOPIC: the topic no longer holds, or never held, a position."""
    for partition, offset in sorted(positions.items()):
        first, after = topic.offsets.get(partition, (0, 0))
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
              .option("kafka.fetch.max.wait.ms", 20).option("maxRecordsPerPartition", 20_000).load())  # fmt: skip
    return stream.selectExpr(*[f"{name[1:]} as {name}" for name in COLUMNS])


def read_range(spark: SparkSession, topic: str, bootstrap_servers: str, starts: Mapping[int, int],
               ends: Mapping[int, int]) -> DataFrame:  # fmt: skip
    """The records from ``starts`` (included) to ``ends`` (not included), offsets by partition; as ``read`` gives."""
    frame = (spark.read.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers).option("subscribe", topic)
             .option("startingOffsets", json.dumps({topic: {str(p): o for p, o in starts.items()}}))
             .option("endingOffsets", json.dumps({topic: {str(p): o for p, o in ends.items()}}))
             .option("kafka.isolation.level", "read_committed").option("failOnDataLoss", "true").load())  # fmt: skip
    return frame.selectExpr(*[f"{name[1:]} as {name}" for name in COLUMNS])


def starts(topic: TopicState, source: Kafka) -> dict[int, int]:
    """The offset by partition at which a pipeline begins that has not read yet."""
    return {p: first if source.start == "earliest" else after for p, (first, after) in topic.offsets.items()}


#: SQL of a relation with the columns of a record and without a row
NO_RECORDS = f"(select {', '.join(f'cast(null as {kind}) as {name}' for name, kind in COLUMNS.items())} where false)"


def nothing(spark: SparkSession) -> DataFrame:
    """A stream without a record, with the columns of ``COLUMNS``: what a query over it would give can be asked."""
    rate = spark.readStream.format("rate").load().filter("false")
    return rate.selectExpr(*[f"cast(null as {kind}) as {name}" for name, kind in COLUMNS.items()])
