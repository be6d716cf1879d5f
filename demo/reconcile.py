"""An oracle: everything the platform stored, counted again from the topic by plain Python.

It shares no code with the engine. It judges every record by itself, takes only offset ranges and start times from the
ledger, derives watermarks and lateness from them, and compares window counts, late rows, quarantine, bronze, silver,
gold and its copy. Exits non-zero when one number is off.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

MINUTE, HOUR = 60_000_000, 3_600_000_000
DELAY, MAX_AHEAD, IDLE = 2 * MINUTE, HOUR, 30_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
REALTIME: dict[str, tuple[Callable[[Any], bool], Callable[[Any], tuple[str, ...]], str]] = {
    "realtime.events_per_minute": (lambda e: True, lambda e: (e.kind,), "event_type, event_count"),
    "realtime.logins_per_source": (lambda e: e.kind == "login", lambda e: (e.source,), "source, login_count"),
    "realtime.purchases_per_minute": (lambda e: e.kind == "purchase", lambda e: (), "purchase_count"),
}


def micros(moment: datetime) -> int:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (moment - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Event:
    """A good record. ``time`` is the event's, ``sent`` the record's own, in microseconds."""

    partition: int
    offset: int
    id: str
    user: int
    kind: str
    page: str
    source: str
    time: int
    sent: int

    @property
    def place(self) -> tuple[int, int]:
        return self.partition, self.offset

    @property
    def day(self) -> date:
        return (EPOCH + timedelta(microseconds=self.time)).date()

    @property
    def ahead(self) -> bool:
        return self.time - self.sent > MAX_AHEAD


@dataclass
class Topic:
    """What the topic holds: every record as an event, or None for one that breaks the contract, by partition."""

    records: dict[int, dict[int, Event | None]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def good(self) -> Iterable[Event]:
        for partition in self.records.values():
            yield from (event for event in partition.values() if event is not None)

    def malformed(self) -> set[tuple[int, int]]:
        return {(p, o) for p, found in self.records.items() for o, event in found.items() if event is None}


STAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)


def event_time(text: Any) -> int | None:
    """Microseconds of a strict ISO 8601 time in the years 1900 to 2200; None for anything else."""
    found = STAMP.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 1900 <= int(found[1]) <= 2200:
        return None
    try:
        moment = datetime(*(int(part) for part in found.groups()[:6]), tzinfo=timezone.utc)  # type: ignore[misc, arg-type]
    except ValueError:
        return None
    shift = 0
    if found[8] != "Z":
        hours, minutes = int(found[8][1:3]), int(found[8][4:6])
        if minutes > 59 or hours * 60 + minutes > 18 * 60:
            return None
        shift = (hours * 60 + minutes) * MINUTE * (-1 if found[8][0] == "-" else 1)
    return micros(moment) + int((found[7] or "0").ljust(6, "0")[:6]) - shift


def judge(value: bytes | None, partition: int, offset: int, sent: int) -> Event | None:
    """The record as an event, or None when it breaks the contract."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("repeated key")
        return dict(pairs)

    def never(constant: str) -> Any:
        raise ValueError(constant)

    if value is None:
        return None
    try:
        found = json.loads(value.decode("utf-8"), object_pairs_hook=once, parse_constant=never)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    user, name, page = found.get("user_id"), found.get("event_id"), found.get("page")
    if type(user) is not int or not 1 <= user < 2**63:
        return None
    if not isinstance(name, str) or not 1 <= len(name) <= 64 or not isinstance(page, str) or "\0" in name + page:
        return None
    if found.get("event_type") not in ("login", "click", "purchase", "logout"):
        return None
    if found.get("source") not in ("web", "mobile"):
        return None
    moment = event_time(found.get("timestamp"))
    if moment is None:
        return None
    return Event(partition, offset, name, user, found["event_type"], page, found["source"], moment, sent)


