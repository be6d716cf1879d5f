"""A real Airflow in its own environment, on the embedded PostgreSQL; its database is dropped afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import airflow
from lakehouse_engine.local.files import cache_dir, locked
from lakehouse_engine.local.stack import Services
from tests.platform import PROJECT, Platform, platform

VENV = PROJECT / ".airflow-venv"
DAGS = PROJECT / "airflow" / "dags"
DAG = "lakehouse_bronze_to_gold"
LOGOUTS = """\
description: Logouts per day.
source: silver.user_events
transforms:
  - filter: event_type = 'logout'
  - aggregate: {by: [event_date], measures: {logout_count: count(*)}}
sink: {delta: {replace_by: event_date}}
"""


@pytest.fixture(scope="session")
def airflow_venv() -> Path:
    """Airflow's environment, built if it is not there: that takes minutes, and one worker of several does it."""
    busy = RunError("BUSY", "another process has been building Airflow's environment for minutes")
    with locked(cache_dir() / "airflow-venv.lock", deadline=280, busy=busy, report=print):
        made = subprocess.run(["make", "airflow", f"PYTHON={sys.executable}"], cwd=PROJECT, text=True,
                              capture_output=True)  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    return VENV


@contextlib.contextmanager
def engine_of_the_tests() -> Iterator[None]:
    """The command that tasks run is this checkout's, on the interpreter of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_COMMAND", f"'{sys.executable}' -m lakehouse_engine.cli")
        patch.setenv("PYTHONPATH", str(PROJECT))
        yield


@contextlib.contextmanager
def database(stack: Services) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.closing(psycopg2.connect(stack.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"drop database if exists {airflow.NAME} with (force)")


@pytest.fixture
def airflow_command(stack: Services, airflow_venv: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs ``airflow WORDS`` for a project's folder."""

    def run(folder: Path, *words: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        settings = airflow.prepare(folder, stack.dsn, venv=airflow_venv, dags=DAGS)
        return subprocess.run([str(airflow_venv / "bin" / "airflow"), *words], cwd=folder, text=True,
                              env={**os.environ, **settings, **variables}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=timeout)  # fmt: skip

    with database(stack), engine_of_the_tests():
        yield run


@dataclass
class Server:
    """A running Airflow with the reference platform, spoken to as its users do: through the API."""

    lake: Platform
    running: airflow.Running

    @cached_property
    def token(self) -> str:
        password = json.loads(self.running.passwords.read_text())["admin"]
        answer: dict[str, str] = self._send("/auth/token", {"username": "admin", "password": password}, {})
        return answer["access_token"]

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._send(f"/api/v2{path}", body, {"Authorization": f"Bearer {self.token}"})

    def _send(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(
            self.running.url + path, None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Accept": "application/json", **headers})  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def trigger(self, **conf: Any) -> str:
        """A run by hand; it has no logical date."""
        made = self.call(f"/dags/{DAG}/dagRuns", {"logical_date": None, "conf": conf})
        assert made["logical_date"] is None
        return str(made["dag_run_id"])

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        found = self.call(f"/dags/{DAG}/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def states(self, run: str) -> dict[str, str]:
        return {name: task["state"] for name, task in self.tasks(run).items()}

    def log(self, run: str, task: str, number: int = 1) -> str:
        answer = self.call(f"/dags/{DAG}/dagRuns/{run}/taskInstances/{task}/logs/{number}?full_content=true")
        return json.dumps(answer["content"])

    def ended(self, run: str, limit: float = 180) -> str:
        self.until(lambda: self.state(run) in ("success", "failed"), f"{run} ends", limit, run)
        return self.state(run)

    def state(self, run: str) -> str:
        return str(self.call(f"/dags/{DAG}/dagRuns/{run}")["state"])

    def until(self, condition: Callable[[], bool], what: str, limit: float = 60, run: str | None = None) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            states = self.states(run) if run else {}
            assert time.monotonic() < deadline, f"{what} has not come true in {limit:.0f} s: {states}"
            time.sleep(0.25)


@pytest.fixture(scope="module")
def server(stack: Services, airflow_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("airflow") / "lake"
    with platform(stack, folder) as lake, database(stack), engine_of_the_tests():
        # By hand alone: around midnight a run of the schedule would do a test's work before the test does.
        silver = folder / "pipelines" / "silver" / "user_events.yaml"
        silver.write_text(silver.read_text().replace("schedule: daily", "schedule: manual"))
        # One metric of four: each is a Spark of its own, and test_dag.py runs the reference DAG in full.
        for name in ("conversion_rate_daily", "events_per_source_daily", "purchases_per_page_daily"):
            (folder / "pipelines" / "gold" / f"{name}.yaml").unlink()
        try:
            running = airflow.up(folder, stack.dsn, venv=airflow_venv, dags=DAGS)
            made = Server(lake, running)
            made.until(lambda: any(d["dag_id"] == DAG for d in made.call("/dags")["dags"]), "the DAG is there")
            yield made
        finally:
            airflow.down(folder)
