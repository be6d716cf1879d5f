"""An oracle: everything the platform stored, counted again from the topic by plain Python.

It shares no code with the engine. Every record is judged by itself; of the ledger it believes only which offsets a
batch read and when it began. From these it derives watermarks and lateness, and compares window counts, late rows,
counters, bronze, quarantine, silver, gold and gold's copy. Exits 1 when one number is off.

All times are microseconds since 1970, all days days since 1970, unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
DELAY, MAX_AHEAD, IDLE_AFTER = 2 * MINUTE, HOUR, 30 * SECOND
FIRST_YEAR, LAST_YEAR, LONGEST_ID = 1900, 2200, 64
COUNTERS = ("quarantined", "filtered", "duplicate", "late", "counted")
PARTS = ("realtime", "bronze", "gold")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
Place = tuple[int, int]  # partition, offset


class Unreadable(Exception):
    """The topic, a table or the ledger cannot be read, so nothing can be said."""


# ---------------------------------------------------------------- time


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def shown(moment: int | None) -> str:
    return "none" if moment is None else (EPOCH + timedelta(microseconds=moment)).isoformat().replace("+00:00", "Z")


def to_date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)


# ---------------------------------------------------------------- one record


class Event(NamedTuple):
    """A good record. ``time`` is the event's, ``sent`` the record's own."""

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
    def place(self) -> Place:
        return self.partition, self.offset

    @property
    def day(self) -> int:
        return self.time // DAY

    @property
    def ahead(self) -> bool:
        return self.time - self.sent > MAX_AHEAD


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
_KINDS = {name: name for name in ("login", "click", "purchase", "logout")}
_SOURCES = {name: name for name in ("web", "mobile")}
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)


def judge(value: bytes | None, partition: int, offset: int, sent: int) -> Event | None:
    """The record as an event, or None when it is malformed: when it breaks the contract ``user_event``.

    Good is UTF-8 and JSON by RFC 8259 (no byte order mark, NaN, repeated key or unpaired surrogate, nothing after the
    object) with all six fields, nothing coerced: ``user_id`` is written as an integer from 1 that fits 64 bits,
    ``event_id`` has 1 to 64 characters, no string holds NUL. Further fields are allowed and not looked at.
    """
    if value is None:
        return None
    try:
        text = value.decode("utf-8")
        found = _DECODER.decode(text)
        if "\\u" in text:  # the only way to write a surrogate; an unpaired one cannot be encoded
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    user, name, page = found.get("user_id"), found.get("event_id"), found.get("page")
    kind, source = found.get("event_type"), found.get("source")
    if type(user) is not int or not 1 <= user < 2**63:
        return None
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_ID or not isinstance(page, str):
        return None
    if "\0" in name or "\0" in page:
        return None
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(source, str) or source not in _SOURCES:
        return None
    moment = event_time(found.get("timestamp"))
    if moment is None:
        return None
    # One object for each word, not one a record: a million records stay small.
    return Event(partition, offset, name, user, _KINDS[kind], sys.intern(page), _SOURCES[source], moment, sent)


def event_time(text: Any) -> int | None:
    """``YYYY-MM-DDTHH:MM:SS[.1 to 9 digits](Z|+hh:mm|-hh:mm)``, a real time of the years 1900 to 2200; else None.

    Digits after the sixth are cut off. An offset reaches to 18:00, as in ISO 8601 libraries.
    """
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None or not FIRST_YEAR <= int(text[:4]) <= LAST_YEAR:
        return None
    try:
        moment = datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    shift, zone = 0, found[3]
    if zone != "Z":
        shift = int(zone[1:3]) * 60 + int(zone[4:])
        if int(zone[4:]) > 59 or shift > 18 * 60:
            return None
        shift = -shift if zone[0] == "-" else shift
    return micros(moment) + int((found[2] or "").ljust(6, "0")[:6]) - shift * MINUTE


# ---------------------------------------------------------------- the topic


@dataclass
class Partition:
    """Records in the order of their offsets; an event is None where the record is malformed. ``end``: next offset."""

    first: int = 0
    end: int = 0
    offsets: array[int] = field(default_factory=lambda: array("q"))
    events: list[Event | None] = field(default_factory=list)

    def between(self, start: int, end: int) -> list[Event | None]:
        return self.events[bisect_left(self.offsets, start) : bisect_left(self.offsets, end)]

    def index(self, offset: int) -> int | None:
        found = bisect_left(self.offsets, offset)
        return found if found < len(self.offsets) and self.offsets[found] == offset else None


class Range(NamedTuple):
    """What a batch read of a partition, ``end`` excluded; greatest event time and idle flag as they stand after it."""

    start: int
    end: int
    greatest: int | None = None
    idle: bool = False


@dataclass
class Topic:
    """Every record of a topic, judged. ``malformed`` keeps their bytes."""

    name: str
    partitions: dict[int, Partition] = field(default_factory=dict)
    malformed: dict[Place, bytes | None] = field(default_factory=dict)

    def add(self, partition: int, offset: int, sent: int, value: bytes | None) -> None:
        event = judge(value, partition, offset, sent)
        if event is None:
            self.malformed[partition, offset] = value
        found = self.partitions.setdefault(partition, Partition())
        found.offsets.append(offset)
        found.events.append(event)
        found.end = max(found.end, offset + 1)

    def between(self, partition: int, range_: Range) -> list[Event | None]:
        found = self.partitions.get(partition)
        return found.between(range_.start, range_.end) if found else []

    def good(self) -> Iterator[Event]:
        for partition in self.partitions.values():
            yield from (event for event in partition.events if event is not None)

    def __len__(self) -> int:
        return sum(len(partition.events) for partition in self.partitions.values())


def read_topic(bootstrap_servers: str, name: str) -> Topic:
    """All records from the beginning to what is the end now. Raises ``Unreadable``."""
    from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

    consumer = Consumer({
        "bootstrap.servers": bootstrap_servers, "group.id": f"reconcile-{time.time_ns()}", "enable.auto.commit": False,
        "enable.partition.eof": True, "isolation.level": "read_committed", "log_level": 0,
    })  # fmt: skip
    topic = Topic(name)
    # A million small objects that all stay: looking for garbage among them would take half of the time.
    gc.disable()
    try:
        for partition in consumer.list_topics(name, timeout=10).topics[name].partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=10)
            topic.partitions[partition] = Partition(first, end)
        ends = {p: found.end for p, found in topic.partitions.items()}
        left = {p for p, found in topic.partitions.items() if found.first < found.end}
        consumer.assign([TopicPartition(name, p, topic.partitions[p].first) for p in left])
        told = time.monotonic()
        while left:
            messages = consumer.consume(10_000, timeout=1.0)
            if messages:
                told = time.monotonic()
            elif time.monotonic() - told > 30:
                raise Unreadable(f"{name}: nothing came for 30 s from partitions {sorted(left)}")
            for message in messages:
                error = message.error()
                partition, offset = int(message.partition() or 0), int(message.offset() or 0)
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise Unreadable(f"{name}: {error.str()}")
                    left.discard(partition)
                    continue
                if offset < ends[partition]:
                    topic.add(partition, offset, message.timestamp()[1] * 1000, message.value())
                if offset + 1 >= ends[partition]:
                    left.discard(partition)
    except KafkaException as error:
        raise Unreadable(f"{name} at {bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        gc.enable()
        consumer.close()
    return topic


# ---------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Check:
    """One comparison; ``example`` is the first difference."""

    name: str
    expected: str
    found: str
    ok: bool
    example: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "OFF"
        return f"{self.name:<72} {self.expected:>11} {self.found:>11}  {verdict:<3} {self.example}".rstrip()


def equal(name: str, expected: Any, found: Any, example: str = "") -> Check:
    """Compares two numbers or words; ``example`` is shown when they differ, and makes them differ."""
    due, is_ = (f"{value:,}" if isinstance(value, int) else str(value) for value in (expected, found))
    return Check(name, due, is_, expected == found and not example, example)


def same(name: str, expected: Mapping[Any, Any], found: Mapping[Any, Any], *, total: bool = False) -> Check:
    """Compares two maps key by key. ``total`` shows the sum of the values in place of the number of keys."""
    off = [key for key in {*expected, *found} if key not in expected or key not in found or expected[key] != found[key]]
    example = ""
    if off:
        key = min(off, key=str)
        example = f"{key}: expected {expected.get(key, 'nothing')}, found {found.get(key, 'nothing')}"
        example += f" (and {len(off) - 1:,} more)" if len(off) > 1 else ""
    sizes = (sum(expected.values()), sum(found.values())) if total else (len(expected), len(found))
    return Check(name, f"{sizes[0]:,}", f"{sizes[1]:,}", not off, example)


def once(name: str, expected: Iterable[Hashable], found: Iterable[Hashable]) -> Check:
    """Each of ``expected`` is among ``found`` exactly once, and nothing else is."""
    return same(name, dict.fromkeys(expected, 1), Counter(found), total=True)


def keyed(rows: Iterable[tuple[Any, ...]], width: int) -> dict[Any, Any]:
    """Rows as a map from their first ``width`` columns to the rest; a key that comes twice keeps both: it differs."""
    found: dict[Any, Any] = {}
    for row in rows:
        key, value = row[:width], row[width:]
        found[key] = (found[key], "and", value) if key in found else value
    return found


# ---------------------------------------------------------------- the ledger


@dataclass(frozen=True)
class Batch:
    """One row of the ledger, or one commit's record."""

    number: int
    started: int
    ranges: Mapping[int, Range]
    watermark: int | None
    counters: Mapping[str, int]