def read_topic(bootstrap_servers: str, name: str) -> Topic:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": f"reconcile-{time.time()}",
                         "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0})  # fmt: skip
    partitions = sorted(consumer.list_topics(name, timeout=10).topics[name].partitions)
    topic, open_ = Topic(), set(partitions)
    starts = []
    for partition in partitions:
        first, topic.ends[partition] = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=10)
        topic.records[partition] = {}
        starts.append(TopicPartition(name, partition, first))
    consumer.assign(starts)
    deadline = time.monotonic() + 300
    while open_ and time.monotonic() < deadline:
        for message in consumer.consume(10_000, timeout=1.0):
            if message.error() is not None:
                open_.discard(message.partition())  # the partition's end
                continue
            partition, offset = message.partition(), message.offset()
            topic.records[partition][offset] = judge(message.value(), partition, offset, message.timestamp()[1] * 1000)
    consumer.close()
    if open_:
        raise SystemExit(f"partitions {sorted(open_)} could not be read to their end")
    return topic


@dataclass(frozen=True)
class Check:
    """One comparison; ``example`` is the first difference."""

    name: str
    expected: str
    found: str
    ok: bool
    example: str = ""

    def __str__(self) -> str:
        verdict = "ok " if self.ok else "OFF"
        return f"{verdict}  {self.name:<58} {self.expected:>12} {self.found:>12}  {self.example}".rstrip()


def same(name: str, expected: Any, found: Any) -> Check:
    """Compares two dicts, counters, sets or values."""
    if isinstance(expected, set | frozenset):
        expected, found = dict.fromkeys(expected, 1), dict.fromkeys(found, 1)
    if isinstance(expected, dict):
        off = [
            (key, expected.get(key), found.get(key))
            for key in {*expected, *found}
            if expected.get(key) != found.get(key)
        ]
        example = "" if not off else "{}: expected {}, found {}".format(*min(off, key=str))
        numbers = all(isinstance(v, int) for v in [*expected.values(), *found.values()])
        sizes = (sum(expected.values()), sum(found.values())) if numbers else (len(expected), len(found))
        return Check(name, f"{sizes[0]:,}", f"{sizes[1]:,}", not off, example)
    return Check(name, str(expected), str(found), expected == found)


@dataclass
class Batch:
    number: int
    started: int
    ranges: dict[int, tuple[int, int]]
    watermark: int | None
    counters: dict[str, int]


@dataclass
class Expected:
    """What a real-time pipeline must hold, by the oracle's own judgement."""

    windows: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    late: set[tuple[int, int]] = field(default_factory=set)
    counters: list[dict[str, int]] = field(default_factory=list)
    watermarks: list[int | None] = field(default_factory=list)


def replay(topic: Topic, batches: Iterable[Batch], wanted: Callable[[Event], bool],
           keys: Callable[[Event], tuple[str, ...]]) -> Expected:  # fmt: skip
    """Runs the pipeline by hand over the ranges of its batches."""
    expected = Expected()
    greatest: dict[int, int] = {}
    last_row: dict[int, int] = {}
    idle: dict[int, bool] = {}
    watermark: int | None = None
    for batch in batches:
        expected.watermarks.append(watermark)
        count: Counter[str] = Counter()
        gave: set[int] = set()
        for partition, (start, end) in batch.ranges.items():
            for offset in range(start, end):
                if offset not in topic.records[partition]:
                    continue  # not a record: a transaction's marker
                event = topic.records[partition][offset]
                if event is None or event.ahead:
                    count["quarantined"] += 1
                    continue
                gave.add(partition)
                greatest[partition] = max(event.time, greatest.get(partition, event.time))
                if not wanted(event):
                    count["filtered"] += 1
                    continue
                window = event.time - event.time % MINUTE
                if watermark is not None and window + MINUTE <= watermark:
                    count["late"] += 1
                    expected.late.add(event.place)
                    continue
                count["counted"] += 1
                expected.windows[(window, *keys(event))] += 1
        for partition in greatest:
            if partition in gave:
                last_row[partition], idle[partition] = batch.started, False
            elif batch.started - last_row[partition] >= IDLE:
                idle[partition] = True
        seen = [moment for partition, moment in greatest.items() if not idle[partition]]
        if seen:
            reached = min(seen) - DELAY
            watermark = reached if watermark is None else max(watermark, reached)
        names = ("quarantined", "filtered", "duplicate", "late", "counted")
        expected.counters.append({name: count.get(name, 0) for name in names})
    return expected


