"""One start of a streaming query: its micro-batches one after the other, and an end between two of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import progress
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import See
from lakehouse_engine.locks import Lock
from lakehouse_engine.sources.ends import Ends

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

Report = Callable[[str], None]


class StreamRun:
    """What a scan and a query on Spark's state have in common. ``error``: what ended the query, if a batch did."""

    def __init__(self, name: str, spark: SparkSession, connections: Connections, report: Report, see: See,
                 ends: Ends) -> None:  # fmt: skip
        """``report`` is told of each batch in words, ``see`` of what each pipeline did in it."""
        self.error: BaseException | None = None
        self.detached: dict[str, str] = {}
        self.rows_read = 0
        self.batches = 0
        self.query: StreamingQuery | None = None
        self._name, self._spark, self._to, self._report, self._see = name, spark, connections, report, see
        self._ends = ends
        self._busy = threading.Lock()
        self._stopping = False
        self._locks: list[Lock] = []

    def _write(self, frame: DataFrame, number: int, started_at: int) -> int:
        """Commits a micro-batch; how many records it had."""
        raise NotImplementedError

    def rest(self) -> None:
        """Between two batches there is nothing to do."""

    def _begin(self, stream: DataFrame, checkpoint: Path, every: int, *, available_now: bool,
               mode: str = "append") -> None:  # fmt: skip
        """``every``: microseconds between two micro-batches; ``mode``: Spark's output mode."""
        writer = stream.writeStream.queryName(self._name).foreachBatch(self._batch).outputMode(mode)
        writer = writer.option("checkpointLocation", str(checkpoint))
        writer = (writer.trigger(availableNow=True) if available_now else
                  writer.trigger(processingTime=f"{every // 1000} milliseconds"))  # fmt: skip
        self._ends.start()
        self.query = writer.start()

    def _batch(self, frame: DataFrame, number: int) -> None:
        with self._busy:
            if self._stopping:
                raise RunError("STOPPED", "this run was asked to stop")
            try:
                started_at = progress.now_micros()
                self._ends.ask()
                count = self._write(frame, number, started_at)
                self.rows_read += count
                self.batches += 1
                seconds = (progress.now_micros() - started_at) / 1e6
                self._report(f"{self._name}: batch {self.batches}, {count:,} rows in {seconds:.2f} s")
            except BaseException as error:
                self.error = error
                raise

    def stop(self) -> None:
        """Lets the current batch commit and refuses the next."""
        self._stopping = True
        with self._busy:
            pass  # the current batch is over; the next may already wait here, and the query waits for it when it stops
        if self.query is not None:
            self.query.stop()

    def release(self) -> None:
        self._ends.close()
        for lock in self._locks:
            lock.close()
        self._locks.clear()
