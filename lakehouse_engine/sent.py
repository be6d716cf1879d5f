"""A stream without a window into a sink that holds no ledger: the rows, then a note of how far that was.

What it refuses is kept in Delta, beside the table that it would have.

The note is a file in the storage (``noted.py``); the lock of the branch makes sure that there is one writer of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lakehouse_engine import definitions, foreign, noted, progress, rows, sql
from lakehouse_engine.aside import Aside
from lakehouse_engine.connections import Connections
from lakehouse_engine.inserts import stored_types
from lakehouse_engine.journal import See, seen
from lakehouse_engine.judged import Judge
from lakehouse_engine.plan import Member
from lakehouse_engine.producing import Topic, messages
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sinks import Jdbc, Kafka
from lakehouse_engine.sources.reading import Reading

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


#: in the note: rows by outcome of all batches
TOTALS = "totals"


def _way_out(member: Member, to: Connections) -> Callable[[DataFrame], object]:
    """What gives rows to the sink. A message for each row, or a row in another database's table."""
    sink, where = member.spec.sink, member.spec.where("sink")
    if isinstance(sink, Jdbc):
        at, table = to.jdbc[sink.connection], sink.table
        chosen = [sql.name(name) for name in member.rows.stored]
        return lambda good: foreign.add(good.select(*chosen), at, table, where)
    assert isinstance(sink, Kafka)
    topic = Topic(to.bootstrap_servers, sink.topic, where)
    parts = sink.message(list(member.rows.stored), member.spec.key_columns)
    texts = [f"{text} as {sql.name(name)}" for name, text in parts.items()]
    return lambda good: topic.send(messages(good.selectExpr(*texts)))


class Sent:
    """One member of a scan.

    Raises ``PlanError`` EXPRESSION_TYPE; ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC, LEDGER_DAMAGED,
    TABLE_RECREATED.
    """

    def __init__(self, spark: SparkSession, member: Member, read: Reading, to: Connections,
                 trigger: int) -> None:  # fmt: skip
        self.name, self._read, self._trigger, self._key = member.name, read, trigger, member.spec.sink.key
        self._topic, self._ends, self._storage = read.topic, read.ends, to.storage
        stored_types(spark, member, read.nothing(spark))  # what a step gets wrong shows here
        self._judge = Judge(member, member.rows.stored)
        self._send = _way_out(member, to)
        self._aside = Aside(to.storage, member.name, read) if member.keeps else None
        self._batch_id, self.positions, self._totals = self._held(member.spec.where("source"))
        self._definition = definitions.of(member.spec, member.rows.stored).as_json()

    def _held(self, where: str) -> tuple[int, dict[int, Position], dict[str, int]]:
        begin = {p: Position(offset) for p, offset in self._read.starts().items()}
        record = noted.read(self._storage, self.name)
        if record is None:
            return 0, begin, {}
        self._read.check_same(record, self.name, where)
        batch_id, positions = progress.from_user_metadata(record)
        same = record["topic_id"] == self._topic.id
        return batch_id, progress.going_on(positions, begin) if same else begin, dict(record[TOTALS])

    def write(self, frame: DataFrame, view: str, started_at: int, reached: Mapping[int, int] | None, see: See) -> int:
        """Sends what the batch has beyond the position; returns the number of its records."""
        held = {} if reached else {p: q.next_offset for p, q in self.positions.items()}
        judged = self._judge.judge(frame, view, held).persist()
        try:
            record = self._write(judged, started_at, reached)
        finally:
            judged.unpersist()
        if record is None:
            return 0
        see(seen(record, self._trigger, self._key))
        return sum(record.counters.values())

    def _write(self, judged: DataFrame, started_at: int, reached: Mapping[int, int] | None) -> Record | None:
        """What was sent and noted; None for a batch without rows."""
        counts = self._judge.count(judged)
        if not counts.ends:
            return None
        warnings = self._judge.warnings(counts, started_at)
        after = progress.reached(self.positions, reached or counts.ends)
        record = Record(self.name, 1, self._batch_id + 1, started_at, self._topic.id, self._topic.name,
                        self.positions, after, None, counts.outcomes, warnings,
                        behind=self._ends.behind({p: q.next_offset for p, q in after.items()}),
                        commit=self._read.commit({p: q.next_offset for p, q in after.items()}))  # fmt: skip
        if self._aside is not None and self._aside.wanted(counts, record):
            self._aside.keep(judged, record)
        if counts.outcomes.get(rows.COUNTED):
            self._send(judged.filter(f"_outcome = '{rows.COUNTED}'"))
        totals = {name: self._totals.get(name, 0) + counts.outcomes.get(name, 0) for name in progress.COUNTERS}
        noted.write(self._storage, self.name, json.dumps({
            **json.loads(record.user_metadata(definition=self._definition)), TOTALS: totals}))
        self.positions, self._batch_id, self._totals = dict(record.after), record.batch_id, totals
        return record
