"""Streams on Spark's state: exactly once whatever dies, and what a start refuses. The rest is in ``cases/stateful``."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Producer
from pyspark.sql import SparkSession

from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import FencedError, PlanError
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.loader import load
from lakehouse_engine.staterun import StateRun
from tests.lab import to_its_end

CONTRACT = """
type: object
required: [id, at]
properties:
  id: {type: string}
  at: {type: string, format: date-time}
"""
ONCE = """
source: {{kafka: {{topic: {topic}}}}}
transforms:
  - parse: thing
  - watermark: {{column: at, delay: 1 minute}}
  - dedupe: [id]
sink: {sink}
trigger: {{every: 0 s}}
"""


class Once:
    """A pipeline that keeps the first of each id."""

    def __init__(self, spark: SparkSession, stack: Services, dsn: str, folder: Path, sink: str) -> None:
        self._spark, self._stack, self._dsn, self._sink = spark, stack, dsn, sink
        self._files, self.storage = folder / "pipelines", folder / "storage"
        self._topic = f"once-{uuid.uuid4().hex[:10]}"
        ensure_topic(stack.bootstrap_servers, self._topic)
        self.write("contracts/thing.yaml", CONTRACT)
        self.edit("", "")

    def write(self, name: str, text: str) -> None:
        file = self._files / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def edit(self, old: str, new: str) -> None:
        text = ONCE.format(topic=self._topic, sink=self._sink)
        self.write("live/once.yaml", text.replace(old, new) if old else text)

    def send(self, *ids: str, minute: int = 0) -> None:
        """A text that is no id is sent as it is."""
        producer = Producer({"bootstrap.servers": self._stack.bootstrap_servers, "enable.idempotence": True})
        for one in ids:
            good = json.dumps({"id": one, "at": f"2026-01-01T10:{minute:02d}:00Z"})
            producer.produce(self._topic, good if one.isalnum() else one, partition=0)
        assert producer.flush(20) == 0

    def made(self, storage: Path | None = None, writer: str = "test", spark: SparkSession | None = None) -> StateRun:
        plan = compile_plan(load([self._files / "live"]))
        to = Connections(self._stack.bootstrap_servers, self._dsn, storage or self.storage, writer)
        return StateRun(spark or self._spark, plan.queries[0], to, lambda _: None)

    def run(self, **where: Any) -> None:
        """Takes what is there."""
        to_its_end(self.made(**where))

    @property
    def checkpoint(self) -> Path:
        return self.storage / "_checkpoints" / "live.once"

    def forget(self) -> None:
        """Spark's note that the last batch is over."""
        commits = [file for file in (self.checkpoint / "commits").iterdir() if file.name.isdecimal()]
        max(commits, key=lambda file: int(file.name)).unlink()

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def rows(self, suffix: str = "", column: str = "id") -> list[str]:
        if self._sink == "delta":
            frame = self._spark.read.format("delta").load(str(self.storage / "live" / f"once{suffix}"))
            return sorted(row[0] for row in frame.selectExpr(f"cast({column} as string)").collect())
        text = f"convert_from({column}, 'UTF8')" if column == "value" else column
        return sorted(row[0] for row in self.ask(f"select {text} from live.once{suffix}"))


@pytest.mark.parametrize("sink", ["postgres", "delta"])
def test_a_batch_that_the_sink_has_already_comes_again_and_changes_nothing(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path, sink: str
) -> None:
    """As after a kill between the sink's commit and Spark's own note of it."""
    once = Once(spark, stack, database, tmp_path, sink)
    once.send("a", "b", "a", "not json")
    once.run()
    once.send("c", "b", minute=1)
    once.run()
    once.forget()
    once.send("d", "a", "worse", "{}", minute=1)
    once.run()
    assert once.rows() == ["a", "b", "c", "d", "worse"]
    assert once.rows("__quarantine", "value") == ["not json", "{}"]
    if sink == "postgres":
        each = "ranges->'0'->>'from', ranges->'0'->>'to', counted, duplicate, quarantined, late, filtered"
        batches = once.ask(f"select {each} from lakehouse.batches order by batch_id")
        assert [row for row in batches if row[0] != row[1]] == [
            ("0", "4", 2, 1, 1, 0, 0), ("4", "6", 1, 1, 0, 0, 0), ("6", "10", 2, 1, 1, 0, 0)]  # fmt: skip
        assert once.ask("select sum(next_offset)::int from lakehouse.positions") == [(10,)]


def test_a_start_refuses_what_would_lose_or_double_rows_and_takes_what_does_not_touch_the_state(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path
) -> None:
    once = Once(spark, stack, database, tmp_path, "postgres")
    once.send("a", "b")
    once.run()
    once.send("c", "a")
    once.edit("dedupe: [id]", "dedupe: [id, at]")
    with pytest.raises(PlanError) as edited:
        once.run()
    assert edited.value.code == "STATE_DIFFERS"
    assert "transforms[2].dedupe has changed" in str(edited.value)
    once.edit("", "")
    aside = once.checkpoint.with_name("aside")
    shutil.move(once.checkpoint, aside)
    with pytest.raises(PlanError) as lost:
        once.run()
    assert lost.value.code == "CHECKPOINT_LOST"
    assert not once.checkpoint.exists()
    assert once.rows() == ["a", "b"]
    shutil.move(aside, once.checkpoint)
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")  # Spark keeps to what its checkpoint says
    try:
        once.edit("sink:", "checks:\n  - matches: {id: '^[a-z]$'}\nsink:")
        once.run()
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before or "2")
    assert once.rows() == ["a", "b", "c"]


def test_a_process_that_was_taken_for_dead_is_refused_by_the_ledger(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path
) -> None:
    """Another one has claimed the query. Here the claim alone: Spark itself ends the first of two in one process."""
    once = Once(spark, stack, database, tmp_path, "postgres")
    once.send("a")
    zombie = once.made(writer="zombie")
    zombie.start(available_now=False)
    try:
        assert zombie.query is not None
        zombie.query.processAllAvailable()
        assert once.ask("update lakehouse.queries set writer = 'heir' returning pipeline") == [("live.once",)]
        once.send("b", "a")
        with pytest.raises(Exception, match="FENCED"):
            zombie.query.processAllAvailable()
    finally:
        zombie.stop()
        zombie.release()
    assert isinstance(zombie.error, FencedError)
    assert once.rows() == ["a"]
    assert once.ask("select count(*)::int from lakehouse.batches where counted > 0") == [(1,)]


def test_of_two_hosts_that_begin_it_at_once_the_second_one_adds_nothing(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one commits after the second has seen that nobody has, and before it claims."""
    once = Once(spark, stack, database, tmp_path, "postgres")
    once.send("a", "b")
    second = once.made(storage=tmp_path / "elsewhere", writer="second")
    claim = second._ending.claim

    def claimed(*given: Any) -> None:
        once.run(writer="first")
        claim(*given)

    monkeypatch.setattr(second._ending, "claim", claimed)
    with pytest.raises(FencedError):
        second.start(available_now=True)
    assert once.rows() == ["a", "b"]
    assert once.ask("select writer, batch from lakehouse.queries where batch >= 0")[0][0] == "first"
