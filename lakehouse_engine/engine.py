"""A warm engine: one process that keeps Spark started and runs jobs for thin clients, several at once if need be.

A job's command decides for itself whether there is anything to do; only then it hands its plan over, relays what the
engine reports and ends with the engine's exit status. Nothing about a run depends on the engine: without one, or when
it cannot serve (other Spark settings, other code), the command starts Spark itself. Streams never run here.

The engine listens on loopback. ``<project>/.lakehouse/engine[.ENV].json`` (mode 0600) holds its address and a token,
with which both sides prove themselves (HMAC, ``multiprocessing.connection``). Requests are pickled plans: whoever may
read that file may do what the engine's user may, and nobody else can say anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from lakehouse_engine.backfill import Span
from lakehouse_engine.errors import LakehouseError, RunError
from lakehouse_engine.plan import Plan
from lakehouse_engine.runner import Report, Runner
from lakehouse_engine.spec.environment import Environment


@dataclass(frozen=True)
class Request:
    """What a client wants done: ``run``, ``serve``, ``backfill`` or ``maintain``, by the client's own plan."""

    command: str
    plan: Plan
    environment: Environment
    #: the database, resolved by the client: the secret may be in its environment alone
    dsn: str | None
    available_now: bool = False
    span: Span | None = None
    apply: bool = False
    code: str = field(default_factory=lambda: code_digest())


def file(root: Path, env: str | None) -> Path:
    """Where an engine of this project says how to reach it."""
    return root / ".lakehouse" / (f"engine.{env}.json" if env else "engine.json")


def code_digest() -> str:
    """Tells one state of this package from another: a client and an engine must agree on what a plan means."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return hashlib.sha256(repr([(str(f), f.stat().st_mtime_ns) for f in files]).encode()).hexdigest()[:16]


def perform(runner: Runner, request: Request) -> int:
    """Does what the request says, with a runner that may have started Spark or may not; the exit status."""
    if request.command == "run":
        return runner.run(request.plan, available_now=request.available_now)
    if request.command == "serve":
        return runner.serve(request.plan)
    if request.command == "maintain":
        return runner.maintain(request.plan, apply=request.apply)
    assert request.span is not None
    return runner.backfill(request.plan, request.span)


# the client


def hand_over(request: Request, root: Path, report: Report) -> int | None:
    """The exit status of the request, done by this project's engine; None when there is none, or it cannot serve.

    Raises ``RunError`` ENGINE_DIED when it ends in the middle, and the engine's own ``LakehouseError``.
    """
    path = file(root, request.environment.name or None)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        connection = Client(("127.0.0.1", found["port"]), authkey=bytes.fromhex(found["token"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, AuthenticationError):
        report("the engine does not answer; starting Spark here")
        return None
    with connection:
        try:
            connection.send(request)
            while True:
                kind, value = connection.recv()
                if kind == "report":
                    report(value)
                elif kind == "refused":
                    report(f"{value}; starting Spark here")
                    return None
                elif kind == "error":
                    raise value
                else:
                    return int(value)
        except (EOFError, ConnectionError) as error:
            raise RunError("ENGINE_DIED", "the engine has ended; what it was writing is there whole or not at all: run"
                           " the same command again", where=str(path)) from error  # fmt: skip


# the engine


class Engine:
    """Serves requests until ``stop``. ``jars`` as for ``Runner``."""

    def __init__(self, environment: Environment, root: Path, jars: Callable[[], Any], report: Report) -> None:
        self._environment, self._report = environment, report
        self._file = file(root, environment.name or None)
        self._code = code_digest()
        self._stopping = False
        self._busy: set[threading.Thread] = set()
        self._jars = jars

    def serve(self) -> None:
        """Starts Spark, says where it listens, and answers until it is told to stop. Raises ``RunError`` LOCKED."""
        if _answers(self._file):
            raise RunError("LOCKED", "an engine of this project runs already", where=str(self._file))
        runner = Runner(self._environment, self._jars, self._report)
        self._spark = runner.spark()
        self._warm_up()
        token = secrets.token_bytes(32)
        self._listener = Listener(("127.0.0.1", 0), authkey=token, backlog=16)
        port = self._listener.address[1]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        made = self._file.with_suffix(".tmp")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump({"port": port, "token": token.hex(), "pid": os.getpid()}, out)
        made.replace(self._file)
        self._report(f"engine ready on 127.0.0.1:{port}, process {os.getpid()}")
        try:
            self._accept()
        finally:
            self._file.unlink(missing_ok=True)
            self._listener.close()
            for thread in list(self._busy):
                thread.join(timeout=60)
            runner.close()

    def stop(self) -> None:
        """Lets the runs that go on commit what they are at, and ends."""
        self._stopping = True
        self._listener.close()

    def _warm_up(self) -> None:
        """The first query of a JVM pays for Spark's own classes; here nobody waits for it."""
        self._spark.sql(
            "select count(distinct id % 7), max(cast(id as string)) from range(1000) group by id % 3"
        ).collect()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection = self._listener.accept()
            except AuthenticationError:
                self._report("refused somebody without the token")
                continue
            except (OSError, EOFError):
                continue  # stopped, or a client that went away before it had said anything
            thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
            self._busy.add(thread)
            thread.start()

    def _answer(self, connection: Connection) -> None:
        try:
            with connection:
                request = connection.recv()
                refusal = self._refusal(request)
                if refusal is not None:
                    connection.send(("refused", refusal))
                    return
                _Task(self._spark, request, connection, self._report).run(lambda: self._stopping)
        except (EOFError, OSError):
            self._report("a client went away")
        finally:
            self._busy.discard(threading.current_thread())

    def _refusal(self, request: Any) -> str | None:
        if not isinstance(request, Request) or request.code != self._code:
            return "the engine runs other code than this command; restart it (lakehouse down, up --engine)"
        if request.environment.spark != self._environment.spark:
            return "the engine was started with other Spark settings"
        return None


