"""What a job reads of topics: from some offsets to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lakehouse_engine import places
from lakehouse_engine.errors import RunError
from lakehouse_engine.places import Part
from lakehouse_engine.sources import topics as reading
from lakehouse_engine.sources.broker import TopicState, offsets_at
from lakehouse_engine.sources.kafka import Kafka, read_range

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

AGAIN = "; lakehouse backfill --full writes what is there in its place"


@dataclass(frozen=True)
class Range:
    """By place from an offset (included) to another (not included)."""

    topics: places.Topics
    offsets: Mapping[int, tuple[int, int]]

    def told(self) -> dict[str, Any]:
        """As a commit has it: ``topic_id``, ``offsets`` by partition; of several topics their ids by name as well."""
        by_name = {"topics": {part.name: part.id for part in self.topics.parts}} if self.topics.several else {}
        offsets = {self.topics.key(place): list(at) for place, at in sorted(self.offsets.items())}
        return {"topic_id": self.topics.id, **by_name, "offsets": offsets}

    @classmethod
    def of(cls, told: Mapping[str, Any], source: Kafka) -> Range:
        """``source``: whose commit told it."""
        topics = places.one(told["topic_id"], source.origin)
        if "topics" in told:
            topics = places.Topics(tuple(Part(id_, name) for name, id_ in told["topics"].items()), several=True)
        ids = {part.name: part.id for part in topics.parts}
        found = {}
        for key, at in told["offsets"].items():
            name, _, partition = key.rpartition("/")
            place = topics.place(ids[name] if name else topics.id, int(partition))
            assert place is not None
            found[place] = (at[0], at[1])
        return cls(topics, found)

    def read(self, spark: SparkSession, source: Kafka, bootstrap_servers: str) -> DataFrame:
        starts, ends = ({place: at[index] for place, at in self.offsets.items()} for index in (0, 1))
        return read_range(spark, self.topics, bootstrap_servers, starts, ends, source.prefix)

    def read_of(self, part: Part) -> str:
        """Offsets of one topic, in words; empty for none."""
        return ", ".join(f"{first} to {after - 1} of partition {self.topics.at(place)[1]}"
                         for place, (first, after) in self.offsets.items()
                         if after > first and self.topics.at(place)[0] == part)  # fmt: skip


def bounded(source: Kafka, bootstrap_servers: str, before: Range | None, where: str) -> Range:
    """The range as the topics have it now. ``before``: what the last run has read.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC, DATA_LOST, TOPIC_RECREATED.
    """
    topic = reading.describe(source, bootstrap_servers)
    assert source.end is not None
    starts, ends = (offsets_at(bootstrap_servers, topic, bound) for bound in (source.start, source.end))
    found = Range(topic.topics, {p: (at, max(at, min(ends[p], topic.offsets[p][1]))) for p, at in starts.items()})
    had = {} if before is None else _still(before, topic, where)
    for place, (first, _) in sorted(topic.offsets.items()):
        said = topic.topics.said(place)
        wanted = source.start.get(place, first) if isinstance(source.start, Mapping) else first
        read = had.get(place, (first, first))
        least = min(wanted, read[0] if read[0] < read[1] else first)
        if least < first:
            raise RunError("DATA_LOST", f"{said} no longer holds offsets {least} to {first - 1} of the range: retention"
                           f" has passed{AGAIN if before is not None else ''}", where=where)  # fmt: skip
        by_time = isinstance(source.start, str) and source.start not in ("earliest", "latest")
        if before is None and by_time and starts[place] == first > 0:
            there = "" if topic.topics.several else f", or {{{place}: {first}}},"
            raise RunError("DATA_LOST", f"{said} begins at offset {first}: records of the range may have been before"
                           f" it; say start: earliest{there} to read what is there", where=where)  # fmt: skip
    return found


def _still(before: Range, topic: TopicState, where: str) -> dict[int, tuple[int, int]]:
    """What was read, by the places of now. Raises ``RunError`` TOPIC_RECREATED."""
    ids = {part.id for part in topic.topics.parts}
    for part in before.topics.parts:
        read = before.read_of(part)
        if part.id not in ids and (read or not before.topics.several):
            raise RunError("TOPIC_RECREATED", f"{part.name} is another topic than the one of which offsets"
                           f" {read or 'none'} were read: those records are gone{AGAIN}", where=where)  # fmt: skip
    found = {}
    for place, at in before.offsets.items():
        part, partition = before.topics.at(place)
        now = topic.topics.place(part.id, partition)
        if now is not None:
            found[now] = at
    return found
