"""What a stream without a window refuses, kept in Delta by commits of their own before the rows', with a position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import progress, rows
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.judged import Counts, not_before
from lakehouse_engine.places import SEVERAL
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sources.reading import Reading

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Aside:
    """The table beside a pipeline's own, of one writer. ``read``: of another topic it holds nothing."""

    def __init__(self, storage: Path, pipeline: str, read: Reading) -> None:
        self.path = delta_sink.beside(delta_sink.table_path(storage, pipeline), "quarantine")
        record = DeltaLog(self.path).record()
        self._positions: Mapping[int, Position] = {}
        self._batch_id, self._by_batch = 0, not read.placed
        if record is not None and (read.topic.several or record["topic_id"] == read.topic.id):
            self._batch_id, self._positions = progress.from_user_metadata(record, read.topic.topics)
        self._at = f"_at{SEVERAL}" if read.topic.several else "_at_partition"

    def wanted(self, counts: Counts, record: Record) -> bool:
        """Whether a batch has something to keep, or to take the place of what a try before has kept of it."""
        return bool(counts.refused) or (self._by_batch and self._batch_id == record.batch_id)

    def keep(self, judged: DataFrame, record: Record) -> None:
        """Adds what the batch refuses; after a crash before the rows' own commit they are not added again.

        Where rows do not say by which position they came, those of the batch take the place of what a try before has
        kept of it: by now the batch may be longer.
        """
        held = {} if self._by_batch else progress.offsets(self._positions)
        if held:  # a try before may have come further than this batch, and kept what lies there
            record = replace(record, after=progress.reached(self._positions, record.offsets))
        refused = judged.filter(f"_outcome = '{rows.QUARANTINED}' and _step is not null"
                                f" and {not_before(held, self._at, '_at_offset')}")  # fmt: skip
        kept = refused.coalesce(1).selectExpr(
            f"timestamp'{record.began_at.isoformat()}' as quarantined_at", f"{record.batch_id}L as batch_id",
            "_step as step", "_reasons as reasons", "_at_topic as origin", "_at_partition as partition",
            "_at_offset as offset",
            "_key as key", "_value as value", "_as_row as row", "cast(null as string) as unit",
            "_at_timestamp as timestamp")  # fmt: skip
        if self._by_batch and self._batch_id == record.batch_id:
            run = f"{record.pipeline}/{record.epoch}/{record.batch_id}/{record.started_at}"
            delta_sink.replace(kept, self.path, record.user_metadata(), where=f"batch_id = {record.batch_id}", run=run)
        else:
            delta_sink.append(kept, self.path, record.user_metadata(), widen=True)
        self._positions, self._batch_id = dict(record.after), record.batch_id
