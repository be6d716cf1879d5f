"""A real Airflow on the embedded PostgreSQL: its four services, kept in ``<root>/.lakehouse/airflow``.

They are started one by one rather than by ``airflow standalone``, whose log servers listen on every interface and whose
children go on when it is stopped. They listen on loopback alone; the password is random and in a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import process
from lakehouse_engine.local.files import Report, locked, silent, write_atomically
from lakehouse_engine.local.process import Process

NAME = "airflow"
SERVICES: Mapping[str, tuple[str, ...]] = {
    "api-server": (),
    "dag-processor": (),
    "scheduler": ("--skip-serve-logs",),
    "triggerer": ("--skip-serve-logs",),
}
#: parts of the answer to a question about health
HEALTH = ("metadatabase", "scheduler", "dag_processor", "triggerer")
HEALTHY_WITHIN = 240.0
PATIENCE = 10.0


@dataclass(frozen=True)
class Running:
    """Where Airflow answers, and the file that holds the password of its user ``admin``."""

    url: str
    passwords: Path


def up(root: Path, dsn: str, *, venv: Path | None = None, dags: Path | None = None, report: Report = silent) -> Running:
    """Start what does not run yet and answer when all of it is healthy; a second call changes nothing.

    ``dsn`` is a database of the server that Airflow's own, ``airflow``, is made in. ``venv`` and ``dags`` are
    ``.airflow-venv`` and ``airflow/dags`` of the project unless given. Raises AIRFLOW_MISSING, AIRFLOW_NOT_READY.
    """
    settings = prepare(root, dsn, venv=venv, dags=dags, report=report)
    home = Path(settings["AIRFLOW_HOME"])
    with _only_one(home, report):
        began = time.monotonic()
        for service, options in SERVICES.items():
            log, record = home / "logs" / f"{service}.log", home / f"{service}.json"
            known = process.recorded(record)
            if known is None or not process.alive(known):
                report(f"starting Airflow's {service}")
                command = [str(_program(root, venv)), service, *options]
                process.spawn(command, log, record, mark=NAME, settings=settings)
        running = Running(settings["AIRFLOW__API__BASE_URL"], home / "passwords.json")
        _wait(home, running.url, began + HEALTHY_WITHIN, report)
    report(f"Airflow is healthy after {time.monotonic() - began:.0f} s")
    return running


def down(root: Path, report: Report = silent) -> bool:
    """Stop the services and what they run; tasks have some seconds to end by themselves. False when nothing ran."""
    home = root.resolve() / ".lakehouse" / NAME
    if not home.is_dir():
        return False
    with _only_one(home, report):
        records = [home / f"{service}.json" for service in SERVICES]
        leaders = [one for one in map(process.recorded, records) if one is not None]
        running = _families(leaders)
        # First the services: the scheduler waits for its tasks. Then all of it: a task takes its command along.
        for name, whom in ((signal.SIGTERM, leaders), (signal.SIGTERM, running), (signal.SIGKILL, running)):
            for one in whom:
                _signal(one, name)
            limit = time.monotonic() + PATIENCE
            left = [one for one in running if not process.gone(one, max(0.0, limit - time.monotonic()))]
            if not left:
                break
            report(f"{len(left)} processes of Airflow did not end within {PATIENCE:.0f} s of {name.name}")
            running += [one for one in _families(leaders) if one not in running]
        for record in records:
            record.unlink(missing_ok=True)
        return bool(running)


def _families(leaders: Sequence[Process]) -> list[Process]:
    return [one for leader in leaders for one in process.family(leader)]


def prepare(
    root: Path, dsn: str, *, venv: Path | None = None, dags: Path | None = None, report: Report = silent
) -> dict[str, str]:
    """The environment of Airflow's commands, with its folder, password and migrated database in place."""
    root = root.resolve()
    home = root / ".lakehouse" / NAME
    (home / "logs").mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    with _only_one(home, report):
        node = json.loads((home / "node.json").read_text()) if (home / "node.json").exists() else {}
        api = process.recorded(home / "api-server.json")
        if "port" not in node or api is None or not process.alive(api):
            node = {"port": process.choose_port(None, node.get("port"), "Airflow", report)}
            write_atomically(home / "node.json", json.dumps(node), 0o600)
        if not (home / "passwords.json").exists():
            write_atomically(home / "passwords.json", json.dumps({"admin": secrets.token_urlsafe(18)}), 0o600)
        connection = f"postgresql+psycopg2://{dsn.rpartition('/')[0].rpartition('://')[2]}/{NAME}"
        found = settings(root, connection, node["port"], dags or root / "airflow" / "dags")
        _create_database(dsn)
        report("bringing Airflow's database up to date")
        migrated = process.run([str(_program(root, venv)), "db", "migrate"], None, home, found)
        if migrated.returncode:
            lines = (migrated.stderr or migrated.stdout).strip().splitlines()
            raise RunError("AIRFLOW_NOT_READY", f"airflow db migrate: {' | '.join(lines[-3:])}")
    return found


