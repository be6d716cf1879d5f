"""What streams without a window have in common: a micro-batch is judged, written, and moves the position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lakehouse_engine import progress
from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import Run, See, seen
from lakehouse_engine.judged import Counts, Judge
from lakehouse_engine.plan import Member
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sources.reading import Reading

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class RowWise:
    """One member of a scan, in one sink. ``columns``: of its good rows, by name, over the source.

    ``positions``: how far its sink has come, which a subclass finds there, with the last batch and the epoch.
    """

    positions: Mapping[int, Position]

    def __init__(self, member: Member, read: Reading, columns: Mapping[str, str], trigger: int) -> None:
        self.name, self._member, self._trigger = member.name, member, trigger
        self._read, self._ends = read, read.ends
        self._judge = Judge(member, columns)
        self._batch_id, self._epoch = 0, 1
        #: where topics stand that are not read any more
        self._left: Mapping[str, Mapping[str, Any]] = {}

    def write(self, frame: DataFrame, view: str, started_at: int, reached: Mapping[int, int] | None, see: See) -> int:
        """Writes what the batch has beyond the position; returns the number of its records.

        ``reached``: where the batch ends, if its rows do not tell.
        """
        held = {} if reached else progress.offsets(self.positions)
        judged = self._judge.judge(frame, view, held).persist()
        try:
            record = self._write(judged, started_at, reached)
        finally:
            judged.unpersist()
        if record is None:
            return 0
        see(self._seen(record, frame.sparkSession))
        return sum(record.counters.values())

    def close(self) -> None:
        """Gives back what it holds."""

    def _put(self, judged: DataFrame, counts: Counts, record: Record) -> Record:
        """Writes good and refused rows with the record, which it returns with what only the sink knows."""
        raise NotImplementedError

    def _seen(self, record: Record, spark: SparkSession) -> Run:
        return seen(record, self._trigger, self._member.spec.sink.key)

    def _goes_on(self, record: Mapping[str, Any] | None) -> None:
        """From where a sink's newest record says that it stands; None: it has none, and begins where the source says.

        Raises ``RunError`` TABLE_RECREATED.
        """
        starts, topic = self._read.starts(), self._read.topic
        self._batch_id, self.positions = 0, {p: Position(offset) for p, offset in starts.items()}
        if record is None:
            return
        self._read.check_same(record, self.name, self._member.spec.where("source"))
        self._batch_id, positions = progress.from_user_metadata(record, topic.topics)
        self.positions = progress.going_on(positions, starts, topic.firsts)
        if topic.several is not None or "/" in "".join(record["positions"]):
            self._left = topic.topics.left(record["positions"], record["topic_id"], record["topic"])

    def _write(self, judged: DataFrame, started_at: int, reached: Mapping[int, int] | None) -> Record | None:
        """What was committed; None for a batch without rows."""
        counts = self._judge.count(judged)
        if not counts.ends:
            return None
        warnings = self._judge.warnings(counts, started_at)
        after = progress.reached(self.positions, reached or counts.ends)
        topic = self._read.topic
        if {at["topic_id"] for at in self._left.values()} & {part.id for part in topic.topics.parts}:
            # it was not there at the start, and is read from its first record now
            raise RunError("TOPIC_RETURNED", f"a topic that {self.name} has read before is there again: it goes on"
                           " where that ended, from the next start on", where=self.name)  # fmt: skip
        record = Record(self.name, self._epoch, self._batch_id + 1, started_at, topic.id, topic.name,
                        self.positions, after, None, counts.outcomes, warnings,
                        commit=self._read.commit(progress.offsets(after)), several=topic.several,
                        left=self._left)  # fmt: skip
        record = self._put(judged, counts, record)
        self.positions, self._batch_id = dict(record.after), record.batch_id
        return record
