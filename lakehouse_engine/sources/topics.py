"""The topics that a source ``kafka`` reads: one, several, or all whose names match a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lakehouse_engine.errors import RunError
from lakehouse_engine.places import BITS, Part, Topics
from lakehouse_engine.sources import broker
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.kafka import Kafka


def names(source: Kafka, bootstrap_servers: str) -> list[str]:
    """Those that are there of a pattern, by name; else those that the source names.

    Raises ``RunError`` KAFKA_UNREACHABLE; MISSING_TOPIC where nothing matches.
    """
    if source.pattern is None:
        return [source.topic] if source.topic is not None else list(source.topics or ())
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({**broker.QUIET, "bootstrap.servers": bootstrap_servers})
    try:
        there = admin.list_topics(timeout=8.0).topics
    except KafkaException:
        raise broker.unreachable(bootstrap_servers, source.reached) from None
    found = sorted(name for name in there if source.reads(name) and not name.startswith("__"))  # the broker's own
    if not found:
        raise RunError("MISSING_TOPIC", f"no topic's name matches {source.pattern}; create one", where=source.reached)
    return found


def describe(source: Kafka, bootstrap_servers: str, known: Topics | None = None) -> TopicState:
    """What the source reads, as the brokers describe it; of several topics as one, by places.

    ``known``: topics keep the numbers that they have there, also when they are gone; others have the next ones.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC.
    """
    found = broker.describe_all(bootstrap_servers, names(source, bootstrap_servers), where=source.reached)
    return joined(found, known) if source.several else found[0]


def joined(found: list[TopicState], known: Topics | None = None) -> TopicState:
    """Several as one."""
    before = known.parts if known is not None else ()
    new = tuple(part for one in found if (part := Part(one.id, one.name)) not in before)
    topics = Topics((*before, *new), several=True)
    offsets: dict[int, tuple[int, int]] = {}
    for one in found:
        number = topics.parts.index(Part(one.id, one.name))
        offsets |= {number << BITS | partition: at for partition, at in one.offsets.items()}
    return TopicState(topics.name, topics.id, offsets, topics)


def added(state: TopicState, more: list[TopicState]) -> TopicState:
    """With topics that were found since."""
    new = joined(more, state.topics)
    return replace(new, offsets={**state.offsets, **new.offsets})


def numbers(topics: Topics) -> Mapping[str, int]:
    """By a topic's name the place of its partition 0; of those that were called so the last one's."""
    return {part.name: number << BITS for number, part in enumerate(topics.parts)}
