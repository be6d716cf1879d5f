"""The read-only API, over real HTTP, on a real PostgreSQL."""

from __future__ import annotations

import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.errors import ReadOnlySqlTransaction

from lakehouse_engine import database as databases
from lakehouse_engine.database import Database, Shared
from lakehouse_engine.errors import RunError
from tests.dashboard.conftest import Served, serving
from tests.grafana.seed import LANDING, STREAMS, TYPES, Seed, tables
from tests.platform import PROJECT

EVENTS = "/api/tables/realtime.events_per_minute"


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20) as made:
        yield made


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def minute(seed: Seed, back: int) -> str:
    return (seed.now - timedelta(minutes=back)).isoformat().replace("+00:00", "Z")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_tables_of_both_schemas_and_no_others(client: httpx.Client, seed: Seed) -> None:
    listed = {t["name"]: t for t in client.get("/api/tables").json()["tables"]}
    there = seed.run("select schemaname || '.' || tablename from pg_tables where schemaname in ('realtime', 'gold')")
    assert set(listed) == {name for (name,) in there}
    assert listed["realtime.events_per_minute"]["kind"] == "table"
    assert listed["realtime.events_per_minute__late"]["kind"] == "late"
    assert listed["gold.daily_active_users"]["columns"][:2] == [
        {"name": "event_date", "type": "date"}, {"name": "dau_count", "type": "bigint"}]  # fmt: skip
    for hidden in ("lakehouse.batches", "pg_catalog.pg_authid", "public.x", "realtime", "x", "realtime.", "%00"):
        assert error(client.get(f"/api/tables/{hidden}")) == (404, "UNKNOWN_TABLE")


@pytest.mark.parametrize(("filters", "condition"), [
    ("event_type=click", "event_type = 'click'"),
    ("event_type.ne=click", "event_type <> 'click'"),
    ("event_type.in=click,login", "event_type in ('click', 'login')"),
    ("event_count.gt=40&event_count.lte=44", "event_count > 40 and event_count <= 44"),
    ("event_count.lt=3&event_type.eq=login", "event_count < 3 and event_type = 'login'"),
    ("window_start.gte={ten}", "window_start >= '{ten}'"),
    ("event_type.null=true", "event_type is null"),
    ("event_type.null=false&window_start.gte={ten}", "window_start >= '{ten}'"),
    ("event_type=o'brien", "false"),
])  # fmt: skip
def test_a_filter_is_what_it_says(filters: str, condition: str, client: httpx.Client, seed: Seed) -> None:
    ten = minute(seed, 10)
    found = client.get(f"{EVENTS}?{filters.format(ten=ten)}&order=-window_start,event_type&limit=1000").json()
    expected = seed.run("select window_start, event_type, event_count from realtime.events_per_minute where "
                        f"{condition.format(ten=ten)} order by 1 desc, 2 limit 1000")  # fmt: skip
    assert [(datetime.fromisoformat(row[0].replace("Z", "+00:00")), *row[1:3]) for row in found["rows"]] == expected
    assert [c["name"] for c in found["columns"]] == ["window_start", "event_type", "event_count", "updated_at"]


