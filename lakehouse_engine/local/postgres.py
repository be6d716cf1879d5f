"""A real PostgreSQL on loopback, without containers.

Delivery guarantees: PostgreSQL's own; ``fsync`` stays on, so what was committed survives a kill and a power cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psycopg2

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.account import home_for, owner, unprivileged
from lakehouse_engine.local.files import Report, silent, write_atomically
from lakehouse_engine.local.pgbinaries import find_binaries
from lakehouse_engine.local.process import Account, Process, alive, choose_port, last_lines, run, spawn, stop

# Fast shutdown, then immediate (recovers from the log at the next start), then the kernel's.
STOP = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
PATIENCE = 20.0
NAME = "lakehouse"


def start(folder: Path, log: Path, port: int | None = None, report: Report = silent) -> tuple[Process, str]:
    """Start the server kept in ``folder``; answers its process and a DSN that holds its random password.

    Raises PORT_IN_USE, POSTGRES_NOT_FOUND, POSTGRES_NOT_CREATED, POSTGRES_NOT_READY, POSTGRES_NO_PLACE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    account = unprivileged()
    node = _node(folder)
    node["port"] = choose_port(port, node.get("port"), "PostgreSQL", report)
    home = home_for(folder, node.get("home"), account, report)
    if home != folder:
        node["home"] = str(home)
    write_atomically(folder / "node.json", json.dumps(node), 0o600)
    data = home / "data"
    account = owner(data, account)
    binaries = find_binaries(account, _major(data))
    if not data.exists():
        _create(binaries, home, node["password"], account, report)

    report(f"starting PostgreSQL on 127.0.0.1:{node['port']}")
    settings = {
        "port": node["port"], "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
        "max_connections": 50, "timezone": "UTC", "log_timezone": "UTC", "fsync": "on",
    }  # fmt: skip
    command = [str(binaries / "postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    address = f"postgresql://{NAME}:{node['password']}@127.0.0.1:{node['port']}"
    began = time.monotonic()
    while True:
        written = log.stat().st_size if log.exists() else 0
        process = spawn(command, log, folder / "process.json", mark=str(data), account=account)
        try:
            _wait(process, f"{address}/postgres", log, written, began + 60)
            break
        except BaseException as error:
            stop(process, STOP, PATIENCE, report)
            # After a kill, backends that have not noticed and a parent that has not asked keep what was the server's.
            held = isinstance(error, RunError) and re.search("shared memory block|lock file", error.message)
            if not held or time.monotonic() > began + 10:
                raise
            time.sleep(0.1)
    return process, f"{address}/{NAME}"


def answers(dsn: str, timeout: int = 5) -> bool:
    """Whether the server lets us in."""
    return _refusal(dsn, timeout) is None


def _node(folder: Path) -> dict[str, Any]:
    try:
        node: dict[str, Any] = json.loads((folder / "node.json").read_text(encoding="utf-8"))
        return node
    except FileNotFoundError:
        return {"password": secrets.token_urlsafe(24)}


def _major(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None


def _create(binaries: Path, home: Path, password: str, account: Account | None, report: Report) -> None:
    """initdb beside the final folder, then renamed into place: one that was killed half-way leaves nothing behind."""
    report("creating the PostgreSQL database")
    fresh, secret = home / "data.new", home / "password.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    write_atomically(secret, password, 0o600)
    if account is not None:
        for path in (fresh, secret):
            os.chown(path, account.user, account.group)
    try:
        made = run(
            [
                str(binaries / "initdb"), "-D", str(fresh), "-U", NAME, f"--pwfile={secret}",
                "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256",
            ],
            account,
            home,
        )  # fmt: skip
    finally:
        secret.unlink()
    if made.returncode != 0:
        said = (made.stderr or made.stdout).strip().splitlines()
        raise RunError("POSTGRES_NOT_CREATED", f"initdb: {' | '.join(said[-3:]) or 'no reason given'}", where=str(home))
    os.rename(fresh, home / "data")


def _wait(process: Process, dsn: str, log: Path, written: int, limit: float) -> None:
    while True:
        refusal = _refusal(dsn, 2)
        if refusal is None:
            break
        if "password authentication failed" in refusal:
            raise RunError(
                "POSTGRES_NOT_READY",
                f"{log.parent.parent}/postgres/node.json does not hold this database's password; bring the file back",
            )
        if not alive(process):
            raise RunError("POSTGRES_NOT_READY", f"the server ended: {last_lines(log, written)}")
        if time.monotonic() > limit:
            raise RunError("POSTGRES_NOT_READY", f"{refusal}: {last_lines(log, written)}")
        time.sleep(0.02)
    with contextlib.closing(psycopg2.connect(dsn, connect_timeout=10)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {NAME}")


def _refusal(dsn: str, timeout: int) -> str | None:
    try:
        psycopg2.connect(dsn, connect_timeout=timeout).close()
    except psycopg2.OperationalError as error:
        return " ".join(str(error).split())
    return None