def check_coverage(name: str, topic: Topic, batches: Iterable[Batch]) -> Check:
    """Batches are numbered 1, 2, 3; their ranges are contiguous and hold every record of the topic once."""
    reached = {p: found.first for p, found in topic.partitions.items()}
    covered, problem = 0, ""
    for number, batch in enumerate(batches, 1):
        if batch.number != number:
            problem = problem or f"batch {batch.number} where {number} was due"
        for partition, range_ in batch.ranges.items():
            if partition not in reached:
                problem = problem or f"batch {batch.number} read partition {partition}, which there is not"
                continue
            if range_.start != reached[partition] or range_.end < range_.start:
                problem = problem or (f"batch {batch.number} partition {partition}: {range_.start} to {range_.end}"
                                      f" after {reached[partition]}")  # fmt: skip
            covered += len(topic.partitions[partition].between(range_.start, range_.end))
            reached[partition] = range_.end
    for partition, found in topic.partitions.items():
        last = found.offsets[-1] + 1 if found.offsets else found.first
        if not last <= reached[partition] <= found.end:  # a transaction's marker may stand after the last record
            problem = problem or f"partition {partition} is read up to {reached[partition]}, its end is {found.end}"
    return equal(name, len(topic), covered, problem)


# ---------------------------------------------------------------- real time


