"""A warm engine: one process that keeps Spark started and runs jobs for thin clients, several at once if need be.

A job's command (``client.py``) hands over what it was asked for, relays what the engine reports and ends with the
engine's exit status. The engine reads the files anew for each request, with the command's environment variables.
Nothing about a run depends on the engine: without one, or when it cannot serve (other Spark settings, other code), the
command does the same by itself. Streams never run here.

The engine listens on loopback. ``<project>/.lakehouse/engine[.ENV].json`` (mode 0600) holds its address and a token,
with which both sides prove themselves (HMAC, ``multiprocessing.connection``). Requests are pickled: whoever may read
that file may do what the engine's user may, and nobody else can say anything.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine import client
from lakehouse_engine.errors import LakehouseError, RunError
from lakehouse_engine.log import Log
from lakehouse_engine.request import Request
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.transforms import Dedupe
from lakehouse_engine.validation import answer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]
#: the engine is ready some seconds later and its first jobs are twice as quick
_WARM_UPS = 4


class Engine:
    """Serves requests until ``stop``. ``jars`` as for ``Runner``."""

    def __init__(self, environment: Environment, root: Path, jars: Callable[[], Any], report: Report) -> None:
        self._environment, self._root, self._report = environment, root, report
        self._file = client.address(root, environment.name or None)
        self._code = client.code_digest()
        self._stopping = False
        self._busy: set[threading.Thread] = set()
        self._jars = jars

    def serve(self) -> None:
        """Starts Spark, says where it listens, and answers until it is told to stop. Raises ``RunError`` LOCKED."""
        if client.answers(self._file):
            raise RunError("LOCKED", "an engine of this project runs already", where=str(self._file))
        runner = Runner(self._environment, self._jars, Log(self._report), warm=True)
        self._spark = runner.spark()
        self._report("warming up")
        _warm_up(self._spark)
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
                if connection.recv() != self._code:
                    connection.send(("refused", "the engine runs other code than this command; restart it (lakehouse"
                                     " down, up --engine)"))  # fmt: skip
                    return
                task = _Task(self._spark, self._environment, self._root, connection.recv(), connection, self._report)
                task.run(lambda: self._stopping)
        except (EOFError, OSError):
            self._report("a client went away")
        finally:
            self._busy.discard(threading.current_thread())


def _warm_up(spark: SparkSession) -> None:
    """What a job does, some times over, where nobody waits for it: a JVM's first runs pay for Spark's and Delta's
    classes and for code that is not compiled yet."""
    from pyspark.sql import functions as F

    events = spark.range(2000).selectExpr(
        "id % 1500 as id", "cast(id % 40 as string) as name", "date_add(date'2026-01-01', cast(id % 2 as int)) as day"
    )
    with tempfile.TemporaryDirectory(prefix="lakehouse-warm-") as folder:
        silver, gold = Path(folder, "silver"), Path(folder, "gold")
        for number in range(_WARM_UPS):
            where = "day = date'2026-01-01'" if number else None
            once = Dedupe(keys=("day", "id")).apply(events.filter(where) if where else events).persist()
            once.selectExpr("count_if(name = '1')").collect()
            delta_sink.replace(once, silver, "{}", partition_by=["day"], where=where, run=f"silver/{number}")
            once.unpersist()
            stored = spark.read.format("delta").load(str(silver)).groupBy("day")
            users = stored.agg(F.max("name").alias("most"), F.count_distinct("name").alias("names"))
            delta_sink.replace(users, gold, "{}", run=f"gold/{number}")
            list(spark.read.format("delta").load(str(gold)).toLocalIterator())


class _Task:
    """One request. The client's end is its end: Spark's jobs are cancelled, and what was not committed is not there."""

    def __init__(self, spark: SparkSession, environment: Environment, root: Path, request: Request,
                 connection: Connection, log: Report) -> None:  # fmt: skip
        self._spark, self._environment, self._root = spark, environment, root
        self._request, self._connection, self._log = request, connection, log
        self._group = f"task-{secrets.token_hex(6)}"
        self._runner: Runner | None = None
        self._sending = threading.Lock()

    def run(self, stopping: Callable[[], bool]) -> None:
        worker = threading.Thread(target=self._work)
        worker.start()
        while worker.is_alive():
            worker.join(0.05)
            gone = self._gone()
            if gone or stopping():
                if self._runner is not None:
                    self._runner.stop()
                if gone:  # again and again: a job that had not begun yet could not be cancelled
                    self._spark.sparkContext.cancelJobGroup(self._group)

    def _gone(self) -> bool:
        try:
            return self._connection.poll() and self._connection.recv() is None
        except (EOFError, OSError):
            return True

    def _work(self) -> None:
        self._spark.sparkContext.setJobGroup(self._group, self._request.command, interruptOnCancel=True)
        try:
            self._send(*self._outcome())
        except LakehouseError as error:
            self._send("error", error)
        except Exception as error:
            self._log(traceback.format_exc())
            text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            self._send("error", RunError("ENGINE_FAILED", text[:300]))

    def _outcome(self) -> tuple[str, object]:
        """What the client is told in the end: the exit status, or why the engine cannot serve it."""
        if self._request.command in ("validate", "plan"):
            return "exit", answer(self._request, self._root, lambda: self._spark)
        environment = load_environment(self._request.env, self._root, self._request.variables)
        plan = planned(self._request.specs, environment)
        if plan.streams:
            return "refused", ""  # as announced: nothing to explain
        if environment.spark != self._environment.spark:
            return "refused", "the engine was started with other Spark settings"
        log = Log(self._tell, as_json=self._request.json_log)
        self._runner = Runner(environment, tuple, log, session=self._spark)
        try:
            return "exit", self._runner.perform(plan, self._request)
        finally:
            self._runner.close()

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

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    sys.stdout.flush()
    engine.serve()
