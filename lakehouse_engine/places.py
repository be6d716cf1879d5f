"""What a position is of, where several topics are read as one.

Inside the engine a position has one number, its place. Of one topic it is the partition. Of several, the bits above the
partition's are the topic's number among them, which this process has given it: no place is ever stored. What is stored
has the topic's id beside the partition, in PostgreSQL a row of its own, in a commit's record the topic's name as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: the column of a micro-batch that has the place of a row, where several topics are read
SEVERAL = "_place"
#: a topic has fewer partitions than these bits tell apart
BITS = 16


@dataclass(frozen=True)
class Part:
    """One topic, or what else has positions; who is made anew under its name has another id."""

    id: str
    name: str


@dataclass(frozen=True)
class Topics:
    """What is read, in the order of its numbers; ``several``: it is more than one topic, or may become so."""

    parts: tuple[Part, ...]
    several: bool = False

    @property
    def id(self) -> str:
        """The ids of all, as a batch of the ledger has them."""
        return " ".join(part.id for part in self.parts)

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    def at(self, place: int) -> tuple[Part, int]:
        """A place's topic and partition."""
        if not self.several:
            return self.parts[0], place
        return self.parts[place >> BITS], place & (1 << BITS) - 1

    def place(self, topic_id: str, partition: int) -> int | None:
        """None for a topic that is not among them."""
        number = next((number for number, part in enumerate(self.parts) if part.id == topic_id), None)
        return None if number is None else number << BITS | partition

    def key(self, place: int) -> str:
        """What a commit's record calls it: ``0``, of several topics ``clicks/0``."""
        part, partition = self.at(place)
        return f"{part.name}/{partition}" if self.several else str(partition)

    def said(self, place: int) -> str:
        """In words."""
        part, partition = self.at(place)
        return f"{part.name} partition {partition}"

    def of(self, ranges: Mapping[str, Mapping[str, Any]], topic_id: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The ranges of a record by place; ``topic_id``: the record's. Of what is not among these there are none."""
        for key, at in ranges.items():
            place = self.place(at.get("topic_id", topic_id), int(key.rpartition("/")[2]))
            if place is not None:
                yield place, at

    def left(self, ranges: Mapping[str, Mapping[str, Any]], topic_id: str, topic: str) -> dict[str, dict[str, Any]]:
        """The ranges of topics that are not read any more, as a record keeps them: who is read again goes on there.

        Nothing of one that was made anew.
        """
        names, found = {part.name for part in self.parts}, {}
        for key, at in ranges.items():
            name, _, partition = key.rpartition("/")
            if (name or topic) not in names:
                found[f"{name or topic}/{partition}"] = {"topic_id": topic_id, **at, "from": at["to"]}
        return found


def one(topic_id: str, name: str) -> Topics:
    return Topics((Part(topic_id, name),))
