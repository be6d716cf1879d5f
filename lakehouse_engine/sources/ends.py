"""Where a topic ends, asked beside the stream that reads it: how far behind it is must cost no batch any time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import TimeoutError as NoAnswer

from lakehouse_engine.sources.broker import TopicState

#: seconds between two questions where no batch asks
EVERY = 5.0
_TIMEOUT = 5.0


class Ends:
    """The next offsets of a topic by partition, as a thread last heard them. ``ask`` returns at once.

    A broker that does not answer leaves them as they were: what is behind is then the last that was known.
    """

    def __init__(self, bootstrap_servers: str, topic: TopicState) -> None:
        self._servers = bootstrap_servers
        self.follow(topic)
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name=f"ends of {topic.name}", daemon=True)

    def follow(self, topic: TopicState) -> None:
        """Of several topics: what is read has become more."""
        self._topics = topic.topics
        self._ends: Mapping[int, int] = {p: after for p, (_, after) in topic.offsets.items()}

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """A batch begins: by its end the thread has an answer."""
        self._wake.set()

    def behind(self, positions: Mapping[int, int]) -> int:
        """Records from ``positions`` (next offsets) to the ends; a place that was never read counts from 0."""
        return sum(max(end - positions.get(p, 0), 0) for p, end in self._ends.items())

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def _listen(self) -> None:
        from confluent_kafka import IsolationLevel, KafkaException, TopicCollection, TopicPartition
        from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

        admin = AdminClient({"bootstrap.servers": self._servers, "log_level": 0})
        while not self._closed:
            try:
                topics, places = self._topics, list(self._ends)
                if not self._wake.wait(EVERY):  # nobody is in a hurry: look for new partitions too
                    parts = {topics.at(place)[0] for place in places}
                    names = TopicCollection([part.name for part in parts])
                    found = admin.describe_topics(names, request_timeout=_TIMEOUT)
                    placed = (topics.place(part.id, p.id) for part in parts
                              for p in found[part.name].result(_TIMEOUT + 1).partitions)  # fmt: skip
                    places = [place for place in placed if place is not None]
                self._wake.clear()
                if self._closed:
                    break
                asked = {(part.name, partition): place for place in places for part, partition in [topics.at(place)]}
                latest = {TopicPartition(*at): OffsetSpec.latest() for at in asked}  # type: ignore[no-untyped-call]
                answers = admin.list_offsets(latest, isolation_level=IsolationLevel.READ_COMMITTED,
                                             request_timeout=_TIMEOUT)  # fmt: skip
                ends = {asked[at.topic, at.partition]: answer.result(_TIMEOUT + 1).offset
                        for at, answer in answers.items()}  # fmt: skip
                if topics is self._topics:
                    self._ends = ends
            except (KafkaException, NoAnswer):
                self._wake.clear()
                if not self._closed:
                    self._wake.wait(1.0)