@dataclass(frozen=True)
class Pipeline:
    """A real-time pipeline: counts events of type ``wanted`` (None: all) a minute, by these columns."""

    name: str
    wanted: str | None
    by: tuple[str, ...]
    count: str

    def key(self, event: Event) -> tuple[str, ...]:
        return tuple(event.kind if column == "event_type" else event.source for column in self.by)


REALTIME = (
    Pipeline("realtime.events_per_minute", None, ("event_type",), "event_count"),
    Pipeline("realtime.logins_per_source", "login", ("source",), "login_count"),
    Pipeline("realtime.purchases_per_minute", "purchase", (), "purchase_count"),
)


class State(NamedTuple):
    """Where a pipeline stands in a partition."""

    greatest: int | None = None
    idle: bool = False
    last_row: int | None = None


@dataclass
class Expected:
    """What a real-time pipeline must hold, by the oracle's own judgement. Lists have one entry a batch."""

    windows: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    #: place -> batch, event time, watermark, missed windows
    late: dict[Place, tuple[int, int, int, tuple[int, ...]]] = field(default_factory=dict)
    counters: list[dict[str, int]] = field(default_factory=list)
    watermarks: list[int | None] = field(default_factory=list)
    states: list[dict[int, State]] = field(default_factory=list)


def replay(topic: Topic, pipeline: Pipeline, batches: Iterable[Batch]) -> Expected:
    """Runs a pipeline by hand over the offset ranges and start times of its batches: watermark, filter, window.

    The watermark of a batch is what the batches before it left: the minimum over partitions that take part of the
    greatest event time, less the delay; it never goes back. A partition takes part from its first row on (malformed
    and too far ahead give none, what a filter drops does) until it has given none for 30 s of the batches' starts.
    """
    expected = Expected()
    states: dict[int, State] = {}
    watermark: int | None = None
    for batch in batches:
        counts = dict.fromkeys(COUNTERS, 0)
        for partition, range_ in batch.ranges.items():
            state = states.get(partition, State())
            greatest = None
            for event in topic.between(partition, range_):
                if event is None or event.time - event.sent > MAX_AHEAD:
                    counts["quarantined"] += 1
                    continue
                if greatest is None or event.time > greatest:
                    greatest = event.time
                if pipeline.wanted is not None and event.kind != pipeline.wanted:
                    counts["filtered"] += 1
                    continue
                window = event.time - event.time % MINUTE
                if watermark is not None and window + MINUTE <= watermark:
                    counts["late"] += 1
                    expected.late[event.place] = (batch.number, event.time, watermark, (window,))
                    continue
                counts["counted"] += 1
                key = (window, *pipeline.key(event))
                expected.windows[key] += 1
            if greatest is not None:
                before = greatest if state.greatest is None else state.greatest
                state = State(max(greatest, before), False, batch.started)
            elif state.last_row is not None and batch.started - state.last_row >= IDLE_AFTER:
                state = state._replace(idle=True)
            states[partition] = state
        expected.counters.append(counts)
        expected.watermarks.append(watermark)
        expected.states.append(dict(states))
        taking_part = [s.greatest for s in states.values() if s.greatest is not None and not s.idle]
        if taking_part:
            reached = min(taking_part) - DELAY
            watermark = reached if watermark is None else max(watermark, reached)
    return expected


