"""Several topics as one source: each has its own positions, in every sink, whatever joins, leaves or dies."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from lakehouse_engine import audit, progress
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.places import BITS, Part, Topics, one
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.sources import topics
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.kafka import Kafka
from lakehouse_engine.sources.reading import OfTopic
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import ScanRun
from tests.lab import send, to_its_end

CONTRACT = """
type: object
required: [n]
properties:
  n: {type: integer}
"""
LANDING = """
source: {kafka: SOURCE}
transforms:
  - parse: number
sink:
  - delta
  - postgres: {table: realtime.numbers}
trigger: {every: 0 s}
"""
WINDOW = """
source: {kafka: SOURCE}
transforms:
  - parse: number
  - derive: {at: _timestamp}
  - watermark: {column: at, delay: 1 minute}
  - window: {tumbling: 1 hour, measures: {rows: count(*), total: sum(n)}}
sink: postgres
trigger: {every: 0 s}
"""


class Several:
    """A landing into Delta and PostgreSQL and a window, over topics whose names begin with the test's own prefix."""

    def __init__(self, spark: SparkSession, stack: Services, folder: Path, dsn: str) -> None:
        self.spark, self.servers, self.dsn = spark, stack.bootstrap_servers, dsn
        self.files, self.storage = folder / "pipelines", folder / "storage"
        self.prefix = f"t{uuid.uuid4().hex[:10]}"
        self.made: set[str] = set()
        self.write("contracts/number", CONTRACT)
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})

    def write(self, name: str, text: str) -> None:
        file = self.files / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def reads(self, source: str) -> None:
        for name, text in {"bronze/numbers": LANDING, "realtime/sums": WINDOW}.items():
            self.write(name, text.replace("SOURCE", source.replace("P", self.prefix)))

    def send(self, topic: str, *numbers: int) -> None:
        name = topic.replace("P", self.prefix)
        if name not in self.made:
            ensure_topic(self.servers, name, partitions=1)
            self.made.add(name)
        send(self.servers, name, [{"n": n} for n in numbers])

    def again(self, topic: str) -> None:
        """The topic is deleted and made anew."""
        name = topic.replace("P", self.prefix)
        self.admin.delete_topics([name])[name].result(timeout=20)
        deadline = time.monotonic() + 20
        while name in self.admin.list_topics(timeout=5).topics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.made.remove(name)

    def run(self) -> ScanRun:
        (scan,) = compile_plan(load([self.files])).scans
        to = Connections(self.servers, self.dsn, self.storage, f"test/{uuid.uuid4().hex}")
        return ScanRun(self.spark, scan, to, lambda _: None)

    def landed(self) -> list[int]:
        frame = self.spark.read.format("delta").load(str(self.storage / "bronze" / "numbers"))
        return sorted(row["n"] for row in frame.collect())

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    def inserted(self) -> list[int]:
        return sorted(n for (n,) in self.ask("select n from realtime.numbers"))

    def summed(self) -> tuple[int, int]:
        return self.ask("select sum(rows)::int, sum(total)::int from realtime.sums")[0]  # type: ignore[return-value]

    def holds(self, *numbers: int) -> None:
        """Every sink has exactly these, and every record is accounted for."""
        assert self.landed() == self.inserted() == sorted(numbers)
        assert self.summed() == (len(numbers), sum(numbers))
        environment = Environment(storage=str(self.storage), embedded={"postgres": self.dsn, "kafka": self.servers})
        found = audit.read(environment)
        assert {each.pipeline for each in found} >= {"bronze.numbers", "realtime.sums"}
        assert [each.wrong for each in found if not each.ok] == []

    def positions(self) -> dict[str, tuple[int, int]]:
        record = DeltaLog(self.storage / "bronze" / "numbers").record()
        assert record is not None
        return {key.replace(self.prefix, "P"): (at["from"], at["to"]) for key, at in record["positions"].items()}


@pytest.fixture
def lab(spark: SparkSession, stack: Services, tmp_path: Path, database: str) -> Iterator[Several]:
    made = Several(spark, stack, tmp_path, database)
    yield made
    for future in made.admin.delete_topics(list(made.made)).values():
        future.result(timeout=20)


def until(holds: Callable[[], bool], run: ScanRun) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert run.error is None
        assert run.query is not None
        assert run.query.isActive, run.query.exception()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_topic_that_matches_later_is_read_from_its_first_record_and_none_is_counted_twice(lab: Several) -> None:
    lab.reads("{pattern: 'P-.*', start: latest}")
    lab.send("P-a", 1, 2)
    lab.send("before-P-a", 1000)
    run = lab.run()
    run.start(available_now=False)
    try:
        lab.send("P-a", 3)
        until(lambda: lab.ask("select to_regclass('realtime.numbers') is not null") == [(True,)], run)
        until(lambda: lab.inserted() == [3], run)
        lab.send("P-b", 10, 20)
        lab.send("P-c-", 100)
        until(lambda: lab.inserted() == [3, 10, 20, 100], run)
        until(lambda: lab.landed() == [3, 10, 20, 100], run)
    finally:
        run.stop()
        run.release()
    lab.holds(3, 10, 20, 100)
    lab.send("P-b", 30)
    lab.send("P-d", 1, 1)  # nobody was there when it was made
    to_its_end(lab.run())
    lab.holds(1, 1, 3, 10, 20, 30, 100)
    assert {key: to for key, (_, to) in lab.positions().items()} == {"P-a/0": 3, "P-b/0": 3, "P-c-/0": 1, "P-d/0": 2}
    assert lab.ask("select count(distinct (topic_id, topic)) from lakehouse.positions where pipeline = 'realtime.sums'"
                   ) == [(4,)]  # fmt: skip


