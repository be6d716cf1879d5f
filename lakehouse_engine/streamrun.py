"""One start of a streaming query: its micro-batches one after the other, and an end between two of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import progress
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import LakehouseError, RunError
from lakehouse_engine.journal import See
from lakehouse_engine.locks import Lock
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sources import Delta, Files, Kafka, Rate
from lakehouse_engine.sources.listed import OfFiles
from lakehouse_engine.sources.rate import OfRate
from lakehouse_engine.sources.reading import Behind, OfTopic, Reading
from lakehouse_engine.sources.several import OfTopics
from lakehouse_engine.sources.versions import OfTable
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

Report = Callable[[str], None]


def reading(spec: PipelineSpec, to: Connections) -> Reading:
    """What a stream, or one of its inputs, reads. Raises ``RunError`` where it is not there."""
    source = spec.source
    if isinstance(source, Kafka):
        return (OfTopics if source.several else OfTopic)(source, to.kafka(source.connection))
    if isinstance(source, Rate):
        return OfRate(source)
    if isinstance(source, Files):
        return OfFiles(source, spec.contracts[source.contract], to.storage, spec.name, spec.where("source"))
    assert isinstance(source, Delta)
    path = delta_sink.table_path(to.storage, source.table)
    return OfTable(source, path, spec.tables_have[source.table], spec.where("source"))


class StreamRun:
    """What a scan and a query on Spark's state have in common. ``error``: what ended the query, if a batch did."""

    def __init__(self, name: str, spark: SparkSession, connections: Connections, report: Report, see: See,
                 ends: Behind) -> None:  # fmt: skip
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

    def _idle(self) -> bool:
        """Whether a micro-batch was begun for which nothing has come."""
        return False

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
                if self._idle():
                    return
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

    def why(self) -> BaseException | None:
        """What ended the query, None when nothing did: what a batch said, else what its source says of it."""
        if self.error is not None or self.query is None:
            return self.error
        error: BaseException | None = self.query.exception()
        return error and (self._explained() or error)

    def _explained(self) -> LakehouseError | None:
        """Why the query may have ended between two batches, where that can be told."""
        return None

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
