"""The oracle is right about hand-made data, and says so when a number is wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

from demo import reconcile as oracle
from demo.reconcile import Batch, Check, Jobs, Landing, Range, Realtime, State, Topic
from lakehouse_engine.local.services import Services

EVENTS, LOGINS, PURCHASES = oracle.REALTIME
NOON = oracle.micros(datetime(2026, 1, 1, 12, tzinfo=timezone.utc))
SECOND, MINUTE = oracle.SECOND, oracle.MINUTE


def at(minute: float) -> int:
    """Microseconds, ``minute`` minutes after noon."""
    return NOON + round(minute * MINUTE)


def event(name: str = "a", minute: float = 0, **fields: Any) -> bytes:
    whole = {"event_id": name, "user_id": 1, "event_type": "click", "page": "/home",
             "timestamp": oracle.shown(at(minute)), "source": "web", **fields}  # fmt: skip
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def judged(value: bytes | None) -> oracle.Event | None:
    return oracle.judge(value, 0, 0, NOON)


# ---------------------------------------------------------------- judging a record


def with_text(name: str, text: str) -> bytes:
    """The event with a field written as it stands."""
    return event(**{name: "@"}).replace(b'"@"', text.encode())


@pytest.mark.parametrize(
    "value",
    [
        event(),
        b" \n\t" + event() + b"\r\n",
        event(extra={"any": [1, 2.5, None]}),
        event(page=""),
        event(page="/\u00e9\U0001f600"),
        with_text("page", '"\\u00e9\\ud83d\\ude00"'),
        event(name="x" * 64),
        with_text("user_id", "9223372036854775807"),
        with_text("timestamp", '"2026-01-01T12:00:00.123456789Z"'),
        with_text("timestamp", '"2026-01-01T12:00:00+05:30"'),
        with_text("timestamp", '"1900-01-01T00:00:00-18:00"'),
        with_text("timestamp", '"2200-12-31T23:59:59Z"'),
        with_text("timestamp", '"2024-02-29T00:00:00Z"'),
    ],
)
def test_good_records(value: bytes) -> None:
    assert judged(value) is not None


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"not json",
        b"null",
        b"[" + event() + b"]",
        event()[:-1],
        event() + b"x",
        event() + event(),
        b"\xef\xbb\xbf" + event(),
        event().replace(b'"', b"'"),
        event().replace(b"/home", b"\xff"),
        event().replace(b"/home", b"\xed\xa0\x80"),
        event().replace(b"/home", b"\n"),
        event()[:-1] + b', "page": "/again"}',
        event()[:-1] + b', "extra": {"a": 1, "a": 2}}',
        event()[:-1] + b', "extra": NaN}',
        event()[:-1] + b', "extra": "\\ud800"}',
        b'{"a":' * 100_000,
        *[event(**{name: None}) for name in ("user_id", "event_type", "page", "timestamp", "source")],
        *[with_text(name, "null") for name in ("event_id", "user_id", "event_type", "page", "timestamp", "source")],
        *[with_text("user_id", text) for text in ('"1"', "1.0", "1e0", "true", "0", "-1", "[1]")],
        with_text("user_id", "9223372036854775808"),
        with_text("event_id", '""'),
        event(name="x" * 65),
        with_text("event_id", "7"),
        with_text("event_id", '"a\\u0000"'),
        with_text("page", "7"),
        with_text("page", '"\\u0000"'),
        with_text("event_type", '"refund"'),
        with_text("event_type", '["click"]'),
        with_text("source", '"Web"'),
        with_text("source", "{}"),
        *[
            with_text("timestamp", text)
            for text in (
                "1767225600", '"1767225600"', '"2026-01-01"', '"2026-01-01T12:00:00"', '"2026-01-01 12:00:00Z"',
                '"2026-01-01T12:00Z"', '"2026-1-01T12:00:00Z"', '"2026-02-30T12:00:00Z"', '"2026-01-01T24:00:00Z"',
                '"2026-01-01T12:00:60Z"', '"2026-01-01T12:00:00z"', '"2026-01-01T12:00:00.Z"',
                '"2026-01-01T12:00:00.1234567890Z"', '"2026-01-01T12:00:00+0530"', '"2026-01-01T12:00:00+05:60"',
                '"2026-01-01T12:00:00+18:01"', '"1899-12-31T23:59:59Z"', '"2201-01-01T00:00:00Z"',
                '"99999-01-01T12:00:00Z"', '"2026-01-01T12:00:00Z\\n"', '"\u0662\u0660\u0662\u0666-01-01T12:00:00Z"',
            )
        ],
    ],
)  # fmt: skip
def test_malformed_records(value: bytes | None) -> None:
    assert judged(value) is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01T12:00:00.5Z", NOON + 500_000),
        ("2026-01-01T12:00:00.0000019Z", NOON + 1),
        ("2026-01-01T13:30:00+01:30", NOON),
        ("2026-01-01T11:00:00-01:00", NOON),
        ("1969-12-31T23:59:59.75Z", -250_000),
    ],
)
def test_event_times(text: str, moment: int) -> None:
    assert oracle.event_time(text) == moment


def test_a_record_is_ahead_when_its_event_is_more_than_an_hour_after_it() -> None:
    for minute, ahead in [(60, False), (60 + 1e-6, True)]:
        found = judged(event(minute=minute))
        assert found is not None
        assert found.ahead == ahead


# ---------------------------------------------------------------- a platform by hand
#
# Two partitions, four batches; the comments say what a person reckons.

RECORDS = [
    # batch 1, no watermark yet
    (0, 0, event("a", 0.1, event_type="login", user_id=1)),
    (0, 1, b"not json"),
    (1, 0, event("b", 0.2, event_type="purchase", user_id=2, page="/cart")),
    # batch 2; watermark: 12:00:06 less two minutes
    (0, 2, event("c", 5, user_id=2)),
    (0, 3, event("a", 0.1, event_type="login", user_id=1)),  # repeated: counted again here, once in gold
    (1, 1, event("d", 6, event_type="purchase", user_id=1, page="/cart", source="mobile")),
    # batch 3; watermark 12:03, of partition 0
    (0, 4, event("e", 2.9, event_type="login", user_id=3)),  # window ends 12:03: late
    (0, 5, event("f", 3, event_type="logout", user_id=3)),  # window ends 12:04: not late
    (0, 6, event("g", 200, event_type="purchase", user_id=9)),  # more than an hour ahead: moves nothing
    # batch 4, 40 s after partition 1 gave its last row
    (0, 7, event("h", 7, event_type="purchase", user_id=1, page="/home")),
    # batch 5; partition 1 is idle, so the watermark is that of partition 0: 12:05
    (1, 2, event("i", 4.5, event_type="purchase", user_id=4, source="mobile")),  # window ends 12:05: late
]
STARTS = [0, 1, 2, 41, 42]
RANGES = [
    {0: Range(0, 2, at(0.1), False), 1: Range(0, 1, at(0.2), False)},
    {0: Range(2, 4, at(5), False), 1: Range(1, 2, at(6), False)},
    {0: Range(4, 7, at(5), False), 1: Range(2, 2, at(6), False)},
    {0: Range(7, 8, at(7), False), 1: Range(2, 2, at(6), True)},
    {0: Range(8, 8, at(7), False), 1: Range(2, 3, at(6), False)},
]
WATERMARKS = [None, at(0.1 - 2), at(3), at(3), at(5)]


def sent(partition: int, offset: int) -> int:
    return at(7.5) + partition * SECOND + offset


@pytest.fixture(scope="module")
def topic() -> Topic:
    topic = Topic("user-events")
    for partition, offset, value in RECORDS:
        topic.add(partition, offset, sent(partition, offset), value)
    return topic


def batches(*counters: tuple[int, int, int, int]) -> list[Batch]:
    """(quarantined, filtered, late, counted) a batch."""
    return [
        Batch(i + 1, NOON + STARTS[i] * SECOND, RANGES[i], WATERMARKS[i],
              {"quarantined": q, "filtered": f, "duplicate": 0, "late": late, "counted": c})
        for i, (q, f, late, c) in enumerate(counters)
    ]  # fmt: skip


POSITIONS = {
    0: (8, State(at(7), False, NOON + 41 * SECOND)),
    1: (3, State(at(6), False, NOON + 42 * SECOND)),
}
LATE_E = (0, 4, 3, at(2.9), at(3), (at(2),))
LATE_I = (1, 2, 5, at(4.5), at(5), (at(4),))


def events_per_minute() -> Realtime:
    windows = [(at(0), "login", 2), (at(0), "purchase", 1), (at(5), "click", 1), (at(6), "purchase", 1),
               (at(3), "logout", 1), (at(7), "purchase", 1)]  # fmt: skip
    counters = batches((1, 0, 0, 2), (0, 0, 0, 3), (1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0))
    return Realtime(counters, dict(POSITIONS), windows, [LATE_E, LATE_I], [(0, 6)])


def logins_per_source() -> Realtime:
    counters = batches((1, 1, 0, 1), (0, 2, 0, 1), (1, 1, 1, 0), (0, 1, 0, 0), (0, 1, 0, 0))
    return Realtime(counters, dict(POSITIONS), [(at(0), "web", 2)], [LATE_E], [(0, 6)])


def purchases_per_minute() -> Realtime:
    counters = batches((1, 1, 0, 1), (0, 2, 0, 1), (1, 2, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0))
    return Realtime(counters, dict(POSITIONS), [(at(0), 1), (at(6), 1), (at(7), 1)], [LATE_I], [(0, 6)])


def off(checks: Iterator[Check]) -> set[str]:
    """What was found wrong, without the table's name."""
    found = list(checks)
    assert found
    return {check.name.partition(": ")[2] for check in found if not check.ok}


