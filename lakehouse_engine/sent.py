"""A stream without a window into a sink that holds no ledger: the rows, then a note of how far that was.

What it refuses is kept in Delta, beside the table that it would have.

The note is a file in the storage (``noted.py``); the lock of the branch makes sure that there is one writer of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lakehouse_engine import definitions, foreign, noted, progress, rows, sql
from lakehouse_engine.aside import Aside
from lakehouse_engine.connections import Connections
from lakehouse_engine.inserts import stored_types
from lakehouse_engine.judged import Counts
from lakehouse_engine.plan import Member
from lakehouse_engine.producing import into
from lakehouse_engine.progress import Record
from lakehouse_engine.rowwise import RowWise
from lakehouse_engine.sinks import Files, Jdbc, Kafka
from lakehouse_engine.sources.reading import Reading
from lakehouse_engine.spec.further import TO

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


#: in the note: rows by outcome of all batches
TOTALS = "totals"


#: rows up to which a batch is one file for each folder of its values
ONE_FILE_ROWS = 100_000


def _way_out(member: Member, to: Connections) -> Callable[[DataFrame, Record], object]:
    """What gives rows to the sink: a message, a row in another database's table or one in a batch's files."""
    sink, where = member.spec.sink, member.spec.where("sink")
    chosen = [sql.name(name) for name in member.rows.stored]
    if isinstance(sink, Jdbc):
        at, table = to.jdbc[sink.connection], sink.table
        return lambda good, _: foreign.add(good.select(*chosen), at, table, where)
    if isinstance(sink, Files):

        def add(good: DataFrame, record: Record) -> None:
            few = record.counters.get(rows.COUNTED, 0) < ONE_FILE_ROWS
            good = good.select(*chosen)
            sink.add(good.coalesce(1) if few else good, to.storage, where, record.batch_id)

        return add
    assert isinstance(sink, Kafka)
    send = into(sink, list(member.rows.stored), member.spec.key_columns, to.kafka(sink.connection), where)
    return lambda good, _: send(good)


class Sent(RowWise):
    """One member of a scan.

    Raises ``PlanError`` EXPRESSION_TYPE; ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC, LEDGER_DAMAGED,
    TABLE_RECREATED; of a folder UNSAFE_PATH, FOLDER_NOT_OURS, FOLDER_AHEAD.
    """

    def __init__(self, spark: SparkSession, member: Member, read: Reading, to: Connections,
                 trigger: int) -> None:  # fmt: skip
        stored_types(spark, member, read.nothing(spark))  # what a step gets wrong shows here
        super().__init__(member, read, member.rows.stored, trigger)
        self._storage = to.storage
        self._send = _way_out(member, to)
        self._aside = Aside(to.storage, member.name, read) if member.keeps else None
        noted_last = noted.read(to.storage, member.name)
        self._goes_on(noted_last)
        if isinstance(member.spec.sink, Files):
            member.spec.sink.begin(member.spec.name.partition(TO)[0], to.storage, member.spec.where("sink"),
                                   self._batch_id)  # fmt: skip
        self._totals: Mapping[str, int] = dict(noted_last[TOTALS]) if noted_last is not None else {}
        self._definition = definitions.of(member.spec, member.rows.stored).as_json()

    def _put(self, judged: DataFrame, counts: Counts, record: Record) -> Record:
        record = replace(record, behind=self._ends.behind(record.offsets))
        self._read.still()
        if self._aside is not None and self._aside.wanted(counts, record):
            self._aside.keep(judged, record)
        if counts.outcomes.get(rows.COUNTED):
            self._send(judged.filter(f"_outcome = '{rows.COUNTED}'"), record)
        totals = {name: self._totals.get(name, 0) + counts.outcomes.get(name, 0) for name in progress.COUNTERS}
        noted.write(self._storage, self.name, json.dumps({
            **json.loads(record.user_metadata(definition=self._definition)), TOTALS: totals}))
        self._totals = totals
        return record
