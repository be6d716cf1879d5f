"""A stream counted anew: closed windows hold every row that was read, open ones are the stream's, none is doubled."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from lakehouse_engine import past
from lakehouse_engine.errors import FencedError, PlanError, RunError
from lakehouse_engine.journal import Run
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.locks import acquire
from lakehouse_engine.log import Log
from lakehouse_engine.plan import Member, compile_plan
from lakehouse_engine.recount import check, recount
from lakehouse_engine.request import Request, Span
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.sinks.postgres import connect
from lakehouse_engine.sources import broker
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.streams import Connections, ScanRun
from tests.lab import send, to_its_end
from tests.test_sessions import sessions

MIDNIGHT = datetime(2026, 1, 2, tzinfo=timezone.utc)
CONTRACT = """
type: object
required: [id, at]
properties: {id: {type: integer}, at: {type: string, format: date-time}, user: {type: string}, amount: {type: number}}
"""
WINDOW = """
source: {{kafka: {{topic: TOPIC, history: bronze.events}}}}
transforms:
  - parse: event
  - filter: amount >= 0
  - watermark: {{column: at, delay: 1 minute}}
  - window: {{{window}, by: [user], measures: {{n: count(*), mean: avg(amount), most: max(amount)}}{more}}}
sink: postgres
trigger: {{every: 1 second}}
"""
FILES = {
    "contracts/event.yaml": CONTRACT,
    "bronze/events.yaml": "source: {kafka: {topic: TOPIC}}\ntransforms:\n  - parse: event\n"
                          "  - derive: {day: to_date(at)}\nsink: delta\ntrigger: {every: 1 second}\n",
    "realtime/minutes.yaml": WINDOW.format(window="tumbling: 1 minute", more=""),
    "realtime/moving.yaml": WINDOW.format(window="sliding: {size: 3 minutes, every: 1 minute}", more=", emit: final"),
    "realtime/visits.yaml": WINDOW.format(window="session: {gap: 10 minutes}", more=""),
}  # fmt: skip
Event = tuple[float, str | None, int]  # minutes from midnight, user, amount


def moment(minutes: float) -> str:
    """ISO text of a time from midnight."""
    return (MIDNIGHT + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


@dataclass
class Lab:
    """A topic with what was sent to it, and pipelines that read it; each call of ``run`` is one start of a stream."""

    spark: SparkSession
    stack: Services
    dsn: str
    folder: Path
    topic: str = field(default_factory=lambda: f"recount-{uuid.uuid4().hex[:8]}")
    sent: list[Event] = field(default_factory=list)
    done: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, text in FILES.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text.replace("TOPIC", self.topic))
        ensure_topic(self.stack.bootstrap_servers, self.topic, 1)

    def send(self, *events: Event) -> None:
        send(self.stack.bootstrap_servers, self.topic, [
            {"id": number, "at": moment(at), **({"user": user} if user else {}), "amount": amount}
            for number, (at, user, amount) in enumerate(events, start=len(self.sent))])  # fmt: skip
        self.sent += events

    def to(self, writer: str = "test") -> Connections:
        return Connections(self.stack.bootstrap_servers, self.dsn, self.folder / "storage", writer)

    def spec(self, name: str) -> PipelineSpec:
        return load([self.folder / f"{name.replace('.', '/')}.yaml"])[0]

    def member(self, name: str) -> Member:
        return compile_plan([self.spec(name)]).scans[0].members[0]

    def run(self, *names: str) -> None:
        for scan in compile_plan([self.spec(name) for name in names]).scans:
            to_its_end(ScanRun(self.spark, scan, self.to(), lambda _: None))

    def recount(self, name: str, first: str | None = None, last: str | None = None,
                stopped: Callable[[], bool] = lambda: False) -> list[str]:  # fmt: skip
        said: list[str] = []
        span = Span(first, last, full=first is None and last is None)
        recount(self.spark, self.member(name), self.spec("bronze.events"), span, self.to("recount"), said.append,
                stopped, self.done.append)  # fmt: skip
        return said

    def command(self, name: str, span: Span) -> None:
        """``lakehouse backfill``."""
        embedded = {"postgres": self.dsn, "kafka": self.stack.bootstrap_servers}
        environment = Environment(storage=str(self.folder / "storage"), embedded=embedded)
        file = self.folder / f"{name.replace('.', '/')}.yaml"
        runner = Runner(environment, tuple, Log(print), session=self.spark)
        try:
            assert runner.perform(planned([file], environment), Request("backfill", (file,), span=span)) == 0
        finally:
            runner.close()

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(connect(self.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def table(self, name: str, columns: str = "window_start, user, n, mean, most") -> set[tuple[Any, ...]]:
        return {tuple(minutes(v) if isinstance(v, datetime) else v for v in row)
                for row in self.ask(f'select {columns.replace("user", chr(34) + "user" + chr(34))} from {name}')}

    def late(self, name: str) -> dict[float, bool]:
        """Of each late row, by its minute: whether it has been counted since."""
        return {minutes(at): applied for at, applied in
                self.ask(f"select event_time, applied_at is not null from {name}__late")}  # fmt: skip

    def windows(self, size: int, every: int, until: float) -> set[tuple[Any, ...]]:
        """By definition: those of all rows, that end at or before ``until``."""
        found: dict[tuple[float, str | None], list[int]] = {}
        for at, user, amount in self.sent:
            newest = at // every * every
            for start in (newest - i * every for i in range(size // every)):
                if start + size <= until and amount >= 0:
                    found.setdefault((start, user), []).append(amount)
        return {(start, user, len(a), sum(a) / len(a), max(a)) for (start, user), a in found.items()}

    def visits(self, until: float) -> set[tuple[Any, ...]]:
        rows = [(round(at * 60), user, amount) for at, user, amount in self.sent if amount >= 0]
        return {(s[0] / 60, s[1] / 60, *s[2:5]) for s in sessions(rows, 600) if s[1] < until * 60}


def minutes(at: datetime) -> float:
    return (at - MIDNIGHT) / timedelta(minutes=1)


@pytest.fixture
def lab(spark: SparkSession, stack: Services, database: str, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(spark, stack, database, tmp_path)
    yield made
    client = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    client.delete_topics([made.topic])[made.topic].result(timeout=20)


def test_closed_windows_of_the_range_hold_every_row_that_was_read_and_open_ones_stay(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("realtime.minutes", "realtime.moving")
    lab.send((-1440.5, "a", 1), (-2, "a", 1), (-1.5, None, 2), (-1, "b", -1), (0, "a", 3), (1.5, "a", 4))
    lab.run("bronze.events", *both)
    lab.send((-1.2, "a", 5), (0.9, "b", 6), (10.5, "a", 7))  # the watermark is 0.5: the first is late
    lab.run(*both)
    lab.send((2.5, "a", 8))  # the watermark is 9.5: late
    lab.run(*both)
    with pytest.raises(RunError, match="has landed partition 0 up to offset 6, and realtime"):
        refuse_topic(lab, "realtime.minutes")
    lab.run("bronze.events")
    lab.send((3.5, "a", 9))  # not read yet: not counted
    lab.run("bronze.events")
    unread = lab.sent.pop()
    stops = iter([False, True])
    for name, size in zip(both, (1, 3), strict=True):
        # what is wrong in the closed windows is mended, in the open ones it is not looked at
        lab.ask(f"update {name} set n = 77")
        lab.ask(f"delete from {name} where window_start < '2026-01-01'")
        lab.ask(f"insert into {name} (window_start, n) values ('2026-01-01 12:00+00', 1)")
        open_ = {row for row in lab.table(name) if row[0] + size > 9.5}
        kept = {row for row in lab.table(name) if row[0] < -1440}
        if name == "realtime.minutes":
            with pytest.raises(RunError, match="1 of 2 days are done"):
                lab.recount(name, "2026-01-01", "2026-01-02", lambda: next(stops))
            assert lab.late(name) == {-1.2: True, 2.5: False}
            said = lab.recount(name, "2026-01-01", "2026-01-02")
            assert said[1] == "realtime.minutes: going on after 1 of 2 days"
        else:
            lab.recount(name, "2026-01-01", "2026-01-02")
        assert open_ == ({(10, "a", 77, 7, 7)} if name == "realtime.minutes" else set())
        assert lab.table(name) == {w for w in lab.windows(size, 1, 9.5) if w[0] >= -1440} | open_ | kept
        assert lab.late(name) == {-1.2: True, 2.5: True}
    monkeypatch.setattr(past, "_landed_from", lambda _: None)  # as if the table's log had been cleaned
    lab.recount("realtime.moving")
    assert lab.table("realtime.moving") == lab.windows(3, 1, 9.5)
    assert [(run.pipeline, run.kind, run.outcome) for run in lab.done[:2]] == 2 * [
        ("realtime.minutes", "backfill", "committed")]  # fmt: skip
    lab.sent.append(unread)
    lab.run("realtime.moving")
    assert lab.late("realtime.moving") == {-1.2: True, 2.5: True, 3.5: False}
    lab.send((20, "a", 1))
    lab.run("realtime.moving")
    lab.sent.remove(unread)
    assert lab.table("realtime.moving") == lab.windows(3, 1, 19)


def refuse_topic(lab: Lab, name: str) -> None:
    """As if the topic had lost its first records."""
    client = AdminClient({"bootstrap.servers": lab.stack.bootstrap_servers})  # what it promises ends with it
    client.delete_records([TopicPartition(lab.topic, 0, 6)])[TopicPartition(lab.topic, 0)].result(timeout=20)
    before = lab.table(name)
    try:
        lab.recount(name, "2026-01-01")
    finally:
        assert lab.table(name) == before


def test_a_late_row_joins_sessions_that_were_sent_but_not_one_that_is_open(lab: Lab) -> None:
    columns = "window_start, window_end, user, n, mean"
    lab.send((-30, "a", 1), (-15, "a", 2), (0, "a", 3), (-25, None, 4), (-5, "b", 1))
    lab.run("realtime.visits")
    lab.send((12, "b", 1), (5, "c", 1))
    lab.run("realtime.visits")  # the watermark is 11: all of the first batch's are over
    lab.send((-22, "a", 5), (-8, "a", 6), (-12, None, 7), (3, "b", 8), (10.5, "c", -9))
    lab.run("realtime.visits")
    assert lab.table("realtime.visits", columns) == {
        (-30, -20, "a", 1, 1), (-15, -5, "a", 1, 2), (0, 10, "a", 1, 3), (-25, -15, None, 1, 4), (-5, 5, "b", 1, 1)}
    lab.recount("realtime.visits", last="2026-01-01")
    # b's late row lies between a session that was sent and one that is open: both stay as they are
    assert lab.table("realtime.visits", columns) == {
        (-30, 10, "a", 5, 3.4), (-25, -15, None, 1, 4), (-12, -2, None, 1, 7), (-5, 5, "b", 1, 1)}
    assert lab.late("realtime.visits") == {-22: True, -8: True, -12: True, 3: False}
    lab.send((60, "d", 1))
    lab.run("realtime.visits")
    assert (12, 22, "b", 1, 1) in lab.table("realtime.visits", columns)
    lab.recount("realtime.visits", "2026-01-02")
    assert lab.table("realtime.visits", columns) == lab.visits(59)
    assert lab.late("realtime.visits") == {-22: True, -8: True, -12: True, 3: True}
    again = lab.table("realtime.visits", columns)
    lab.command("realtime.visits", Span(full=True))
    assert lab.table("realtime.visits", columns) == again
    assert lab.ask("select kind, outcome, rows from lakehouse.runs order by id") == [
        ("backfill", "committed", 4), ("backfill", "committed", 3)]  # fmt: skip
    assert Counter(row[0] for row in lab.ask('select "user" from realtime.visits__state')) == {"d": 1}


def test_late_rows_are_counted_day_by_day_and_other_days_are_left_alone(lab: Lab) -> None:
    both = ("realtime.minutes", "realtime.visits")
    lab.send((-2900, "a", 1), (-1470, "a", 2), (0.9, "b", 6), (40, "a", 7))
    lab.run(*both)
    lab.send((-1441, "a", 3), (-2900.5, "b", 4), (35, "b", 5))
    lab.run(*both)
    assert lab.late("realtime.minutes") == {-1441: False, -2900.5: False, 35: False}
    for side, change, column in (("", "n = 77", "window_start"), ("__late", "applied_at = now()", "event_time")):
        # a day that lacks nothing
        lab.ask(f"update realtime.minutes{side} set {change} where {column} >= '{MIDNIGHT}'")
    for name in both:
        lab.command(name, Span(late=True))
    assert lab.late("realtime.minutes") == {-1441: True, -2900.5: True, 35: True}
    assert {row for row in lab.table("realtime.minutes") if row[2] != 77} == {
        row for row in lab.windows(1, 1, 39) if row[0] < 0}  # fmt: skip
    assert lab.ask("select count(*) from realtime.minutes where n = 77") == [(2,)]
    assert lab.late("realtime.visits") == {-1441: True, -2900.5: True, 35: False}  # its session is open
    assert lab.table("realtime.visits", "window_start, window_end, user, n, mean") == lab.visits(39)


def test_what_came_before_a_stream_began_is_not_counted_by_a_recount(lab: Lab) -> None:
    file = lab.folder / "realtime" / "minutes.yaml"
    file.write_text(file.read_text().replace("history:", "start: latest, history:"))
    lab.send((0.1, "a", 1), (0.2, "a", 2))
    lab.run("realtime.minutes", "bronze.events")  # reads nothing, and keeps where it begins
    lab.send((0.3, "a", 3), (5, "a", 4), (1, "a", 5))
    lab.run("realtime.minutes", "bronze.events")
    before = lab.table("realtime.minutes")
    assert before == {(0, "a", 1, 3, 3), (1, "a", 1, 5, 5), (5, "a", 1, 4, 4)}
    lab.recount("realtime.minutes")
    assert lab.table("realtime.minutes") == before
    refuse_history(lab)
    lab.recount("realtime.minutes")  # from the topic
    assert lab.table("realtime.minutes") == before


def refuse_history(lab: Lab) -> None:
    """The landing leaves out rows."""
    file = lab.folder / "bronze" / "events.yaml"
    file.write_text(file.read_text().replace("  - derive", "  - filter: id > 0\n  - derive"))


def test_a_stream_and_a_recount_never_write_side_by_side(lab: Lab) -> None:
    with pytest.raises(RunError, match="has not run yet") as raised:
        lab.recount("realtime.minutes")
    assert raised.value.code == "NOT_STARTED"
    lab.send((0, "a", 1), (5, "a", 1))
    lab.run("realtime.minutes")
    lock = acquire(lab.spark, lab.folder / "storage", "realtime.minutes", "a stream")
    with pytest.raises(RunError, match="a stream") as raised:
        lab.recount("realtime.minutes")
    assert raised.value.code == "LOCKED"
    lock.close()

    def taken() -> bool:  # by another host, before the day commits
        lab.ask("update lakehouse.positions set writer = 'other'")
        return False

    lab.ask("update realtime.minutes set n = 5")
    with pytest.raises(FencedError):
        lab.recount("realtime.minutes", stopped=taken)
    assert {row[2] for row in lab.table("realtime.minutes")} == {5}
    lab.recount("realtime.minutes")
    assert lab.ask("select writer from lakehouse.positions") == [("recount",)]  # whose batches are refused from now on


def test_what_has_no_merged_windows_and_what_is_no_day_is_refused(lab: Lab) -> None:
    with pytest.raises(PlanError) as raised:
        check(lab.member("bronze.events"), Span(full=True))
    assert (raised.value.code, raised.value.where.rpartition(":")[2]) == ("NOT_YET", "5")
    with pytest.raises(RunError) as refused:
        check(lab.member("realtime.visits"), Span("yesterday", None))
    assert refused.value.code == "BAD_RANGE"


def test_a_landing_goes_on_where_its_table_was_restored_to_and_is_no_past_of_another_topic(lab: Lab) -> None:
    table = lab.folder / "storage" / "bronze" / "events"
    for minute in (0, 1):
        lab.send((minute, "a", 1))
        lab.run("bronze.events")
    lab.spark.sql(f"restore table delta.`{table}` to version as of 0")
    lab.send((2, "a", 1))
    lab.run("bronze.events")
    landed = lab.spark.read.format("delta").load(str(table)).select("_offset").collect()
    assert sorted(row[0] for row in landed) == [0, 1, 2]
    made_anew(lab)
    lab.send((0.5, "b", 1), (9, "b", 1))
    lab.run("bronze.events", "realtime.minutes")
    lab.recount("realtime.minutes")  # the landing has rows of these offsets that the stream has never read
    assert lab.table("realtime.minutes") == lab.windows(1, 1, 100)


def made_anew(lab: Lab) -> None:
    servers = lab.stack.bootstrap_servers
    before = broker.describe(servers, lab.topic).id
    client = AdminClient({"bootstrap.servers": servers})  # what it promises ends with it
    client.delete_topics([lab.topic])[lab.topic].result(timeout=20)
    deadline = time.monotonic() + 20
    while True:  # the broker forgets it a moment later
        ensure_topic(servers, lab.topic, 1)
        if broker.describe(servers, lab.topic).id != before:
            break
        assert time.monotonic() < deadline
    lab.sent.clear()
