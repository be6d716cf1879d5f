"""A stream without a window into PostgreSQL: each row is added once, or merged by its keys.

The rows of a micro-batch, those it refuses, the position and the counters are one transaction; comparing and setting
the position fences off a second writer. Rows pass through the driver: what is large is better landed in Delta.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg2

from lakehouse_engine import definitions, ledger, progress, rows, sql
from lakehouse_engine.errors import PlanError, RunError, said_by_spark
from lakehouse_engine.judged import Counts
from lakehouse_engine.plan import Member
from lakehouse_engine.progress import Record
from lakehouse_engine.rowwise import RowWise
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.upsert import Upsert
from lakehouse_engine.sources.reading import Reading
from lakehouse_engine.sources.versions import recreated

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: the columns of a quarantine in PostgreSQL that a stream fills
QUARANTINED = ["quarantined_at", "batch_id", "step", "reasons", "origin", "partition", "offset", "key", "value", "row"]


class Inserts(RowWise):
    """One member of a scan.

    Raises ``PlanError`` EXPRESSION_TYPE, COLUMN_TYPE, TABLE_DIFFERS; ``RunError`` POSTGRES_UNREACHABLE.
    """

    def __init__(self, spark: SparkSession, member: Member, read: Reading, dsn: str, writer: str,
                 trigger: int) -> None:  # fmt: skip
        super().__init__(member, read, member.merged, trigger)
        self._writer = writer
        where = member.spec.where("sink")
        kinds = stored_types(spark, member, read.nothing(spark))
        columns = {name: postgres_sink.pg_type(kind, where) for name, kind in kinds.items()}
        sink = member.spec.sink
        assert isinstance(sink, postgres_sink.Postgres)
        keys = member.spec.key_columns
        self._upsert = (Upsert(member.table, columns, keys, sink.order_by, sink.updated_at,
                               sink.delete_when is not None) if sink.mode == "upsert" else None)  # fmt: skip
        self._connection = postgres_sink.connect(dsn)
        with self._connection, self._connection.cursor() as cursor:
            ledger.make(cursor)
            if self._upsert is not None:
                self._upsert.ensure(cursor, where)
            else:
                postgres_sink.ensure_table(cursor, member.table, columns, [], where)
            postgres_sink.ensure_quarantine(cursor, member.table)
            claim = claimed(cursor, member, read, writer)
            definitions.hold(cursor, member.name, claim.epoch, definitions.of(member.spec, columns))
        self.positions, self._batch_id, self._epoch = claim.positions, claim.batch_id, claim.epoch

    def _put(self, judged: DataFrame, counts: Counts, record: Record) -> Record:
        record = replace(record, behind=self._ends.behind(record.offsets))
        columns = [name for name in self._judge.columns if name != "_later"]
        beside = [self._judge.key, "_at_offset"] if self._upsert else []
        if "_later" in self._judge.columns:  # of those of a key and an order the last is the newest
            beside = ["cast(_later.col2 as int) as _at_partition", "_later._version as _at_offset"]
        good = judged.filter(f"_outcome = '{rows.COUNTED}'").selectExpr(*map(sql.name, columns), *beside)
        try:
            with self._connection, self._connection.cursor() as cursor:
                if counts.outcomes.get(rows.COUNTED):
                    values = postgres_sink.python_rows(good)
                    if self._upsert is not None:
                        self._upsert.write(cursor, values)
                    else:
                        postgres_sink.copy(cursor, postgres_sink.identifier(self._member.table), columns, values)
                if counts.refused:
                    self._keep_aside(cursor, judged, record)
                self._read.still()
                progress.commit(cursor, [record], self._writer)
        except psycopg2.DataError as error:  # a row that its column cannot hold comes again, and again
            raise RunError("ROW_REFUSED", str(error).strip().splitlines()[0], where=self.name) from error
        return record

    def _keep_aside(self, cursor: Any, judged: DataFrame, record: Record) -> None:
        now = record.began_at
        chosen = ["_step", "_reasons", "_at_topic", "_at_partition", "_at_offset", "_key", "_value", "_as_row",
                  "_at_timestamp"]  # fmt: skip
        refused = judged.filter(f"_outcome = '{rows.QUARANTINED}' and _step is not null").select(*chosen)
        aside = postgres_sink.identifier(postgres_sink.side_table(self._member.table, "quarantine"))

        def kept() -> Iterator[Sequence[Any]]:
            for step, reasons, *place, key, value, row, at in postgres_sink.python_rows(refused):
                yield (now, record.batch_id, step, list(reasons), *place, key, value, row, at)

        postgres_sink.copy(cursor, aside, [*QUARANTINED, "timestamp"], kept())

    def close(self) -> None:
        self._connection.close()


def claimed(cursor: Any, member: Member, read: Reading, writer: str) -> progress.Claim:
    """Takes the pipeline over. Raises ``RunError`` STATE_DIFFERS, TABLE_RECREATED."""
    topic = read.topic
    where = member.spec.where("source")
    if not read.placed and progress.read_another(cursor, member.name, topic.id, topic.name):
        raise recreated(topic.name, member.name, where)
    claim = progress.claim(cursor, member.name, topic.id, topic.name, read.starts(), writer,
                           several=topic.several, firsts=topic.firsts)  # fmt: skip
    if not read.placed:
        commit = progress.last_commit(cursor, member.name, claim.epoch, topic.id)
        at = {"0": {"to": claim.positions[0].next_offset, "commit": commit}}
        read.check_same({"topic": topic.name, "topic_id": topic.id, "positions": at}, member.name, where)
    return claim


def stored_types(spark: SparkSession, member: Member, nothing: str) -> dict[str, str]:
    """The Spark types of the columns that are stored; ``nothing``: SQL of a relation with those of what is read.

    Raises ``PlanError`` EXPRESSION_TYPE.
    """
    inner = rows.layered(nothing, member.rows.layers)
    refusals = [(verdict.refused, verdict.step) for verdict in member.rows.verdicts]
    stored = [(text, "transforms") for text in member.rows.stored.values()]
    place = f"sink.{member.spec.sink.key}.delete_when"
    deletes = [(text, place) for name, text in member.merged.items() if name not in member.rows.stored]
    kinds = typed(spark, inner, [*refusals, *stored, *deletes], member)[len(refusals) :]
    return dict(zip(member.rows.stored, kinds, strict=False))


def typed(spark: SparkSession, inner: str, asked: Sequence[tuple[str, str]], member: Member) -> list[str]:
    """The Spark types of expressions over ``inner``, asked in one query: a cold Spark takes a tenth of a second each.

    Raises ``PlanError`` EXPRESSION_TYPE at the place of the first one that has none.
    """
    from pyspark.errors import PySparkException

    try:
        chosen = ", ".join(f"{expression} as x{i}" for i, (expression, _) in enumerate(asked))
        return [kind for _, kind in spark.sql(f"select {chosen} from ({inner})").dtypes]
    except PySparkException as error:
        if len(asked) > 1:  # which one is it?
            return [kind for one in asked for kind in typed(spark, inner, [one], member)]
        raise PlanError("EXPRESSION_TYPE", said_by_spark(error), where=member.spec.where(asked[0][1])) from None
