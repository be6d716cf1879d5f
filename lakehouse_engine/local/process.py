"""Processes that outlive the command that started them, told apart from whoever inherits their number."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, write_atomically

LOG_LIMIT = 10 * 1024 * 1024


@dataclass(frozen=True)
class Account:
    """The user a service runs as when we are root."""

    name: str
    user: int
    group: int


@dataclass(frozen=True)
class Process:
    """``started`` is the kernel's start time and ``mark`` a part of the command line: a pid alone may be reused."""

    pid: int
    started: str
    mark: str


def run(
    command: Sequence[str], account: Account | None, cwd: Path | None = None, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, as ``account`` if given, with ``settings`` in its environment. Raises OSError when it cannot."""
    user, group, groups = _identity(account)
    return subprocess.run(
        command, user=user, group=group, extra_groups=groups, cwd=cwd, env={**_environment(), **(settings or {})},
        capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip


def spawn(
    command: Sequence[str], log: Path, record: Path, *, mark: str, account: Account | None = None,
    settings: Mapping[str, str] | None = None, cwd: Path | None = None,
) -> Process:  # fmt: skip
    """Start detached, with output to ``log``, and write the process to ``record`` before anything can go wrong."""
    user, group, groups = _identity(account)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        os.replace(log, log.with_suffix(".log.1"))
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, user=user, group=group, extra_groups=groups, cwd=cwd or record.parent,
            env={**_environment(), **(settings or {})},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    # Not waited for on purpose: without this Popen warns when it is collected.
    child.returncode = 0
    found = _look(child.pid)
    process = Process(child.pid, found[0] if found else "", mark)
    write_atomically(record, json.dumps(asdict(process)), 0o600)
    return process


def recorded(record: Path) -> Process | None:
    """The process last started here, or None. Raises STACK_UNREADABLE."""
    try:
        return Process(**json.loads(record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise RunError("STACK_UNREADABLE", f"not written by us ({error}); delete it", where=str(record)) from error


def alive(process: Process) -> bool:
    """Whether this very process runs: same pid, same start, same command line."""
    found = _look(process.pid)
    if found is None:
        with contextlib.suppress(ChildProcessError):
            # A dead child of ours keeps its pid until somebody asks, and PostgreSQL takes that for a living server.
            os.waitpid(process.pid, os.WNOHANG)
    # A process on its way out has lost its command line already, but not yet its pid.
    return found is not None and found[0] == process.started and (process.mark in found[1] or not found[1])


def stop(process: Process, signals: Sequence[signal.Signals], patience: float, report: Report) -> None:
    """Send each signal in turn, giving the process ``patience`` seconds after each. Raises STACK_NOT_STOPPED."""
    for number, name in enumerate(signals):
        if not alive(process):
            return
        if number:
            report(f"process {process.pid} did not stop within {patience:.0f} s, sending {name.name}")
        try:
            os.kill(process.pid, name)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise RunError(
                "STACK_NOT_STOPPED", f"process {process.pid} belongs to another user; stop it as that one"
            ) from error
        if gone(process, patience):
            return
    raise RunError("STACK_NOT_STOPPED", f"process {process.pid} survives SIGKILL; is its disk hanging?")


def family(leader: Process) -> list[Process]:
    """All that ``leader``, started by ``spawn``, has begun and that still runs, itself first; Linux alone knows.

    They are its session's processes and the descendants of those. When it has died, only what bears its ``mark``.
    """
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(folder.name)], sessions[int(folder.name)] = int(fields[1]), int(fields[3])
    own = alive(leader)
    found = {}
    for pid in sorted(parents):
        above: int | None = pid
        while above is not None and sessions.get(above) != leader.pid:
            above = parents.get(above)
        seen = _look(pid) if above is not None else None
        if seen is not None and (own or leader.mark in seen[1]):
            found[pid] = Process(pid, seen[0], "")
    return sorted(found.values(), key=lambda one: one.pid != leader.pid)


def gone(process: Process, patience: float) -> bool:
    """Wait until the process has ended; False when ``patience`` seconds were not enough."""
    limit = time.monotonic() + patience
    while alive(process):
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def last_lines(log: Path, start: int = 0) -> str:
    """The end of what was written after byte ``start``, on one line: what names an error, if anything does."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"ERROR|FATAL|PANIC|Exception|Error:", line)]
    return f"{' | '.join((telling or lines)[-3:]) or 'its log is empty'} (log: {log})"


def choose_port(wanted: int | None, remembered: int | None, service: str, report: Report) -> int:
    """The wanted port, else the one used before, else any free one. Raises PORT_IN_USE for a wanted one."""
    if wanted is not None:
        refusal = _refusal(wanted)
        if refusal is not None:
            raise RunError(
                "PORT_IN_USE",
                f"port {wanted} for {service} cannot be had ({refusal}); stop what uses it or choose another port",
            )
        return wanted
    if remembered is not None:
        if _refusal(remembered) is None:
            return remembered
        report(f"{service}: port {remembered} of last time is taken, choosing another")
    while True:
        # Below the range from which the kernel gives outgoing connections theirs.
        port = random.randrange(20_000, 32_000)
        if _refusal(port) is None:
            return port


def _refusal(port: int) -> str | None:
    with socket.socket() as probe:
        # As servers do, or a connection closed a minute ago would count as a user of the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror
        except OverflowError:
            return "ports end at 65535"
    return None


def _identity(account: Account | None) -> tuple[int | None, int | None, list[int] | None]:
    return (None, None, None) if account is None else (account.user, account.group, [])


def _environment() -> Mapping[str, str]:
    # PGPORT, PGDATA, PGOPTIONS and the like are about another server.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # Java reads the names of files by the locale, and some shells have none.
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _look(pid: int) -> tuple[str, str] | None:
    """Start time and command line of a living process."""
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the program's name in brackets, and may hold anything.
            state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else (fields[18], command)
    answer = subprocess.run(
        ["ps", "-ww", "-o", "stat=,lstart=,command=", "-p", str(pid)], capture_output=True, text=True
    )
    words = answer.stdout.split(maxsplit=6)
    return None if len(words) < 7 or words[0].startswith("Z") else (" ".join(words[1:6]), words[6])
