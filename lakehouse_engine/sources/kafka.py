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

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import places
from lakehouse_engine.component import Component, ConnectionName, Table, Topic, Whole, utc
from lakehouse_engine.connections import kafka_key
from lakehouse_engine.sources import broker

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
        return ", ".join(self.origins)

    @property
    def origins(self) -> tuple[str, ...]:
        """The same of each topic; of a pattern, which is one, nobody knows them here."""
        names = (self.topic,) if self.topic is not None else self.topics or (f"/{self.pattern}/",)
        return names if self.connection is None else tuple(f"{self.connection}:{name}" for name in names)


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
             .option("startingOffsets", broker.by_topic(topics, starts))
             .option("endingOffsets", broker.by_topic(topics, ends))
             .option("kafka.isolation.level", "read_committed").option("failOnDataLoss", "true")
             .option("includeHeaders", "true").load())  # fmt: skip
    return records(frame, prefix)


#: SQL of a relation with the columns of a record and without a row
NO_RECORDS = f"(select {', '.join(f'cast(null as {kind}) as {name}' for name, kind in COLUMNS.items())} where false)"