def _answers(path: Path) -> bool:
    """Whether a living engine wrote the file; one that was killed leaves it behind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Client(("127.0.0.1", found["port"]), authkey=bytes.fromhex(found["token"])).close()
    except (OSError, ValueError, KeyError, EOFError, AuthenticationError):
        return False
    return True


class _Task:
    """One request. The client's end is its end: Spark's jobs are cancelled, and what was not committed is not there."""

    def __init__(self, spark: Any, request: Request, connection: Connection, report: Report) -> None:
        self._request, self._connection, self._log = request, connection, report
        self._group = f"task-{secrets.token_hex(6)}"
        self._context = spark.sparkContext
        self._runner = Runner(request.environment, tuple, self._tell, session=spark, dsn=request.dsn)
        self._sending = threading.Lock()

    def run(self, stopping: Callable[[], bool]) -> None:
        worker = threading.Thread(target=self._work)
        worker.start()
        while worker.is_alive():
            worker.join(0.05)
            gone = self._gone()
            if gone or stopping():
                self._runner.stop()
                if gone:  # again and again: a job that had not begun yet could not be cancelled
                    self._context.cancelJobGroup(self._group)

    def _gone(self) -> bool:
        try:
            return self._connection.poll() and self._connection.recv() is None
        except (EOFError, OSError):
            return True

    def _work(self) -> None:
        self._context.setJobGroup(self._group, self._request.command, interruptOnCancel=True)
        try:
            self._send("exit", perform(self._runner, self._request))
        except LakehouseError as error:
            self._send("error", error)
        except Exception as error:
            self._log(traceback.format_exc())
            text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            self._send("error", RunError("ENGINE_FAILED", text[:300]))

    def _tell(self, text: str) -> None:
        self._log(text)
        self._send("report", text)

    def _send(self, kind: str, value: Any) -> None:
        with self._sending, suppress(OSError):  # nobody listens any more
            self._connection.send((kind, value))


def main(environment: Environment, root: Path, jars: Callable[[], Any], report: Report) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    engine = Engine(environment, root, jars, report)

    def stop(*_: object) -> None:
        report("stopping")
        engine.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def wire() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    wire()
    sys.stdout.flush()
    engine.serve()