@pytest.mark.parametrize(
    ("pipeline", "stored"),
    [(EVENTS, events_per_minute()), (LOGINS, logins_per_source()), (PURCHASES, purchases_per_minute())],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_a_person_reckons_is_right(topic: Topic, pipeline: oracle.Pipeline, stored: Realtime) -> None:
    assert off(oracle.check_realtime(topic, pipeline, stored)) == set()


def test_an_idle_partition_counts_again_with_its_next_row(topic: Topic) -> None:
    expected = oracle.replay(topic, EVENTS, events_per_minute().batches)
    assert [states[1].idle for states in expected.states] == [False, False, False, True, False]


def test_thirty_seconds_without_a_row_are_idle_and_less_are_not(topic: Topic) -> None:
    for silent, idle in [(30 * SECOND, True), (30 * SECOND - 1, False)]:
        changed = events_per_minute().batches
        changed[3] = dataclasses.replace(changed[3], started=changed[1].started + silent)
        assert oracle.replay(topic, EVENTS, changed).states[3][1].idle == idle


def test_the_watermark_never_goes_back(topic: Topic) -> None:
    first, *_, last = events_per_minute().batches
    one_partition = [
        dataclasses.replace(first, ranges={0: Range(2, 3)}),  # 12:05
        dataclasses.replace(last, ranges={1: Range(0, 1)}),  # 12:00:12 joins
        dataclasses.replace(last, number=3, ranges={0: Range(3, 4)}),
    ]
    assert oracle.replay(topic, EVENTS, one_partition).watermarks == [None, at(3), at(3)]


# ---------------------------------------------------------------- wrong numbers in real time


def counters(stored: Realtime, index: int, **changes: int) -> None:
    batch = stored.batches[index]
    new = {name: batch.counters[name] + changes.get(name, 0) for name in batch.counters}
    stored.batches[index] = dataclasses.replace(batch, counters=new)


def ranges(stored: Realtime, index: int, **changes: Any) -> None:
    batch = stored.batches[index]
    stored.batches[index] = dataclasses.replace(batch, ranges={**batch.ranges, 0: batch.ranges[0]._replace(**changes)})


def window(stored: Realtime, index: int, *row: Any) -> None:
    stored.windows[index] = row


SUM = "records read = sum of the counters, by batch"
WINDOWS, TOTAL, ONCE = "windows and their counts", "sum of all windows", "batches cover the topic once"
LATE, DETAILS = "late rows kept once", "late rows' batch, time, watermark, windows"
STATES = "greatest event time and idle flag, by batch"
WRONG: dict[str, tuple[Callable[[Realtime], Any], set[str]]] = {
    "a window is missing": (lambda s: s.windows.pop(), {WINDOWS, TOTAL}),
    "a window counts one too many": (lambda s: window(s, 0, at(0), "login", 3), {WINDOWS, TOTAL}),
    "a window stands twice": (lambda s: s.windows.append(s.windows[0]), {WINDOWS, TOTAL}),
    "a count is spread over two rows": (
        lambda s: (window(s, 0, at(0), "login", 1), s.windows.append((at(0), "login", 1))), {WINDOWS}),
    "a count is in the wrong window": (lambda s: window(s, 0, at(1), "login", 2), {WINDOWS}),
    "a count has the wrong type": (lambda s: window(s, 2, at(5), "logout", 1), {WINDOWS}),
    "a late row was counted": (lambda s: s.windows.append((at(2), "login", 1)), {WINDOWS, TOTAL}),
    "a late row is missing": (lambda s: s.late.pop(), {LATE, DETAILS}),
    "a late row stands twice": (lambda s: s.late.append(s.late[0]), {LATE}),
    "a row that is not late is kept as late": (lambda s: s.late.append((0, 5, 3, at(3), at(3), ())), {LATE, DETAILS}),
    "a late row misses another window": (lambda s: s.late.__setitem__(0, (*LATE_E[:5], (at(1),))), {DETAILS}),
    "a late row has another batch": (lambda s: s.late.__setitem__(0, (0, 4, 4, *LATE_E[3:])), {DETAILS}),
    "a row too far ahead is not kept": (lambda s: s.quarantine.pop(), {"rows too far ahead kept once"}),
    "a malformed row is kept here": (lambda s: s.quarantine.append((0, 1)), {"rows too far ahead kept once"}),
    "late is one short": (lambda s: counters(s, 2, late=-1), {"late, by batch", SUM}),
    "late is called counted": (lambda s: counters(s, 2, late=-1, counted=1), {"late, by batch", "counted, by batch"}),
    "filtered is one too many": (lambda s: counters(s, 0, filtered=1), {"filtered, by batch", SUM}),
    "duplicate is not 0": (lambda s: counters(s, 0, duplicate=1), {"duplicate, by batch", SUM}),
    "quarantined belongs to another batch": (
        lambda s: (counters(s, 0, quarantined=-1), counters(s, 1, quarantined=1)), {"quarantined, by batch", SUM}),
    "a batch is missing": (lambda s: s.batches.pop(2), {ONCE, WINDOWS, TOTAL, LATE, DETAILS}),
    "a batch was read twice": (
        lambda s: s.batches.append(dataclasses.replace(s.batches[4], number=6)), {ONCE, DETAILS}),
    "a batch's number is left out": (lambda s: s.batches.__setitem__(
        4, dataclasses.replace(s.batches[4], number=6)), {ONCE, DETAILS}),
    "the last record was not read": (lambda s: s.batches.pop(), {ONCE, "positions", LATE, DETAILS}),
    "an offset was skipped": (
        lambda s: ranges(s, 1, start=3), {ONCE, "counted, by batch", SUM, WINDOWS, STATES}),
    "the watermark ran ahead": (lambda s: s.batches.__setitem__(
        2, dataclasses.replace(s.batches[2], watermark=at(4))), {"watermark, by batch"}),
    "a greatest event time is wrong": (lambda s: ranges(s, 1, greatest=at(9)), {STATES}),
    "an idle flag is wrong": (lambda s: ranges(s, 1, idle=True), {STATES}),
    "the position is behind": (lambda s: s.positions.update({0: (7, POSITIONS[0][1])}), {"positions"}),
    "the position's partition is idle": (
        lambda s: s.positions.update({0: (8, POSITIONS[0][1]._replace(idle=True))}), {"positions"}),
    "a position is missing": (lambda s: s.positions.pop(1), {"positions"}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_number_in_real_time_is_found(topic: Topic, what: str) -> None:
    stored = events_per_minute()
    spoil, named = WRONG[what]
    spoil(stored)
    assert off(oracle.check_realtime(topic, EVENTS, stored)) >= named


def test_an_empty_database_is_wrong(topic: Topic) -> None:
    assert off(oracle.check_realtime(topic, EVENTS, Realtime())) >= {ONCE, "positions", "rows too far ahead kept once"}


# ---------------------------------------------------------------- bronze


def landed(topic: Topic) -> list[tuple[Any, ...]]:
    """Written out from the records themselves, not from the oracle's idea of them."""
    found = []
    for partition, offset, value in RECORDS:
        if value != b"not json":
            e = json.loads(value)
            moment = oracle.micros(datetime.fromisoformat(e["timestamp"].replace("Z", "+00:00")))
            found.append((partition, offset, e["event_id"], e["user_id"], e["event_type"], e["page"], e["source"],
                          moment, sent(partition, offset), e["timestamp"][:10]))  # fmt: skip
    return found


def commit(number: int, spans: dict[int, tuple[int, int]], quarantined: int, counted: int) -> dict[str, Any]:
    positions = {str(p): {"from": start, "to": end} for p, (start, end) in spans.items()}
    counts = {"quarantined": quarantined, "counted": counted}
    return {"pipeline": "bronze.user_events", "epoch": 1, "batch_id": number, "kind": "stream",
            "positions": positions, "counters": counts}  # fmt: skip


@pytest.fixture
def bronze(topic: Topic) -> Landing:
    records = [commit(1, {0: (0, 4), 1: (0, 2)}, 1, 5), commit(2, {0: (4, 8), 1: (2, 3)}, 0, 5)]
    return Landing(landed(topic), [(0, 1, b"not json")], records)


GOOD, VALUES = "every good record once", "values as in the record"
KEPT, BYTES = "malformed records kept once", "malformed records' bytes"
COVER, POSITION = "commits cover the topic once", "position of the last commit"


def row(stored: Landing, index: int, column: int, value: Any) -> None:
    rows: Any = stored.rows
    rows[index] = (*rows[index][:column], value, *rows[index][column + 1 :])


SPOILT: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "nothing": (lambda b: None, set()),
    "a row is missing": (lambda b: b.rows.pop(3), {GOOD}),
    "a row stands twice": (lambda b: b.rows.append(b.rows[0]), {GOOD}),
    "one is missing and another stands twice": (lambda b: b.rows.__setitem__(0, b.rows[1]), {GOOD}),
    "a malformed row is among the good": (lambda b: b.rows.append((0, 1, *b.rows[0][2:])), {GOOD}),
    "a row of another partition": (lambda b: b.rows.append((7, 0, *b.rows[0][2:])), {GOOD}),
    "a row beyond the end": (lambda b: b.rows.append((0, 8, *b.rows[0][2:])), {GOOD}),
    "another user": (lambda b: row(b, 0, 3, 99), {VALUES}),
    "no page": (lambda b: row(b, 0, 5, None), {VALUES}),
    "another time": (lambda b: row(b, 0, 7, at(0)), {VALUES}),
    "another time of sending": (lambda b: row(b, 0, 8, at(0)), {VALUES}),
    "another day": (lambda b: row(b, 0, 9, "2026-01-02"), {VALUES}),
    "a malformed record is lost": (lambda b: b.quarantine.pop(), {KEPT, BYTES}),
    "a malformed record stands twice": (lambda b: b.quarantine.append(b.quarantine[0]), {KEPT}),
    "a good record in quarantine": (lambda b: b.quarantine.append((0, 0, b"")), {KEPT, BYTES}),
    "other bytes in quarantine": (lambda b: b.quarantine.__setitem__(0, (0, 1, b"Not json")), {BYTES}),
    "no commit": (lambda b: b.records.clear(), {POSITION, COVER}),
    "the last commit is missing": (lambda b: b.records.pop(), {POSITION, COVER}),
    "a commit is missing": (lambda b: b.records.pop(0), {COVER}),
    "the last commit stands twice, as after maintenance": (lambda b: b.records.append(b.records[-1]), set()),
    "ranges overlap": (lambda b: b.records.__setitem__(1, commit(2, {0: (3, 8), 1: (2, 3)}, 0, 6)), {COVER}),
    "counters are wrong": (lambda b: b.records.__setitem__(1, commit(2, {0: (4, 8), 1: (2, 3)}, 1, 4)),
                           {"quarantined, by commit", "counted, by commit"}),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_wrong_bronze_is_found(topic: Topic, bronze: Landing, what: str) -> None:
    spoil, named = SPOILT[what]
    spoil(bronze)
    assert off(oracle.check_bronze(topic, bronze)) == named


# ---------------------------------------------------------------- silver and gold


DAY = date(2026, 1, 1)
RIGHT_GOLD: dict[str, list[tuple[Any, ...]]] = {
    # g is refused by silver, the second a is a repetition
    "gold.daily_active_users": [(DAY, 4)],  # users 1, 2, 3, 4
    "gold.conversion_rate_daily": [(DAY, 0.75, 4, 4)],  # buyers 2, 1, 4; purchases b, d, h, i
    "gold.events_per_source_daily": [(DAY, "web", 6), (DAY, "mobile", 2)],
    "gold.purchases_per_page_daily": [(DAY, "/cart", 2), (DAY, "/home", 2)],
}


@pytest.fixture
def jobs(topic: Topic) -> Jobs:
    rows = [("2026-01-01", *r[2:8]) for r in landed(topic) if (r[0], r[1]) not in ((0, 3), (0, 6))]
    delta = {table: list(found) for table, found in RIGHT_GOLD.items()}
    return Jobs(rows, [(0, 6)], delta, {table: list(found) for table, found in RIGHT_GOLD.items()})


EVERY = "every event once"
WRONG_JOBS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "nothing": (lambda j: None, set()),
    "an event is missing": (lambda j: j.silver.pop(), {EVERY}),
    "an event stands twice": (lambda j: j.silver.append(j.silver[0]), {EVERY}),
    "one is missing and another stands twice": (lambda j: j.silver.__setitem__(1, j.silver[0]), {EVERY}),
    "an event that was refused": (lambda j: j.silver.append(("2026-01-01", "g", 9)), {EVERY}),
    "an event of another day": (lambda j: j.silver.__setitem__(0, ("2026-01-02", *j.silver[0][1:])), {EVERY}),
    "another user": (lambda j: j.silver.__setitem__(0, (*j.silver[0][:2], 7, *j.silver[0][3:])), {VALUES}),
    "a refused event is lost": (lambda j: j.quarantine.pop(), {"not_in_the_future kept once"}),
    "too many users": (lambda j: j.delta.update({"gold.daily_active_users": [(DAY, 5)]}), {"Delta"}),
    "a day too many": (lambda j: j.delta["gold.daily_active_users"].append((date(2026, 1, 2), 1)), {"Delta"}),
    "a day twice": (lambda j: j.postgres["gold.daily_active_users"].append((DAY, 4)), {"PostgreSQL"}),
    "a rate that is nearly right": (
        lambda j: j.postgres.update({"gold.conversion_rate_daily": [(DAY, 0.7500000000000001, 4, 4)]}), {"PostgreSQL"}),
    "buyers counted as purchases": (
        lambda j: j.delta.update({"gold.conversion_rate_daily": [(DAY, 0.75, 3, 4)]}), {"Delta"}),
    "a repetition counted": (
        lambda j: j.delta["gold.events_per_source_daily"].__setitem__(0, (DAY, "web", 7)), {"Delta"}),
    "a page is missing": (lambda j: j.postgres["gold.purchases_per_page_daily"].pop(), {"PostgreSQL"}),
    "the copy is empty": (lambda j: j.postgres.clear(), {"PostgreSQL"}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_JOBS)
def test_a_wrong_silver_or_gold_is_found(topic: Topic, jobs: Jobs, what: str) -> None:
    spoil, named = WRONG_JOBS[what]
    spoil(jobs)
    assert off(oracle.check_gold(topic, jobs)) == named


def test_silver_keeps_the_least_timestamp_of_a_day_and_checks_what_it_kept() -> None:
    topic = Topic("user-events")
    for offset, (name, minute, user) in enumerate(
        [("x", 5, 1), ("x", 4, 2), ("x", 4, 3), ("x", 60 * 24, 4), ("y", 100, 5), ("y", 3, 6)]
    ):
        topic.add(0, offset, at(60 * 24), event(name, minute, user_id=user))
    topic.add(0, 6, at(0), event("z", 61))
    kept, refused = oracle.silver(topic)
    users = {(e.id, e.day - NOON // oracle.DAY): e.user for e in kept.values()}
    assert users == {("x", 0): 2, ("x", 1): 4, ("y", 0): 6}
    assert [e.place for e in refused] == [(0, 6)]


# ---------------------------------------------------------------- reading


def write_log(table: Path, version: int, *actions: dict[str, Any]) -> None:
    folder = table / "_delta_log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def write_file(table: Path, path: str, *numbers: int) -> dict[str, Any]:
    """A file of one column ``n`` and its add action; the path stands in the log as an address does."""
    file = table / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"n": list(numbers)}), file)
    day = path.partition("/")[0].partition("=")[2]
    return {"add": {"path": path.replace(" ", "%20"), "partitionValues": {"day": day}, "dataChange": True}}


def contents(table: Path) -> list[tuple[Any, ...]]:
    return sorted(oracle.rows_of(oracle.read_log(table), "day", "n"))


def test_a_delta_table_is_what_its_log_says(tmp_path: Path) -> None:
    first, second = write_file(tmp_path, "day=1/a b.parquet", 1, 2), write_file(tmp_path, "day=2/b.parquet", 3)
    write_file(tmp_path, "day=2/never committed.parquet", 9)
    write_log(tmp_path, 0, {"metaData": {"configuration": {}}}, first, second)
    assert contents(tmp_path) == [("1", 1), ("1", 2), ("2", 3)]
    note = json.dumps({"batch_id": 7})
    third = write_file(tmp_path, "day=1/c.parquet", 4)
    removal = {"remove": {"path": first["add"]["path"]}}
    write_log(tmp_path, 1, {"commitInfo": {"userMetadata": note}}, removal, third)
    assert contents(tmp_path) == [("1", 4), ("2", 3)]
    log = oracle.read_log(tmp_path)
    assert (log.records, log.whole) == ([{"batch_id": 7}], True)


def test_a_delta_table_is_read_on_from_its_checkpoint(tmp_path: Path) -> None:
    adds = [write_file(tmp_path, f"day=1/{n}.parquet", n)["add"] for n in range(4)]
    for add in adds:
        add["partitionValues"] = list(add["partitionValues"].items())
    kind = pa.struct([("path", pa.string()), ("partitionValues", pa.map_(pa.string(), pa.string()))])
    rows = [{"path": add["path"], "partitionValues": add["partitionValues"]} for add in adds[:3]]
    folder = tmp_path / "_delta_log"
    folder.mkdir()
    pq.write_table(pa.table({"add": pa.array(rows, kind)}), folder / f"{5:020d}.checkpoint.parquet")
    write_log(tmp_path, 5, {"add": {"path": "stands in the checkpoint", "partitionValues": {}}})
    write_log(tmp_path, 6, {"remove": {"path": adds[0]["path"]}}, write_file(tmp_path, "day=2/3.parquet", 3))
    assert contents(tmp_path) == [("1", 1), ("1", 2), ("2", 3)]
    assert not oracle.read_log(tmp_path).whole
    (folder / f"{6:020d}.json").rename(folder / f"{7:020d}.json")
    with pytest.raises(oracle.Unreadable, match="commits are missing after version 5"):
        oracle.read_log(tmp_path)


@pytest.mark.parametrize(
    "action",
    [
        {"add": {"path": "a", "partitionValues": {}, "deletionVector": {"storageType": "u"}}},
        {"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}},
    ],
)
def test_what_cannot_be_read_is_not_guessed(tmp_path: Path, action: dict[str, Any]) -> None:
    write_log(tmp_path, 0, action)
    with pytest.raises(oracle.Unreadable):
        oracle.read_log(tmp_path)


@pytest.mark.parametrize("unit", ["us", "ns", "int96"])
def test_times_are_read_in_microseconds_whatever_their_form(tmp_path: Path, unit: str) -> None:
    moments = [datetime(1900, 1, 1, tzinfo=timezone.utc), datetime(2200, 1, 1, microsecond=1, tzinfo=timezone.utc)]
    kind = pa.timestamp("ns" if unit == "ns" else "us", "UTC")
    table = pa.table({"t": pa.array(moments, kind)})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=unit == "int96")
    write_log(tmp_path, 0, {"add": {"path": "a.parquet", "partitionValues": {}}})
    found = list(oracle.rows_of(oracle.read_log(tmp_path), "t", "absent"))
    assert found == [(oracle.micros(moment), None) for moment in moments]


@pytest.fixture
def sent_topic(stack: Services) -> str:
    """The records of above in a real topic; between them an aborted transaction, which nobody may count."""
    from confluent_kafka.admin import AdminClient

    name = f"reconcile-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    admin.create_topics([NewTopic(name, num_partitions=2)])[name].result(30)
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers, "transactional.id": name})
    producer.init_transactions(30)
    for whole in (False, True):
        producer.begin_transaction()
        for partition, offset, value in RECORDS:
            producer.produce(name, value, partition=partition, timestamp=sent(partition, offset) // 1000)
        producer.flush(30)  # so that the aborted ones are there too
        producer.commit_transaction(30) if whole else producer.abort_transaction(30)
    return name


def test_a_topic_is_read_to_its_end_without_aborted_records(stack: Services, sent_topic: str, topic: Topic) -> None:
    found = oracle.read_topic(stack.bootstrap_servers, sent_topic)
    assert sorted(e.id for e in found.good()) == sorted(e.id for e in topic.good())
    assert list(found.malformed.values()) == [b"not json"]
    first = next(e for e in found.good() if e.id == "b")
    assert first.sent == sent(1, 0) // 1000 * 1000
    assert (found.partitions[0].first, found.partitions[0].end) == (0, 18)


def test_a_topic_that_is_not_there_cannot_be_reconciled() -> None:
    with pytest.raises(oracle.Unreadable):
        oracle.read_topic("127.0.0.1:1", "none")


LEDGER = """
create schema lakehouse; create schema realtime;
create table lakehouse.positions (pipeline text, epoch int, topic_id text, partition int, topic text,
  next_offset bigint, max_event_time timestamptz, idle boolean, last_row_at timestamptz, writer text);
create table lakehouse.batches (pipeline text, epoch int, batch_id bigint, started_at timestamptz,
  committed_at timestamptz, topic_id text, ranges jsonb, watermark timestamptz, quarantined bigint, filtered bigint,
  duplicate bigint, late bigint, counted bigint);
create table realtime.events_per_minute (window_start timestamptz, event_type text, event_count bigint,
  updated_at timestamptz);
create table realtime.events_per_minute__late (arrived_at timestamptz, batch_id bigint, step text,
  event_time timestamptz, watermark timestamptz, missed timestamptz[], origin text, partition int, "offset" bigint,
  row jsonb, applied_at timestamptz);
create table realtime.events_per_minute__quarantine (partition int, "offset" bigint);
"""


def to_time(moment: int | None) -> datetime | None:
    return None if moment is None else oracle.EPOCH + timedelta(microseconds=moment)


def store(dsn: str, stored: Realtime) -> None:
    """Writes what a pipeline stored as the engine does, and an older epoch that does not count."""
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:

        def insert(table: str, *values: Any) -> None:
            cursor.execute(f"insert into {table} values ({', '.join(['%s'] * len(values))})", values)

        cursor.execute(LEDGER)
        now, name = datetime.now(timezone.utc), EVENTS.name
        insert("lakehouse.positions", name, 0, "t", 0, "t", 99, None, False, None, "w")
        insert("lakehouse.batches", name, 0, 1, now, now, "t", "{}", None, 9, 9, 9, 9, 9)
        for partition, (offset, state) in stored.positions.items():
            times = (to_time(state.greatest), state.idle, to_time(state.last_row))
            insert("lakehouse.positions", name, 1, "t", partition, "t", offset, *times, "w")
        for batch in stored.batches:
            spans = {}
            for partition, span in batch.ranges.items():
                greatest = to_time(span.greatest)
                spans[str(partition)] = {"from": span.start, "to": span.end, "idle": span.idle,
                                         "max_event_time": greatest.isoformat() if greatest else None}  # fmt: skip
            counts = [batch.counters[counter] for counter in oracle.COUNTERS]
            insert("lakehouse.batches", name, 1, batch.number, to_time(batch.started), now, "t", json.dumps(spans),
                   to_time(batch.watermark), *counts)  # fmt: skip
        for start, kind, count in stored.windows:
            insert(name, to_time(start), kind, count, now)
        for partition, offset, number, moment, watermark, missed in stored.late:
            times = (to_time(moment), to_time(watermark), list(map(to_time, missed)))
            insert(f"{name}__late", now, number, "s", *times, "t", partition, offset, "{}", None)
        for partition, offset in stored.quarantine:
            insert(f"{name}__quarantine", partition, offset)
    connection.close()


def test_the_ledger_is_read_as_the_engine_writes_it(database: str) -> None:
    stored = events_per_minute()
    store(database, stored)
    connection = psycopg2.connect(database, options="-c timezone=Asia/Kolkata")
    with connection, connection.cursor() as cursor:
        assert oracle.read_realtime(cursor, EVENTS) == stored
        assert oracle.read_realtime(cursor, LOGINS) == Realtime()
    connection.close()


def test_the_command_says_what_is_off_and_fails(
    stack: Services, sent_topic: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["reconcile.py", "--bootstrap-servers", stack.bootstrap_servers, "--dsn", database,
             "--storage", str(tmp_path), "--topic", sent_topic]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    assert oracle.main() == 1
    lines = capsys.readouterr().out.splitlines()
    missing = next(line for line in lines if line.startswith("bronze.user_events: every good record once"))
    assert missing.split()[5:8] == ["10", "0", "OFF"]
    assert missing.endswith("missing")
    monkeypatch.setattr(sys, "argv", [*words, "--only", "gold", "--json"])
    assert oracle.main() == 1
    found = json.loads(capsys.readouterr().out)
    assert {"name", "expected", "found", "ok", "example"} == set(found[0])
    assert not any(check["name"].startswith(("realtime", "bronze")) for check in found)
    monkeypatch.setattr(sys, "argv", [*words[:2], "127.0.0.1:1", *words[3:]])
    assert oracle.main() == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_an_empty_topic_proves_nothing() -> None:
    assert off(oracle.check_topic(Topic("user-events", {0: oracle.Partition()}))) == {"holds records"}


def test_a_topic_whose_beginning_is_gone_cannot_be_recounted(topic: Topic) -> None:
    partitions = {**topic.partitions, 0: dataclasses.replace(topic.partitions[0], first=5)}
    assert off(oracle.check_topic(dataclasses.replace(topic, partitions=partitions))) == {
        "records no longer there to be recounted"}  # fmt: skip
