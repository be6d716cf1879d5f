"""A scan's query kept alive: started again when it fails, with growing pauses, and given up when that does not help."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lakehouse_engine import journal
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import FencedError, LakehouseError, RunError, first_line
from lakehouse_engine.plan import Scan
from lakehouse_engine.progress import now_micros
from lakehouse_engine.stages import Query
from lakehouse_engine.staterun import StateRun
from lakehouse_engine.streams import ScanRun
from lakehouse_engine.told import Told

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: restarts of a query without a batch in between, before it is given up
MAX_RESTARTS = 5


class Supervised:
    """A scan that is started again when it fails, with growing pauses, and given up when that does not help."""

    def __init__(self, scan: Scan | Query, spark: SparkSession, to: Connections, told: Told, available_now: bool,
                 ready: Callable[[], bool] | None = None) -> None:  # fmt: skip
        """``ready``: it is begun by ``look`` when what it reads is there, and not before."""
        self._ready = ready
        self._scan, self._spark, self._to, self._told = scan, spark, to, told
        self._since = now_micros()
        self._available_now = available_now
        self._run: ScanRun | StateRun | None = None
        self._restarts = 0
        self._again_at: float | None = None
        self.failures: list[str] = []
        self.done = False

    def start(self) -> None:
        self._since = now_micros()
        for member in self._scan.members:
            self._told.began(member.name, "stream")
        told = (self._told.progress, self._told.see)
        if isinstance(self._scan, Scan):
            self._run = ScanRun(self._spark, self._scan, self._to, *told)
        else:
            self._run = StateRun(self._spark, self._scan, self._to, *told)
        self._run.start(available_now=self._available_now)

    def look(self) -> None:
        if self.done:
            return
        if self._ready is not None:
            if not self._ready():
                return
            self._ready, self._again_at = None, time.monotonic()
        if self._again_at is not None:
            if time.monotonic() >= self._again_at:
                self._again_at = None
                try:
                    self.start()
                except Exception as refused:  # of the disk, too, which may be full: the others go on
                    self._failed(refused)
            return
        run = self._run
        if run is None or run.query is None:
            return
        if run.query.isActive:
            run.rest()
            return
        error = run.why()
        if error is None:
            self.done = True
            return
        if run.batches:
            self._restarts = 0
        run.release()
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, LakehouseError) else f"STREAM_FAILED: {first_line(error)}"
        self._restarts += 1
        fatal = isinstance(error, FencedError) or (
            isinstance(error, LakehouseError) and not isinstance(error, RunError)
        )
        if fatal or self._restarts > MAX_RESTARTS:
            self.failures += [f"{member.name}: {text}" for member in self._scan.members]
            self._seen_failed(error, "given_up")
            self._told.progress(f"{self._scan.name}: {text}; given up")  # others may go on for days
            self.done = True
            return
        self._seen_failed(error, "restart")
        pause = min(2.0 ** (self._restarts - 1), 30.0)
        self._told.progress(f"{self._scan.name}: {text}; starting again in {pause:.0f} s"
                              f" ({self._restarts} of {MAX_RESTARTS})")  # fmt: skip
        self._again_at = time.monotonic() + pause

    def _seen_failed(self, error: BaseException, step: journal.Step) -> None:
        for member in self._scan.members:
            if self._run is None or member.name not in self._run.detached:
                self._told.see(journal.failed(member.name, "stream", self._since, error, step=step))

    def stop(self) -> None:
        if self._run is not None:
            self._run.stop()
            self._run.release()
            self.failures += [f"{name}: {error}" for name, error in self._run.detached.items()]
        self.done = True
