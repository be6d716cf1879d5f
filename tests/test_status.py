"""``lakehouse status`` and ``lakehouse tail``: how pipelines stand, and what they commit as they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from lakehouse_engine import journal, ledger, progress, status, tail
from lakehouse_engine.journal import Run
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load

SECOND = 1_000_000
WINDOWS, LANDING, GOLD, BROKEN = "realtime.a", "bronze.a", "gold.a", "bronze.broken"


@pytest.fixture
def cursor(database: str) -> Iterator[Any]:
    with closing(psycopg2.connect(database)) as connection:
        ledger.prepare(connection)
        connection.autocommit = True
        with connection.cursor() as cursor:
            progress.claim(Unlocked(cursor), WINDOWS, "id", "t", {0: 0}, "w")
            yield cursor


class Unlocked:
    """A cursor outside of a transaction, where a table cannot be locked and need not be."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, text: str, *values: Any) -> None:
        if not text.startswith("lock table"):
            self._cursor.execute(text, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def now() -> int:
    return progress.now_micros()


def batch(cursor: Any, number: int, counted: int, behind: int) -> None:
    before, after = {0: Position(number * 10 - 10)}, {0: Position(number * 10)}
    counters = {"counted": counted, "late": 2, "quarantined": 1}
    progress.commit(cursor, [Record(WINDOWS, 1, number, progress.now_micros() - SECOND, "id", "t", before, after,
                                    now() - 120 * SECOND, counters, {}, behind)], "w")  # fmt: skip


def landed(rows: int, ago: int = 0) -> Run:
    at = now() - ago * SECOND
    return Run(LANDING, "batch", "committed", at - SECOND // 2, ended_at=at, rows=rows, behind=4,
               counters={"counted": rows, "quarantined": 3}, version=7)  # fmt: skip


def test_status_says_how_each_pipeline_stands(cursor: Any, database: str, tmp_path: Path) -> None:
    batch(cursor, 1, counted=597, behind=50)
    at = now()
    journal.write(cursor, [
        landed(9, ago=7200), Run(GOLD, "job", "committed", at - 3 * SECOND, ended_at=at, rows=4),
        Run(GOLD, "serve", "failed", at, ended_at=at + SECOND, code="X", message="it is shut"),
        Run(BROKEN, "stream", "failed", at, code="MISSING_TOPIC", message="no topic"),
    ])  # fmt: skip
    environment = Environment(storage=str(tmp_path), embedded={"postgres": database})
    found = {entry["pipeline"]: entry for entry in status.read(environment)}
    windows = found[WINDOWS]
    assert (windows["state"], windows["rate"], windows["behind"], windows["late"]) == ("running", 10, 50, 2)
    assert windows["batch_seconds"] == pytest.approx(1, abs=0.5)
    assert windows["watermark_delay"] == pytest.approx(120, abs=30)
    assert (found[LANDING]["state"], found[LANDING]["rate"], found[LANDING]["behind"]) == ("idle", 0, 4)
    assert (found[GOLD]["state"], found[GOLD]["error"]) == ("failed", "X: it is shut")
    assert found[BROKEN]["error"] == "MISSING_TOPIC: no topic"
    shown = {line.split()[0]: line for line in status.text(list(found.values())).splitlines()}
    assert "running" in shown[WINDOWS]
    assert "10.0/s" in shown[WINDOWS]
    assert shown[GOLD].endswith("X: it is shut")

    # of a pipeline that has a file here, the verdict is the dashboard's
    file = tmp_path / "pipelines" / "bronze" / "a.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("source: {kafka: {topic: t}}\nsink: delta\ntrigger: {every: 10 seconds}\n")
    (tmp_path / "pipelines" / "bronze" / "b.yaml").write_text(file.read_text())
    told = {entry["pipeline"]: entry for entry in status.read(environment, load([tmp_path / "pipelines"]))}
    assert (told[LANDING]["state"], told["bronze.b"]["state"]) == ("stale", "never")
    assert told["bronze.b"]["counted"] is None
    assert (told[WINDOWS]["state"], told[GOLD]["state"]) == ("running", "failed")

    # a stream that commits again has nothing to complain of
    journal.write(cursor, [landed(5)])
    journal.write(cursor, [Run(LANDING, "stream", "failed", at - 9 * SECOND, ended_at=at - 8 * SECOND, code="X")])
    (entry,) = [entry for entry in status.read(environment) if entry["pipeline"] == LANDING]
    assert (entry["state"], entry["error"]) == ("running", None)


def test_tail_begins_with_the_last_ones_and_goes_on_with_what_commits(cursor: Any, database: str) -> None:
    for number in (1, 2, 3):
        batch(cursor, number, counted=number, behind=0)
    journal.write(cursor, [landed(number, ago=60 - number) for number in range(5)])
    (a, b, *c) = tail.Tail(database, [WINDOWS, LANDING], last=2).follow(once=True)
    assert [entry["rows"] for entry in (a, b, *c)] == [3, 4, 2, 3]
    assert list(tail.Tail(database, [WINDOWS], last=0).follow(once=True)) == []

    entries = tail.Tail(database, [WINDOWS, LANDING, GOLD], last=0).follow(once=False)
    got: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: [got.append(next(entries)) for _ in range(4)], daemon=True)
    reader.start()
    # the first look has ended when the last question about the last pipeline is answered
    looking = (f"select 1 from pg_stat_activity where query like 'select array[0, id]%{GOLD}%' and state = 'idle'"
               " and pid <> pg_backend_pid() and datname = current_database()")  # fmt: skip
    while cursor.execute(looking) or not cursor.fetchone():
        assert reader.is_alive()
    batch(cursor, 4, counted=40, behind=6)
    batch(cursor, 5, counted=50, behind=5)
    journal.write(cursor, [landed(70, ago=-60)])
    journal.write(cursor, [Run(GOLD, "job", "failed", now(), ended_at=now() + 61 * SECOND, code="X", message="shut")])
    reader.join(20)
    assert [(e["pipeline"], e["rows"], e["behind"]) for e in sorted(got, key=lambda e: e["at"])] == [
        (WINDOWS, 40, 6), (WINDOWS, 50, 5), (LANDING, 70, 4), (GOLD, None, None)]  # fmt: skip
    lines = sorted(tail.line(entry).partition("  ")[2] for entry in got)
    assert lines[0].startswith("bronze.a  batch  70 rows in 0.50 s, 3 quarantined, 4 behind, version 7")
    assert lines[1] == "gold.a  job  failed: X: shut"
    assert "2 late, 1 quarantined" in lines[2]


def test_an_entry_for_machines_has_a_time_and_nothing_empty() -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=1)
    assert tail.plain({"at": at, "pipeline": "a", "code": None}) == {"at": "2026-01-01T00:00:01+00:00", "pipeline": "a"}