def settings(root: Path, connection: str, port: int, dags: Path) -> dict[str, str]:
    """Airflow's configuration, as environment variables; what is secret by chance alone it keeps in ``airflow.cfg``."""
    home = root / ".lakehouse" / NAME
    url = f"http://127.0.0.1:{port}"
    sections = {
        "core": {
            "executor": "LocalExecutor", "parallelism": "4", "load_examples": "False", "dags_folder": str(dags),
            # The files say when something runs; a switch in a browser does not have to agree first.
            "dags_are_paused_at_creation": "False",
            "simple_auth_manager_passwords_file": str(home / "passwords.json"),
            "execution_api_server_url": f"{url}/execution/",
        },
        "database": {"sql_alchemy_conn": connection},
        "api": {"host": "127.0.0.1", "port": str(port), "base_url": url, "workers": "1"},
        # seconds until a changed pipeline file shows
        "dag_processor": {"min_file_process_interval": "10"},
        "logging": {"base_log_folder": str(home / "logs" / "tasks")},
        "usage_data_collection": {"enabled": "False"},
    }  # fmt: skip
    named = {f"AIRFLOW__{section}__{key}".upper(): value for section, keys in sections.items()
             for key, value in keys.items()}  # fmt: skip
    return {"AIRFLOW_HOME": str(home), "LAKEHOUSE_PROJECT": str(root), **named}


def _program(root: Path, venv: Path | None) -> Path:
    program = (venv or root.resolve() / ".airflow-venv") / "bin" / "airflow"
    if not program.exists():
        raise RunError("AIRFLOW_MISSING", "Airflow's environment is not there; build it with: make airflow",
                       where=str(program.parent.parent))  # fmt: skip
    return program


def _create_database(dsn: str) -> None:
    with contextlib.closing(psycopg2.connect(dsn, connect_timeout=10)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", (NAME,))
            if cursor.fetchone() is None:
                cursor.execute(f"create database {NAME}")


def _wait(home: Path, url: str, limit: float, report: Report) -> None:
    told = time.monotonic()
    while missing := _unhealthy(url):
        for service in SERVICES:
            known = process.recorded(home / f"{service}.json")
            if known is None or not process.alive(known):
                reason = process.last_lines(home / "logs" / f"{service}.log")
                raise RunError("AIRFLOW_NOT_READY", f"{service} has ended: {reason}")
        if time.monotonic() > limit:
            raise RunError("AIRFLOW_NOT_READY", f"not healthy: {', '.join(missing)}; logs: {home / 'logs'}")
        if time.monotonic() - told > 5:
            report(f"waiting for Airflow's {', '.join(missing)}")
            told = time.monotonic()
        time.sleep(0.25)


def _unhealthy(url: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
    except (OSError, ValueError):
        return ["api-server"]
    return [part for part in HEALTH if health.get(part, {}).get("status") != "healthy"]


def _signal(one: Process, name: signal.Signals) -> None:
    if process.alive(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, name)


@contextmanager
def _only_one(home: Path, report: Report) -> Iterator[None]:
    busy = RunError("STACK_BUSY", "another `lakehouse airflow` has been at work for 5 minutes", where=str(home))
    with locked(home / "lock", deadline=300, busy=busy, report=report):
        yield
