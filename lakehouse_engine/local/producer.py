"""The reference platform's events: what users do on a site, as JSON in Kafka.

A user base that grows from 100, 80% of events from active users, clicks > logins > purchases > logouts. For tests a
share of the records can be exact repetitions, later than any window is open, or broken in one of many ways.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from confluent_kafka import KafkaException, Producer

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.kafka import ensure_topic

PAGES = ("/home", "/products", "/cart", "/checkout", "/account", "/search", "/help")
TYPES, WEIGHTS = ("click", "login", "purchase", "logout"), (55, 22, 15, 8)
#: a late event is older than a one-minute window and a two-minute watermark can wait for
LATE_MINUTES = (4, 30)
VERY_LATE_SHARE, VERY_LATE = 0.02, timedelta(days=3)
#: how many earlier events a repetition may come from
MEMORY = 20_000
Report = Callable[[str], None]


@dataclass
class ProduceSummary:
    """What was sent: ``sent`` records in all, of which so many repeated, late and malformed."""

    sent: int = 0
    duplicates: int = 0
    late: int = 0
    malformed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0.0
        return (f"{self.sent:,} records in {self.seconds:.1f} s ({rate:,.0f}/s): {self.duplicates:,} repeated,"
                f" {self.late:,} late, {self.malformed:,} malformed")  # fmt: skip


@dataclass
class Events:
    """An endless, seeded sequence of payloads. ``clock`` gives the event time of the next one."""

    seed: int | None
    duplicates: float
    late: float
    malformed: float
    clock: Callable[[int], datetime]
    summary: ProduceSummary = field(default_factory=ProduceSummary)

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        """(key, value) of one record after another; the value None is a tombstone."""
        random_ = random.Random(self.seed)
        draw, users = random_.random, 100.0
        sent: list[tuple[str, bytes]] = []
        number = 0
        while True:
            share = draw()
            time_ = self.clock(number)
            number += 1
            if share < self.duplicates and sent:
                self.summary.duplicates += 1
                recent = draw() < 0.5  # at once, as a retry does, or long after
                yield sent[-1] if recent else sent[int(draw() * len(sent))]
                continue
            share -= self.duplicates
            is_late = 0 <= share < self.late
            is_malformed = self.late <= share < self.late + self.malformed
            if is_late:
                self.summary.late += 1
                long_ago = VERY_LATE if draw() < VERY_LATE_SHARE else timedelta(0)
                low, high = LATE_MINUTES
                time_ -= long_ago or timedelta(minutes=low + draw() * (high - low))
            users += 0.0005  # new users sign up as time goes
            active = int(users * 0.7)
            user = 1 + int(draw() * active) if draw() < 0.8 else 1 + active + int(draw() * (int(users) - active))
            key = str(user)
            event_id = uuid.UUID(int=random_.getrandbits(128), version=4)
            kind = random_.choices(TYPES, WEIGHTS)[0]
            page = PAGES[int(draw() * len(PAGES))]
            stamp = time_.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time_.microsecond // 1000:03d}Z"
            source = "web" if draw() < 0.6 else "mobile"
            text = (f'{{"event_id": "{event_id}", "user_id": {user}, "event_type": "{kind}", "page": "{page}",'
                    f' "timestamp": "{stamp}", "source": "{source}"}}')  # fmt: skip
            if is_malformed:
                self.summary.malformed += 1
                yield key, BREAKAGES[int(draw() * len(BREAKAGES))](text, user)
                continue
            value = text.encode()
            if len(sent) < MEMORY:
                sent.append((key, value))
            else:
                sent[number % MEMORY] = (key, value)
            yield key, value


#: ways to break a good event (text, user) -> bytes
BREAKAGES: tuple[Callable[[str, int], bytes | None], ...] = (
    lambda text, _: b"not json",
    lambda text, _: text[: len(text) // 2].encode(),
    lambda text, _: text.encode() + b" trailing",
    lambda text, _: text.replace('"', "'").encode(),
    lambda text, user: text.replace(f'"user_id": {user}, ', "").encode(),
    lambda text, user: text.replace(f'"user_id": {user}', f'"user_id": "{user}"').encode(),
    lambda text, user: text.replace(f'"user_id": {user}', f'"user_id": {user}.5').encode(),
    lambda text, user: text.replace(f'"user_id": {user}', '"user_id": NaN').encode(),
    lambda text, user: text.replace(f'"user_id": {user}', '"user_id": true').encode(),
    lambda text, _: text.replace('"page": "/', '"page": 7, "was": "/').encode(),
    lambda text, _: text.replace('"page": "/', '"page": "/\\u0000').encode(),
    lambda text, _: text.replace('"source": "', '"source": "tele').encode(),
    lambda text, _: text.replace('"timestamp": "2', '"timestamp": "9999').encode(),
    lambda text, _: text.replace('"timestamp": "', '"timestamp": "at ').encode(),
    lambda text, _: text.replace('"timestamp": ', '"timestamp": 1767225600, "was": ').encode(),
    lambda text, _: b"[" + text.encode() + b"]",
    lambda text, _: text.encode().replace(b"/", b"\xff\xfe", 1),
    lambda text, _: b"",
    lambda text, _: None,
)


def produce(
    bootstrap_servers: str,
    topic: str = "user-events",
    *,
    rate: float | None,
    events: int | None = None,
    seed: int | None = None,
    duplicates: float = 0.0,
    late: float = 0.0,
    malformed: float = 0.0,
    start: datetime | None = None,
    partitions: int = 3,
    report: Report = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> ProduceSummary:
    """Sends ``events`` records (None: until stopped) at ``rate`` a second (None: as fast as the broker takes them).

    ``start`` fixes event times: the n-th event happens n milliseconds after it. Else it happens now. The record's own
    timestamp is the time of sending. Raises ``RunError`` KAFKA_UNREACHABLE, DELIVERY_FAILED; ``UsageError`` is not ours.
    """
    ensure_topic(bootstrap_servers, topic, partitions)

    def now(number: int) -> datetime:
        return start + timedelta(milliseconds=number) if start else datetime.now(timezone.utc)

    source = Events(seed, duplicates, late, malformed, now)
    failed: list[str] = []
    producer = Producer({
        "bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "acks": "all", "linger.ms": 20,
        "queue.buffering.max.messages": 200_000, "log_level": 0,
    })  # fmt: skip
    began = told = time.monotonic()
    try:
        records = iter(source)
        while (events is None or source.summary.sent < events) and not stopped():
            key, value = next(records)
            if rate:
                _pace(producer, began + source.summary.sent / rate)
            _send(producer, topic, key, value, failed)
            source.summary.sent += 1
            if source.summary.sent % 1000 == 0 or rate:
                producer.poll(0)
                if time.monotonic() - told >= 2.0:
                    told = time.monotonic()
                    report(f"{source.summary.sent:,} records sent")
            if failed:
                break
    except KeyboardInterrupt:
        report("stopping: delivering what is on its way")
    left = producer.flush(30)
    source.summary.seconds = time.monotonic() - began
    if failed or left:
        reason = failed[0] if failed else f"{left} records were not acknowledged"
        raise RunError("DELIVERY_FAILED", f"not every record reached {topic}: {reason}", where="connection kafka")
    return source.summary


def _pace(producer: Producer, due: float) -> None:
    while (wait := due - time.monotonic()) > 0:
        producer.poll(min(wait, 0.1))


def _send(producer: Producer, topic: str, key: str, value: bytes | None, failed: list[str]) -> None:
    def delivered(error: object, _: object) -> None:
        if error is not None:
            failed.append(str(error))

    while True:
        try:
            producer.produce(topic, value=value, key=key, on_delivery=delivered)
            return
        except BufferError:
            producer.poll(0.1)
        except KafkaException as error:
            raise RunError("DELIVERY_FAILED", str(error), where="connection kafka") from None
