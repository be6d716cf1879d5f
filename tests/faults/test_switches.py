"""Defences turned off one by one: what they defend is then broken, or the test of them would say nothing.

Those of the protocol have their switches in ``tests/model/rules.py``. The table of all is in docs/reliability.md.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Producer
from pyspark.errors import SparkRuntimeException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.readwriter import DataStreamReader

from lakehouse_engine import jobs, judged, streams
from lakehouse_engine.errors import RunError
from lakehouse_engine.incremental import Decision
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.postgres import Merge
from lakehouse_engine.sources import broker
from tests.faults.rig import performed
from tests.lab import GOLD, SILVER, Lab
from tests.platform import Platform, user_event
from tests.test_platform import off

MON, TUE = "2026-01-05", "2026-01-06"


def test_a_batch_that_comes_again_with_more_records_needs_the_floors(
    lake: Platform, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1. A start that forgets where its sinks stand reads everything again."""
    folders = [lake.folder / "pipelines" / layer for layer in ("bronze", "realtime")]
    lake.produce(300, seed=1)
    assert performed(lake, spark, "run", folders, lake.storage) == 0
    lake.produce(100, seed=2)
    nothing = [("all", dict.fromkeys(range(3), 0))]
    monkeypatch.setattr(streams.ScanRun, "_held", lambda _: nothing)
    floors: Callable[..., Any] = streams.scan_floors
    # as if a member had nothing: each filters by its own position what the batch has too much
    monkeypatch.setattr(streams, "scan_floors", lambda claims, others: floors(claims, [*others, {}]))
    assert performed(lake, spark, "run", folders, lake.storage) == 0
    assert off(lake, "realtime", "bronze") == []

    judge = judged.Judge.judge
    monkeypatch.setattr(judged.Judge, "judge", lambda self, frame, view, _: judge(self, frame, view, {}))
    monkeypatch.setattr(streams, "scan_floors", lambda claims, others: [None] * len(claims))
    lake.produce(10, seed=3)
    performed(lake, spark, "run", folders, lake.storage)
    broken = {check.name.partition(":")[0] for check in off(lake, "realtime", "bronze")}
    assert broken >= {"bronze.user_events", "realtime.events_per_minute"}


