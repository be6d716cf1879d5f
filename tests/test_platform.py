"""The reference platform end to end on real parts, held against the oracle in demo/reconcile.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

from pyspark.sql import SparkSession

from demo.reconcile import Check, reconcile
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import ScanRun
from tests.lab import to_its_end
from tests.platform import PROJECT, Platform, user_event


def off(lake: Platform, *only: str) -> list[Check]:
    checks = reconcile(lake.bootstrap_servers, lake.dsn, lake.storage, lake.topic, only)
    assert checks
    return [check for check in checks if not check.ok]


def ran(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr[-3000:]


def test_live_events_with_late_repeated_and_malformed_ones_reconcile_to_the_last(lake: Platform) -> None:
    lake.produce(200, seed=1)
    streams = lake.start("run", "pipelines/bronze", "pipelines/realtime")
    lake.until(lambda: bool(lake.reached()) and lake.reached() == lake.ends(), "the streams are up")
    lake.produce(20_000, rate=4000, seed=2, duplicates=0.05, late=0.05, malformed=0.05)
    lake.until(lambda: lake.reached() == lake.ends(), "everything is read")
    streams.terminate()
    assert streams.wait(60) == 0, lake.log(streams)
    ran(lake.lakehouse("run", "--available-now", "pipelines"))
    ran(lake.lakehouse("serve"))
    assert off(lake) == []
    ((late, quarantined),) = lake.query("select sum(late), sum(quarantined) from lakehouse.batches")
    assert late > 0
    assert quarantined > 0
    audited = json.loads(lake.lakehouse("audit", "--json").stdout)
    assert [(one["pipeline"], one["wrong"]) for one in audited] == [
        (name, []) for name in ("bronze.user_events", "realtime.events_per_minute", "realtime.logins_per_source",
                                "realtime.purchases_per_minute")]  # fmt: skip

    # nothing new: found out from the logs, before pyspark is imported, and nothing is written
    before = lake.versions()
    code = ("import sys; from lakehouse_engine.cli import main\n"
            "try: main(['run', 'pipelines/silver', 'pipelines/gold'])\n"
            "except SystemExit as end: print(end.code, 'pyspark' in sys.modules)")  # fmt: skip
    again = subprocess.run([sys.executable, "-c", code], cwd=lake.folder, env=lake.environment, text=True,
                           capture_output=True, timeout=60)  # fmt: skip
    assert again.stdout.split() == ["0", "False"], again.stderr
    assert lake.versions() == before

    # an event of three days ago: that day alone is recomputed
    day = datetime.now(timezone.utc) - timedelta(days=3)
    lake.send(user_event(1_000_000, day, event_type="purchase"))
    ran(lake.lakehouse("run", "--available-now", "pipelines"))
    ran(lake.lakehouse("serve"))
    for table in ("silver/user_events", "gold/daily_active_users", "gold/purchases_per_page_daily"):
        log = DeltaLog(lake.storage / table)
        assert (log.record() or {})["slices"] == [str(day.date())]
    touched = touched_days(DeltaLog(lake.storage / "silver" / "user_events"))
    assert touched == {str(day.date())}
    assert off(lake) == []

    # a row that is kept as late disappears
    lake.query("delete from realtime.events_per_minute__late where ctid = (select min(ctid) from"
               " realtime.events_per_minute__late) returning 1")  # fmt: skip
    told = lake.lakehouse("audit", "realtime.events_per_minute")
    assert told.returncode == 1
    assert re.search(r"^realtime.events_per_minute: batch \d+ counted \d+ rows as late, and \d+ are kept$", told.stdout,
                     re.MULTILINE)  # fmt: skip


def touched_days(log: DeltaLog) -> set[str]:
    """Partitions that the newest commit added files to or removed them from."""
    version = log.version()
    assert version is not None
    actions: list[dict[str, Any]] = list(log.actions(version))
    files = [action[kind] for action in actions for kind in ("add", "remove") if kind in action]
    return {file["partitionValues"]["event_date"] for file in files}


def test_a_member_begins_at_its_own_start_is_detached_where_it_fails_and_catches_up_when_it_is_mended(
    lake: Platform,
) -> None:
    lake.produce(1000, seed=4)
    ran(lake.lakehouse("run", "--available-now", "pipelines/realtime/events_per_minute.yaml"))
    lake.produce(1000, seed=5)
    ran(lake.lakehouse("run", "--available-now", "pipelines/realtime"))
    assert off(lake, "realtime") == []
    status = json.loads(lake.lakehouse("status", "--json").stdout)
    assert {entry["pipeline"]: entry["counted"] for entry in status}["realtime.events_per_minute"] == 2000
    plan = json.loads(lake.lakehouse("plan", "--json").stdout)
    assert [len(scan["members"]) for scan in plan["scans"]] == [3, 1]
    assert json.loads(lake.lakehouse("validate", "--json").stdout)["valid"]

    lake.query("alter table realtime.logins_per_source add constraint closed check (login_count < 0) not valid")
    lake.produce(2000, seed=7)
    result = lake.lakehouse("run", "--available-now", "pipelines/realtime")
    assert result.returncode == 1
    assert "realtime.logins_per_source" in result.stderr
    assert "closed" in result.stderr
    assert {check.name.partition(":")[0] for check in off(lake, "realtime")} == {"realtime.logins_per_source"}
    lake.query("alter table realtime.logins_per_source drop constraint closed")
    ran(lake.lakehouse("run", "--available-now", "pipelines/realtime"))
    assert off(lake, "realtime") == []


def test_the_metric_of_the_readme_counts_what_it_says(lake: Platform) -> None:
    readme = (PROJECT / "README.md").read_text()
    (name,) = re.findall(r"Write `(pipelines/gold/[a-z_]+\.yaml)`", readme)
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "silver.user_events" in block]
    (lake.folder / name).write_text(text)
    commands = re.findall(r"^lakehouse (validate|plan|run|serve|status)\b([^#\n]*)", readme, re.MULTILINE)
    assert [command for command, _ in commands] == ["validate", "plan", "run", "serve", "status"]
    today = datetime.now(timezone.utc)
    kinds = ["logout", "click", "logout", "login", "logout"]
    lake.send(*[user_event(number, today, event_type=kind) for number, kind in enumerate(kinds)])
    lake.send(user_event(2, today, event_type="logout"))  # once more
    for command, rest in commands:
        ran(lake.lakehouse(command, *rest.split()))
    assert lake.query("select event_date, logout_count from gold.logouts_daily") == [(today.date(), 3)]
    served = json.loads(lake.lakehouse("show", name, "--json").stdout)
    assert (served["store"], served["more"]) == ("postgres", False)
    assert [(row["event_date"], row["logout_count"]) for row in served["rows"]] == [(str(today.date()), 3)]
    told = lake.lakehouse("show", "silver.user_events", "--rows", "2")
    ran(told)
    assert told.stdout.split()[:2] == ["event_id", "user_id"]
    assert told.stdout.splitlines()[-1] == "the first 2 rows of silver.user_events in delta"
    missing = lake.lakehouse("show", "gold.logout")
    assert (missing.returncode, missing.stderr.split(":")[0]) == (2, "UNKNOWN_TABLE")


def test_endless_streams_and_jobs_in_one_call_are_refused(lake: Platform) -> None:
    result = lake.lakehouse("run", "pipelines")
    assert result.returncode == 2
    assert "STREAMS_AND_JOBS" in result.stderr


def produce_in_background(lake: Platform, stop: threading.Event, rate: float = 1500) -> threading.Thread:
    """Live events until ``stop`` is set."""
    thread = threading.Thread(target=lambda: lake.produce(
        10_000_000, rate=rate, seed=9, duplicates=0.05, late=0.05, malformed=0.05, stopped=stop.is_set))  # fmt: skip
    thread.start()
    return thread


def test_a_batch_of_refused_records_alone_moves_the_landings_position(spark: SparkSession, lake: Platform) -> None:
    def land() -> dict[str, Any]:
        plan = compile_plan(load([lake.folder / "pipelines" / "bronze"]))
        to = Connections(lake.bootstrap_servers, None, lake.storage, "test")
        to_its_end(ScanRun(spark, plan.scans[0], to, lambda _: None))
        return DeltaLog(lake.storage / "bronze" / "user_events").record() or {}

    lake.send(user_event(1, datetime.now(timezone.utc)))
    before = land()
    lake.send("not json", "{}")
    record = land()
    assert record["positions"]["0"] == {**before["positions"]["0"], "from": 1, "to": 3}
    assert record["counters"]["quarantined"] == 2
    assert off(lake, "bronze") == []
