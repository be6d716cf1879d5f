"""A broker as the engine sees it: one topic by name, with an id of its own each time that it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lakehouse_engine.sources.broker import TopicState

NAME = "events"
#: what becomes of a record where nothing is late. ``bad`` and ``filtered`` end before the watermark step and do not
#: move it, ``checked`` is refused after it. ``gap`` is an offset without a record: a transaction's mark
Kind = Literal["good", "bad", "filtered", "checked", "gap"]
KINDS: tuple[Kind, ...] = ("good", "good", "good", "good", "bad", "filtered", "checked", "gap")


@dataclass(frozen=True)
class Event:
    """``uid`` is never given twice; ``at``: event time in microseconds."""

    uid: int
    kind: Kind
    key: str
    at: int

    @property
    def time(self) -> int | None:
        """What reaches the watermark step."""
        return self.at if self.kind in ("good", "checked") else None


@dataclass
class Partition:
    first: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.events)


@dataclass
class Topic:
    id: str
    partitions: list[Partition]

    def records(self, partition: int, since: int, until: int) -> list[tuple[int, Event]]:
        """Offsets and events of a range, whether retention has passed or not."""
        events = self.partitions[partition].events if partition < len(self.partitions) else []
        return [(o, events[o]) for o in range(max(since, 0), min(until, len(events))) if events[o].kind != "gap"]


class Broker:
    """``ever``: all topics that were called so, by id; the last one is there now."""

    def __init__(self, partitions: int) -> None:
        self.ever: dict[str, Topic] = {}
        self.make(partitions)

    def make(self, partitions: int) -> None:
        made = Topic(f"t{len(self.ever) + 1}", [Partition() for _ in range(partitions)])
        self.ever[made.id] = self.topic = made

    def describe(self) -> TopicState:
        return TopicState(NAME, self.topic.id, {i: (p.first, p.end) for i, p in enumerate(self.topic.partitions)})