def test_a_torn_checkpoint_of_a_scan_does_no_harm_because_it_is_thrown_away(
    lake: Platform, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H2, H3, H6."""
    bronze = [lake.folder / "pipelines" / "bronze"]

    def run(events: int) -> int:
        lake.produce(events, seed=events)
        (folder,) = (lake.storage / "_checkpoints").glob("*") if (lake.storage / "_checkpoints").exists() else [None]
        if folder is not None:
            newest = max((folder / "offsets").glob("[0-9]*"), key=lambda file: int(file.name))
            newest.write_text(newest.read_text()[:-5])
            (folder / "metadata").unlink()
        return performed(lake, spark, "run", bronze, lake.storage)

    assert [run(100), run(101)] == [0, 0]
    assert off(lake, "bronze") == []
    monkeypatch.setattr(streams.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(SparkRuntimeException, match="metadata file is missing"):
        run(102)


def test_records_of_an_aborted_transaction_are_not_read(
    lake: Platform, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H9."""
    producer = Producer({"bootstrap.servers": lake.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)

    def send(number: int, *, commit: bool) -> None:
        producer.begin_transaction()
        event = user_event(number, datetime.now(timezone.utc))
        producer.produce(lake.topic, json.dumps(event), partition=0)
        producer.flush(10)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)

    def landed() -> int:
        assert performed(lake, spark, "run", [lake.folder / "pipelines" / "bronze"], lake.storage) == 0
        return spark.read.format("delta").load(str(lake.storage / "bronze" / "user_events")).count()

    send(1, commit=True)
    send(2, commit=False)
    send(3, commit=True)
    assert landed() == 2
    send(4, commit=False)
    send(5, commit=True)
    option = DataStreamReader.option
    monkeypatch.setattr(DataStreamReader, "option", lambda self, key, value: option(
        self, key, "read_uncommitted" if key == "kafka.isolation.level" else value))  # fmt: skip
    assert landed() == 4


@pytest.mark.parametrize(("position", "code"), [(4, "DATA_LOST"), (5, ""), (9, ""), (10, "POSITION_BEYOND_TOPIC")])
def test_a_position_that_the_topic_does_not_hold_is_refused(position: int, code: str) -> None:
    """H7."""
    topic = broker.TopicState("clicks", "id", {0: (5, 9)})
    if not code:
        broker.check_held(topic, {0: position}, "bronze.clicks")
        return
    with pytest.raises(RunError) as refused:
        broker.check_held(topic, {0: position}, "bronze.clicks")
    assert refused.value.code == code


def test_null_is_one_key_in_postgres_twice(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """H32."""

    def rows(table: str) -> list[tuple[Any, ...]]:
        merge = Merge(table, {"window_start": "timestamptz", "k": "text"}, {"n": ("count", "bigint")}, updated_at=False)
        with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as cursor:
            postgres_sink.ensure_schema(cursor, table)
            merge.ensure(cursor, "x.yaml:1")
            merge.stage(cursor)
            for number in (1, 2):
                cursor.execute("truncate " + merge._stage.as_string(cursor))
                merge.write(cursor, [[datetime(2026, 1, 5, tzinfo=timezone.utc), None, number]])
            cursor.execute(f"select k, n from {table} order by n")
            return list(cursor.fetchall())

    assert rows("realtime.once") == [(None, 3)]
    monkeypatch.setattr(postgres_sink.sql, "SQL", _without("unique nulls not distinct", "unique"))
    assert rows("realtime.twice") == [(None, 1), (None, 2)]


def _without(text: str, instead: str) -> Callable[[str], Any]:
    made = postgres_sink.sql.SQL
    return lambda statement: made(statement.replace(text, instead))


@pytest.fixture
def lab(spark: SparkSession, tmp_path: Path) -> Lab:
    made = Lab(spark, tmp_path)
    made.append((1, MON, 1, 1), (2, MON, 2, 1), (3, TUE, 1, 1))
    made.run()
    return made


def test_a_full_run_of_a_changed_file_is_written_though_its_source_has_not_moved(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H35. What guards a retry must not know two runs as one."""

    def most() -> list[Any]:
        lab.run("gold.events", full=True)
        return [row[-1] for row in lab.rows("gold.events")]

    lab.write("gold/events.yaml", GOLD.replace("max(n)", "max(n) + 10"))
    assert most() == [11, 11]

    class Same:
        hex = "same"

    monkeypatch.setattr(jobs.uuid, "uuid4", Same)
    lab.write("gold/events.yaml", GOLD.replace("max(n)", "max(n) + 20"))
    assert most() == [21, 21]
    lab.write("gold/events.yaml", GOLD.replace("max(n)", "max(n) + 30"))
    assert most() == [21, 21]


def test_a_day_that_has_no_rows_any_more_is_replaced_by_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """H33. A run that left out what is empty would keep the day."""
    lab.correct(TUE)
    lab.run()
    assert [row[0] for row in lab.rows("gold.events")] == [date(2026, 1, 5)]
    put = jobs.delta_sink.replace

    def without_nothing(frame: Any, *given: Any, **named: Any) -> None:
        if not frame.isEmpty():
            put(frame, *given, **named)

    monkeypatch.setattr(jobs.delta_sink, "replace", without_nothing)
    lab.correct(MON)
    lab.run()
    assert [row[0] for row in lab.rows("gold.events")] == [date(2026, 1, 5)]


def test_a_dedupe_over_days_is_computed_in_full_because_its_slices_are_not_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H34."""
    lab.write("silver/events.yaml", SILVER.replace("keys: [day, id], order_by: [n]", "keys: [id], order_by: [n]"))
    lab.run("silver.events", full=True)
    lab.append((1, TUE, 1, 0))  # it comes before that of the other day
    assert lab.decide("silver.events").kind == "full"
    job = replace(lab.job("silver.events"), local=True)
    monkeypatch.setattr(lab, "job", lambda _: job)
    decision: Decision = lab.decide("silver.events")
    assert decision.kind != "full"
    lab.run("silver.events")
    by_slice = lab.rows("silver.events")
    lab.run("silver.events", full=True)
    assert by_slice != lab.rows("silver.events")
