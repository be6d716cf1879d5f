"""The embedded stack of one project: a Kafka broker and a PostgreSQL under ``<root>/.lakehouse``.

``services.json`` there tells other programs how to reach them; data, ports and the password stay when they stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import kafka, postgres, process
from lakehouse_engine.local.files import Report, locked, silent, write_atomically
from lakehouse_engine.local.process import Process
from lakehouse_engine.local.services import Services, read, shown, write

NAMES = ("kafka", "postgres")
# Seconds that a service has to answer before it counts as hanging.
ANSWER_WITHIN = 5
SIGNALS = {"kafka": kafka.STOP, "postgres": postgres.STOP}


def up(
    root: Path, kafka_port: int | None = None, postgres_port: int | None = None, report: Report = silent
) -> Services:
    """Start what does not run yet, and answer when both accept clients; a second call changes nothing.

    Raises PORT_IN_USE, STACK_OTHER_PORT, STACK_NOT_ANSWERING, STACK_BUSY and the errors of both services; what this
    call started is stopped again when it fails.
    """
    folder = _prepared(root)
    with _only_one(folder, report):
        known = read(folder)
        running = _running(folder)
        # A process whose address was never written down (an `up` that was killed) starts anew.
        kept = {name: one for name, one in running.items() if known is not None and known.pids.get(name) == one.pid}
        _check_ports(known, kept, {"kafka": kafka_port, "postgres": postgres_port})
        if known is not None and len(kept) == len(NAMES):
            _check_answers(known)
            report(f"already running: Kafka on {known.bootstrap_servers}, PostgreSQL on {shown(known.dsn)}")
            return known
        for name in kept:
            report(f"{name} runs, the other does not: starting it")
        for name in running.keys() - kept.keys():
            process.stop(running[name], SIGNALS[name], kafka.PATIENCE, report)
        return _start(folder, known, kept, {"kafka": kafka_port, "postgres": postgres_port}, report)


def down(root: Path, report: Report = silent) -> bool:
    """Stop what ``up`` started here and nothing else; False when nothing ran. Raises STACK_BUSY, STACK_NOT_STOPPED."""
    folder = root.resolve() / ".lakehouse"
    if not folder.is_dir():
        return False
    with _only_one(folder, report):
        running = _running(folder)
        if running:
            report(f"stopping {' and '.join(running)}")
        with ThreadPoolExecutor(len(NAMES)) as pool:
            ends = [pool.submit(process.stop, running[name], SIGNALS[name], kafka.PATIENCE, report) for name in running]
        for end in ends:
            end.result()
        for name in NAMES:
            (folder / name / "process.json").unlink(missing_ok=True)
        (folder / "services.json").unlink(missing_ok=True)
        return bool(running)


def services(root: Path) -> Services | None:
    """The running stack, or None. Raises STACK_HALF_DEAD, STACK_UNREADABLE."""
    folder = root.resolve() / ".lakehouse"
    known, running = read(folder), _running(folder)
    if known is None or not running:
        return None
    dead = [name for name in NAMES if name not in running]
    if dead:
        log = folder / "logs" / f"{dead[0]}.log"
        raise RunError(
            "STACK_HALF_DEAD", f"{dead[0]} has died; `lakehouse up` restarts it; log: {log}", where=str(root)
        )
    return known


def health(root: Path) -> dict[str, str]:
    """Per service ``running``, ``not answering`` or ``dead``; empty when no stack was started or it was stopped."""
    folder = root.resolve() / ".lakehouse"
    known, running = read(folder), _running(folder)
    if known is None:
        return {}
    answering = {
        "kafka": "kafka" in running and kafka.answers(known.bootstrap_servers, ANSWER_WITHIN) is not None,
        "postgres": "postgres" in running and postgres.answers(known.dsn, ANSWER_WITHIN),
    }
    return {
        name: "dead" if name not in running else "running" if answering[name] else "not answering" for name in NAMES
    }


def _start(
    folder: Path, known: Services | None, kept: dict[str, Process], ports: dict[str, int | None], report: Report
) -> Services:
    begin: dict[str, Callable[..., tuple[Process, str]]] = {"kafka": kafka.start, "postgres": postgres.start}
    starting = [name for name in NAMES if name not in kept]
    try:
        with ThreadPoolExecutor(len(NAMES)) as pool:
            started = {
                name: pool.submit(begin[name], folder / name, folder / "logs" / f"{name}.log", ports[name], report)
                for name in starting
            }
        failures = [error for error in (future.exception() for future in started.values()) if error is not None]
        if failures:
            raise failures[0]
        address = {"kafka": known.bootstrap_servers, "postgres": known.dsn} if known is not None else {}
        address.update({name: future.result()[1] for name, future in started.items()})
        pids = {name: (kept[name] if name in kept else started[name].result()[0]).pid for name in NAMES}
        fresh = Services(address["kafka"], address["postgres"], pids)
        write(folder, fresh)
    except BaseException:
        for name, left in _running(folder).items():
            if name in starting:
                process.stop(left, SIGNALS[name], kafka.PATIENCE, report)
        raise
    report(f"ready: Kafka on {fresh.bootstrap_servers}, PostgreSQL on {shown(fresh.dsn)}")
    return fresh


def _prepared(root: Path) -> Path:
    folder = root.resolve() / ".lakehouse"
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            # PostgreSQL's user must be able to pass, whatever root's umask is.
            for part in (folder, folder / "postgres"):
                part.mkdir(exist_ok=True)
                part.chmod(0o711)
        if not (folder / ".gitignore").exists():
            write_atomically(folder / ".gitignore", "*\n")
    except OSError as error:
        raise RunError("STACK_UNWRITABLE", f"cannot write here ({error.strerror})", where=str(folder)) from error
    return folder


@contextmanager
def _only_one(folder: Path, report: Report) -> Iterator[None]:
    busy = RunError("STACK_BUSY", "another `lakehouse up` or `down` has been at work for 5 minutes", where=str(folder))
    try:
        with locked(folder / "lock", deadline=300, busy=busy, report=report):
            yield
    except PermissionError as error:
        raise RunError(
            "NOT_YOURS", f"{error.filename} belongs to another user; work as that one", where=str(folder)
        ) from error


def _running(folder: Path) -> dict[str, Process]:
    found = {name: process.recorded(folder / name / "process.json") for name in NAMES}
    return {name: one for name, one in found.items() if one is not None and process.alive(one)}


def _check_ports(known: Services | None, running: dict[str, Process], wanted: dict[str, int | None]) -> None:
    if known is None:
        return
    for name, address in (("kafka", known.bootstrap_servers), ("postgres", shown(known.dsn))):
        port = int(address.rpartition(":")[2])
        if name in running and wanted[name] not in (None, port):
            raise RunError(
                "STACK_OTHER_PORT", f"{name} already runs on port {port}; `lakehouse down` first to change it"
            )


def _check_answers(known: Services) -> None:
    for name, answers in (
        ("kafka", kafka.answers(known.bootstrap_servers, ANSWER_WITHIN)),
        ("postgres", postgres.answers(known.dsn, ANSWER_WITHIN)),
    ):
        if not answers:
            raise RunError(
                "STACK_NOT_ANSWERING",
                f"{name} (process {known.pids[name]}) runs but does not answer; `lakehouse down`, then up",
            )
