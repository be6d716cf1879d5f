"""The engine in the place of the model: the acts of a schedule, done to real processes, and the same laws afterwards.

A process is a thread that runs ``ScanRun`` as ``Supervised`` does. It stops before each step that the model names,
until it is let on; killed there, it raises where it stands, and PostgreSQL rolls back what it had begun. What it has
left in PostgreSQL and Delta is read into the model's own values, and ``laws.hold`` is asked (``replaylab.py``).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import aside, inserts, landing, progress, streams
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import FencedError, LakehouseError
from lakehouse_engine.sources import broker
from lakehouse_engine.sources.reading import OfTopic
from lakehouse_engine.streams import ScanRun
from tests.model import steps
from tests.model.pipelines import Pipeline

if TYPE_CHECKING:
    from tests.faults.replaylab import Lab

#: a process that does nothing for so long waits: for records, or for a lock
PATIENCE = 3.0
_here = threading.local()


class Killed(Exception):
    """kill -9."""


class Running:
    """One process. ``at``: the step before which it stands, '' while it is at work or waits for records."""

    def __init__(self, lab: Lab, writer: str, host: int, pipelines: list[Pipeline], delay: int) -> None:
        self.lab, self.writer, self.pipelines, self.delay = lab, writer, pipelines, delay
        self.at, self.ended, self.said = "", "", list[str]()
        self.reached: dict[int, int] = {}
        self._to = Connections(lab.stack.bootstrap_servers, lab.dsn, lab.storages[host], writer)
        self._scan = lab.scan(pipelines, delay)
        self._moved, self._let, self._dead, self._locked = threading.Condition(), 0, False, False
        self.committed = False
        self._run: ScanRun | None = None
        self._thread = threading.Thread(target=self._main, name=writer, daemon=True)
        self._thread.start()
        self._settled()

    def stop_before(self, step: str) -> None:
        with self._moved:
            self.at = step
            self._moved.notify_all()
            self._moved.wait_for(lambda: self._let or self._dead)
            if self._dead:
                raise Killed
            self._let, self.at = self._let - 1, ""

    def advance(self, number: int) -> None:
        for _ in range(number):
            if self.ended or not self._settled():
                return
            with self._moved:
                self._let += 1
                self._moved.notify_all()
                self._moved.wait_for(lambda: not self._let, PATIENCE)
            self._settled()

    def _settled(self) -> bool:
        """Whether it stands before a step; False when it waits, or has ended."""
        idle_since: float | None = None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.at or self.ended:
                return bool(self.at)
            waits = self._run is not None and self._run.query is not None and self.reached == self.lab.sent
            if self._blocked() or waits:
                idle_since = idle_since or time.monotonic()
                if time.monotonic() - idle_since > (PATIENCE if not waits else 0.3):
                    return False
            else:
                idle_since = None
            time.sleep(0.02)
        raise AssertionError(f"{self.writer} neither stands before a step nor waits: {self.said}")

    def _blocked(self) -> bool:
        found = self.lab.ask("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                             " and datname = current_database()")  # fmt: skip
        return bool(found[0][0])

    def kill(self) -> None:
        with self._moved:
            self._dead = True
            self._moved.notify_all()
        if self._run is not None and self._run.query is not None and not self.at:
            self._run.query.stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self.writer} does not end"
        self.ended = self.ended or "KILLED"

    def _main(self) -> None:
        _here.process = self
        session = self.lab.spark.newSession()
        for _ in range(4):
            error = self._once(session)
            if self._dead or error is None:
                break
            self.said.append(error.code if isinstance(error, LakehouseError) else type(error).__name__)
            if isinstance(error, FencedError) or self.said[-1] == "LOCKED":
                break
        self.ended = "KILLED" if self._dead else self.said[-1] if self.said else "DONE"

    def _once(self, session: SparkSession) -> BaseException | None:
        self._locked, self._run, self.committed = False, None, False
        run = ScanRun(session, self._scan, self._to, lambda _: None)
        batch = run._batch

        def stopping(frame: Any, number: int) -> None:
            _here.process = self
            self.stop_before(steps.BATCH)
            batch(frame, number)
            last = (run._checkpoint / "offsets" / str(number)).read_text().splitlines()[-1]
            self.reached = {int(p): o for p, o in json.loads(last)[self.lab.topic].items()}

        run._batch = stopping  # type: ignore[method-assign]
        try:
            run.start(available_now=False)
        except Exception as error:
            return error
        self._run = run
        assert run.query is not None
        try:
            run.query.awaitTermination()
        except Exception as error:
            return run.error or error
        finally:
            self.said += [f"detached {name}" for name in run.detached]
            run.release()
        return run.error

    def once(self, step: str) -> None:
        """The first of several calls is the step."""
        if not self._locked:
            self._locked = True
            self.stop_before(step)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> Iterator[None]:
    """The engine's functions stop where the model has a step."""

    def before(step: str, place: Any, name: str, *, once: bool = False) -> None:
        original = getattr(place, name)

        def stopping(*given: Any, **named: Any) -> Any:
            process: Running | None = getattr(_here, "process", None)
            if process is not None:
                (process.once if once else process.stop_before)(step)
            return original(*given, **named)

        monkeypatch.setattr(place, name, stopping)

    commit, starting, write_member = progress.commit, broker.starting_offsets, streams._Windows._write_member

    def committing(cursor: Any, records: Any, writer: str) -> None:
        process: Running = _here.process
        process.stop_before(steps.COMMIT)
        commit(cursor, records, writer)
        lab.delays |= {(record.pipeline, record.batch_id): process.delay for record in records}
        process.stop_before(steps.END)
        process.committed = True

    def heard(place: Any, name: str) -> None:
        original = getattr(place, name)

        def stopping(*given: Any, **named: Any) -> Any:
            process: Running = _here.process
            if process.committed:
                process.committed = False
                process.stop_before(steps.COMMITTED)
            return original(*given, **named)

        monkeypatch.setattr(place, name, stopping)

    def started(topic: Any, positions: Any) -> str:
        found = starting(topic, positions)
        _here.process.reached = {int(p): o for p, o in json.loads(found)[lab.topic].items()}
        return found

    def written(windows: Any, cursor: Any, index: int, *given: Any) -> None:
        _here.process.stop_before(steps.WRITE_MEMBER)
        write_member(windows, cursor, index, *given)
        if windows._members[index].name in lab.poisoned:
            cursor.execute("select 1 / 0")

    before(steps.ACQUIRE, streams, "acquire", once=True)
    before(steps.CLAIM_WINDOWS, streams._Windows, "__init__")
    before(steps.CLAIM_ROWS, inserts.Inserts, "__init__")
    before(steps.LANDING, landing.Landing, "__init__")
    before(steps.STREAM, OfTopic, "stream")
    before(steps.READ, ScanRun, "_write")
    before(steps.INSERTS, inserts.Inserts, "write")
    before(steps.ASIDE, aside.Aside, "keep")
    before(steps.STORE, landing.Landing, "_store")
    heard(streams._Windows, "_send_on")
    heard(inserts.Inserts, "_seen")
    monkeypatch.setattr(progress, "commit", committing)
    monkeypatch.setattr(progress, "now_micros", lambda: lab.clock)
    monkeypatch.setattr(broker, "starting_offsets", started)
    monkeypatch.setattr(streams._Windows, "_write_member", written)
    try:
        yield
    finally:
        lab.close()
