"""What was seen of every micro-batch, run and failure stands in PostgreSQL; and a run does not depend on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse_engine import journal, ledger
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import Journal, Run, masked
from lakehouse_engine.local.stack import Services
from lakehouse_engine.progress import now_micros
from tests.platform import Platform
from tests.test_platform import ran


def rows(dsn: str, text: str = "select pipeline, kind, outcome from lakehouse.runs order by id") -> list[Any]:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


def run(number: int = 1, **more: Any) -> Run:
    return Run(f"bronze.p{number}", "batch", "committed", now_micros(), **{"rows": number, **more})


def written(dsn: str, *runs: Run) -> list[str]:
    said: list[str] = []
    kept = Journal(dsn, said.append)
    for one in runs:
        kept.see(one)
    kept.close()
    return said


def test_runs_are_kept_in_the_order_in_which_they_were_seen_and_the_table_is_made_when_there_is_none(
    database: str,
) -> None:
    counters = {"quarantined": 2, "late": 3}
    said = written(database, *[run(n) for n in range(50)], run(50, counters=counters, files=4, bytes=99, behind=7),
                   run(51, sink="postgres"))  # fmt: skip
    assert said == []
    assert [name for name, *_ in rows(database)] == [f"bronze.p{n}" for n in range(51)]
    assert rows(database, "select quarantined, late, counted, files, bytes, behind from lakehouse.runs"
                " where rows = 50") == [(2, 3, None, 4, 99, 7)]  # fmt: skip


def test_what_is_older_than_thirty_days_goes(database: str) -> None:
    with closing(psycopg2.connect(database)) as connection:
        ledger.prepare(connection)
        with connection, connection.cursor() as cursor:
            day = 86_400_000_000
            journal.write(cursor, [run(n, ended_at=now_micros() - n * day) for n in (40, 31, 29, 0)])
    written(database, run(1))
    assert [name for name, *_ in rows(database)] == ["bronze.p29", "bronze.p0", "bronze.p1"]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://u:hidden@127.0.0.1:{server.getsockname()[1]}/d"


def test_a_database_that_does_not_answer_costs_a_run_no_time_and_is_said_once(silent: str) -> None:
    said: list[str] = []
    kept = Journal(silent, said.append)
    began = time.monotonic()
    for number in range(2000):
        kept.see(run(number))
    assert time.monotonic() - began < 0.5
    deadline = time.monotonic() + 10
    while not said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    kept.close()
    assert time.monotonic() - began < journal.PATIENCE + 1
    assert len(said) == 1
    assert "hidden" not in said[0]


def test_what_waited_for_the_database_is_written_when_it_is_back(database: str, stack: Services) -> None:
    name = database.rpartition("/")[2]
    said: list[str] = []
    with closing(psycopg2.connect(stack.dsn)) as administrator:
        administrator.autocommit = True
        cursor = administrator.cursor()
        cursor.execute(f"alter database {name} allow_connections false")
        kept = Journal(database, said.append)
        kept.see(run(1))
        deadline = time.monotonic() + 10
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cursor.execute(f"alter database {name} allow_connections true")
        kept.see(run(2))
        kept.close()
    assert [row[0] for row in rows(database)] == ["bronze.p1", "bronze.p2"]
    assert len(said) == 2


@given(st.from_regex(r"[A-Za-z0-9!%+/]{6,20}", fullmatch=True))
def test_no_secret_passes(secret: str) -> None:
    texts = [f"could not log in with {secret}.", f"host=a password={secret} user=b", f'"token": "{secret}"']
    for text in texts:
        assert secret not in masked(text, [secret])
    assert secret not in masked(texts[1])
    assert secret not in masked(texts[2])
    url = secret.replace("/", "")
    assert f":{url}@" not in masked(f"postgresql://user:{url}@host:5/db refused")


def test_what_fails_has_its_code_and_one_line() -> None:
    ours = journal.failed("gold.a", "job", 1, RunError("CHECK_FAILED", "3 rows fail"))
    assert (ours.outcome, ours.code, ours.message) == ("failed", "CHECK_FAILED", "3 rows fail")
    other = journal.failed("bronze.a", "stream", 1, ValueError("\n\nfirst line\nsecond"), step="restart")
    assert (other.code, other.message, other.step) == ("STREAM_FAILED", "first line", "restart")


def test_a_lakehouse_tells_what_it_did_and_what_failed(lake: Platform) -> None:
    lake.produce(3000, seed=1, malformed=0.1)
    ran(lake.lakehouse("run", "--available-now", "pipelines"))
    ran(lake.lakehouse("serve"))
    ran(lake.lakehouse("run", "pipelines/silver", "pipelines/gold"))
    ran(lake.lakehouse("serve"))
    text = "select kind, outcome, version, rows, quarantined, files, bytes, behind, code from lakehouse.runs where" \
           " pipeline = %s order by id"  # fmt: skip
    (landed,) = lake.query(text, "bronze.user_events")
    log = DeltaLog(lake.storage / "bronze" / "user_events")
    files = list(log.path.glob("**/part-*.parquet"))
    quarantined = landed[4]
    assert landed == ("batch", "committed", log.version(), 3000 - quarantined, quarantined, len(files),
                      sum(file.stat().st_size for file in files), 0, None)  # fmt: skip
    assert quarantined > 0
    gold = [row[:2] for row in lake.query(text, "gold.daily_active_users")]
    assert gold == [("job", "committed"), ("serve", "committed"), ("job", "nothing"), ("serve", "nothing")]
    assert lake.query("select distinct behind from lakehouse.batches") == [(0,)]
    assert lake.query("select count(*) from lakehouse.runs where pipeline like 'realtime.%%'") == [(0,)]

    # a member that fails is taken out; a job that fails takes what reads from it along
    lake.query("alter table realtime.logins_per_source add constraint closed check (login_count < 0) not valid")
    checked = lake.folder / "pipelines" / "silver" / "user_events.yaml"
    check = "checks:\n  - {expression: user_id < 0, on_fail: fail}\n"
    checked.write_text(checked.read_text().replace("checks:\n", check))
    lake.produce(2000, seed=2)
    assert lake.lakehouse("run", "--available-now", "pipelines").returncode == 1
    told = lake.query("select pipeline, kind, code from lakehouse.runs where outcome = 'failed' order by pipeline")
    assert ("realtime.logins_per_source", "stream", "STREAM_FAILED") in told
    assert ("silver.user_events", "job", "CHECK_FAILED") in told
    assert ("gold.daily_active_users", "job", "SOURCE_FAILED") in told
