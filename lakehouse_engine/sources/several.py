"""Several topics as one: what a stream reads of a source ``kafka`` that says ``topics`` or a ``pattern``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import sql
from lakehouse_engine.places import SEVERAL
from lakehouse_engine.sources import broker, kafka, topics
from lakehouse_engine.sources.ends import Ends
from lakehouse_engine.sources.kafka import Kafka
from lakehouse_engine.sources.reading import Held, OfTopic

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class OfTopics(OfTopic):
    """A row says its place, too: ``_place int``. Topics that match the pattern later are found as they come.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC.
    """

    def __init__(self, source: Kafka, bootstrap_servers: str) -> None:
        self._source, self._servers = source, bootstrap_servers
        self.topic = topics.describe(source, bootstrap_servers)
        self.ends: Ends = Ends(bootstrap_servers, self.topic)
        self._ids = broker.Ids(bootstrap_servers, source.reached)

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        if held:  # once more, after the claim: until then another process may have read on
            self._now_is(topics.describe(self._source, self._servers, self.topic.topics))
            for name, positions in held:
                broker.check_held(self.topic, positions, name)
        places = [positions for _, positions in held] or [self.starts()]
        return kafka.read(spark, self._source, self._servers, broker.starting_offsets(self.topic, places))

    def begin(self, spark: SparkSession) -> DataFrame:
        return self._placed(super().begin(spark))

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        if self._source.pattern is not None:
            self._find(checkpoint / "offsets" / str(number))
        return self._placed(frame)

    def _placed(self, frame: DataFrame) -> DataFrame:
        numbers = topics.numbers(self.topic.topics).items()
        entries = ", ".join(f"{sql.string(name.removeprefix(self._source.prefix))}, {first}" for name, first in numbers)
        return frame.selectExpr("*", f"element_at(map({entries}), _topic) + _partition as {SEVERAL}")

    def nothing(self, spark: SparkSession) -> str:
        return f"(select *, cast(null as int) as {SEVERAL} from {kafka.NO_RECORDS})"

    def _find(self, log: Path) -> None:
        """The topics of a micro-batch, by what Spark has written down before it: those that are new get numbers."""
        there = json.loads(log.read_text().splitlines()[-1])
        known = topics.numbers(self.topic.topics)
        new = sorted(name for name in there if name not in known)
        if new:
            more = broker.describe_all(self._servers, new, where=self._source.reached)
            self._now_is(topics.added(self.topic, more))

    def _now_is(self, topic: broker.TopicState) -> None:
        self.topic = topic
        self.ends.follow(topic)
