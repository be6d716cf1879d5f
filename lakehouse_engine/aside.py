"""What a stream without a window refuses, kept in Delta by commits of their own before the rows', with a position."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import progress, rows
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.judged import not_before
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sinks import delta as delta_sink

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Aside:
    """The table beside a pipeline's own, of one writer. ``topic_id``: of another topic it holds nothing."""

    def __init__(self, storage: Path, pipeline: str, topic_id: str) -> None:
        self.path = delta_sink.beside(delta_sink.table_path(storage, pipeline), "quarantine")
        record = DeltaLog(self.path).record()
        self._positions: Mapping[int, Position] = {}
        if record is not None and record["topic_id"] == topic_id:
            self._positions = progress.from_user_metadata(record)[1]

    def keep(self, judged: DataFrame, record: Record) -> None:
        """Adds what the batch refuses; after a crash before the rows' own commit they are not added again."""
        held = {p: q.next_offset for p, q in self._positions.items()}
        refused = judged.filter(f"_outcome = '{rows.QUARANTINED}' and _step is not null"
                                f" and {not_before(held, '_at')}")  # fmt: skip
        kept = refused.coalesce(1).selectExpr(
            f"timestamp'{record.began_at.isoformat()}' as quarantined_at", f"{record.batch_id}L as batch_id",
            "_step as step", "_reasons as reasons", "_at_topic as origin", "_at_partition as partition",
            "_at_offset as offset",
            "_key as key", "_value as value", "cast(null as string) as row",
            "cast(null as string) as unit", "_at_timestamp as timestamp")  # fmt: skip
        delta_sink.append(kept, self.path, record.user_metadata(), widen=True)
        self._positions = dict(record.after)
