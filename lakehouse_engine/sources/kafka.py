"""``kafka``: the records of a topic, or of several; in a stream all that come, in a job those of a range.

Columns: ``_key binary, _value binary, _topic string, _partition int, _offset bigint, _timestamp timestamp``, and
``_headers array<struct<key: string, value: binary>>``, null for a record that has none.

**Delivery guarantees**: reads committed records only, from the position that the sink's own ledger holds; ``start``
counts when there is none yet. A record is never skipped: a position that the topic no longer holds stops the run. A
topic that is made anew is another one and is read from where it begins; while a stream runs, each batch asks after its
reading whether the topic is still the one that was claimed, and else writes nothing (TOPIC_RECREATED) and starts again.
What a deleted topic held and nobody had read is gone with it. Several topics have positions of their own each; one that
is new to a pipeline which has read others begins at its first record.

A job reads each record of its range once a run, and its commit names the topic's id and the offsets. While these are as
they were there is nothing to do; else it computes everything anew. Records of the range that the topic no longer holds
stop it, by their offsets where a run has read them, also where the topic is made anew: what it has written stays.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import places
from lakehouse_engine.component import Component, ConnectionName, Table, Topic, Whole, utc
from lakehouse_engine.connections import kafka_key
from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: of a client that says nothing itself
QUIET: dict[str, str | int | float | bool] = {"log_level": 0, "socket.connection.setup.timeout.ms": 4000}
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


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise PydanticCustomError("BAD_VALUE", "pattern is not a regular expression: {error}",
                                  {"error": str(error)}) from None  # fmt: skip
    return text


def _apart(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise PydanticCustomError("BAD_VALUE", "topics are one topic or more, each once")
    return names


def _said(value: object) -> object:
    if value is None:
        raise PydanticCustomError("BAD_VALUE", "topic must be text, not null")
    return value


One = Annotated[Topic | None, BeforeValidator(_said), WithJsonSchema(
    {"type": "string", "title": "topic", "pattern": "^[A-Za-z0-9._-]{1,249}$"})]  # fmt: skip
Topics = Annotated[tuple[Topic, ...], AfterValidator(_apart), WithJsonSchema({
    "type": "array", "title": "topics", "minItems": 1, "uniqueItems": True,
    "items": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,249}$"}})]  # fmt: skip
Pattern = Annotated[str, AfterValidator(_expression), WithJsonSchema({"type": "string", "format": "regex"})]


class Kafka(Component):
    """The records of one topic, or of several: for streams, and between ``start`` and ``end`` for jobs."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [
        {"required": [one], "properties": {one: {"not": {"type": "null"}}}} for one in ("topic", "topics", "pattern")]})

    #: its name; there must be one
    topic: One = None
    #: several, read as one: ``[web, mobile]``
    topics: Topics | None = None
    #: all whose whole names match this regular expression, ``shop\\..*``; one that is made later joins them while the
    #: stream runs, and begins at its first record
    pattern: Pattern | None = None
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

    #: of a test: what the names of its topics begin with, which its rows do not say
    _prefix: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _one(self) -> Kafka:
        said = [key for key in ("topic", "topics", "pattern") if getattr(self, key) is not None]
        if len(said) != 1:
            raise PydanticCustomError("MISSING_KEY" if not said else "ILLEGAL_SOURCE", "{message}", {
                "message": f"{' and '.join(said)} exclude each other" if said else
                "topic is missing: or topics, a list of them, or a pattern of their names"})  # fmt: skip
        if not self.topic and any(isinstance(bound, dict) for bound in (self.start, self.end)):
            raise PydanticCustomError("BAD_TIME", "offsets by partition are of one topic; of several say a time")
        return self

    def of_test(self, prefix: str, topics: Sequence[str]) -> Kafka:
        """Of topics that a test has made; of a pattern those with the prefix."""
        made = self.model_copy(update={} if self.topics is None else {"topics": tuple(topics)})
        made._prefix = prefix
        return made

    @property
    def prefix(self) -> str:
        return self._prefix

    @property
    def several(self) -> bool:
        """Whether it reads more than one topic, or may come to."""
        return self.topic is None

    @property
    def one(self) -> str:
        """Its topic, where it is one."""
        assert self.topic is not None
        return self.topic

    def reads(self, topic: str) -> bool:
        """Whether this topic of the connection is read."""
        if self.pattern is not None:
            ours = topic.startswith(self._prefix)
            return ours and re.fullmatch(self.pattern, topic.removeprefix(self._prefix)) is not None
        return topic in (self.topic, *(self.topics or ()))

    @property
    def reached(self) -> str:
        """The connection, in words."""
        return f"connection {kafka_key(self.connection)}"

    @property
    def origin(self) -> str:
        """What people call it; of two sources the same where they read the same records."""
        said = self.topic or ", ".join(self.topics or ()) or f"/{self.pattern}/"
        return said if self.connection is None else f"{self.connection}:{said}"


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


def read(spark: SparkSession, source: Kafka, bootstrap_servers: str, starting: str) -> DataFrame:
    """The topic as a streaming frame with the columns of ``COLUMNS``."""
    asked = ("subscribe", source.topic or ",".join(source.topics or ()))
    if source.pattern is not None:  # which Spark looks for anywhere in a name
        asked = ("subscribePattern", f"^{re.escape(source.prefix)}(?:{source.pattern})$")
    stream = (spark.readStream.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers)
              .option(*asked).option("startingOffsets", starting)
              .option("maxOffsetsPerTrigger", source.max_per_trigger).option("kafka.isolation.level", "read_committed")
              .option("failOnDataLoss", "true").option("kafkaConsumer.pollTimeoutMs", "60000")
              # Spark seeks before each poll, which throws away what was fetched and not yet given out
              .option("kafka.max.poll.records", 100_000).option("kafka.max.partition.fetch.bytes", 4 << 20)
              .option("includeHeaders", "true").option("kafka.fetch.max.wait.ms", 20)
              .option("maxRecordsPerPartition", 20_000).load())  # fmt: skip
    return records(stream, source.prefix)


def records(frame: DataFrame, prefix: str) -> DataFrame:
    """With the columns of ``COLUMNS``."""
    found = {**{name: name[1:] for name in COLUMNS}, **({"_topic": f"substring(topic, {len(prefix) + 1})"} if prefix
                                                       else {})}  # fmt: skip
    return frame.selectExpr(*[f"{text} as {name}" for name, text in found.items()])


def read_range(spark: SparkSession, topics: places.Topics, bootstrap_servers: str, starts: Mapping[int, int],
               ends: Mapping[int, int], prefix: str = "") -> DataFrame:  # fmt: skip
    """The records from ``starts`` (included) to ``ends`` (not included), offsets by place; as ``read`` gives."""
    frame = (spark.read.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers)
             .option("subscribe", ",".join(part.name for part in topics.parts))
             .option("startingOffsets", by_topic(topics, starts)).option("endingOffsets", by_topic(topics, ends))
             .option("kafka.isolation.level", "read_committed").option("failOnDataLoss", "true")
             .option("includeHeaders", "true").load())  # fmt: skip
    return records(frame, prefix)


#: SQL of a relation with the columns of a record and without a row
NO_RECORDS = f"(select {', '.join(f'cast(null as {kind}) as {name}' for name, kind in COLUMNS.items())} where false)"
