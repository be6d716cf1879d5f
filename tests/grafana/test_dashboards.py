"""Every query of every dashboard and alert, run as the reader on a year of data and compared with plain Python."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from psycopg2.extensions import connection as Connection

from lakehouse_engine import grafana, states
from lakehouse_engine.dashboard import boards, detail, tables
from lakehouse_engine.dashboard.macros import Range, expand
from lakehouse_engine.database import Answer, Database
from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.plan import fingerprint
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import Panel
from tests.grafana import seed as seeds
from tests.grafana.conftest import Ask, as_reader
from tests.grafana.seed import BATCH, KEPT, LANDING, PAGES, REACHED, RUNS, SERVED, SOURCES, STREAMS, TYPES, Seed
from tests.platform import PROJECT

FOLDER = PROJECT / "grafana"
OVERVIEW = json.loads((FOLDER / grafana.OVERVIEW).read_text())
PIPELINES = json.loads((FOLDER / grafana.PIPELINES).read_text())
ALERTS = yaml.safe_load((FOLDER / grafana.ALERTS).read_text())
RULES = {rule["title"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
Rows = list[tuple[Any, ...]]


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    return {panel["title"]: target["rawSql"] for panel in dashboard["panels"] for target in panel["targets"]}


def hour(year: Seed, back: timedelta = timedelta(0), step: int = 60) -> Range:
    """An hour up to the last full minute, or as much earlier as ``back`` says."""
    end = year.now - back
    return Range(end - timedelta(hours=1), end, step)


def minutes(shown: Range) -> range:
    """Those whose windows begin within, both ends included."""
    return range(-(-int(shown.start.timestamp()) // 60), int(shown.end.timestamp()) // 60 + 1)


def batches(year: Seed, shown: Range) -> list[int]:
    return [n for n in range(2000) if shown.start <= year.committed(n) <= shown.end]


def bucket(moment: datetime, shown: Range) -> int:
    return int(moment.timestamp()) // shown.step * shown.step


def as_numbers(rows: Rows) -> Rows:
    return [tuple(value if isinstance(value, str | int | None) else float(value) for value in row) for row in rows]


# --- the overview -----------------------------------------------------------------------------------------------------


def per_minute(shown: Range, names: tuple[str, ...], count: Callable[[int, int], int | None]) -> Rows:
    found: Counter[tuple[int, str]] = Counter()
    for minute in minutes(shown):
        for number, name in enumerate(names):
            value = count(minute, number)
            if value is not None:
                found[minute * 60 // shown.step * shown.step, name] += value
    return [(*key, found[key]) for key in sorted(found)]


def top_pages(year: Seed, shown: Range) -> Rows:
    last = min(year.yesterday, shown.end.date())
    first = min(shown.start.date(), last)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    totals = [(page, sum(seeds.bought(day, n) for day in days)) for n, page in enumerate(PAGES)]
    return sorted(totals, key=lambda row: (-row[1], row[0]))[:10]


SERIES = {"time": "numeric", "metric": "text"}
OVERVIEW_ANSWERS: dict[str, tuple[dict[str, str], Callable[[Seed, Range], Rows]]] = {
    "DAU": ({"dau_count": "float8"}, lambda y, s: [(seeds.users(min(y.yesterday, s.end.date())),)]),
    "Conversion Rate": ({"conversion_rate": "float8"},
                        lambda y, s: [(seeds.users(min(y.yesterday, s.end.date())) / 1000,)]),
    "Total Purchases": ({"purchase_count": "float8"},
                        lambda y, s: [(sum(seeds.purchases(m) or 0 for m in minutes(s)),)]),
    "Total Events": ({"event_count": "float8"},
                     lambda y, s: [(sum(seeds.events(m, k) or 0 for m in minutes(s) for k in range(len(TYPES))),)]),
    "Event Stream": (SERIES | {"event_count": "float8"}, lambda y, s: per_minute(s, TYPES, seeds.events)),
    "Logins Per Source": (SERIES | {"login_count": "float8"}, lambda y, s: per_minute(s, SOURCES, seeds.logins)),
    "Top Pages by Purchases": ({"page": "text", "purchase_count": "float8"}, top_pages),
}  # fmt: skip
RANGES: dict[str, Callable[[Seed], Range]] = {
    "the last hour": hour,
    "an hour of last month": lambda year: hour(year, timedelta(days=30, minutes=7, seconds=20)),
    "two days in steps of half an hour": lambda year: Range(year.now - timedelta(days=2), year.now, 1800),
}


def test_the_overview_has_the_seven_panels_in_three_rows_and_is_fresh_every_ten_seconds() -> None:
    rows = defaultdict(list)
    for panel in sorted(OVERVIEW["panels"], key=lambda p: (p["gridPos"]["y"], p["gridPos"]["x"])):
        rows[panel["gridPos"]["y"]].append(panel["title"])
    assert list(rows.values()) == [["DAU", "Conversion Rate", "Total Purchases", "Total Events"],
                                   ["Event Stream", "Logins Per Source"], ["Top Pages by Purchases"]]  # fmt: skip
    assert (OVERVIEW["title"], OVERVIEW["refresh"]) == ("Lakehouse Platform Overview", "10s")
    assert set(queries(OVERVIEW)) == set(OVERVIEW_ANSWERS)


@pytest.mark.parametrize("when", RANGES)
@pytest.mark.parametrize("title", OVERVIEW_ANSWERS)
def test_a_panel_of_the_overview_shows_what_plain_python_counts(title: str, when: str, year: Seed, ask: Ask) -> None:
    shown = RANGES[when](year)
    columns, expected = OVERVIEW_ANSWERS[title]
    found, rows = ask(queries(OVERVIEW)[title], shown)
    assert found == columns
    assert as_numbers(rows) == as_numbers(expected(year, shown))
    assert rows


def test_before_the_first_day_of_gold_there_is_no_number_and_not_zero(year: Seed, ask: Ask) -> None:
    shown = hour(year, timedelta(days=3000))
    assert ask(queries(OVERVIEW)["DAU"], shown)[1] == [(None,)]
    assert ask(queries(OVERVIEW)["Total Events"], shown)[1] == [(0,)]


# --- operators --------------------------------------------------------------------------------------------------------


ALL_STREAMS = (LANDING, *STREAMS)
TRIGGERS = {LANDING: 10, **dict.fromkeys(STREAMS, 1)}


def number(stream: str) -> int:
    """Of the stream in the formulas."""
    return (*STREAMS, LANDING).index(stream)


def batch_series(year: Seed, shown: Range, streams: tuple[str, ...], value: Callable[[list[int], int], float]) -> Rows:
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for batch in batches(year, shown):
        for name in streams:
            found[bucket(year.committed(batch), shown), name].append(batch)
    return [(at, name, pytest.approx(value(found[at, name], number(name)))) for at, name in sorted(found)]


def total(name: str) -> Callable[[list[int], int], float]:
    return lambda found, stream: sum(seeds.counters(b, stream)[name] for b in found)


STEP = 600
OPERATORS: dict[str, tuple[str, Callable[[list[int], int], float]]] = {
    "Records read": ("rate", lambda found, s: sum(sum(seeds.counters(b, s).values()) for b in found) / STEP),
    "Records behind": ("behind", lambda found, s: max(seeds.behind(b) for b in found)),
    "Batch time / trigger": ("share", lambda found, s: max(b % 4 * 0.3 for b in found) / (10 if s == 3 else 1)),
    "Watermark delay": ("delay", lambda found, s: max(120 + b % 5 for b in found)),
    "Late": ("late", total("late")),
    "Quarantined": ("quarantined", total("quarantined")),
    "Table files": ("files", lambda found, s: max(seeds.files(b) for b in found)),
}
OF = {"Watermark delay": STREAMS, "Table files": (LANDING,)}


@pytest.mark.parametrize("title", OPERATORS)
def test_a_series_of_the_ledger_is_what_plain_python_counts(title: str, year: Seed, ask: Ask) -> None:
    shown = hour(year, step=STEP)
    name, value = OPERATORS[title]
    columns, rows = ask(queries(PIPELINES)[title], shown)
    assert columns == SERIES | {name: "float8"}
    streams = OF.get(title, ALL_STREAMS)
    rows = [row for row in rows if title != "Table files" or row[1] in streams]
    assert as_numbers(rows) == batch_series(year, shown, streams, value)


def lag(stream: str) -> int:
    """Of the slowest partition that is not idle; where all are, of the one that came furthest."""
    awake = [age for age, idle in REACHED[stream] if not idle]
    return max(awake) if awake else min(age for age, _ in REACHED[stream])


def passed(year: Seed) -> float:
    return (datetime.now(timezone.utc) - year.now).total_seconds()


def test_the_tables_for_operators_are_what_plain_python_counts(year: Seed, ask: Ask) -> None:
    shown = hour(year)
    columns, rows = ask(queries(PIPELINES)["Streams"], shown)
    assert columns == {"pipeline": "text", "trigger_seconds": "float8", "last_commit_seconds": "float8",
                       "behind": "int8", "batch_seconds": "float8", "lag_seconds": "float8",
                       "watermark_seconds": "float8"}  # fmt: skip
    now = passed(year)
    expected = [(LANDING, 10, now, 0, 0, None, None), *((n, 1, now, 0, 0, now + lag(n), now + 120) for n in STREAMS)]
    assert rows == [(name, *(n if n is None else pytest.approx(n, abs=5) for n in numbers))
                    for name, *numbers in expected]  # fmt: skip

    columns, rows = ask(queries(PIPELINES)["What became of it"], shown)
    names = ["quarantined", "filtered", "duplicate", "late", "counted"]
    assert columns == {"pipeline": "text", "batches": "int8", **dict.fromkeys(names, "int8")}
    found = batches(year, shown)
    assert rows == [(stream, len(found), *(sum(seeds.counters(b, number(stream))[n] for b in found) for n in names))
                    for stream in ALL_STREAMS]  # fmt: skip
    assert len(found) == 3600 // BATCH + 1

    columns, rows = ask(queries(PIPELINES)["Freshness of the copies"], shown)
    assert columns == {"pipeline": "text", "version": "int8", "rows": "int8", "age_seconds": "float8"}
    copies = [(name, 7, 400, pytest.approx(hours * 3600 + passed(year), abs=5)) for name, hours in SERVED.items()]
    assert rows == [*copies, ("gold.purchases_per_page_daily", None, None, None)]


def test_failures_tables_and_sizes_are_what_the_ledger_holds(year: Seed, ask: Ask) -> None:
    columns, rows = ask(queries(PIPELINES)["Failures"], hour(year))
    assert columns == {"at": "timestamptz", "pipeline": "text", "kind": "text", "code": "text", "message": "text"}
    failed = [run for run in RUNS if run[2] == "failed" and run[3] <= 60]
    assert rows == [(year.now - timedelta(minutes=minutes), name, kind, code, "it did not work")
                    for name, kind, _, minutes, code in sorted(failed, key=lambda run: run[3])]  # fmt: skip

    columns, rows = ask(queries(PIPELINES)["Delta tables"], hour(year))
    assert list(columns) == ["pipeline", "version", "files", "bytes", "last_run", "outcome", "age_seconds",
                             "run_seconds", "rows", "code"]  # fmt: skip
    found = {row[0]: row[1:6] for row in rows}
    assert found[LANDING] == (KEPT, 10, 10_000, "batch", "committed")
    assert found["silver.user_events"] == (3, 2, 999, "job", "committed")
    assert found["gold.events_per_source_daily"] == (3, 2, 999, "job", "failed")
    assert found["gold.purchases_per_page_daily"] == (None,) * 5
    assert len(found) == 6

    columns, rows = ask(queries(PIPELINES)["Results and state"], hour(year))
    assert columns == {"pipeline": "text", "result_bytes": "int8", "state_bytes": "int8"}
    year.run("create table if not exists realtime.logins_per_source__state as select 1 as n")
    sizes = {name: year.run("select pg_total_relation_size(%s)", name)[0][0] for name in STREAMS}
    _, again = ask(queries(PIPELINES)["Results and state"], hour(year))
    year.run("drop table realtime.logins_per_source__state")
    assert rows == [(name, sizes[name], None) for name in STREAMS]
    assert [(name, state is not None) for name, _, state in again] == [(n, n == STREAMS[1]) for n in STREAMS]


def test_before_the_engine_ever_ran_operators_see_nothing_and_no_error(database: str) -> None:
    with closing(psycopg2.connect(database)) as engine:
        with engine, engine.cursor() as cursor:
            for file in ("reader.sql", "ledger.sql"):
                cursor.execute((FOLDER / file).read_text())
        with as_reader(database) as reader, reader.cursor() as cursor:
            asked = {**queries(PIPELINES), **{t: r["data"][0]["model"]["rawSql"] for t, r in RULES.items()}}
            for text in asked.values():
                cursor.execute(expand(text, Range(datetime.now(timezone.utc) - timedelta(hours=1),
                                                  datetime.now(timezone.utc))))  # fmt: skip


def test_no_query_for_operators_is_left_out() -> None:
    tables = {"Streams", "What became of it", "Freshness of the copies", "Failures", "Delta tables",
              "Results and state"}  # fmt: skip
    assert set(queries(PIPELINES)) == tables | set(OPERATORS)


# --- the year ---------------------------------------------------------------------------------------------------------


def milliseconds(connection: Connection, text: str) -> float:
    """Of the quickest of five: another process may be busy on this machine."""
    taken = []
    with connection.cursor() as cursor:
        for _ in range(5):
            cursor.execute(f"explain (analyze, format json) {text}")
            taken.append(cursor.fetchone()[0][0]["Execution Time"])
    return float(min(taken))


@pytest.mark.parametrize("title", [*queries(OVERVIEW), *queries(PIPELINES), *RULES])
def test_an_hour_of_a_year_takes_less_than_twenty_milliseconds(
    title: str, year: Seed, grafana_connection: Connection
) -> None:
    known = {
        **queries(OVERVIEW),
        **queries(PIPELINES),
        **{t: r["data"][0]["model"]["rawSql"] for t, r in RULES.items()},
    }
    assert milliseconds(grafana_connection, expand(known[title], hour(year))) < 20


@pytest.mark.parametrize("table", ["realtime.events_per_minute", "lakehouse.batches"])
def test_the_year_is_long_enough_to_tell(table: str, grafana_connection: Connection) -> None:
    assert milliseconds(grafana_connection, f"select max(t::text) from {table} t") > 20


class Timed(Database):
    """Keeps the shortest time (milliseconds) that each question took, from here and back."""

    def __init__(self, dsn: str) -> None:
        super().__init__(lambda: dsn)
        self.taken: dict[str, float] = {}

    def ask(self, text: Any, values: Any = None, limit: int = 1000) -> Answer:
        began = time.perf_counter()
        found = super().ask(text, values, limit)
        name = " ".join(str(text).split())[:200]
        self.taken[name] = min(self.taken.get(name, math.inf), 1000 * (time.perf_counter() - began))
        return found


def test_what_the_dashboard_asks_about_an_hour_is_as_quick(year: Seed, tmp_path: Path) -> None:
    """`pytest -s` prints the times."""
    database, specs = Timed(year.dsn), load([PROJECT / "pipelines"])
    streams = [spec for spec in specs if spec.name in STREAMS]
    shown = hour(year, step=60)
    for _ in range(5):
        for board in boards.boards(specs).values():
            for number in board.panels:
                assert boards.answer(board, number, shown, database)["state"] == "ok"
        entries = {entry["name"]: entry for entry in states.states(specs, database, tmp_path)}
        for spec in streams:
            detail.detail(spec, entries[spec.name], shown, database, tmp_path)
            asked = [("order", "-window_start"), ("window_start.gte", shown.start.isoformat())]
            assert tables.rows(database, spec.name, asked, "")["rows"]
    database.close()
    assert len(database.taken) > 25
    for name, milliseconds_ in sorted(database.taken.items(), key=lambda item: -item[1]):
        print(f"{milliseconds_:6.1f} ms  {name[:100]}")
    assert max(database.taken.values()) < 20


# --- alerts -----------------------------------------------------------------------------------------------------------


def share(stream: int, year: Seed) -> float:
    recent = [n for n in range(100) if (year.committed(n) > datetime.now(timezone.utc) - timedelta(minutes=15))]
    found = [seeds.counters(n, stream) for n in recent]
    return sum(c["quarantined"] for c in found) / (sum(sum(c.values()) for c in found) or 1)


ALERT_ANSWERS: dict[str, Callable[[Seed], dict[str, float]]] = {
    "Stale pipeline": lambda y: {name: passed(y) / 300 for name in ALL_STREAMS},
    "Lag in records": lambda y: dict.fromkeys(ALL_STREAMS, 0),
    "Quarantine rate": lambda y: {name: share(number(name), y) for name in ALL_STREAMS},
    # one is overdue; one had nothing to load, which is not overdue; the last run of one has failed; one never ran
    "Failed gold": lambda y: {"gold.conversion_rate_daily": (30 + passed(y) / 3600) / 26,
                              "gold.daily_active_users": (70 / 60 + passed(y) / 3600) / 26,
                              "gold.events_per_source_daily": 1000, "gold.purchases_per_page_daily": 1000},
}  # fmt: skip
FIRING = {"Stale pipeline": set(), "Lag in records": set(), "Quarantine rate": {STREAMS[1]},
          "Failed gold": {"gold.conversion_rate_daily", "gold.events_per_source_daily",
                          "gold.purchases_per_page_daily"}}  # fmt: skip


@pytest.mark.parametrize("title", RULES)
def test_an_alert_fires_for_those_that_it_should_and_for_no_other(title: str, year: Seed, ask: Ask) -> None:
    rule = RULES[title]
    query, threshold = rule["data"]
    assert (query["refId"], query["model"]["refId"], query["model"]["format"]) == ("A", "A", "table")
    assert (rule["condition"], threshold["refId"], threshold["model"]["expression"]) == ("B", "B", "A")
    columns, rows = ask(query["model"]["rawSql"], hour(year))
    assert columns == {"pipeline": "text", "value": "float8"}, "one number, and text for the labels"
    expected = ALERT_ANSWERS[title](year)
    assert dict(rows) == {name: pytest.approx(value, rel=0.02, abs=0.02) for name, value in expected.items()}
    (condition,) = threshold["model"]["conditions"]
    assert condition["evaluator"]["type"] == "gt"
    assert {name for name, value in rows if value > condition["evaluator"]["params"][0]} == FIRING[title]


def test_there_are_alerts_for_what_goes_wrong_and_they_hold_no_variable() -> None:
    assert set(RULES) == set(ALERT_ANSWERS)
    # Grafana puts its environment in place of a dollar's name, in some fields of these files
    assert "$" not in (FOLDER / grafana.ALERTS).read_text()
    assert all("{{ .Labels.pipeline }}" in rule["annotations"]["summary"] for rule in RULES.values())


def test_a_stream_with_much_to_read_is_behind_and_one_that_has_caught_up_since_is_not(year: Seed, ask: Ask) -> None:
    rule = RULES["Lag in records"]
    (limit,) = rule["data"][1]["model"]["conditions"][0]["evaluator"]["params"]
    for table, pipeline, condition in (("batches", STREAMS[0], "pipeline = %s and committed_at = %s"),
                                       ("runs", LANDING, "pipeline = %s and ended_at = %s")):  # fmt: skip
        for back, fires in ((1, False), (0, True)):
            changed = f"update lakehouse.{table} set behind = %s where {condition}"
            year.run(changed, limit + 1, pipeline, year.committed(back))
            found = dict(ask(rule["data"][0]["model"]["rawSql"], hour(year))[1])
            year.run(changed, seeds.behind(back), pipeline, year.committed(back))
            assert (found[pipeline] > limit) is fires


def test_what_never_ran_is_stale(year: Seed, ask: Ask, tmp_path: Path) -> None:
    specs = load([project(tmp_path, {"realtime/new_one.yaml": stream("measures: {n: count(*)}", "{title: New}")})])
    rules = yaml.safe_load(grafana.rendered(specs)[grafana.ALERTS])["groups"][0]["rules"]
    (text,) = [rule["data"][0]["model"]["rawSql"] for rule in rules if rule["title"] == "Stale pipeline"]
    assert dict(ask(text, hour(year))[1])["realtime.new_one"] == 1000


# --- panels of other kinds --------------------------------------------------------------------------------------------


def project(folder: Path, files: dict[str, str]) -> Path:
    """The reference pipelines with some added or replaced."""
    for file in (PROJECT / "pipelines").rglob("*.yaml"):
        if not file.name.endswith(".test.yaml"):
            to = folder / file.relative_to(PROJECT / "pipelines")
            to.parent.mkdir(exist_ok=True, parents=True)
            to.write_text(file.read_text())
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def stream(window: str, panel: str, table: str = "realtime.events_per_minute") -> str:
    text = (PROJECT / "pipelines" / f"{table.replace('.', '/')}.yaml").read_text().partition("panel:")[0]
    return re.sub(r"measures: \{.*?\}", window, text) + f"panel: {panel}\n"


def panelled(name: str, panel: str) -> str:
    return (PROJECT / "pipelines" / f"{name}.yaml").read_text().partition("panel:")[0] + f"panel: {panel}\n"


def asked(folder: Path, name: str, panel: str) -> dict[str, Any]:
    specs = load([project(folder, {f"{name}.yaml": panelled(name, panel)})])
    panels = json.loads(grafana.rendered(specs)[grafana.OVERVIEW])["panels"]
    (found,) = [p for p in panels if p["title"] == "Mine"]
    return dict(found)


def test_bars_and_a_table_over_minutes(year: Seed, ask: Ask, tmp_path: Path) -> None:
    shown = hour(year)
    name = "realtime/logins_per_source"
    bars = asked(tmp_path, name, "{title: Mine, type: bars, by: source}")
    totals = {s: sum(seeds.logins(m, i) or 0 for m in minutes(shown)) for i, s in enumerate(SOURCES)}
    columns, rows = ask(bars["targets"][0]["rawSql"], shown)
    assert columns == {"source": "text", "login_count": "float8"}
    assert rows == sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    table = asked(tmp_path, name, "{title: Mine, type: table}")
    columns, rows = ask(table["targets"][0]["rawSql"], shown)
    assert columns == {"window_start": "timestamptz", "source": "text", "login_count": "int8"}
    expected = {(m, s): seeds.logins(m, i) for m in minutes(shown) for i, s in enumerate(SOURCES)}
    known = {(int(at.timestamp()) // 60, source): count for at, source, count in rows}
    assert known.items() <= expected.items()
    assert len(known) == len(rows) == min(100, sum(count is not None for count in expected.values()))


@pytest.mark.parametrize(("aggregate", "function"), [("max", max), ("min", min), ("avg", lambda v: sum(v) / len(v))])
def test_another_aggregate_over_minutes(aggregate: str, function: Callable[[list[int]], float], year: Seed, ask: Ask,
                                        tmp_path: Path) -> None:  # fmt: skip
    shown = hour(year, step=600)
    panel = asked(tmp_path, "realtime/purchases_per_minute", f"{{title: Mine, aggregate: {aggregate}}}")
    found = defaultdict(list)
    for minute in minutes(shown):
        if (count := seeds.purchases(minute)) is not None:
            found[minute * 60 // 600 * 600].append(count)
    columns, rows = ask(panel["targets"][0]["rawSql"], shown)
    assert columns == {"time": "numeric", "purchase_count": "float8"}
    assert as_numbers(rows) == [(at, pytest.approx(function(found[at]))) for at in sorted(found)]


def test_a_series_over_days_has_its_days_in_utc(year: Seed, ask: Ask, tmp_path: Path) -> None:
    panel = asked(tmp_path, "gold/daily_active_users", "{title: Mine}")
    shown = Range(year.now - timedelta(days=10), year.now - timedelta(days=5))
    columns, rows = ask(panel["targets"][0]["rawSql"], shown)
    assert columns == {"time": "timestamptz", "dau_count": "float8"}

    def midnight(day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)

    days = [shown.start.date() + timedelta(days=n) for n in range(6)]
    assert rows == [(midnight(day), seeds.users(day)) for day in days]


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_committed_files_are_as_the_pipelines_say(tmp_path: Path) -> None:
    files = grafana.rendered(load([PROJECT / "pipelines"]))
    grafana.check(FOLDER, files)
    changed = load([project(tmp_path, {"gold/daily_active_users.yaml": panelled(
        "gold/daily_active_users", "{title: Users, type: stat}")})])  # fmt: skip
    with pytest.raises(LakehouseError, match=r"dashboards/overview\.json") as refused:
        grafana.check(FOLDER, grafana.rendered(changed))
    assert refused.value.code == "GRAFANA_STALE"


def test_the_command_writes_what_its_check_accepts(tmp_path: Path) -> None:
    pipelines = project(tmp_path / "pipelines", {})

    def command(*words: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "lakehouse_engine.cli", "grafana", *words]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, message = command("--check")
    assert (code, "GRAFANA_STALE" in message) == (2, True)
    assert command() == command("--check") == (0, "")
    assert (tmp_path / "prometheus" / "alerts.yaml").read_text() == (PROJECT / "prometheus/alerts.yaml").read_text()
    assert (tmp_path / "grafana" / grafana.OVERVIEW).read_text() == (FOLDER / grafana.OVERVIEW).read_text()
    file = pipelines / "gold" / "daily_active_users.yaml"
    file.write_text(file.read_text().replace("title: DAU", "title: Users"))
    assert command("--check")[0] == 2


def test_a_panel_does_not_make_another_pipeline() -> None:
    (spec,) = [s for s in load([PROJECT / "pipelines"]) if s.name == "gold.daily_active_users"]
    assert spec.panel
    assert fingerprint(spec) == fingerprint(spec.model_copy(update={"panel": ()}))


def test_the_documented_panel_is_one_and_every_option_is_documented(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "grafana.md").read_text()
    (example,) = re.findall(r"```yaml\n(panel: .*?)```", text, re.DOTALL)
    window = panelled("realtime/purchases_per_minute", "{}").partition("panel:")[0]
    specs = load([project(tmp_path, {"realtime/logouts.yaml": window.replace("purchase", "logout") + example})])
    (panel,) = [panel for spec in specs for panel in spec.panel if spec.name == "realtime.logouts"]
    assert (panel.title, panel.type) == ("Logouts", "timeseries")
    assert re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE) == list(Panel.model_fields)


def test_panels_alerts_and_the_data_source_name_each_other() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/lakehouse.yaml").read_text())["datasources"]
    named = [p["datasource"] for d in (OVERVIEW, PIPELINES) for p in d["panels"]]
    named += [t["datasource"] for d in (OVERVIEW, PIPELINES) for p in d["panels"] for t in p["targets"]]
    named += [rule["data"][0]["model"]["datasource"] for rule in RULES.values()]
    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in named)
    assert {rule["data"][0]["datasourceUid"] for rule in RULES.values()} == {source["uid"]}
    assert source["type"] == "grafana-postgresql-datasource"
    assert (source["user"], source["jsonData"]["database"]) == ("lakehouse_reader", "$LAKEHOUSE_POSTGRES_DATABASE")
    assert re.fullmatch(r"\$__file\{/run/secrets/\w+\}", source["secureJsonData"]["password"])


def test_dashboards_have_what_grafana_wants() -> None:
    for dashboard in (OVERVIEW, PIPELINES):
        assert dashboard["schemaVersion"] == 42
        panels = dashboard["panels"]
        assert len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)
        cells = Counter((x, y) for p in panels for g in [p["gridPos"]]
                        for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"]))  # fmt: skip
        assert max(cells.values()) == 1, "panels lie on each other"
        assert max(x for x, _ in cells) < 24
        for panel in panels:
            (target,) = panel["targets"]
            assert target["format"] == ("time_series" if panel["type"] == "timeseries" else "table")
