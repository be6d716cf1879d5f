"""The reference platform's events: what users do on a site, as JSON in Kafka.

``{"event_id": uuid, "user_id": integer, "event_type": login|click|purchase|logout, "page": string,
"timestamp": ISO 8601 with Z, "source": web|mobile}``, keyed by ``user_id``. The user base grows from 100; 80% of events
come from active users. For tests a share of the records can repeat an earlier one, be later than any window waits for,
or be broken in one of many ways.

**Delivery guarantees**: a record is written once, in the order of sending per user, also when the producer has to send
it again (idempotent producer, ``acks=all``). A record that could not be delivered is an error.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from lakehouse_engine.errors import RunError, UsageError

FIRST_USERS, EVENTS_PER_NEW_USER = 100, 500
ACTIVE_USERS, ACTIVE_EVENTS = 0.7, 0.8
TYPES, TYPE_WEIGHTS = ("click", "login", "purchase", "logout"), (55, 22, 15, 8)
SOURCES, SOURCE_WEIGHTS = ("web", "mobile"), (60, 40)
PAGES = ("/home", "/products", "/cart", "/checkout", "/account", "/search", "/orders", "/help")
PAGE_WEIGHTS = (25, 30, 12, 10, 8, 8, 4, 3)
# A one-minute window waits for a two-minute watermark: what is four minutes old comes too late.
LATE_MS, VERY_LATE_MS, VERY_LATE_SHARE = (4 * 60_000, 30 * 60_000), 3 * 24 * 60 * 60_000, 0.02
# How many earlier records a repetition is drawn from, and how many events are drawn at a time.
MEMORY, BATCH = 20_000, 1_000
DAY_MS = 24 * 60 * 60 * 1000
SETTINGS: dict[str, str | int | bool] = {
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 20,
    "message.timeout.ms": 60_000,
    "queue.buffering.max.messages": 200_000,
    "delivery.report.only.error": True,
    "log_level": 0,
}
Kind = Literal["good", "duplicate", "late", "malformed"]
Record = tuple[Kind, str, bytes | None]
Report = Callable[[str], None]


@dataclass(frozen=True)
class ProduceSummary:
    """What was delivered: ``sent`` records in all, of which so many repeated, late and malformed, in ``seconds``."""

    sent: int = 0
    duplicates: int = 0
    late: int = 0
    malformed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0.0
        kinds = f"{self.duplicates:,} repeated, {self.late:,} late, {self.malformed:,} malformed"
        return f"{self.sent:,} records in {self.seconds:.1f} s ({rate:,.0f}/s): {kinds}"


def _with(name: str, value: str | None) -> Callable[[bytes], bytes]:
    """The event with another JSON text for one field; None leaves the field out."""
    found = re.compile(rf'"{name}": ("[^"]*"|\d+)(, )?'.encode())
    new = b"" if value is None else f'"{name}": {value}'.encode()
    return lambda event: found.sub(lambda m: new + (m[2] or b"") if new else b"", event, count=1)


BREAKAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "not JSON": lambda event: b"not json",
    "truncated": lambda event: event[: len(event) // 2],
    "trailing garbage": lambda event: event + b" trailing",
    "two documents": lambda event: event + b"\n" + event,
    "single quotes": lambda event: event.replace(b'"', b"'"),
    "an array": lambda event: b"[" + event + b"]",
    "a string": lambda event: b'"login"',
    "nothing": lambda event: b"",
    "a tombstone": lambda event: None,
    "invalid UTF-8": lambda event: event.replace(b'"/', b'"/\xff\xfe', 1),
    "event_id missing": _with("event_id", None),
    "user_id missing": _with("user_id", None),
    "timestamp missing": _with("timestamp", None),
    "page null": _with("page", "null"),
    "user_id as text": _with("user_id", '"17"'),
    "user_id with a fraction": _with("user_id", "17.5"),
    "user_id NaN": _with("user_id", "NaN"),
    "user_id true": _with("user_id", "true"),
    "user_id beyond 64 bits": _with("user_id", "9223372036854775808"),
    "page as a number": _with("page", "7"),
    "NUL in page": _with("page", '"/home\\u0000"'),
    "unknown event_type": _with("event_type", '"refund"'),
    "unknown source": _with("source", '"television"'),
    "timestamp in words": _with("timestamp", '"yesterday"'),
    "timestamp without a zone": _with("timestamp", '"2026-01-01T10:00:00"'),
    "timestamp that is no date": _with("timestamp", '"2026-02-30T10:00:00Z"'),
    "timestamp as a number": _with("timestamp", "1767225600"),
    "year 99999": _with("timestamp", '"99999-01-01T10:00:00Z"'),
}


def records(
    seed: int | None, clock: Callable[[int], int], *, duplicates: float = 0.0, late: float = 0.0, malformed: float = 0.0
) -> Iterator[Record]:
    """An endless sequence of (kind, key, value); the value None is a tombstone.

    ``clock(n)`` is the time of the n-th event in milliseconds since 1970, asked for when the record is taken. With the
    same seed and shares the sequence is the same, timestamps aside.
    """
    random_ = random.Random(seed)
    draw, breakages = random_.random, tuple(BREAKAGES.values())
    memory: list[tuple[str, bytes]] = []
    number, kept, second, moment = 0, 0, -1, ""
    while True:
        for share, user, before, after in _drawn(random_, number):
            now, number = clock(number), number + 1
            if share < duplicates and memory:
                # At once, as a retry does, or long after.
                yield "duplicate", *memory[(kept - 1) % MEMORY if draw() < 0.5 else int(draw() * len(memory))]
                continue
            kind: Kind = "good"
            if duplicates <= share < duplicates + late:
                kind, now = "late", now - (VERY_LATE_MS if draw() < VERY_LATE_SHARE else random_.randint(*LATE_MS))
            elif duplicates + late <= share < duplicates + late + malformed:
                kind = "malformed"
            if now // 1000 != second:
                second = now // 1000
                moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            value = f"{before}{moment}.{now % 1000:03d}{after}".encode()
            if kind == "malformed":
                yield kind, user, breakages[int(draw() * len(breakages))](value)
                continue
            if len(memory) < MEMORY:
                memory.append((user, value))
            else:
                memory[kept % MEMORY] = (user, value)
            kept += 1
            yield kind, user, value


def _drawn(random_: random.Random, number: int) -> Iterator[tuple[float, str, str, str]]:
    """What chance decides for the next events, drawn many at once: (share, user, text before the time, text after)."""
    draw = random_.random
    users = FIRST_USERS + number // EVENTS_PER_NEW_USER
    active = int(users * ACTIVE_USERS)
    types = random_.choices(TYPES, TYPE_WEIGHTS, k=BATCH)
    pages = random_.choices(PAGES, PAGE_WEIGHTS, k=BATCH)
    sources = random_.choices(SOURCES, SOURCE_WEIGHTS, k=BATCH)
    digits = f"{random_.getrandbits(128 * BATCH):0{32 * BATCH}x}"
    for i, (kind, page, source) in enumerate(zip(types, pages, sources, strict=True)):
        h = digits[32 * i : 32 * i + 32]
        event_id = f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"
        user = 1 + int(draw() * active if draw() < ACTIVE_EVENTS else active + draw() * (users - active))
        before = f'{{"event_id": "{event_id}", "user_id": {user}, "event_type": "{kind}", "page": "{page}"'
        yield draw(), str(user), f'{before}, "timestamp": "', f'Z", "source": "{source}"}}'


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
    """Send ``events`` records (None: until ``stopped()`` or Ctrl-C) at ``rate`` a second (None: as fast as can be).

    An event happens when it is sent; with ``start`` the n-th happens n / rate seconds after it (without a rate n
    milliseconds). The record's own timestamp is the time of sending. A stop delivers what is under way, then returns.
    Raises ``RunError`` KAFKA_UNREACHABLE, TOPIC_FAILED, DELIVERY_FAILED, ``UsageError`` BAD_VALUE.
    """
    if not (min(duplicates, late, malformed) >= 0 and duplicates + late + malformed <= 1):
        raise UsageError("BAD_VALUE", "shares of duplicates, late and malformed lie between 0 and 1 in all")
    if rate is not None and rate <= 0:
        raise UsageError("BAD_VALUE", f"a rate is above 0, not {rate:g}")
    _ensure_topic(bootstrap_servers, topic, partitions)
    made = records(seed, _clock(start, rate), duplicates=duplicates, late=late, malformed=malformed)
    counts: Counter[Kind] = Counter()
    out = _Out(bootstrap_servers, topic, stopped)
    began = told = time.monotonic()
    sent = 0
    try:
        while (events is None or sent < events) and out.ready(began + sent / rate if rate else began):
            kind, key, value = next(made)
            out.send(key, value)
            counts[kind] += 1
            sent += 1
            if sent % 256 == 0 or rate:
                out.poll(0)
                if time.monotonic() - told >= 1.0:
                    told = time.monotonic()
                    report(f"{sent:,} records sent")
    except KeyboardInterrupt:
        report("stopping: delivering what is under way")
    out.finish(sent)
    return ProduceSummary(sent, counts["duplicate"], counts["late"], counts["malformed"], time.monotonic() - began)


class _Out:
    """One producer into one topic; failed deliveries are kept."""

    def __init__(self, bootstrap_servers: str, topic: str, stopped: Callable[[], bool]) -> None:
        self._topic, self._stopped = topic, stopped
        self._failures: list[str] = []
        self._producer = Producer({**SETTINGS, "bootstrap.servers": bootstrap_servers, "on_delivery": self._told})
        self.poll = self._producer.poll

    def _told(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failures.append(error.str())

    def ready(self, due: float) -> bool:
        """Waits until ``due``; False when the end has come before: a stop was asked for, or a delivery failed."""
        while not (self._stopped() or self._failures):
            left = due - time.monotonic()
            if left <= 0:
                return True
            self.poll(min(left, 0.1))
        return False

    def send(self, key: str, value: bytes | None) -> None:
        while not self._failures:
            try:
                self._producer.produce(self._topic, value, key)
                return
            except BufferError:  # the broker is slower than we are
                self.poll(0.1)
            except KafkaException as error:
                self._failures.append(error.args[0].str())

    def finish(self, sent: int) -> None:
        """Delivers what is under way. Raises DELIVERY_FAILED."""
        # Every record has had its verdict by then: delivered, or message.timeout.ms has passed.
        left = self._producer.flush(2 * int(SETTINGS["message.timeout.ms"]) / 1000)
        if self._failures or left:
            reason = self._failures[0] if self._failures else "no answer"
            number = len(self._failures) + left
            text = f"{number:,} of {sent:,} records did not reach {self._topic}: {reason}"
            raise RunError("DELIVERY_FAILED", text, where="connection kafka")


def _clock(start: datetime | None, rate: float | None) -> Callable[[int], int]:
    """The time of the n-th event, in milliseconds since 1970."""
    if start is None:
        return lambda number: time.time_ns() // 1_000_000
    first = round((start if start.tzinfo else start.replace(tzinfo=timezone.utc)).timestamp() * 1000)
    step = 1000 / rate if rate else 1.0
    return lambda number: first + int(number * step)


def _ensure_topic(bootstrap_servers: str, topic: str, partitions: int) -> None:
    """Any broker may be meant, so this needs nothing of the embedded one. Raises KAFKA_UNREACHABLE, TOPIC_FAILED."""
    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    # Retention by time of arrival: a back-dated record would otherwise be deleted at once.
    config = {"retention.ms": str(DAY_MS), "message.timestamp.type": "LogAppendTime"}
    try:
        if topic in client.list_topics(timeout=10).topics:
            return
    except KafkaException:
        text = f"no broker answers at {bootstrap_servers}; check the connection, or start one with: lakehouse up"
        raise RunError("KAFKA_UNREACHABLE", text, where="connection kafka") from None
    try:
        client.create_topics([NewTopic(topic, num_partitions=partitions, config=config)])[topic].result(30)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise RunError("TOPIC_FAILED", f"topic {topic}: {error.args[0].str()}", where="connection kafka") from None
