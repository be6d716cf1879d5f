"""The reference DAG in a running Airflow, triggered, watched and cleared through its API."""

from __future__ import annotations

import os
import signal
import urllib.error
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pytest

from demo.reconcile import gold as oracle
from demo.reconcile import read_topic, silver, to_date
from lakehouse_engine.local.process import family, recorded
from tests.orchestration.conftest import DAG, LOGOUTS, Server
from tests.platform import user_event
from tests.test_platform import ran

pytestmark = pytest.mark.timeout(900)
SERVED = LOGOUTS + "serve: postgres\n"


def test_a_run_by_hand_takes_up_new_files_outlives_a_kill_and_lets_a_wrong_file_fail_alone(server: Server) -> None:
    lake, gold = server.lake, server.lake.folder / "pipelines" / "gold"
    today = datetime.now(timezone.utc)
    lake.produce(3000, seed=1, duplicates=0.05)
    lake.send(*[user_event(10**6 + number, today, event_type="logout") for number in range(3)])
    ran(lake.lakehouse("run", "--available-now", "pipelines/bronze"))
    (gold / "logouts_daily.yaml").write_text(SERVED)
    (gold / "wrong.yaml").write_text(SERVED.replace("filter:", "fliter:"))
    new = {"gold.logouts_daily", "gold.wrong"}
    server.until(lambda: new <= {t["task_id"] for t in server.call(f"/dags/{DAG}/tasks")["tasks"]}, "tasks are new")
    run = server.trigger()

    # kill -9 of the command and its JVM
    group: list[int] = []
    server.until(lambda: bool(group.extend(engine_of(server, run, "bronze_to_silver")) or group), "Spark runs", 90, run)
    os.killpg(group[0], signal.SIGKILL)
    server.until(lambda: server.states(run)["bronze_to_silver"] == "up_for_retry", "the task has failed", 60, run)
    assert "silver.user_events" not in lake.versions()
    server.call(f"/dags/{DAG}/clearTaskInstances", {
        "dry_run": False, "dag_run_id": run, "task_ids": ["bronze_to_silver"], "only_failed": False,
        "include_downstream": True})  # fmt: skip

    assert server.ended(run) == "failed"
    tries = {name: (task["state"], task["try_number"]) for name, task in server.tasks(run).items()}
    assert tries.pop("bronze_to_silver") == ("success", 2)
    assert tries.pop("gold.wrong") == ("failed", 1)
    assert {"gold.logouts_daily", "gold_to_postgres"} < tries.keys()
    assert set(tries.values()) == {("success", 1)}
    assert "pipelines/gold/wrong.yaml:4: UNKNOWN_COMPONENT: fliter is unknown" in server.log(run, "gold.wrong")
    events = silver(read_topic(lake.bootstrap_servers, lake.topic))[0].values()
    due = {day: users for (day,), (users,) in oracle(events)["gold.daily_active_users"].items()}
    assert due
    assert dict(lake.query("select event_date, dau_count from gold.daily_active_users")) == due
    logouts = Counter(to_date(event.day) for event in events if event.kind == "logout")
    assert sum(logouts.values()) >= 3
    assert dict(lake.query("select event_date, logout_count from gold.logouts_daily")) == logouts


def engine_of(server: Server, run: str, task: str) -> list[int]:
    """The process group of a task's command once its JVM is up, found from the task's recorded pid."""
    pid = server.tasks(run)[task]["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children") if pid else Path("/proc/none")
    for child in children.read_text().split() if children.exists() else []:
        below = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        if any("java" in Path(f"/proc/{one}/cmdline").read_text() for one in below):
            return [os.getpgid(int(child))]
    return []


@pytest.mark.parametrize("wrong", [{"from": "2026-01-01; touch x"}, {"to": "yesterday"}, {"full": "yes"}])
def test_a_range_that_is_none_is_refused_before_anything_runs(server: Server, wrong: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.trigger(**wrong)
    assert refused.value.code == 400
    assert "param" in refused.value.read().decode()


def test_nothing_listens_but_on_loopback(server: Server) -> None:
    home = server.running.passwords.parent
    leaders = [recorded(home / f"{name}.json") for name in ("api-server", "scheduler", "dag-processor", "triggerer")]
    pids = {one.pid for leader in leaders if leader is not None for one in family(leader)}
    assert len(pids) > 4
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            if file.is_symlink() and (link := os.readlink(file)).startswith("socket:["):
                sockets.add(link[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                listening.add(words[1].partition(":")[0])
    assert listening == {"0100007F"}


def test_what_is_secret_is_its_owners_alone(server: Server) -> None:
    home = server.running.passwords.parent
    assert home.stat().st_mode & 0o077 == 0
    assert server.running.passwords.stat().st_mode & 0o077 == 0
