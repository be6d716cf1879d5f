"""Sends messages to a topic: in order, at least once, and only what the broker has confirmed counts as sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lakehouse_engine import sql
from lakehouse_engine.errors import RunError
from lakehouse_engine.sinks import Kafka
from lakehouse_engine.sinks.kafka import HEADER, KEY, VALUE
from lakehouse_engine.sources import broker

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message
    from pyspark.sql import DataFrame

#: seconds that the broker may take to confirm a message
PATIENCE = 30.0
_SETTINGS: dict[str, Any] = {
    "enable.idempotence": True, "acks": "all", "compression.type": "lz4", "linger.ms": 20, "log_level": 0,
    "queue.buffering.max.messages": 200_000, "delivery.timeout.ms": int(PATIENCE * 1000),
    # the partition of a key is the one that Java's clients choose
    "partitioner": "murmur2_random",
}  # fmt: skip
#: one message: key, value and headers
Message_ = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


class Topic:
    """A topic that is there. Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC."""

    def __init__(self, bootstrap_servers: str, name: str, where: str) -> None:
        self.name, self._servers, self._where = name, bootstrap_servers, where
        try:
            broker.describe(bootstrap_servers, name)
        except RunError as error:
            if error.code != "MISSING_TOPIC":
                raise
            raise RunError("MISSING_TOPIC", f"there is no topic {name} to write to; create it", where=where) from None

    def send(self, messages: Iterable[Message_]) -> int:
        """Sends them and waits until the broker has all; returns their number.

        Raises ``RunError`` KAFKA_UNREACHABLE, NOT_DELIVERED: then any of them may have arrived.
        """
        from confluent_kafka import KafkaException, Producer

        failed: list[KafkaError] = []

        def heard(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        # a producer a call: after a failure what one still holds must not be sent behind what is sent next
        producer = Producer({**_SETTINGS, "bootstrap.servers": self._servers})
        count = 0
        try:
            for key, value, headers in messages:
                self._put(producer, key, value, headers, heard)
                count += 1
                if failed:
                    break
                if count % 1000 == 0:
                    producer.poll(0)
            left = 0 if failed else producer.flush(PATIENCE + 5)
        except KafkaException as error:  # what can never be sent
            raise self._failed([error.args[0]]) from None
        finally:
            producer.purge()
        if failed or left:
            raise self._failed(failed)
        return count

    def _put(self, producer: Any, key: bytes | None, value: bytes | None, headers: Any, heard: Any) -> None:
        while True:
            try:
                producer.produce(self.name, value=value, key=key, headers=headers or None, on_delivery=heard)
                return
            except BufferError:  # the queue is full
                producer.poll(0.1)

    def _failed(self, errors: Sequence[KafkaError]) -> RunError:
        from confluent_kafka import KafkaError

        silent = {KafkaError._MSG_TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT}
        if not errors or errors[0].code() in silent:
            return RunError("KAFKA_UNREACHABLE", f"no broker at {self._servers} has confirmed messages to {self.name}"
                            f" within {PATIENCE:.0f} s", where=self._where)  # fmt: skip
        return RunError("NOT_DELIVERED", f"{self.name}: {errors[0].str()}", where=self._where)


def into(sink: Kafka, columns: Sequence[str], keys: Sequence[str], bootstrap_servers: str, where: str
         ) -> Callable[[DataFrame], int]:  # fmt: skip
    """What sends a message for each row of a frame with these columns, in its order, and returns their number.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC; what it returns raises as ``Topic.send``.
    """
    topic = Topic(bootstrap_servers, sink.topic, where)
    parts = [f"{text} as {sql.name(name)}" for name, text in sink.message(columns, keys).items()]
    return lambda frame: topic.send(messages(frame.selectExpr(*parts)))


def messages(frame: DataFrame) -> Iterable[Message_]:
    """The rows of a frame that has ``Kafka.message``'s columns, partition by partition."""
    headers = [(name, name.removeprefix(HEADER)) for name in frame.columns if name not in (KEY, VALUE)]
    for row in frame.toLocalIterator(prefetchPartitions=True):
        yield _bytes(row[KEY]), _bytes(row[VALUE]), [(name, _bytes(row[column])) for column, name in headers]


def _bytes(value: bytearray | bytes | None) -> bytes | None:
    return None if value is None else bytes(value)
