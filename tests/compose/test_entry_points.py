"""What runs in the containers runs here: scripts, commands, settings and health checks of compose.yaml.

Not here: the images themselves, their own entry points, Grafana, networks, mounts and limits (docs/compose.md).
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource
from psycopg2.errors import InsufficientPrivilege

from demo.reconcile import reconcile
from lakehouse_engine.local.java import find_java
from tests.compose.conftest import init, services
from tests.compose.platform import PYTHON, SCRIPTS, Compose, port
from tests.platform import PROJECT


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """The platform of compose.yaml with its broker and its database."""
    # Not pytest's own folder: as root that one is closed to the user PostgreSQL runs as.
    root = Path(tempfile.mkdtemp(prefix="lakehouse-compose-"))
    root.chmod(0o755)
    made = Compose(root)
    try:
        made.start_kafka()
        made.start_postgres()
        yield made
    finally:
        made.close()
        shutil.rmtree(root)


def query(dsn: str, text: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn, connect_timeout=10)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall() if cursor.description else []


def topic_made(compose: Compose) -> None:
    """As the service `topics` does it; a second time changes nothing."""
    command = [PYTHON, str(SCRIPTS / "topics.py")]
    made = subprocess.run(command, cwd=compose.folder, env=compose.variables("topics"), text=True, capture_output=True,
                          timeout=60)  # fmt: skip
    assert (made.returncode, made.stdout) == (0, "topic user-events has 3 partitions\n"), made.stderr


def test_the_topic_is_made_with_its_partitions_and_its_retention_and_outlives_the_broker(compose: Compose) -> None:
    topic_made(compose)
    compose.stop("kafka")
    compose.start_kafka_again()
    topic_made(compose)
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{compose.kafka_port}"})
    wanted = ConfigResource("topic", "user-events")
    found = client.describe_configs([wanted])[wanted].result(30)
    assert found["retention.ms"].value == str(24 * 60 * 60 * 1000)
    assert len(client.list_topics(timeout=10).topics["user-events"].partitions) == 3
    assert "mistyped" not in client.list_topics("mistyped", timeout=10).topics or client.list_topics(
        "mistyped", timeout=10).topics["mistyped"].error is not None  # fmt: skip


def test_each_role_logs_in_with_its_own_password_alone_and_can_do_its_own_work_alone(compose: Compose) -> None:
    for user, database in (("engine", "lakehouse"), ("airflow", "airflow"), ("lakehouse_reader", "lakehouse"),
                           ("postgres", "postgres")):  # fmt: skip
        assert query(compose.dsn(user, database), "select current_user") == [(user,)]
        for guess in ("", user, compose.secret("grafana_admin_password")):
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(compose.dsn(user, database), password=guess)
    for user, database in (("engine", "airflow"), ("airflow", "lakehouse"), ("lakehouse_reader", "airflow"),
                           ("engine", "postgres")):  # fmt: skip
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(compose.dsn(user, database))

    engine, reader = compose.dsn("engine"), compose.dsn("lakehouse_reader")
    query(engine, "create schema if not exists lakehouse; create schema silver; create table gold.made (n int);"
                  " insert into gold.made values (1)")  # fmt: skip
    try:
        assert query(reader, "select n from gold.made") == [(1,)]
        for statement in ("insert into gold.made values (2)", "create table gold.mine (n int)", "drop table gold.made"):
            with pytest.raises(InsufficientPrivilege):
                query(reader, f"set transaction read write; {statement}")
    finally:
        query(engine, "drop table gold.made; drop schema silver")
    for statement in ("create role other", "select pg_read_file('/etc/passwd')",
                      "alter role lakehouse_reader set statement_timeout = 0"):  # fmt: skip
        with pytest.raises(InsufficientPrivilege):
            query(engine, statement)
    assert query(compose.dsn("postgres"), "select rolname from pg_roles where rolsuper") == [("postgres",)]
    log = (compose.folder / "postgres.log").read_text()
    assert not any(path.read_text() in log for path in compose.secrets.iterdir())


def test_a_role_takes_a_new_password_and_forgets_the_old_one(compose: Compose) -> None:
    before, file = compose.dsn("lakehouse_reader"), compose.secrets / "lakehouse_reader_password"
    file.unlink()
    assert init(compose.folder).returncode == 0
    compose.set_passwords()
    assert query(compose.dsn("lakehouse_reader"), "select 1") == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(before)


def test_events_become_right_rows_and_the_services_stop_when_they_are_told(compose: Compose) -> None:
    topic_made(compose)
    assert not compose.healthy("producer")
    assert not compose.healthy("jobs")
    producer, how = compose.lakehouse("producer"), services()["producer"]["stop_signal"]
    assert producer[-1] == "produce"
    compose.start("producer", producer, EVENTS_PER_SECOND="200")
    compose.until(lambda: compose.healthy("producer"), "the producer is healthy")
    before = set(compose.folder.iterdir())
    shown = {"METRICS_PORT": str(port()), "METRICS_HOST": "127.0.0.1"}
    command = [{"0.0.0.0": "127.0.0.1", "9464": shown["METRICS_PORT"]}.get(w, w) for w in compose.lakehouse("engine")]
    assert shown["METRICS_PORT"] in command
    compose.start("engine", command, JAVA_HOME=str(find_java().home), **shown)
    compose.until(lambda: compose.healthy("engine", **shown), "the engine is healthy")
    reader = compose.dsn("lakehouse_reader")
    table = "realtime.events_per_minute"
    compose.until(lambda: query(reader, f"select to_regclass('{table}')") != [(None,)]
                  and query(reader, f"select count(*) from {table}") != [(0,)], "rows are there")  # fmt: skip
    assert compose.stop("producer", signal.Signals[how]) == 0, compose.log("producer")

    def off() -> list[str]:
        checks = reconcile(f"127.0.0.1:{compose.kafka_port}", reader, compose.folder / "storage", "user-events",
                           ("bronze", "realtime"))  # fmt: skip
        assert checks
        return [str(check) for check in checks if not check.ok]

    compose.until(lambda: off() == [], "every event is counted")
    assert compose.stop("engine") == 0, compose.log("engine")
    assert off() == []
    ledger = {"METRICS_PORT": str(port()), "METRICS_HOST": "127.0.0.1"}
    assert not compose.healthy("metrics", **ledger)
    compose.start("metrics", [PYTHON, str(SCRIPTS / "metrics.py")], **ledger)
    compose.until(lambda: compose.healthy("metrics", **ledger), "the ledger's metrics are shown")
    with urllib.request.urlopen(f"http://127.0.0.1:{ledger['METRICS_PORT']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "lakehouse_ledger_up 1.0" in text
    counted = re.findall(r'lakehouse_rows_total\{outcome="counted",pipeline="realtime.events_per_minute"\} (\S+)', text)
    assert [(float(value),) for value in counted] == query(reader, f"select sum(event_count)::float from {table}")
    # the container's file system is closed but for the storage and /tmp
    assert {path.name for path in set(compose.folder.iterdir()) - before} == {"engine.log", "metrics.log", "storage"}
    for name in ("engine", "producer", "metrics"):
        text = (compose.folder / f"{name}.log").read_text()
        assert not any(path.read_text() in text for path in compose.secrets.iterdir())


def test_airflow_starts_with_its_secrets_in_files(compose: Compose, airflow_venv: Path) -> None:
    api, home = port(), compose.folder / "airflow-home"
    home.mkdir()
    here = {"AIRFLOW_COMMAND": str(airflow_venv / "bin" / "airflow"), "AIRFLOW_HOME": str(home),
            "AIRFLOW_LOGS": str(home / "logs"), "LAKEHOUSE_PROJECT": str(compose.folder), "AIRFLOW_HOST": "127.0.0.1",
            "AIRFLOW_API_PORT": str(api), "AIRFLOW_API": f"http://127.0.0.1:{api}", "PYTHONPATH": ""}  # fmt: skip
    shutil.copytree(PROJECT / "airflow" / "dags", compose.folder / "airflow" / "dags")

    def airflow(*words: str) -> str:
        ran = subprocess.run([str(SCRIPTS / "airflow.sh"), *words], cwd=compose.folder, text=True, capture_output=True,
                             env=compose.variables("airflow", **here), timeout=120)  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        return ran.stdout

    assert services()["airflow-init"]["command"] == ["db", "migrate"]
    airflow("db", "migrate")
    assert query(compose.dsn("airflow", "airflow"), "select count(*) > 30 from pg_tables where tableowner = 'airflow'"
                 ) == [(True,)]  # fmt: skip
    compose.start("airflow", [str(SCRIPTS / "airflow.sh"), *services()["airflow"]["command"]], **here)
    listed = json.loads(airflow("dags", "list", "--local", "--output", "json").splitlines()[-1])
    assert {dag["dag_id"] for dag in listed} == {"lakehouse_bronze_to_gold", "lakehouse_maintenance"}
    compose.until(lambda: compose.healthy("airflow", **here), "the API server is healthy")
    assert not compose.healthy("airflow-scheduler", **here)

    def token(password: str) -> int:
        body = json.dumps({"username": "admin", "password": password}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{api}/auth/token", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)

    assert token(compose.secret("airflow_admin_password")) == 201
    with pytest.raises(urllib.error.HTTPError, match="401"):
        token("admin")
    assert (home / "passwords.json").stat().st_mode & 0o777 == 0o600
    text = compose.log("airflow") + Path(f"/proc/{compose.processes['airflow'].pid}/environ").read_text()
    assert not any(path.read_text() in text for path in compose.secrets.iterdir())
    compose.stop("airflow")
