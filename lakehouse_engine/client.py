"""A command's side of a warm engine (``engine.py``): hands the request over, relays the reports, returns the outcome.

Only the standard library is imported here: with an engine running, this is all that a command costs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import RunError
from lakehouse_engine.request import Request

Report = Callable[[str], None]
_NO_ANSWER = (OSError, ValueError, KeyError, EOFError, AuthenticationError)


def address(root: Path, env: str | None) -> Path:
    """Where an engine of this project says how to reach it."""
    return root / ".lakehouse" / (f"engine.{env}.json" if env else "engine.json")


def code_digest() -> str:
    """Tells one state of this package from another: a client and an engine must agree on what a request means."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return hashlib.sha256(repr([(str(f), f.stat().st_mtime_ns) for f in files]).encode()).hexdigest()[:16]


def answers(path: Path) -> bool:
    """Whether a living engine wrote the file; one that was killed leaves it behind."""
    try:
        _connect(path).close()
    except _NO_ANSWER:
        return False
    return True


def hand_over(request: Request, root: Path, report: Report) -> Any | None:
    """What comes of the request (the exit status of what runs, a map of what looks), done by this project's engine.

    None when there is none, or it cannot serve.

    Raises ``RunError`` ENGINE_DIED when it ends in the middle, and the engine's own ``LakehouseError``.
    """
    path = address(root, request.env)
    if not path.exists():
        return None
    try:
        connection = _connect(path)
    except _NO_ANSWER:
        report("the engine does not answer; starting Spark here")
        return None
    with connection:
        try:
            connection.send(code_digest())
            connection.send(request)
            while True:
                kind, value = connection.recv()
                if kind == "report":
                    report(value)
                elif kind == "refused":
                    if value:
                        report(f"{value}; starting Spark here")
                    return None
                elif kind == "error":
                    raise value
                else:
                    return value
        except (EOFError, ConnectionError) as error:
            raise RunError("ENGINE_DIED", "the engine has ended; what it was writing is there whole or not at all: run"
                           " the same command again", where=str(path)) from error  # fmt: skip


def _connect(path: Path) -> Connection:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Client(("127.0.0.1", found["port"]), authkey=bytes.fromhex(found["token"]))