def read_batches(cursor: Any, pipeline: str) -> list[Batch]:
    cursor.execute("select batch_id, started_at, ranges, watermark, quarantined, filtered, duplicate, late, counted"
                   " from lakehouse.batches where pipeline = %s order by batch_id", (pipeline,))  # fmt: skip
    names = ("quarantined", "filtered", "duplicate", "late", "counted")
    return [Batch(number, micros(started), {int(p): (r["from"], r["to"]) for p, r in ranges.items()},
                  None if mark is None else micros(mark), dict(zip(names, counts, strict=True)))
            for number, started, ranges, mark, *counts in cursor.fetchall()]  # fmt: skip


def contiguous(topic: Topic, batches: Iterable[Batch]) -> str:
    """Empty when the ranges cover every partition from its beginning to its end, each offset once."""
    reached: dict[int, int] = {}
    for number, batch in enumerate(batches, 1):
        if batch.number != number:
            return f"batch {batch.number} where {number} was due"
        for partition, (start, end) in batch.ranges.items():
            if start != reached.get(partition, 0) or end < start:
                return f"batch {number} partition {partition}: {start} to {end} after {reached.get(partition, 0)}"
            reached[partition] = end
    ends = {partition: reached.get(partition, 0) for partition in topic.ends}
    return "" if ends == topic.ends else f"read up to {ends}, the topic ends at {topic.ends}"


def check_realtime(topic: Topic, cursor: Any) -> Iterable[Check]:
    records = sum(len(found) for found in topic.records.values())
    for pipeline, (wanted, keys, columns) in REALTIME.items():
        batches = read_batches(cursor, pipeline)
        gap = contiguous(topic, batches)
        yield Check(f"{pipeline}: batches cover the topic once", "yes", "no" if gap else "yes", not gap, gap)
        expected = replay(topic, batches, wanted, keys)
        stored = [batch.counters for batch in batches]
        total = sum(sum(counters.values()) for counters in stored)
        yield same(f"{pipeline}: records = sum of the counters", records, total)
        for name in ("quarantined", "filtered", "duplicate", "late", "counted"):
            yield same(f"{pipeline}: {name}, batch by batch", {i: c[name] for i, c in enumerate(expected.counters, 1)},
                       {i: c[name] for i, c in enumerate(stored, 1)})  # fmt: skip
        marks = {i: str(mark) for i, mark in enumerate(expected.watermarks, 1)}
        yield same(f"{pipeline}: watermarks", marks, {i: str(b.watermark) for i, b in enumerate(batches, 1)})
        cursor.execute(f"select window_start, {columns} from {pipeline}")
        rows = Counter({(micros(start), *rest[:-1]): rest[-1] for start, *rest in cursor.fetchall()})
        cursor.execute(f"select count(*) from {pipeline}")
        yield same(f"{pipeline}: one row a window and key", len(expected.windows), cursor.fetchone()[0])
        yield same(f"{pipeline}: window counts", dict(expected.windows), dict(rows))
        cursor.execute(f'select partition, "offset", count(*) from {pipeline}__late group by 1, 2')
        late = {(p, o): n for p, o, n in cursor.fetchall()}
        yield same(f"{pipeline}: late rows kept", dict.fromkeys(expected.late, 1), late)
        cursor.execute(f'select partition, "offset", count(*) from {pipeline}__quarantine group by 1, 2')
        aside = {(p, o): n for p, o, n in cursor.fetchall()}
        ahead = {event.place: 1 for event in topic.good() if event.ahead}
        yield same(f"{pipeline}: rows too far ahead kept", ahead, aside)