def test_a_topic_joins_leaves_and_comes_back_and_each_goes_on_where_it_stood(lab: Several) -> None:
    lab.send("P-a", 1)
    lab.send("P-b", 10)
    for source, sent, expected in [
        ("{topic: P-a}", 2, [1, 2]),
        ("{topics: [P-b, P-a]}", 3, [1, 2, 3, 10]),
        ("{topic: P-a}", 4, [1, 2, 3, 4, 10]),
    ]:
        lab.reads(source)
        lab.send("P-a", sent)
        to_its_end(lab.run())
        lab.holds(*expected)
    lab.send("P-b", 20)
    lab.reads("{topics: [P-a, P-b]}")
    lab.send("P-a", 5)
    to_its_end(lab.run())
    lab.holds(1, 2, 3, 4, 5, 10, 20)
    assert lab.positions() == {"P-a/0": (4, 5), "P-b/0": (1, 2)}
    lab.again("P-b")
    lab.send("P-b", 30, 40)
    to_its_end(lab.run())
    assert lab.landed() == lab.inserted() == [1, 2, 3, 4, 5, 10, 20, 30, 40]
    assert lab.summed() == (9, 115)
    assert lab.positions() == {"P-a/0": (5, 5), "P-b/0": (0, 2)}


def test_what_was_read_of_a_topic_that_was_made_anew_meanwhile_is_not_written(
    lab: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``at``: which sink's batch it meets. The new topic has more records than were read of the old one."""
    lab.reads("{topic: P-a}")
    lab.send("P-a", 1)
    to_its_end(lab.run())
    sums, landed, inserted = [1], [1], [1]
    still = OfTopic.still
    for at in (1, 2, 3):
        asked = iter((1, 2, 3))

        def meets(read: OfTopic, at: int = at, asked: Iterator[int] = asked) -> None:
            if next(asked) == at:
                lab.again("P-a")
                lab.send("P-a", *[100 * at] * 5)
            still(read)

        lab.send("P-a", 10 * at)
        with monkeypatch.context() as patch:
            patch.setattr(OfTopic, "still", meets)
            with pytest.raises(Exception, match=f"{lab.prefix}-a was deleted"):
                to_its_end(lab.run())
        to_its_end(lab.run())
        for number, sink in enumerate((sums, landed, inserted), start=1):
            sink += [10 * at] * (number < at) + [100 * at] * 5
    assert (lab.summed(), lab.landed(), lab.inserted()) == ((len(sums), sum(sums)), sorted(landed), sorted(inserted))


def test_positions_are_stored_by_topic_and_found_again_whatever_their_numbers() -> None:
    ours = topics.joined([TopicState("a", "A", {0: (0, 5), 1: (0, 5)}), TopicState("b", "B", {0: (2, 9)})])
    assert ours.offsets == {0: (0, 5), 1: (0, 5), 1 << BITS: (2, 9)}
    more = topics.added(ours, [TopicState("c", "C", {3: (0, 1)})])
    assert (more.offsets[2 << BITS | 3], more.topics.said(2 << BITS | 3)) == ((0, 1), "c partition 3")
    assert ours.topics.parts == more.topics.parts[:2]
    at = {0: progress.Position(4), 1 << BITS: progress.Position(7)}
    record = progress.Record("x.y", 1, 3, 0, ours.id, ours.name, {}, at, None, {}, several=ours.several)
    stored = json.loads(record.user_metadata())
    assert {key: one["to"] for key, one in stored["positions"].items()} == {"a/0": 4, "b/0": 7}
    other = Topics((Part("B", "b"), Part("N", "a")), several=True)
    assert progress.from_user_metadata(stored, other) == (3, {0: progress.Position(7)})
    assert other.left(stored["positions"], stored["topic_id"], stored["topic"]) == {}  # the old `a` is gone for good
    (left,) = one("B", "b").left(stored["positions"], stored["topic_id"], stored["topic"]).items()
    assert (left[0], left[1]["from"], left[1]["to"], left[1]["topic_id"]) == ("a/0", 4, 4, "A")


def test_a_topic_new_to_a_pipeline_begins_at_its_first_record_whatever_start_says() -> None:
    starts, firsts = {0: 9, 1: 9, 1 << BITS: 8}, {0: 0, 1: 0, 1 << BITS: 3}
    assert progress.offsets(progress.going_on({}, starts, firsts)) == starts
    found = progress.going_on({0: progress.Position(5)}, starts, firsts)
    assert progress.offsets(found) == {0: 5, 1: 0, 1 << BITS: 3}


def test_a_pattern_that_nothing_matches_is_said(stack: Services) -> None:
    source = Kafka(pattern=f"none-{uuid.uuid4().hex}.*", connection="eu")
    with pytest.raises(RunError) as refused:
        topics.describe(source, stack.bootstrap_servers)
    assert (refused.value.code, refused.value.where) == ("MISSING_TOPIC", "connection kafka.eu")
