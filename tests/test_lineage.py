"""OpenLineage events as a file receives them: each run's begin and end, and where its data comes from and goes to.

Those of the reference platform are held in test_journal.py, beside what the journal has of the same runs.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn

from lakehouse_engine import lineage
from lakehouse_engine.journal import Run, failed
from lakehouse_engine.lineage import Lineage, Places
from lakehouse_engine.spec.loader import load
from tests.platform import PROJECT, Platform

Event = dict[str, Any]
NAMES = {"bronze.user_events", "realtime.events_per_minute", "silver.user_events", "gold.daily_active_users"}


def to_file(path: Path) -> dict[str, str]:
    """The environment variables that have events appended to a file."""
    return {"OPENLINEAGE__TRANSPORT__TYPE": "file", "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(path),
            "OPENLINEAGE__TRANSPORT__APPEND": "true"}  # fmt: skip


def events(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_job(found: list[Event]) -> dict[str, list[Event]]:
    jobs = defaultdict(list)
    for event in found:
        jobs[event["job"]["name"]].append(event)
    return dict(jobs)


def places(datasets: list[Event]) -> list[tuple[str, str]]:
    return [(one["namespace"], one["name"]) for one in datasets]


def fields(dataset: Event) -> dict[str, str]:
    return {one["name"]: one["type"] for one in dataset["facets"]["schema"]["fields"]}


def holds(lake: Platform, path: Path, silver_rows: int) -> None:
    """What a first run of the reference platform, and a load of one copy, have told."""
    found = events(path)
    for event in found:
        uuid.UUID(event["run"]["runId"])
        assert datetime.fromisoformat(event["eventTime"]).tzinfo == timezone.utc
        assert event["job"]["namespace"] == "lakehouse"
        assert event["schemaURL"].endswith("#/$defs/RunEvent")
        assert event["producer"].startswith("urn:lakehouse-yaml:")
    jobs = by_job(found)
    assert jobs.keys() >= {*NAMES, "gold.daily_active_users.serve"}
    for name, told in jobs.items():
        stream = name.startswith(("bronze", "realtime"))
        assert [e["eventType"] for e in told] == ["START", *(["RUNNING"] if stream else []), "COMPLETE"], name
        assert len({e["run"]["runId"] for e in told}) == 1
        assert told[0]["eventTime"] <= told[-1]["eventTime"]
        kinds = told[0]["job"]["facets"]["jobType"]
        assert (kinds["processingType"], kinds["integration"]) == ("STREAMING" if stream else "BATCH", "LAKEHOUSE")

    kafka = (f"kafka://{lake.bootstrap_servers}", lake.topic)
    dsn = parse_dsn(lake.dsn)
    server = f"postgres://{dsn['host']}:{dsn['port']}"

    def table(name: str) -> tuple[str, str]:
        return "file", str(lake.storage / name.replace(".", "/"))

    expected = {
        "bronze.user_events": (kafka, table("bronze.user_events")),
        "realtime.events_per_minute": (kafka, (server, f"{dsn['dbname']}.realtime.events_per_minute")),
        "silver.user_events": (table("bronze.user_events"), table("silver.user_events")),
        "gold.daily_active_users": (table("silver.user_events"), table("gold.daily_active_users")),
        "gold.daily_active_users.serve": (table("gold.daily_active_users"),
                                          (server, f"{dsn['dbname']}.gold.daily_active_users")),
    }  # fmt: skip
    for name, (source, target) in expected.items():
        for event in jobs[name]:
            assert (places(event["inputs"]), places(event["outputs"])) == ([source], [target])

    (read,), (windows,) = (jobs["realtime.events_per_minute"][-1][side] for side in ("inputs", "outputs"))
    assert fields(read)["timestamp"] == "timestamp"
    moment = "timestamp with time zone"
    assert fields(windows) == {"window_start": moment, "event_type": "text", "event_count": "bigint",
                               "updated_at": moment}  # fmt: skip
    (silver,) = jobs["silver.user_events"][-1]["outputs"]
    assert (silver["outputFacets"]["outputStatistics"]["rowCount"], silver["facets"]["version"]["datasetVersion"]) == (
        silver_rows, "0")  # fmt: skip
    assert fields(silver)["event_date"] == "date"
    assert "password" not in path.read_text()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lineage:
    for name, value in to_file(tmp_path / "events").items():
        monkeypatch.setenv(name, value)
    at = Places({None: "one:1,two:2", "eu": "three:3"}, "postgresql://u:hidden@127.0.0.1:1/d", tmp_path / "storage")
    return Lineage(load([PROJECT / "pipelines"]), at, pytest.fail)


def test_a_run_that_fails_says_why_without_secrets_and_the_next_one_is_another(told: Lineage, tmp_path: Path) -> None:
    bronze, gold = "bronze.user_events", "gold.daily_active_users"
    told.began(bronze, "stream")
    told.see(failed(bronze, "stream", 1, ValueError("no entry with hidden"), step="restart"))
    told.began(bronze, "stream")
    for _ in range(3):
        told.see(Run(bronze, "batch", "committed", 1))
    told.see(Run(gold, "job", "nothing", 1))
    told.see(failed("silver.user_events", "job", 1, ValueError("x")))
    told.began(gold, "job")
    told.close()
    jobs = by_job(events(tmp_path / "events"))
    first, *_ = told_of = jobs[bronze]
    assert [e["eventType"] for e in told_of] == ["START", "FAIL", "START", "RUNNING", "COMPLETE"]
    assert [e["run"]["runId"] == first["run"]["runId"] for e in told_of] == [True, True, False, False, False]
    assert told_of[1]["run"]["facets"]["errorMessage"]["message"] == "STREAM_FAILED: no entry with ***"
    assert places(first["inputs"]) == [("kafka://one:1", "user-events")]
    assert [e["eventType"] for e in jobs["silver.user_events"]] == ["START", "FAIL"]
    assert [e["eventType"] for e in jobs[gold]] == ["START", "ABORT"]


def test_who_does_not_listen_is_said_once_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in to_file(tmp_path / "missing" / "folder" / "events").items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    one = Lineage(load([PROJECT / "pipelines"]), Places({None: "b:1"}, None, tmp_path), said.append)
    for _ in range(3):
        one.began("bronze.user_events", "stream")
    one.close()
    assert len(said) == 1
    assert "lineage events do not arrive" in said[0]


def test_without_a_word_about_lineage_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not lineage.configured(tmp_path)
    (tmp_path / "openlineage.yml").write_text("transport: {type: console}\n")
    assert lineage.configured(tmp_path)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert not lineage.configured(tmp_path)