@dataclass
class Realtime:
    """What PostgreSQL holds of a real-time pipeline."""

    batches: list[Batch] = field(default_factory=list)
    #: partition -> next offset and state
    positions: dict[int, tuple[int, State]] = field(default_factory=dict)
    #: window_start, keys, count
    windows: list[tuple[Any, ...]] = field(default_factory=list)
    #: partition, offset, batch, event time, watermark, missed windows
    late: list[tuple[Any, ...]] = field(default_factory=list)
    quarantine: list[Place] = field(default_factory=list)


def check_realtime(topic: Topic, pipeline: Pipeline, stored: Realtime) -> Iterator[Check]:
    name, batches = pipeline.name, stored.batches
    expected = replay(topic, pipeline, batches)
    yield check_coverage(f"{name}: batches cover the topic once", topic, batches)
    read = {b.number: sum(expected.counters[i].values()) for i, b in enumerate(batches)}
    sums = {b.number: sum(b.counters.values()) for b in batches}
    yield same(f"{name}: records read = sum of the counters, by batch", read, sums, total=True)
    for counter in COUNTERS:
        due = {b.number: expected.counters[i][counter] for i, b in enumerate(batches)}
        yield same(f"{name}: {counter}, by batch", due, {b.number: b.counters[counter] for b in batches}, total=True)
    marks = {b.number: shown(expected.watermarks[i]) for i, b in enumerate(batches)}
    yield same(f"{name}: watermark, by batch", marks, {b.number: shown(b.watermark) for b in batches})
    states = {(b.number, p): (shown(s.greatest), s.idle) for i, b in enumerate(batches)
              for p, s in expected.states[i].items() if p in b.ranges}  # fmt: skip
    kept = {(b.number, p): (shown(r.greatest), r.idle) for b in batches for p, r in b.ranges.items()}
    yield same(f"{name}: greatest event time and idle flag, by batch", states, kept)
    after = expected.states[-1] if expected.states else {}
    ends = dict.fromkeys(topic.partitions, 0) | {p: r.end for b in batches for p, r in b.ranges.items()}
    due_positions = {p: (end, *_shown(after.get(p, State()))) for p, end in ends.items()}
    positions = {p: (offset, *_shown(state)) for p, (offset, state) in stored.positions.items()}
    yield same(f"{name}: positions", due_positions, positions)
    windows = {(shown(start), *keys): (count,) for (start, *keys), count in expected.windows.items()}
    found = keyed(((shown(start), *rest) for start, *rest in stored.windows), 1 + len(pipeline.by))
    yield same(f"{name}: windows and their counts", windows, found)
    counted = sum(row[-1] for row in stored.windows)
    yield equal(f"{name}: sum of all windows", sum(expected.windows.values()), counted)
    yield once(f"{name}: late rows kept once", expected.late, [(row[0], row[1]) for row in stored.late])
    late = {place: _late(values) for place, values in expected.late.items()}
    yield same(f"{name}: late rows' batch, time, watermark, windows", late,
               {(p, o): _late(values) for p, o, *values in stored.late})  # fmt: skip
    ahead = (event.place for event in topic.good() if event.ahead)
    yield once(f"{name}: rows too far ahead kept once", ahead, stored.quarantine)