def live_files(table: Path) -> list[tuple[Path, dict[str, str | None]]]:
    """The files of a Delta table's newest version with their partition values, from its log (and a checkpoint)."""
    import pyarrow.parquet as pq

    log = table / "_delta_log"
    live: dict[str, dict[str, str | None]] = {}
    checkpoints = sorted(log.glob("*.checkpoint*.parquet"))
    newest = checkpoints[-1].name[:20] if checkpoints else ""
    for file in (f for f in checkpoints if f.name.startswith(newest)):
        for row in pq.read_table(file, columns=["add"]).to_pylist():
            if row["add"]:
                live[row["add"]["path"]] = dict(row["add"]["partitionValues"] or [])
    for commit in sorted(log.glob("[0-9]*.json")):
        if commit.name[:20] <= newest and newest:
            continue
        actions = [json.loads(line) for line in commit.read_text().splitlines() if line.strip()]
        for action in actions:
            if "remove" in action:
                live.pop(action["remove"]["path"], None)
        for action in actions:
            if "add" in action:
                live[action["add"]["path"]] = action["add"]["partitionValues"]
    return [(table / unquote(path), values) for path, values in live.items()]


def rows_of(table: Path, columns: Iterable[str]) -> list[tuple[Any, ...]]:
    """The rows of a Delta table as tuples; a partition column is text."""
    import pyarrow.parquet as pq

    rows: list[tuple[Any, ...]] = []
    for file, partition in live_files(table):
        stored = [name for name in columns if name not in partition]
        found = pq.ParquetFile(file, coerce_int96_timestamp_unit="us").read(columns=stored)
        rest = [found.column(n).to_pylist() if n in stored else [partition[n]] * found.num_rows for n in columns]
        rows += list(zip(*rest, strict=True))
    return rows


def record_of(table: Path) -> dict[str, Any]:
    """The newest record that a commit of the table carries."""
    for commit in sorted((table / "_delta_log").glob("[0-9]*.json"), reverse=True):
        for line in commit.read_text().splitlines():
            text = json.loads(line).get("commitInfo", {}).get("userMetadata")
            if text:
                return json.loads(text)  # type: ignore[no-any-return]
    return {}


def check_bronze(topic: Topic, storage: Path) -> Iterable[Check]:
    table = storage / "bronze" / "user_events"
    found = Counter(rows_of(table, ["_partition", "_offset"]))
    yield same("bronze.user_events: every good record once", {e.place: 1 for e in topic.good()}, dict(found))
    stored = {(p, o): (i, u, k, g, s, micros(t)) for p, o, i, u, k, g, s, t in rows_of(
        table, ["_partition", "_offset", "event_id", "user_id", "event_type", "page", "source", "timestamp"])}  # fmt: skip
    values = {e.place: (e.id, e.user, e.kind, e.page, e.source, e.time) for e in topic.good()}
    yield same("bronze.user_events: values", values, stored)
    aside_table = table.with_name("user_events__quarantine")
    aside = Counter(rows_of(aside_table, ["partition", "offset"])) if aside_table.exists() else Counter()
    yield same("bronze.user_events: every malformed record kept once", dict.fromkeys(topic.malformed(), 1), dict(aside))
    record = record_of(table)
    reached = {int(p): r["to"] for p, r in record.get("positions", {}).items()}
    yield same("bronze.user_events: position at the topic's end", topic.ends, reached)


