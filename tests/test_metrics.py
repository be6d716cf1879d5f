"""A real Prometheus asks a real run: what it stores is what the ledger holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lakehouse_engine import journal, ledger
from lakehouse_engine.journal import Run
from lakehouse_engine.local.process import choose_port
from lakehouse_engine.log import FIELDS, fields
from lakehouse_engine.metrics import METRICS, Metrics, exposition
from lakehouse_engine.progress import COUNTERS, now_micros
from tests.platform import PROJECT, Platform

STREAMS = ["bronze.user_events", "realtime.events_per_minute", "realtime.logins_per_source",
           "realtime.purchases_per_minute"]  # fmt: skip
Samples = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def prometheus() -> str:
    """Debian's package of that name; it may be missing on somebody's own machine alone."""
    found = shutil.which("prometheus")
    if found is None or shutil.which("promtool") is None:
        if "CI" in os.environ:
            pytest.fail("prometheus and promtool are missing: apt-get install prometheus")
        pytest.skip("prometheus and promtool are not installed (Debian's package prometheus)")
    return found


@pytest.mark.parametrize("words", [("check", "rules", "prometheus/alerts.yaml"),
                                   ("check", "config", "prometheus/prometheus.yaml"),
                                   ("test", "rules", "tests/alerts_test.yaml")])  # fmt: skip
def test_the_rules_are_what_promtool_accepts_and_they_fire_when_they_should(words: tuple[str, ...],
                                                                           prometheus: str) -> None:  # fmt: skip
    done = subprocess.run(["promtool", *words], cwd=PROJECT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def scraping(binary: str, folder: Path, target: str) -> Iterator[str]:
    """Prometheus with the committed configuration, every second, on ``target``; its address."""
    folder.mkdir()
    shutil.copy(PROJECT / "prometheus" / "alerts.yaml", folder)
    configuration = yaml.safe_load((PROJECT / "prometheus" / "prometheus.yaml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    (folder / "targets.yaml").write_text(yaml.safe_dump([{"targets": [target]}]))
    port = choose_port(None, None, "prometheus", lambda _: None)
    command = [binary, "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def ask(address: str, text: str, *labels: str) -> Samples:
    """The values of a query by labels; nothing while Prometheus does not answer."""
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': text})}") as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {tuple(one["metric"].get(label, "") for label in labels): float(one["value"][1]) for one in found}


def in_ledger(lake: Platform) -> Samples:
    sums = ", ".join(f"sum({name})" for name in COUNTERS)
    rows = lake.query(f"select pipeline, {sums} from lakehouse.commits group by 1")
    return {(name, outcome): float(n) for name, *numbers in rows for outcome, n in zip(COUNTERS, numbers, strict=True)}


def exposed(dsn: str) -> dict[str, Samples]:
    labels = {metric.name: metric.labels for metric in METRICS}
    found: dict[str, Samples] = {metric.name: {} for metric in METRICS if metric.ledger}
    for family in text_string_to_metric_families(exposition(dsn).decode()):
        for sample in family.samples:
            found[sample.name][tuple(sample.labels[label] for label in labels[sample.name])] = sample.value
    return found


def test_what_prometheus_has_scraped_is_what_the_ledger_holds(lake: Platform, prometheus: str) -> None:
    lake.produce(3000, seed=1, malformed=0.1, duplicates=0.1)
    process = lake.start("run", "--metrics-port", "0", "--json-log", "pipelines/bronze", "pipelines/realtime")
    lake.until(lambda: "metrics at" in lake.log(process), "the address is said")
    (target,) = re.findall(r"metrics at http://(127\.0\.0\.1:\d+)/metrics", lake.log(process))
    with scraping(prometheus, lake.folder / "prometheus", target) as address:
        text = 'lakehouse_rows_total{job="lakehouse"}'

        def even() -> bool:
            lake.until(lambda: bool(ask(address, "up")), "prometheus answers")
            found = ask(address, text, "pipeline", "outcome")
            rows = in_ledger(lake) if lake.batches() else {}
            return len(rows) == 20 and found == rows and sum(rows.values()) >= 4 * 3000

        lake.until(even, "prometheus has what the ledger has")
        assert {name for name, _ in ask(address, text, "pipeline", "outcome")} == set(STREAMS)
        assert ask(address, "lakehouse_behind_records", "pipeline") == {(name,): 0 for name in STREAMS}
        ends = {(name, str(p)): float(end) for name in STREAMS for p, end in lake.ends().items() if end}
        assert ask(address, "lakehouse_position_offset > 0", "pipeline", "partition") == ends
        files = list((lake.storage / "bronze" / "user_events").glob("**/part-*.parquet"))
        assert ask(address, "lakehouse_table_files", "pipeline") == {("bronze.user_events",): len(files)}
        commits = dict(lake.query("select pipeline, count(*) from lakehouse.commits group by 1"))
        assert ask(address, "lakehouse_batch_seconds_count", "pipeline") == {(n,): commits[n] for n in STREAMS}
        # gold was never seen, streams have committed just now, and every tenth record was malformed
        gold = [f"gold.{file.stem}" for file in (PROJECT / "pipelines" / "gold").glob("*_daily.yaml")]
        gold += ["gold.daily_active_users"]
        wanted = {("LakehouseFailedGold", name) for name in gold} | {("LakehouseQuarantine", name) for name in STREAMS}
        lake.until(lambda: ask(address, "ALERTS", "alertname", "pipeline").keys() == wanted, "the right alerts fire")

        # the database ends the connection: the streams into it start again and lose nothing
        lake.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'lakehouse'"
                   " and datname = current_database()")  # fmt: skip
        lake.produce(500, seed=2)
        windows = {(name,): 1.0 for name in STREAMS[1:]}
        lake.until(lambda: ask(address, "lakehouse_restarts_total > 0", "pipeline") == windows, "restarts are counted")
        total = sum(in_ledger(lake).values())
        lake.until(lambda: even() and sum(in_ledger(lake).values()) >= total + 4 * 500, "they have caught up")
        failed = lake.query("select pipeline, kind, code from lakehouse.runs where outcome = 'failed' order by 1")
        assert failed == [(name, "stream", "STREAM_FAILED") for name in STREAMS[1:]]
        files = list((lake.storage / "bronze" / "user_events").glob("**/part-*.parquet"))
        commits = dict(lake.query("select pipeline, count(*) from lakehouse.commits group by 1"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0

    # the ledger alone says the same, and goes on from there
    found = exposed(lake.dsn)
    assert found["lakehouse_rows_total"] == in_ledger(lake)
    assert found["lakehouse_ledger_up"] == {(): 1}
    assert found["lakehouse_table_files"] == {("bronze.user_events",): len(files)}
    lake.query("update lakehouse.runs set ended_at = ended_at - interval '1 hour'")
    assert exposed(lake.dsn)["lakehouse_rows_total"] == in_ledger(lake)  # they are settled
    with closing(psycopg2.connect(lake.dsn)) as connection, connection, connection.cursor() as cursor:
        more = Run("bronze.user_events", "batch", "committed", 1, counters={"counted": 5})
        journal.write(cursor, [Run("gold.a", "serve", "failed", now_micros(), code="X"), more])
    found = exposed(lake.dsn)
    assert found["lakehouse_rows_total"] == in_ledger(lake)
    assert found["lakehouse_last_run_failed"] == {("gold.a", "serve"): 1}
    windows_failed = {(name, "stream", "STREAM_FAILED"): 1.0 for name in STREAMS[1:]}
    assert found["lakehouse_failures_total"] == {("gold.a", "serve", "X"): 1} | windows_failed

    # every line is JSON, and the batches' lines add up to the ledger
    said = lake.log(process).splitlines()
    of_java = ("WARNING: ", "Setting ", "To adjust logging level")  # and of Spark, at their start
    assert [line for line in said if not line.startswith(("{", *of_java))] == []
    lines = [json.loads(line) for line in said if line.startswith("{")]
    assert {name for line in lines for name in line} <= FIELDS.keys()
    batches = [line for line in lines if line["kind"] == "batch"]
    assert len(batches) == sum(commits.values())
    assert [line["step"] for line in lines if line.get("outcome") == "failed"] == ["restart"] * 3
    assert sum(line["counted"] for line in batches if line["pipeline"] == STREAMS[0]) == in_ledger(lake)[
        STREAMS[0], "counted"] - 5  # fmt: skip


def test_a_ledger_that_is_not_there_or_not_made_yet_is_said_and_no_error(database: str) -> None:
    assert exposed(database)["lakehouse_ledger_up"] == {(): 1}
    gone = f"{database}_gone"
    assert exposition(gone).decode().split("\n")[-2] == "lakehouse_ledger_up 0.0"
    assert exposition(None) == b""
    with closing(psycopg2.connect(database)) as connection:
        ledger.prepare(connection)
    assert exposed(database)["lakehouse_ledger_up"] == {(): 1}


def test_each_metric_has_its_unit_its_labels_and_its_row_in_the_documentation() -> None:
    text = (PROJECT / "docs" / "observability.md").read_text()
    rows = re.findall(r"^\| `(lakehouse_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    assert rows == [(m.name, m.kind, ", ".join(m.labels) or "none",
                     " and ".join(w for w, shown in (("run", m.runner), ("ledger", m.ledger)) if shown), m.help)
                    for m in METRICS]  # fmt: skip
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert "pipeline" in metric.labels or metric.name == "lakehouse_ledger_up"
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", text.partition("## A line for each run")[2], re.MULTILINE)[
        : len(FIELDS)] == list(FIELDS)  # fmt: skip


def test_failures_and_restarts_are_counted_and_a_success_clears_what_failed() -> None:
    metrics = Metrics()
    metrics.expect({"bronze.a": 10_000_000})

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"pipeline": "bronze.a", **labels})

    assert value("lakehouse_rows_total", outcome="late") == 0
    assert value("lakehouse_trigger_seconds") == 10
    metrics.see(Run("bronze.a", "stream", "failed", 1, code="KAFKA_UNREACHABLE", step="restart"))
    metrics.see(Run("bronze.a", "stream", "failed", 1, code="KAFKA_UNREACHABLE", step="given_up"))
    assert value("lakehouse_restarts_total") == 1
    assert value("lakehouse_failures_total", kind="stream", code="KAFKA_UNREACHABLE") == 2
    metrics.see(Run("bronze.a", "job", "failed", 1, code="X"))
    assert value("lakehouse_last_run_failed", kind="job") == 1
    metrics.see(Run("bronze.a", "job", "nothing", 1, ended_at=5_000_000))
    assert value("lakehouse_last_run_failed", kind="job") == 0
    assert value("lakehouse_last_success_timestamp_seconds", kind="job") == 5
    assert value("lakehouse_last_commit_timestamp_seconds") is None


def test_a_line_of_json_leaves_out_what_has_no_value() -> None:
    line = fields(Run("bronze.a", "stream", "failed", 0, ended_at=1_500_000, code="X", message="m", step="restart"))
    assert line == {"time": "1970-01-01T00:00:01.500+00:00", "kind": "stream", "pipeline": "bronze.a",
                    "outcome": "failed", "seconds": 1.5, "code": "X", "message": "m", "step": "restart"}  # fmt: skip
