"""What was refused is judged again by a mended contract: what passes is added once, whatever dies in between."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import audit, replay
from lakehouse_engine.errors import FencedError, PlanError, RunError
from lakehouse_engine.local.stack import Services
from lakehouse_engine.locks import acquire
from lakehouse_engine.log import Log
from lakehouse_engine.progress import commit
from lakehouse_engine.replay import check
from lakehouse_engine.request import Request
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.show import _of_delta
from lakehouse_engine.spec.environment import Environment
from tests.lab import send
from tests.test_recount import CONTRACT, MIDNIGHT, Lab

STRICT, MENDED = CONTRACT.replace("{type: number}", "{type: number, maximum: 9}"), CONTRACT
#: the table in PostgreSQL keeps no small amounts
ADDED = """
source: {kafka: {topic: TOPIC}}
transforms:
  - parse: event
  - filter: amount > 10
sink: postgres
trigger: {every: 1 second}
"""


class Refusing(Lab):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.environment = Environment(storage=str(self.folder / "storage"), embedded={
            "postgres": self.dsn, "kafka": self.stack.bootstrap_servers})  # fmt: skip
        (self.folder / "silver").mkdir()
        (self.folder / "silver/added.yaml").write_text(ADDED.replace("TOPIC", self.topic))
        self.contract(STRICT)

    def contract(self, text: str) -> None:
        (self.folder / "contracts/event.yaml").write_text(text)

    def amounts(self, *amounts: object) -> None:
        send(self.stack.bootstrap_servers, self.topic, [
            {"id": 1, "at": MIDNIGHT.isoformat(), "amount": amount} for amount in amounts])  # fmt: skip

    def replay(self, name: str) -> list[str]:
        """``lakehouse quarantine replay``; what it says."""
        said: list[str] = []
        file = self.folder / f"{name.replace('.', '/')}.yaml"
        runner = Runner(self.environment, tuple, Log(said.append), session=self.spark)
        try:
            assert runner.perform(planned([file], self.environment), Request("replay", (file,))) == 0
        finally:
            runner.close()
        return [line.partition(", in ")[0] for line in said]

    def landed(self) -> dict[float, datetime]:
        """Amounts, and when their records came."""
        rows = self.spark.read.format("delta").load(str(self.folder / "storage/bronze/events")).collect()
        found = {row["amount"]: row["_timestamp"] for row in rows}
        assert len(found) == len(rows)
        return found

    def kept(self) -> dict[object, datetime]:
        """Amounts of what is in quarantine, and when their records came: before the batch began."""
        rows = self.spark.read.format("delta").load(str(self.folder / "storage/bronze/events__quarantine")).collect()
        assert all(row["timestamp"] < row["quarantined_at"] for row in rows)
        return {json.loads(row["value"])["amount"]: row["timestamp"] for row in rows}

    def audited(self) -> list[tuple[str, int, int, tuple[str, ...]]]:
        found = audit.read(self.environment)
        return [(one.pipeline, one.counters["counted"], one.counters["quarantined"], one.wrong) for one in found]


@pytest.fixture
def lab(spark: SparkSession, stack: Services, database: str, tmp_path: Path) -> Refusing:
    return Refusing(spark, stack, database, tmp_path)


def test_into_delta_each_record_comes_once_though_the_replay_dies_between_its_commits(
    lab: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.amounts(1, 10, "x", 20)
    lab.run("bronze.events")
    assert lab.replay("bronze.events") == ["bronze.events: 0 records added, 3 are still refused"]
    before = lab.kept()
    lab.contract(MENDED)
    with monkeypatch.context() as dying:
        dying.setattr(replay._Landed, "_leave", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lab.replay("bronze.events")
    lab.contract(STRICT)  # and the stream goes on meanwhile
    lab.amounts(2, 30)
    lab.run("bronze.events")
    lab.contract(MENDED)
    assert lab.replay("bronze.events") == ["bronze.events: 1 records added, 1 are still refused"]
    landed = lab.landed()
    assert sorted(landed) == [1, 2, 10, 20, 30]
    assert {amount: landed[amount] for amount in (10, 20)} == {amount: before[amount] for amount in (10, 20)}
    assert list(lab.kept()) == ["x"]
    assert lab.audited() == [("bronze.events", 5, 1, ())]
    lab.amounts(40)
    lab.run("bronze.events")
    assert sorted(lab.landed()) == [1, 2, 10, 20, 30, 40]
    table = "bronze.events__quarantine"
    shown = _of_delta(lab.spark, table, lab.folder / "storage" / table.replace(".", "/"), 5)
    assert [json.loads(row["value"])["amount"] for row in shown.as_json()["rows"]] == ["x"]


def test_into_postgresql_it_is_one_transaction_and_what_is_filtered_now_leaves(
    lab: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.amounts(1, 10, "x", 20, 30)
    lab.run("silver.added")
    assert lab.ask("select amount from silver.added") == []
    lab.contract(MENDED)
    with monkeypatch.context() as dying:
        def refused(*words: object) -> None:
            commit(*words)  # type: ignore[arg-type]
            raise FencedError("FENCED", "somebody else was quicker")
        dying.setattr("lakehouse_engine.progress.commit", refused)
        with pytest.raises(FencedError):
            lab.replay("silver.added")
    assert lab.ask("select amount from silver.added") == []
    assert lab.replay("silver.added") == ["silver.added: 2 records added, 1 are filtered now, 1 are still refused"]
    assert lab.replay("silver.added") == ["silver.added: 0 records added, 1 are still refused"]
    assert sorted(lab.ask("select amount from silver.added")) == [(20.0,), (30.0,)]
    assert lab.ask('select "offset", timestamp < quarantined_at from silver.added__quarantine') == [(2, True)]
    assert lab.audited() == [("silver.added", 2, 1, ())]
    lab.amounts(40)
    lab.run("silver.added")
    assert sorted(lab.ask("select amount from silver.added")) == [(20.0,), (30.0,), (40.0,)]


def test_what_cannot_be_replayed_says_what_to_do(lab: Refusing) -> None:
    with pytest.raises(PlanError, match=r"lakehouse backfill .*/minutes\.yaml --from DAY"):
        check(lab.member("realtime.minutes"))
    several = ADDED.replace("TOPIC", lab.topic).replace("postgres", "[postgres, {kafka: {topic: more}}]")
    (lab.folder / "silver/several.yaml").write_text(several)
    with pytest.raises(PlanError, match=r"the first of its sinks alone"):
        lab.replay("silver.several")
    with pytest.raises(RunError, match=r"bronze\.events has not run yet"):
        lab.replay("bronze.events")
    running = acquire(lab.spark, lab.folder / "storage", "bronze.events", "the stream")
    try:
        with pytest.raises(RunError, match=r"bronze\.events is being written by process .* \(the stream\)"):
            lab.replay("bronze.events")
    finally:
        running.close()