def gold(topic: Topic) -> dict[str, dict[tuple[Any, ...], Any]]:
    """Silver and the four gold tables by plain Python: key to value."""
    kept: dict[tuple[date, str], Event] = {}
    for event in topic.good():
        key = (event.day, event.id)
        if key not in kept or (event.time, event.place) < (kept[key].time, kept[key].place):
            kept[key] = event
    silver = [event for event in kept.values() if not event.ahead]
    users: dict[date, set[int]] = defaultdict(set)
    buyers: dict[date, set[int]] = defaultdict(set)
    purchases: Counter[date] = Counter()
    sources: Counter[tuple[date, str]] = Counter()
    pages: Counter[tuple[date, str]] = Counter()
    for event in silver:
        users[event.day].add(event.user)
        sources[event.day, event.source] += 1
        if event.kind == "purchase":
            buyers[event.day].add(event.user)
            purchases[event.day] += 1
            pages[event.day, event.page] += 1
    return {
        "silver.user_events": {(e.day, e.id): e.user for e in silver},
        "gold.daily_active_users": {(day,): (len(found),) for day, found in users.items()},
        "gold.conversion_rate_daily": {
            (day,): (round(len(buyers[day]) / len(found), 12), purchases[day], len(found)) for day, found in users.items()},
        "gold.events_per_source_daily": {key: (n,) for key, n in sources.items()},
        "gold.purchases_per_page_daily": {key: (n,) for key, n in pages.items()},
    }  # fmt: skip


GOLD = {
    "gold.daily_active_users": (["event_date"], ["dau_count"]),
    "gold.conversion_rate_daily": (["event_date"], ["conversion_rate", "total_purchases", "dau_count"]),
    "gold.events_per_source_daily": (["event_date", "source"], ["event_count"]),
    "gold.purchases_per_page_daily": (["event_date", "page"], ["purchase_count"]),
}


def plain(value: Any) -> Any:
    return round(value, 12) if isinstance(value, float) else value


def check_gold(topic: Topic, cursor: Any, storage: Path) -> Iterable[Check]:
    expected = gold(topic)
    silver = storage / "silver" / "user_events"
    rows = rows_of(silver, ["event_date", "event_id", "user_id"])
    yield same("silver.user_events: rows", len(expected["silver.user_events"]), len(rows))
    found = {(date.fromisoformat(day), name): user for day, name, user in rows}
    yield same("silver.user_events: each event once, with its user",
               {key: str(user) for key, user in expected["silver.user_events"].items()},
               {key: str(user) for key, user in found.items()})  # fmt: skip
    for table, (keys, values) in GOLD.items():
        stored = rows_of(storage / table.replace(".", "/"), [*keys, *values])
        in_delta = {row[: len(keys)]: tuple(map(plain, row[len(keys) :])) for row in stored}
        yield same(f"{table}: rows in Delta", len(expected[table]), len(stored))
        yield same(f"{table}: values in Delta", expected[table], in_delta)
        cursor.execute(f"select {', '.join([*keys, *values])} from {table}")
        copied = cursor.fetchall()
        in_postgres = {row[: len(keys)]: tuple(map(plain, row[len(keys) :])) for row in copied}
        yield same(f"{table}: rows in PostgreSQL", len(expected[table]), len(copied))
        yield same(f"{table}: values in PostgreSQL", expected[table], in_postgres)


def reconcile(
    bootstrap_servers: str, dsn: str, storage: Path, topic_name: str, only: Iterable[str] = ()
) -> list[Check]:
    """Every comparison; ``only`` of realtime, bronze, gold."""
    import psycopg2

    wanted = set(only) or {"realtime", "bronze", "gold"}
    topic = read_topic(bootstrap_servers, topic_name)
    connection = psycopg2.connect(dsn, options="-c timezone=UTC")
    checks: list[Check] = []
    try:
        with connection, connection.cursor() as cursor:
            checks += check_realtime(topic, cursor) if "realtime" in wanted else []
            checks += check_bronze(topic, storage) if "bronze" in wanted else []
            checks += check_gold(topic, cursor, storage) if "gold" in wanted else []
    finally:
        connection.close()
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--topic", default="user-events")
    parser.add_argument("--only", nargs="*", choices=["realtime", "bronze", "gold"], default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    checks = reconcile(options.bootstrap_servers, options.dsn, options.storage, options.topic, options.only)
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        print(f"     {'what':<58} {'expected':>12} {'found':>12}")
        print("\n".join(map(str, checks)))
        off = sum(not check.ok for check in checks)
        print(f"{len(checks) - off} of {len(checks)} comparisons are right")
    return 0 if checks and all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
