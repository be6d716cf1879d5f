"""What is old goes from PostgreSQL, and no number, position or audit changes by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lakehouse_engine import audit, ledger, past, progress, retention
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sinks.postgres import LATE, QUARANTINE, connect, identifier
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.status import _postgres as status

CONTRACT = """
type: object
required: [id, at]
properties: {id: {type: integer}, at: {type: string, format: date-time}}
"""
MINUTES = """
source: {kafka: {topic: events}}
transforms:
  - parse: event
  - watermark: {column: at, delay: 1 minute}
  - window: {tumbling: 1 minute, measures: {n: count(*), mean: avg(id)}}
sink: postgres
trigger: {every: 1 second}
"""
NAME = "realtime.minutes"
#: hours away from what any age ends at, and within one hour for some seconds
FIRST = datetime.now(timezone.utc).replace(minute=30) - timedelta(days=40) + timedelta(hours=3)
Ask = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], PipelineSpec]:
    def made(maintain: str = "") -> PipelineSpec:
        for name, text in {"contracts/event": CONTRACT, "realtime/minutes": f"{MINUTES}{maintain}"}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.yaml").write_text(text)
        return load([tmp_path / "realtime" / "minutes.yaml"])[0]

    return made


@pytest.fixture
def ask(database: str) -> Ask:
    """Does a statement in a transaction of its own."""

    def asked(query: str) -> list[tuple[Any, ...]]:
        with closing(connect(database)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    return asked


@pytest.fixture
def filled(database: str, ask: Ask) -> Ask:
    """Forty days of a stream of two partitions: every six hours three batches within a minute, each with a late row."""
    with closing(connect(database)) as connection, connection, connection.cursor() as cursor:
        ledger.make(cursor)
        cursor.execute("create schema realtime")
        for side, ddl in (("late", LATE), ("quarantine", QUARANTINE)):
            cursor.execute(ddl.format(identifier(f"{NAME}__{side}").as_string(cursor)))
        cursor.execute("create table realtime.minutes (window_start timestamptz primary key, n bigint, mean float)")
        cursor.execute("create table realtime.minutes__state (window_start timestamptz primary key)")
        at = {0: Position(5), 1: Position(0)}
        progress.claim(cursor, NAME, "id", "events", progress.offsets(at), "me")
        for number in range(480):
            time = FIRST + timedelta(hours=6 * (number // 3), seconds=number % 3)
            micros = progress.to_micros(time)
            assert micros is not None
            after = {p: progress.advance(old, old.next_offset + 4, micros - p, micros) for p, old in at.items()}
            counters = {"counted": 5, "late": 2, "quarantined": 1}
            record = Record(NAME, 1, number + 1, micros, "id", "events", at, after, micros - 60_000_000, counters,
                            {"odd": 1} if number % 2 else {}, behind=number)  # fmt: skip
            progress.commit(cursor, [record], "me")
            for place in range(2):
                cursor.execute("insert into realtime.minutes__late (arrived_at, batch_id, step, origin, partition,"
                               ' "offset") values (%s, %s, %s, %s, %s, %s)', (time, number + 1, "w", "e", 0, place))
            cursor.execute("insert into realtime.minutes__quarantine (quarantined_at, batch_id, step, reasons, origin)"
                           " values (%s, %s, 'parse', '{bad}', 'events')", (time, number + 1))  # fmt: skip
            at = after
        cursor.execute("update lakehouse.batches set committed_at = started_at")
        for table in ("realtime.minutes", "realtime.minutes__state"):
            cursor.execute(f"insert into {table} (window_start) select date_trunc('minute', started_at)"
                           " - interval '2 minutes' from lakehouse.batches group by 1")  # fmt: skip
    return ask


def looked_at(database: str, held: audit.Held = lambda topic, ranges: pytest.fail("asked")) -> dict[str, Any]:
    """What others read of the ledger."""
    frame: Any = None
    read = past.Read(NAME, "events", "id", {})
    with closing(connect(database)) as connection, connection, connection.cursor() as cursor:
        (audited,) = audit._postgres(cursor, lambda _: held)
        begun = [past.missing(cursor, past.Past("t", frame, frame, {0: offset}), read, 0) for offset in (5, 6, 1925)]
        claim = progress.claim(cursor, NAME, "id", "events", {}, "me")
        return {"wrong": audited.wrong, "read": audited.read, "counters": audited.counters, "claim": claim,
                "missing": begun, "status": status(cursor), "warned": _one(cursor,
                "select sum((warnings ->> 'odd')::int) from lakehouse.batches")}  # fmt: skip


def _one(cursor: Any, query: str) -> Any:
    cursor.execute(query)
    return cursor.fetchone()[0]


def test_old_micro_batches_stand_together_by_the_hour_and_nobody_sees_a_difference(
    database: str, filled: Ask, spec: Callable[[str], PipelineSpec]
) -> None:
    said: list[str] = []
    before = looked_at(database)
    assert (before["wrong"], before["warned"]) == ((), 240)
    retention.keep(database, [spec("")], said.append, apply=False)
    assert looked_at(database) == before
    assert said == [f"{NAME}: would join 120 micro-batches older than 30 days by the hour"]
    for _ in range(2):  # the second time there is nothing to do
        retention.keep(database, [spec("")], said.append, apply=True)
        after = looked_at(database)
        # "begins at offset 6": what is missing is as old as its hour, no more exactly known
        assert after.pop("missing")[::2] == before["missing"][::2]
        assert after == {key: value for key, value in before.items() if key != "missing"}
    assert said[1:] == [f"{NAME}: join 120 micro-batches older than 30 days by the hour"]
    assert filled("select count(*), count(first_batch) from lakehouse.batches") == [(480 - 120 + 40, 40)]
    filled("delete from realtime.minutes__late where batch_id = 2")
    assert looked_at(database)["wrong"] == ("batch 3 counted 6 rows as late, and 4 are kept",)


def test_what_is_kept_aside_and_windows_go_when_their_time_has_come(
    database: str, filled: Ask, spec: Callable[[str], PipelineSpec]
) -> None:
    said: list[str] = []
    mine = spec("maintain: {aside_after: 10 days, rows_after: 20 days}\n")
    retention.keep(database, [mine], said.append, apply=True)
    assert said[:3] == [f"{NAME}: delete 720 rows of {NAME}__late, older than 10 days",
                        f"{NAME}: delete 360 rows of {NAME}__quarantine, older than 10 days",
                        f"{NAME}: delete 80 windows of {NAME}, 20 days before the watermark"]  # fmt: skip
    assert filled("select count(*) from realtime.minutes__state") == filled("select count(*) from realtime.minutes")
    assert filled("select count(*) from realtime.minutes") == [(80,)]
    assert looked_at(database)["wrong"] == (), "the audit knows that they are gone"
    filled("delete from realtime.minutes__late where batch_id = 480")
    assert looked_at(database)["wrong"] == ("batch 480 counted 2 rows as late, and 0 are kept",)


def test_nothing_is_deleted_where_the_file_says_so(
    database: str, filled: Ask, spec: Callable[[str], PipelineSpec]
) -> None:
    retention.keep(database, [spec("maintain: {aside_after: null}\n")], lambda _: None, apply=True)
    for table, rows in (("__late", 960), ("__quarantine", 480), ("", 160)):
        assert filled(f"select count(*) from realtime.minutes{table}") == [(rows,)]


def test_a_stream_goes_on_when_what_is_old_cannot_be_deleted(spec: Callable[[str], PipelineSpec]) -> None:
    said: list[str] = []
    keeping = retention.Keeping("host=127.0.0.1 port=1", [spec("")], said.append)
    keeping.close()
    assert [line.partition(":")[0] for line in said] == ["what is old was not deleted from postgres"]