def test_pages_follow_each_other_without_a_gap(client: httpx.Client, seed: Seed) -> None:
    address: str | None = f"{EVENTS}?event_type.in=click,login&limit=700&columns=window_start,event_type"
    rows: list[Any] = []
    pages = 0
    while address:
        page = client.get(address).json()
        rows += map(tuple, page["rows"])
        address, pages = page["next"], pages + 1
    ((count,),) = seed.run("select count(*) from realtime.events_per_minute where event_type in ('click', 'login')")
    assert pages == -(-count // 700)
    assert len(rows) == len(set(rows)) == count
    assert rows == sorted(rows), "by its keys where nothing else is asked for"


def test_limits(client: httpx.Client) -> None:
    assert len(client.get(EVENTS).json()["rows"]) == 100
    assert len(client.get(f"{EVENTS}?limit=1000").json()["rows"]) == 1000
    assert client.get(f"{EVENTS}?limit=1&offset=1000000").json()["rows"] == []
    for wrong in ("limit=1001", "limit=0", "limit=-1", "limit=x", "limit=1e3", "offset=-1", "offset=1000001",
                  "limit=٣", "limit=", "limit=99999999999999999999"):  # fmt: skip
        assert error(client.get(f"{EVENTS}?{wrong}")) == (400, "BAD_PAGE"), wrong


@pytest.mark.parametrize(("asked", "code"), [
    ("nothing=1", "BAD_FILTER"), ("event_type.like=c", "BAD_FILTER"), ("event_count=x", "BAD_FILTER"),
    ("window_start.gte=yesterdayish", "BAD_FILTER"), ("event_count.in=1,x", "BAD_FILTER"), ("=1", "BAD_FILTER"),
    ("event_count=99999999999999999999", "BAD_FILTER"), ("event_type.null=maybe", "BAD_FILTER"),
    ("event_type=%00", "BAD_FILTER"), ("order=nothing", "BAD_ORDER"), ("order=", None),
    ("order=event_type desc", "BAD_ORDER"), ("columns=nothing", "BAD_COLUMNS"), ("columns=", "BAD_COLUMNS"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said_with_the_columns(asked: str, code: str | None, client: httpx.Client) -> None:
    answer = client.get(f"{EVENTS}?{asked}")
    if code is None:
        assert answer.status_code == 200
        return
    assert error(answer) == (400, code)
    assert "window_start (timestamp with time zone), event_type (text)" in answer.json()["error"]["message"]


@pytest.mark.parametrize("attack", [
    "'; drop table realtime.events_per_minute; --", '" ; drop table realtime.events_per_minute; --',
    "1); delete from realtime.events_per_minute; --", "%s", "%(x)s", "{}", "$1", "click' or '1'='1", "\\'; select 1",
])  # fmt: skip
def test_sql_in_any_place_is_data(attack: str, client: httpx.Client, seed: Seed) -> None:
    before = seed.run("select count(*) from realtime.events_per_minute")
    quoted = quote(attack, safe="")
    assert client.get(f"{EVENTS}?event_type={quoted}").json()["rows"] == []
    assert error(client.get(f"{EVENTS}?event_count={quoted}")) == (400, "BAD_FILTER")
    assert error(client.get(f"{EVENTS}?{quoted}=1")) == (400, "BAD_FILTER")
    assert error(client.get(f"{EVENTS}?event_type.{quoted}=1")) == (400, "BAD_FILTER")
    assert error(client.get(f"{EVENTS}?order={quoted}")) == (400, "BAD_ORDER")
    assert error(client.get(f"{EVENTS}?columns={quoted}")) == (400, "BAD_COLUMNS")
    assert error(client.get(f"/api/tables/realtime.{quoted}"))[0] == 404
    assert error(client.get(f"/api/pipelines/{quoted}"))[0] == 404
    assert error(client.get(f"/api/dashboards/lakehouse-overview/panels?range={quoted}")) == (400, "BAD_RANGE")
    assert error(client.get(f"/api/dashboards/lakehouse-overview/panels?from={quoted}")) == (400, "BAD_RANGE")
    assert error(client.get(f"/api/dashboards/lakehouse-overview/panels?ids={quoted}"))[0] in (400, 404)
    assert seed.run("select count(*) from realtime.events_per_minute") == before


def test_names_and_values_of_every_type(database: str, tmp_path: Path) -> None:
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("""create schema gold; create table gold."Odd "" name" (
            "Order" int, "limit" text, "a.b" text, n numeric, d double precision, b bytea, j jsonb, l text[],
            f boolean);
            insert into gold."Odd "" name" values (1, 'x', 'y', 1.10, 'NaN', '\\xff00', '{"k": [1]}', '{p,NULL}', true),
            (2, null, null, null, null, 'text', null, null, null)""")
    with serving(database, tmp_path) as made, httpx.Client(base_url=made.url) as client:
        path = "/api/tables/" + quote('gold.Odd " name')
        assert client.get(path).json()["rows"] == [
            [1, "x", "y", "1.10", "nan", "\\xff00", {"k": [1]}, ["p", None], True],
            [2, None, None, None, None, "text", None, None, None]]  # fmt: skip
        for asked, expected in (("a.b=y", 1), ("a.b.eq=z", 0), ("limit.eq=x", 1), ("f=true", 1), ("n=1.1", 1),
                                ("j.null=false", 1), ("Order.gte=1&order=-Order", 2)):  # fmt: skip
            assert len(client.get(f"{path}?{asked}").json()["rows"]) == expected, asked


# --- dashboards -------------------------------------------------------------------------------------------------------


def test_the_dashboards_are_grafanas_without_their_queries(client: httpx.Client) -> None:
    for uid, file in (("lakehouse-overview", "overview"), ("lakehouse-pipelines", "pipelines")):
        answer = client.get(f"/api/dashboards/{uid}")
        assert "select" not in answer.text.lower()
        committed = json.loads((PROJECT / "grafana" / "dashboards" / f"{file}.json").read_text())
        for panel in committed["panels"]:
            del panel["targets"], panel["datasource"]
        shown = answer.json()
        for panel in shown["panels"]:
            del panel["pipeline"]
        assert shown == committed
    assert error(client.get("/api/dashboards/x")) == (404, "UNKNOWN_DASHBOARD")
    assert error(client.get("/api/dashboards/lakehouse-overview/panels/99")) == (404, "UNKNOWN_PANEL")
    assert error(client.get("/api/dashboards/lakehouse-overview/panels/x")) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(("wanted", "step"), [
    ("range=5m", 60), ("range=1h", 60), ("range=6h", 120), ("range=24h", 600), ("range=7d", 3600), ("range=30d", 10800),
    ("from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00Z", 60),
])  # fmt: skip
def test_a_filled_series_has_every_step_of_its_time(wanted: str, step: int, client: httpx.Client) -> None:
    (data,) = client.get(f"/api/dashboards/lakehouse-overview/panels?ids=5&{wanted}").json()["panels"]
    if "from" in wanted:
        assert (data["state"], data["message"]) == (
            "empty",
            f"nothing in this time: lakehouse run {_file('events_per_minute')}",
        )
        return
    assert data["step"] == step
    times = data["time"]
    assert all(b - a == step for a, b in pairwise(times))
    start, end = (datetime.fromisoformat(data[k].replace("Z", "+00:00")).timestamp() for k in ("from", "to"))
    assert times[0] <= start < times[0] + step
    assert times[-1] <= end < times[-1] + step
    assert [s["name"] for s in data["series"]] == sorted(TYPES)
    assert all(len(s["values"]) == len(times) and None not in s["values"] for s in data["series"])


def _file(name: str) -> str:
    return str(PROJECT / "pipelines" / "realtime" / f"{name}.yaml")


def test_wrong_ranges(client: httpx.Client) -> None:
    for wrong in (
        "range=1y",
        "range=0h",
        "range=-1h",
        "range=99999d",
        "from=2026-01-02&to=2026-01-01",
        "to=2026-01-01",
    ):
        assert error(client.get(f"/api/dashboards/lakehouse-overview/panels?{wrong}")) == (400, "BAD_RANGE"), wrong


def test_ten_viewers_cost_one(seed: Seed, tmp_path: Path) -> None:
    with serving(seed.dsn, tmp_path) as made, httpx.Client(base_url=made.url) as client:
        path = "/api/dashboards/lakehouse-overview/panels?ids=5,6&range=1h"
        client.get(path)
        one = made.project.database.queries
        assert one == 2
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: httpx.get(made.url + path).text, range(10)))
        assert len(set(answers)) <= 2, "those of one second are the same"
        assert made.project.database.queries - one <= 4


def test_a_shared_answer_is_made_once_and_an_error_as_well() -> None:
    shared, made = Shared(), Counter[str]()

    def fails() -> int:
        made["fails"] += 1
        raise RunError("X", "x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.get("a", lambda: made.update(["a"]) or 5), range(50)))
    for _ in range(3):
        with pytest.raises(RunError):
            shared.get("fails", fails)
    assert made == {"a": 1, "fails": 1}


# --- the database -----------------------------------------------------------------------------------------------------


def test_a_query_changes_nothing_and_ends(seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_OPTIONS", databases._OPTIONS.replace("=5s", "=200ms"))
    database = Database(lambda: seed.dsn)
    for statement in ("delete from lakehouse.positions returning 1", "create table gold.x (n int)",
                      "set transaction read write; delete from lakehouse.positions"):  # fmt: skip
        with pytest.raises((ReadOnlySqlTransaction, psycopg2.errors.ActiveSqlTransaction)):
            database.ask(f"select 1; {statement}" if statement.startswith("set") else statement)
    with pytest.raises(RunError, match="longer than") as ended:
        database.ask("select pg_sleep(30)")
    assert ended.value.code == "QUERY_TIMEOUT"
    assert database.ask("select n from generate_series(1, 5) n", limit=3) == databases.Answer(
        ("n",), [(1,), (2,), (3,)], True
    )
    database.close()


@pytest.mark.parametrize(("suffix", "time"), [("late", "arrived_at"), ("quarantine", "quarantined_at")])
def test_the_newest_kept_aside_are_found_without_reading_all(suffix: str, time: str, database: str) -> None:
    table = f"{STREAMS[0]}__{suffix}"
    rest = "'x'" if suffix == "late" else "array['x'], 'x'"
    columns = 'origin, partition, "offset"' if suffix == "late" else 'reasons, origin, partition, "offset"'
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        tables(cursor)
        tables(cursor)  # an engine that starts again makes no second index
        cursor.execute(f"insert into {table} ({time}, batch_id, step, {columns}) select now() - n * interval '1 s', 1,"
                       f" 's', {rest}, 1, n from generate_series(1, 20000) n")  # fmt: skip
        cursor.execute(f"analyze {table}")
        cursor.execute(f"explain select * from {table} order by {time} desc limit 20")
        assert "Index Scan Backward" in "".join(row[0] for row in cursor.fetchall())
        cursor.execute("select count(*) from pg_indexes where schemaname || '.' || tablename = %s", (table,))
        assert cursor.fetchone() == (1,)


def test_without_postgresql_it_says_what_to_start(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dsn = f"postgresql://x@127.0.0.1:{closed.getsockname()[1]}/x"
        with serving(dsn, tmp_path) as made, httpx.Client(base_url=made.url) as client:
            for path in ("/api/pipelines", "/api/tables", "/api/dashboards/lakehouse-overview/panels"):
                answer = client.get(path)
                assert error(answer) == (503, "POSTGRES_UNREACHABLE")
                assert "lakehouse up" in answer.json()["error"]["message"]
            assert (client.get("/healthz").status_code, client.get("/healthz").json()["status"]) == (503, "failing")
            assert client.get("/").status_code == 200
            assert "lakehouse_ledger_up 0" in client.get("/metrics").text


def test_a_connection_that_died_is_replaced(seed: Seed) -> None:
    database = Database(lambda: seed.dsn)
    ((pid,),) = database.ask("select pg_backend_pid()").rows
    seed.run("select pg_terminate_backend(%s, 5000)", pid)
    assert database.ask("select 1").rows == [(1,)]
    database.close()


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_states_are_the_ledgers(client: httpx.Client, seed: Seed) -> None:
    states = {one["name"]: one for one in client.get("/api/pipelines").json()["pipelines"]}
    assert len(states) == 9
    passed = (datetime.now(timezone.utc) - seed.now).total_seconds()
    for stream in (*STREAMS, LANDING):
        one = states[stream]
        assert one["behind"] == 0
        assert (one["kind"], one["state"]) == ("stream", "running" if passed < 300 else "stale")
        assert one["age_seconds"] == pytest.approx(passed, abs=5)
        since = (datetime.now(timezone.utc) - timedelta(hours=1),)
        ((late, quarantined),) = seed.run("select sum(late), sum(quarantined) from lakehouse.commits where pipeline ="
                                          " %s and committed_at > %s", stream, *since)  # fmt: skip
        assert (one["hour"]["late"], one["hour"]["quarantined"]) == (late, quarantined)
    assert states["gold.conversion_rate_daily"]["state"] == "overdue"
    assert states["gold.daily_active_users"]["state"] == "ok"
    assert states["gold.purchases_per_page_daily"]["state"] == "never"
    failed = states["gold.events_per_source_daily"]
    assert (failed["state"], failed["failure"]["code"]) == ("failed", "CHECK_FAILED")
    assert states["silver.user_events"]["state"] == "ok"
    assert error(client.get("/api/pipelines/realtime.x")) == (404, "UNKNOWN_PIPELINE")


def test_health_is_the_age_of_progress(database: str, tmp_path: Path) -> None:
    for folder in ("contracts", "realtime"):
        shutil.copytree(PROJECT / "pipelines" / folder, tmp_path / "pipelines" / folder)
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        tables(cursor)
        for stream in STREAMS:
            cursor.execute("insert into lakehouse.batches (pipeline, epoch, batch_id, started_at, topic_id, ranges,"
                           " quarantined, filtered, duplicate, late, counted) values (%s, 1, 1, now(), 't', '{}', 0, 0,"
                           " 0, 0, 5)", (stream,))  # fmt: skip
    with serving(database, tmp_path, tmp_path / "pipelines") as made, httpx.Client(base_url=made.url) as client:
        assert (client.get("/healthz").status_code, client.get("/healthz").json()["status"]) == (200, "ok")
        with psycopg2.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("update lakehouse.batches set committed_at = now() - interval '301 s' where pipeline = %s",
                           STREAMS[:1])  # fmt: skip
        made.project.shared = Shared()  # a second later
        red = client.get("/healthz")
        assert red.status_code == 503
        assert [(one["pipeline"], one["state"]) for one in red.json()["wrong"]] == [(STREAMS[0], "stale")]


def test_a_file_that_changes_is_read_again_and_a_wrong_one_is_said(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lakehouse_engine.dashboard.project._LOOK", 0)
    folder = shutil.copytree(PROJECT / "pipelines", tmp_path / "pipelines")
    file = folder / "realtime" / "events_per_minute.yaml"
    with serving(database, tmp_path, folder) as made, httpx.Client(base_url=made.url) as client:
        text = file.read_text()
        file.write_text(text.replace("title: Total Events", "title: Everything"))
        titles = [p["title"] for p in client.get("/api/dashboards/lakehouse-overview").json()["panels"]]
        assert "Everything" in titles
        file.write_text(text.replace("sink: postgres", "sunk: postgres"))
        answer = client.get("/api/pipelines").json()
        assert "events_per_minute.yaml:" in answer["problems"][0]
        assert len(answer["pipelines"]) == 9
        file.write_text(text)
        assert client.get("/api/pipelines").json()["problems"] == []


def test_nothing_there_yet(database: str, tmp_path: Path) -> None:
    with serving(database, tmp_path) as made, httpx.Client(base_url=made.url) as client:
        assert {p["state"] for p in client.get("/api/pipelines").json()["pipelines"]} == {"never"}
        assert client.get("/api/tables").json() == {"tables": []}
        for uid in ("lakehouse-overview", "lakehouse-pipelines"):
            panels = client.get(f"/api/dashboards/{uid}/panels").json()["panels"]
            # one asks how large the tables are, and that is known of those that are not there
            missing = [p for p in panels if p["state"] == "missing"]
            assert len(panels) - len(missing) == (uid == "lakehouse-pipelines")
            assert all("lakehouse run" in p["message"] for p in missing)
        for stream in (*STREAMS, "bronze.user_events"):
            one = client.get(f"/api/pipelines/{stream}").json()
            assert (one["activity"], one["late"], one["quarantined"]) == (None, [], [])


def test_what_failed_says_so_until_it_has_run_again(client: httpx.Client, seed: Seed, served: Served) -> None:
    failed = client.get("/api/pipelines/gold.events_per_source_daily").json()
    assert [(e["kind"], e["code"], e["message"]) for e in failed["errors"]] == [
        ("job", "CHECK_FAILED", "it did not work")]  # fmt: skip
    mended = client.get("/api/pipelines/realtime.logins_per_source").json()
    assert mended["state"] in ("running", "stale")
    assert [e["code"] for e in mended["errors"]] == ["KAFKA_UNREACHABLE"]
    seed.run("insert into lakehouse.runs (pipeline, kind, started_at, outcome) values"
             " ('gold.events_per_source_daily', 'job', now(), 'nothing')")  # fmt: skip
    served.project.shared = Shared()
    assert client.get("/api/pipelines/gold.events_per_source_daily").json()["state"] == "ok"
    seed.run("delete from lakehouse.runs where pipeline = 'gold.events_per_source_daily' and outcome = 'nothing'")
    served.project.shared = Shared()


def test_metrics_are_the_ledgers(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {s.value for s in families["lakehouse_ledger_up"].samples} == {1}
    assert any(s.labels.get("pipeline") == LANDING for f in families.values() for s in f.samples)


def test_the_activity_of_a_stream_is_the_ledgers(client: httpx.Client, seed: Seed) -> None:
    found = client.get(f"/api/pipelines/{STREAMS[0]}?range=6h").json()
    start, end = (datetime.fromisoformat(found[k].replace("Z", "+00:00")) for k in ("from", "to"))
    start = datetime.fromtimestamp(start.timestamp() // 120 * 120, timezone.utc)
    rows = seed.run(
        "select floor(extract(epoch from committed_at) / 120) * 120, sum(quarantined + filtered + duplicate + late +"
        " counted) / 120.0, max(behind), sum(late) from lakehouse.batches where pipeline = %s and committed_at between"
        " %s and %s group by 1 order by 1", STREAMS[0], start, end)  # fmt: skip
    assert (found["step"], found["activity"]["time"]) == (120, [float(row[0]) for row in rows])
    series = {one["name"]: one["values"] for one in found["activity"]["series"]}
    over = [float(row[0]) + 120 <= end.timestamp() for row in rows]
    assert series["read"] == [pytest.approx(float(row[1])) if o else None for row, o in zip(rows, over, strict=True)]
    assert [series["behind"], series["late"]] == [[float(row[2]) for row in rows], [float(row[3]) for row in rows]]
    assert sum(over) >= len(rows) - 1 > 100


# --- the description --------------------------------------------------------------------------------------------------


def test_the_description_has_every_address_and_only_reading(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/tables", "/api/tables/{table}", "/api/pipelines", "/api/pipelines/{name}", "/api/graph",
        "/api/dashboards",
        "/api/dashboards/{uid}", "/api/dashboards/{uid}/panels", "/api/dashboards/{uid}/panels/{number}", "/healthz",
        "/metrics"}  # fmt: skip
    assert all(list(methods) == ["get"] for methods in described["paths"].values())
    for path in described["paths"]:
        assert error(client.post(path)) == (405, "READ_ONLY")
    assert error(client.get("/api/nothing")) == (404, "NOT_FOUND")


def test_the_graph_is_the_specs(client: httpx.Client) -> None:
    found = client.get("/api/graph").json()
    kinds = Counter(node["kind"] for node in found["nodes"])
    assert kinds == {"topic": 1, "delta": 6, "postgres": 7, "panel": 7}
    edges = {(edge["from"], edge["to"], edge["kind"]) for edge in found["edges"]}
    assert {("topic:user-events", "delta:bronze.user_events", "stream"),
            ("delta:bronze.user_events", "delta:silver.user_events", "job"),
            ("topic:user-events", "postgres:realtime.events_per_minute", "stream"),
            ("delta:gold.daily_active_users", "postgres:gold.daily_active_users", "serve"),
            ("postgres:gold.daily_active_users", "panel:gold.daily_active_users:DAU", "panel")} <= edges  # fmt: skip
    assert len(edges) == 9 + 4 + 7