def _shown(state: State) -> tuple[str, bool, str]:
    return shown(state.greatest), state.idle, shown(state.last_row)


def _late(values: Iterable[Any]) -> tuple[Any, ...]:
    batch, moment, watermark, missed = values
    return batch, shown(moment), shown(watermark), tuple(map(shown, missed))


def select(cursor: Any, table: str, columns: str, rest: str = "", values: tuple[str, ...] = ()) -> list[Any]:
    """Rows of a PostgreSQL table, times in microseconds; none when there is no such table."""
    cursor.execute("select to_regclass(%s)", (table,))
    if cursor.fetchone()[0] is None:
        return []
    cursor.execute(f"select {columns} from {table} {rest}", values)
    return [tuple(map(_plain, row)) for row in cursor.fetchall()]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return micros(value)
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def read_realtime(cursor: Any, pipeline: Pipeline) -> Realtime:
    """The newest epoch of a pipeline in the ledger, and its tables."""
    name = pipeline.name
    epoch = "where pipeline = %s and epoch = (select max(epoch) from lakehouse.positions where pipeline = %s)"
    stored = Realtime()
    columns = f"batch_id, started_at, ranges, watermark, {', '.join(COUNTERS)}"
    for number, started, ranges, mark, *counts in select(
        cursor, "lakehouse.batches", columns, f"{epoch} order by batch_id", (name, name)
    ):
        counters = dict(zip(COUNTERS, counts, strict=True))
        stored.batches.append(Batch(number, started, _ranges(ranges), mark, counters))
    columns = "partition, next_offset, max_event_time, idle, last_row_at"
    for partition, offset, *state in select(cursor, "lakehouse.positions", columns, epoch, (name, name)):
        stored.positions[partition] = (offset, State(*state))
    stored.windows = select(cursor, name, ", ".join(("window_start", *pipeline.by, pipeline.count)))
    columns = 'partition, "offset", batch_id, event_time, watermark, missed'
    stored.late = select(cursor, f"{name}__late", columns)
    stored.quarantine = select(cursor, f"{name}__quarantine", 'partition, "offset"')
    return stored


def _ranges(stored: Mapping[str, Mapping[str, Any]]) -> dict[int, Range]:
    found = {}
    for partition, values in stored.items():
        moment = values.get("max_event_time")
        greatest = micros(datetime.fromisoformat(moment.replace("Z", "+00:00"))) if moment else None
        found[int(partition)] = Range(values["from"], values["to"], greatest, bool(values.get("idle")))
    return found


# ---------------------------------------------------------------- Delta


class Log(NamedTuple):
    """A table's newest version: its files with their partition values; records of its commits, oldest first."""

    files: list[tuple[Path, dict[str, str | None]]]
    records: list[dict[str, Any]]
    #: the log still holds every commit since the first
    whole: bool


def read_log(table: Path) -> Log:
    """A Delta log, read as the protocol says; no table reads as an empty one. Raises ``Unreadable``."""
    import pyarrow.parquet as pq

    folder = table / "_delta_log"
    commits = {int(file.stem): file for file in folder.glob("[0-9]*.json") if re.fullmatch(r"\d{20}", file.stem)}
    live: dict[str, dict[str, Any]] = {}
    after = -1
    checkpoint = _newest_checkpoint(folder)
    if checkpoint is not None:
        after, parts = checkpoint
        for part in parts:
            rows = pq.ParquetFile(part).read(columns=["add", "metaData"]).to_pylist()
            for row in rows:
                _refuse(row, part)
                if row.get("add"):
                    live[row["add"]["path"]] = row["add"]
    wanted = sorted(version for version in commits if version > after)
    if wanted != list(range(after + 1, after + 1 + len(wanted))):
        raise Unreadable(f"{folder}: commits are missing after version {after}")
    records: list[dict[str, Any]] = []
    for version in sorted(commits):
        actions = [json.loads(line) for line in commits[version].read_text("utf-8").splitlines() if line.strip()]
        texts = [action["commitInfo"].get("userMetadata") for action in actions if "commitInfo" in action]
        records += [json.loads(text) for text in texts if text]
        if version > after:
            _apply(live, actions, commits[version])
    files = [(table / unquote(path), dict(add["partitionValues"] or {})) for path, add in live.items()]
    return Log(files, records, 0 in commits)


