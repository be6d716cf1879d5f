"""What was seen of every micro-batch, run and failure stands in PostgreSQL; and a run does not depend on it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from lakehouse_engine import journal, ledger
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import Journal, Run, masked
from lakehouse_engine.local.stack import Services
from lakehouse_engine.log import Log
from lakehouse_engine.progress import now_micros
from lakehouse_engine.request import Request, Span
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.spec.environment import Environment
from tests.lab import Lab
from tests.platform import Platform
from tests.test_lineage import holds, to_file
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


def test_a_ledger_of_an_older_version_gets_what_it_lacks_and_keeps_what_it_holds(database: str) -> None:
    older = ("create schema lakehouse; create table lakehouse.batches (pipeline text not null, epoch int not null,"
             " batch_id bigint not null, started_at timestamptz not null, committed_at timestamptz not null default"
             " clock_timestamp(), topic_id text not null, ranges jsonb not null, watermark timestamptz, quarantined"
             " bigint not null, filtered bigint not null, duplicate bigint not null, late bigint not null, counted"
             " bigint not null, warnings jsonb not null default '{}', primary key (pipeline, epoch, batch_id));"
             " insert into lakehouse.batches values ('a.b', 1, 1, now(), now(), 't', '{}', null, 1, 2, 3, 4, 5);"
             " create table lakehouse.served (pipeline text primary key, table_id text, version bigint not null,"
             " served_at timestamptz not null default clock_timestamp(), rows bigint not null)")  # fmt: skip
    with closing(psycopg2.connect(database)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(older)
        for _ in range(2):
            ledger.prepare(connection)
    assert rows(database, "select pipeline, behind, late, counted from lakehouse.commits") == [("a.b", None, 4, 5)]
    assert rows(database, "select commit_id, checksum from lakehouse.served") == []


def test_a_table_of_the_ledger_that_somebody_dropped_is_made_again(database: str) -> None:
    with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as cursor:
        for name in ("served", "positions"):
            ledger.ensure(cursor)
            cursor.execute(f"drop table lakehouse.{name}")
        ledger.ensure(cursor)
    assert rows(database, "select pipeline from lakehouse.served union all select pipeline from"
                " lakehouse.positions") == []  # fmt: skip


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


def test_a_landing_goes_on_where_postgres_does_not_answer(lake: Platform, silent: str) -> None:
    file = lake.folder / ".lakehouse" / "services.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "postgres": {"dsn": silent}}))
    lake.produce(1000, seed=3)
    done = lake.lakehouse("run", "--available-now", "pipelines/bronze")
    ran(done)
    assert "1,000 rows" in done.stderr
    assert "lakehouse.runs is not written for now" in done.stderr
    assert "hidden" not in done.stderr


def test_each_slice_of_a_backfill_is_seen_and_each_load_of_a_copy(spark: SparkSession, database: str,
                                                                 tmp_path: Path) -> None:  # fmt: skip
    lab = Lab(spark, tmp_path)
    lab.append((1, "2026-01-01", 1, 1), (2, "2026-01-02", 1, 1))
    lab.run()
    environment = Environment(storage=str(lab.storage), embedded={"postgres": database})
    said: list[str] = []

    def perform(command: Literal["backfill", "serve"], pipeline: str, span: Span | None = None) -> None:
        runner = Runner(environment, tuple, Log(said.append), session=spark)
        files = [lab.folder / "pipelines" / f"{pipeline}/events.yaml"]
        try:
            runner.perform(planned(files, environment), Request(command, tuple(files), span=span))
        finally:
            runner.close()

    perform("backfill", "silver", Span(full=True))
    with pytest.raises(RunError, match="are not values of day"):
        perform("backfill", "silver", Span(first="one", last="two"))
    for _ in range(2):
        perform("serve", "gold")
    told = rows(database, "select kind, outcome, rows, version, files, code from lakehouse.runs order by id")
    assert told == [("backfill", "committed", 1, 1, 2, None), ("backfill", "committed", 1, 2, 2, None),
                    ("backfill", "failed", None, None, None, "BAD_RANGE"),
                    ("serve", "committed", 2, 0, None, None), ("serve", "nothing", None, None, None, None)]  # fmt: skip


def test_a_lakehouse_tells_what_it_did_and_what_failed(lake: Platform, tmp_path: Path) -> None:
    lake.produce(3000, seed=1, malformed=0.1)
    jobs = ("pipelines/silver", "pipelines/gold/daily_active_users.yaml")
    lake.variables |= to_file(tmp_path / "events")
    ran(lake.lakehouse("run", "--available-now", "pipelines/bronze", "pipelines/realtime", *jobs))
    ran(lake.lakehouse("serve", jobs[1]))
    (silver,) = lake.query("select rows from lakehouse.runs where pipeline = 'silver.user_events'")
    holds(lake, tmp_path / "events", *silver)
    lake.variables.clear()
    ran(lake.lakehouse("run", *jobs))
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
    assert gold == [("job", "committed"), ("serve", "committed"), ("job", "nothing")]
    assert lake.query("select distinct behind from lakehouse.batches") == [(0,)]
    assert lake.query("select count(*) from lakehouse.runs where pipeline like 'realtime.%%'") == [(0,)]

    # a member that fails is taken out; a job that fails takes what reads from it along
    lake.query("alter table realtime.logins_per_source add constraint closed check (login_count < 0) not valid")
    checked = lake.folder / "pipelines" / "silver" / "user_events.yaml"
    check = "checks:\n  - {expression: user_id < 0, on_fail: fail}\n"
    checked.write_text(checked.read_text().replace("checks:\n", check))
    lake.produce(2000, seed=2)
    assert lake.lakehouse("run", "--available-now", "pipelines/bronze", "pipelines/realtime", *jobs).returncode == 1
    told = lake.query("select pipeline, kind, code from lakehouse.runs where outcome = 'failed' order by pipeline")
    assert ("realtime.logins_per_source", "stream", "STREAM_FAILED") in told
    assert ("silver.user_events", "job", "CHECK_FAILED") in told
    assert ("gold.daily_active_users", "job", "SOURCE_FAILED") in told