def _apply(live: dict[str, dict[str, Any]], actions: list[dict[str, Any]], commit: Path) -> None:
    for action in actions:
        _refuse(action, commit)
        if "remove" in action:
            live.pop(action["remove"]["path"], None)
    for action in actions:
        if "add" in action:
            live[action["add"]["path"]] = action["add"]


def _refuse(action: Mapping[str, Any], file: Path) -> None:
    """What this small reader cannot read must not be read wrongly."""
    if (action.get("add") or {}).get("deletionVector"):
        raise Unreadable(f"{file}: deletion vectors are not read here")
    configuration = dict((action.get("metaData") or {}).get("configuration") or {})
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        raise Unreadable(f"{file}: column mapping is not read here")


def _newest_checkpoint(folder: Path) -> tuple[int, list[Path]] | None:
    """The version and all parts of the newest complete checkpoint."""
    found: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("*.checkpoint*.parquet")):
        match = re.fullmatch(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet", file.name)
        if match:
            found[int(match[1]), int(match[2] or 1)].append(file)
    complete = [(version, files) for (version, parts), files in found.items() if len(files) == parts]
    return max(complete, default=None)


def rows_of(log: Log, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The table's rows; times in microseconds, a partition column as the text in the log."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file, partition in log.files:
        # An absent column reads as null. INT96 times are nanoseconds to pyarrow unless told otherwise.
        inside = [name for name in columns if name not in partition]
        stored = pq.ParquetFile(file, coerce_int96_timestamp_unit="us").read(columns=inside)
        lists = []
        for name in columns:
            if name in partition or name not in stored.column_names:
                lists.append([partition.get(name)] * stored.num_rows)
                continue
            column = stored.column(name)
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
            lists.append(column.to_pylist())
        yield from zip(*lists, strict=True)


# ---------------------------------------------------------------- bronze


BRONZE = ("_partition", "_offset", "event_id", "user_id", "event_type", "page", "source", "timestamp", "_timestamp",
          "event_date")  # fmt: skip


@dataclass
class Landing:
    """What bronze holds: rows as in ``BRONZE``, refused ones as (partition, offset, value), its commits' records."""

    rows: Iterable[tuple[Any, ...]] = ()
    quarantine: Iterable[tuple[int, int, bytes | None]] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = True


def check_bronze(topic: Topic, stored: Landing) -> Iterator[Check]:
    seen = {p: bytearray(len(found.events)) for p, found in topic.partitions.items()}
    days: dict[int, str] = {}
    strangers, doubled, wrong, count = "", "", "", 0
    for row in stored.rows:
        count += 1
        partition, offset = row[0], row[1]
        index = topic.partitions[partition].index(offset) if partition in seen else None
        event = topic.partitions[partition].events[index] if index is not None else None
        if index is None or event is None:
            strangers = strangers or f"{(partition, offset)}: expected nothing, found {row[2:]}"
            continue
        if seen[partition][index]:
            doubled = doubled or f"{(partition, offset)}: twice"
        seen[partition][index] = 1
        if event.day not in days:
            days[event.day] = to_date(event.day).isoformat()
        if row[2:-1] != event[2:] or str(row[-1]) != days[event.day]:
            wrong = wrong or f"{(partition, offset)}: expected {(*event[2:], days[event.day])}, found {row[2:]}"
    missing = (f"{event.place}: missing" for event in topic.good()
               if not seen[event.partition][topic.partitions[event.partition].index(event.offset) or 0])  # fmt: skip
    good = len(topic) - len(topic.malformed)
    example = strangers or doubled or next(missing, "")
    yield equal("bronze.user_events: every good record once", good, count, example)
    yield equal("bronze.user_events: values as in the record", "all", "not all" if wrong else "all", wrong)
    aside = list(stored.quarantine)
    yield once("bronze.user_events: malformed records kept once", topic.malformed, [(p, o) for p, o, _ in aside])
    yield same("bronze.user_events: malformed records' bytes", topic.malformed, {(p, o): v for p, o, v in aside})
    yield from _check_commits(topic, stored)


def _check_commits(topic: Topic, stored: Landing) -> Iterator[Check]:
    ends = {p: found.end for p, found in topic.partitions.items()}
    last = stored.records[-1].get("positions", {}) if stored.records else {}
    reached = {int(p): values["to"] for p, values in last.items()}
    yield same("bronze.user_events: position of the last commit", ends, reached)
    if not stored.whole:  # old commits are cleaned up after a while
        return
    # Maintenance repeats the last record: the same batch, not another one.
    records = {(r["epoch"], r["batch_id"], json.dumps(r["positions"], sort_keys=True)): r for r in stored.records}
    batches = [Batch(r["batch_id"], 0, _ranges(r["positions"]), None, r["counters"]) for r in records.values()]
    yield check_coverage("bronze.user_events: commits cover the topic once", topic, batches)
    expected: dict[str, dict[int, int]] = {"quarantined": {}, "counted": {}}
    for batch in batches:
        events = [event for partition, range_ in batch.ranges.items() for event in topic.between(partition, range_)]
        bad = sum(event is None for event in events)
        expected["quarantined"][batch.number], expected["counted"][batch.number] = bad, len(events) - bad
    for counter, due in expected.items():
        found = {batch.number: batch.counters.get(counter, 0) for batch in batches}
        yield same(f"bronze.user_events: {counter}, by commit", due, found, total=True)


def read_bronze(storage: Path) -> Landing:
    main, aside = (read_log(storage / "bronze" / name) for name in ("user_events", "user_events__quarantine"))
    return Landing(rows_of(main, *BRONZE), rows_of(aside, "partition", "offset", "value"), main.records, main.whole)


# ---------------------------------------------------------------- silver and gold


SILVER = ("event_date", "event_id", "user_id", "event_type", "page", "source", "timestamp")
GOLD = {
    "gold.daily_active_users": (("event_date",), ("dau_count",)),
    "gold.conversion_rate_daily": (("event_date",), ("conversion_rate", "total_purchases", "dau_count")),
    "gold.events_per_source_daily": (("event_date", "source"), ("event_count",)),
    "gold.purchases_per_page_daily": (("event_date", "page"), ("purchase_count",)),
}


def silver(topic: Topic) -> tuple[dict[tuple[int, str], Event], list[Event]]:
    """(kept by day and id, refused by not_in_the_future).

    Of the records of one event and day the least timestamp is kept, at equal ones the first place; then it is checked.
    """
    kept: dict[tuple[int, str], Event] = {}
    for event in topic.good():
        key = (event.day, event.id)
        other = kept.get(key)
        if other is None or (event.time, event.partition, event.offset) < (other.time, other.partition, other.offset):
            kept[key] = event
    refused = [event for event in kept.values() if event.ahead]
    for event in refused:
        del kept[event.day, event.id]
    return kept, refused


def gold(events: Iterable[Event]) -> dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]:
    """Table -> key -> values, from the events of silver. The rate: users with a purchase that day / active users."""
    users: dict[int, set[int]] = defaultdict(set)
    buyers: dict[int, set[int]] = defaultdict(set)
    purchases: Counter[int] = Counter()
    sources: Counter[tuple[int, str]] = Counter()
    pages: Counter[tuple[int, str]] = Counter()
    for event in events:
        day = event.day
        users[day].add(event.user)
        sources[day, event.source] += 1
        if event.kind == "purchase":
            buyers[day].add(event.user)
            purchases[day] += 1
            pages[day, event.page] += 1
    rates = {day: (len(buyers[day]) / len(found), purchases[day], len(found)) for day, found in users.items()}
    return {
        "gold.daily_active_users": {(to_date(day),): (len(found),) for day, found in users.items()},
        "gold.conversion_rate_daily": {(to_date(day),): values for day, values in rates.items()},
        "gold.events_per_source_daily": {(to_date(day), source): (n,) for (day, source), n in sources.items()},
        "gold.purchases_per_page_daily": {(to_date(day), page): (n,) for (day, page), n in pages.items()},
    }


@dataclass
class Jobs:
    """What silver and gold hold: rows as ``SILVER`` says, places refused by silver, gold's rows in both stores."""

    silver: Iterable[tuple[Any, ...]] = ()
    quarantine: Iterable[Place] = ()
    delta: Mapping[str, Iterable[tuple[Any, ...]]] = field(default_factory=dict)
    postgres: Mapping[str, Iterable[tuple[Any, ...]]] = field(default_factory=dict)


def check_gold(topic: Topic, stored: Jobs) -> Iterator[Check]:
    kept, refused = silver(topic)
    left = dict(kept)
    days: dict[str, int] = {}
    extra, wrong, count = "", "", 0
    for row in stored.silver:
        count += 1
        text = str(row[0])
        if text not in days:
            days[text] = (date.fromisoformat(text) - date(1970, 1, 1)).days if row[0] is not None else 0
        key = (days[text], row[1])
        event = left.pop(key, None)
        if event is None:
            extra = extra or f"{(text, row[1])}: {'twice' if key in kept else 'expected nothing'}"
            continue
        due = (event.user, event.kind, event.page, event.source, event.time)
        if row[2:] != due:
            wrong = wrong or f"{(text, row[1])}: expected {due}, found {row[2:]}"
    missing = next((f"{(to_date(day).isoformat(), name)}: missing" for day, name in left), "")
    yield equal("silver.user_events: every event once", len(kept), count, extra or missing)
    yield equal("silver.user_events: values as in the record", "all", "not all" if wrong else "all", wrong)
    yield once("silver.user_events: not_in_the_future kept once", [e.place for e in refused], stored.quarantine)
    for table, due_rows in gold(kept.values()).items():
        width = len(GOLD[table][0])
        for store, rows in (("Delta", stored.delta), ("PostgreSQL", stored.postgres)):
            yield same(f"{table}: {store}", due_rows, keyed(rows.get(table, ()), width))


def read_jobs(cursor: Any, storage: Path) -> Jobs:
    main, aside = (read_log(storage / "silver" / name) for name in ("user_events", "user_events__quarantine"))
    delta, postgres = {}, {}
    for table, (keys, values) in GOLD.items():
        delta[table] = list(rows_of(read_log(storage / table.replace(".", "/")), *keys, *values))
        postgres[table] = select(cursor, table, ", ".join((*keys, *values)))
    return Jobs(rows_of(main, *SILVER), rows_of(aside, "partition", "offset"), delta, postgres)


# ---------------------------------------------------------------- all of it


def check_topic(topic: Topic) -> Iterator[Check]:
    yield Check(f"{topic.name}: holds records", "some", f"{len(topic):,}", len(topic) > 0)
    gone = sum(found.first for found in topic.partitions.values())
    yield equal(f"{topic.name}: records no longer there to be recounted", 0, gone)


def reconcile(
    bootstrap_servers: str, dsn: str, storage: Path, topic_name: str, only: Iterable[str] = ()
) -> list[Check]:
    """Every comparison; ``only`` of ``PARTS`` (gold: silver too). Raises ``Unreadable``."""
    import psycopg2

    wanted = set(only) or set(PARTS)
    topic = read_topic(bootstrap_servers, topic_name)
    try:
        connection = psycopg2.connect(dsn, options="-c timezone=UTC", connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise Unreadable(str(error).strip().splitlines()[-1]) from None
    checks = list(check_topic(topic))
    try:
        with connection, connection.cursor() as cursor:
            for pipeline in REALTIME if "realtime" in wanted else ():
                checks += check_realtime(topic, pipeline, read_realtime(cursor, pipeline))
            checks += check_bronze(topic, read_bronze(storage)) if "bronze" in wanted else ()
            checks += check_gold(topic, read_jobs(cursor, storage)) if "gold" in wanted else ()
    finally:
        connection.close()
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--topic", default="user-events")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="gold: silver and gold")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        checks = reconcile(options.bootstrap_servers, options.dsn, options.storage, options.topic, options.only)
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 1
    off = sum(not check.ok for check in checks)
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(f"{'check':<72} {'expected':>11} {'found':>11}")
        print("\n".join(map(str, checks)))
        print(f"{len(checks) - off} of {len(checks)} checks are right")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
