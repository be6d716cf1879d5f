"""The rows that a stream has read already, read again: from the table that lands its topic, from the topic itself, or
from the table that it follows, as that was then.

Whether a source still holds all of them is known exactly. The ledger tells, batch by batch, how far the stream had read
each partition and the greatest event time that it had seen there. So what is missing below an offset has event times up
to that of the batch which passed it, and a range that begins later misses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from lakehouse_engine import rows, sql
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.places import Part, Topics, one
from lakehouse_engine.plan import Member, after_landing
from lakehouse_engine.progress import epoch_of, from_user_metadata, to_micros
from lakehouse_engine.rows import Rows
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Kafka, broker, kafka
from lakehouse_engine.sources.topics import joined
from lakehouse_engine.sources.versions import OfTable, recreated
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Derive, Parse

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


#: microseconds
DAY = 86_400_000_000


@dataclass(frozen=True)
class Read:
    """What a stream has read: of the topic with this id, per partition up to ``next`` (an offset, not included).

    ``begun``: where it began to read, if its ``start`` leaves out what came before; None: what it lacks, as after a
    reset with a topic that holds no more of it, is to be counted as well.

    ``several``: where it is more than one topic, by whose places ``next`` is then.
    """

    pipeline: str
    topic: str
    topic_id: str
    next: Mapping[int, int]
    epoch: int = 1
    several: Topics | None = None
    begun: Mapping[int, int] | None = None

    @property
    def topics(self) -> Topics:
        return self.several or one(self.topic_id, self.topic)

    def first(self, place: int) -> int:
        """The first offset that counts."""
        return 0 if self.begun is None else self.begun.get(place, self.next.get(place, 0))


@dataclass(frozen=True)
class Past:
    """``frame`` has the columns that ``rows`` reads, and no row that the stream has not read.

    ``firsts``: the least offset of each partition, or place, that the source can hold.
    """

    name: str
    frame: DataFrame
    rows: Rows
    firsts: Mapping[int, int]

    @property
    def time(self) -> str:
        """SQL of the event time, where the layers of ``rows`` are there."""
        assert self.rows.event_time is not None
        return self.rows.event_time.expression

    def days(self, size: int) -> list[int]:
        """The starts (microseconds) of the days in which a window of ``size`` may begin that holds a row of these."""
        from lakehouse_engine.segments import layered

        time = f"unix_micros({self.time})"
        either = f"explode(array({time} - pmod({time}, {DAY}), {time} - {size} - pmod({time} - {size}, {DAY}))) as day"
        good = layered(self.frame, self.rows).filter(rows.passing(self.rows.verdicts))
        return [row["day"] for row in good.selectExpr(either).distinct().collect()]

    def within(self, first: int, end: int) -> DataFrame:
        """Rows of these event times (microseconds; ``end`` is not included), and others where they cannot be told."""
        if any(layer.alias.lower() in sql.columns(self.time) for layer in self.rows.layers):
            return self.frame  # not told before the record is parsed
        return self.frame.filter(f"{self.time} >= timestamp_micros({first}L)"
                                 f" and {self.time} < timestamp_micros({end}L)")  # fmt: skip


def reading(spark: SparkSession, member: Member, read: Read, lander: PipelineSpec | None,
            to: Connections) -> tuple[list[Past], list[str]]:  # fmt: skip
    """The sources that hold what the stream has read last, the best one first; and why others cannot be read.

    ``lander``: the pipeline that ``history`` names.
    """
    found: list[Past] = []
    reasons: list[str] = []
    if isinstance(member.spec.source, DeltaSource):
        try:
            return [_table(spark, member, member.spec.source, read, to.storage)], []
        except RunError as error:
            return [], [error.message]
    try:
        if lander is not None:
            found.append(_history(spark, member, read, lander, to.storage))
    except RunError as error:
        reasons.append(error.message)
    try:
        found.append(_topic(spark, member, read, to))
    except RunError as error:
        reasons.append(error.message)
    return found, reasons


def missing(cursor: Any, past: Past, read: Read, first: int) -> str | None:
    """What the source does not hold of the rows with event times from ``first`` (microseconds) on; None: nothing."""
    topics = read.topics
    for place, offset in sorted(past.firsts.items()):
        part, partition = topics.at(place)
        cursor.execute(_REACHED, {"p": str(partition), "key": f"{part.name}/{partition}", "offset": offset,
                                  "name": read.pipeline, "epoch": read.epoch, "topic": part.id})  # fmt: skip
        start, passed, at_pass, ever = cursor.fetchone()
        greatest = at_pass if passed else ever
        if start is None or offset <= start or greatest is None or (to_micros(greatest) or 0) < first:
            continue
        of = f" of {part.name}" if topics.several else ""
        return (f"{past.name} begins at offset {offset} of partition {partition}{of}, and {read.pipeline} has read from"
                f" {start} on: what is missing has event times up to {greatest:%Y-%m-%dT%H:%M:%SZ}")  # fmt: skip
    return None


#: of one partition, also where the topic was one of several in some batches: where the stream began, how many batches
#: ended at or after an offset, the greatest event time seen by the first of them, and by any
_REACHED = """
select min((at ->> 'from')::bigint), count(*) filter (where (at ->> 'to')::bigint >= %(offset)s),
  (array_agg((at ->> 'max_event_time')::timestamptz order by batch_id)
    filter (where (at ->> 'to')::bigint >= %(offset)s))[1],
  max((at ->> 'max_event_time')::timestamptz)
from (select batch_id, case when topic_id = %(topic)s and ranges ? %(p)s then ranges -> %(p)s
    when ranges -> %(key)s ->> 'topic_id' = %(topic)s then ranges -> %(key)s end as at from lakehouse.batches
  where pipeline = %(name)s and epoch = %(epoch)s) b where at is not null"""


def _history(spark: SparkSession, member: Member, read: Read, lander: PipelineSpec, storage: Path) -> Past:
    """Raises ``RunError`` BAD_HISTORY, HISTORY_BEHIND."""
    log = DeltaLog(delta_sink.table_path(storage, lander.name))
    record, columns = log.record(), log.columns()
    if record is None or columns is None:
        raise RunError("BAD_HISTORY", f"there is no table {lander.name} yet")
    problem = _loses(member.spec, lander)
    if problem is not None:
        raise RunError("BAD_HISTORY", problem)
    if member.several:
        raise RunError("BAD_HISTORY", f"{lander.name} may have landed several topics of one name; these are read anew")
    began = next((found for v in log.versions() if (found := log.record_of(v)) is not None), record)
    if {began.get("topic_id"), record.get("topic_id")} != {read.topic_id}:
        raise RunError("BAD_HISTORY", f"{lander.name} has read another topic {read.topic}: it was made anew")
    _, landed = from_user_metadata(record)
    for partition, offset in sorted(read.next.items()):
        there = landed[partition].next_offset if partition in landed else 0
        if there < offset:
            raise RunError("HISTORY_BEHIND", f"{lander.name} has landed partition {partition} up to offset {there}, and"
                           f" {read.pipeline} has read up to {offset}; run {lander.name} first")  # fmt: skip
    frame = spark.read.format("delta").load(str(log.path))
    before = [f"(_partition = {partition} and _offset >= {read.first(partition)} and _offset < {offset})"
              for partition, offset in read.next.items()]  # fmt: skip
    firsts = _landed_from(log)
    if firsts is None:  # the log does not tell any more: what lies below the least offset may be missing
        least = frame.groupBy("_partition").agg({"_offset": "min"}).collect()
        firsts = {row[0]: row[1] for row in least}
    return Past(lander.name, frame.filter(" or ".join(before) or "false"), after_landing(member, columns), firsts)


def _loses(spec: PipelineSpec, lander: PipelineSpec) -> str | None:
    """Why the landed rows are not those that the stream sees after ``parse``."""
    if not spec.transforms or not isinstance(spec.transforms[0], Parse):
        return f"{spec.name} does something before it parses"
    theirs = next((step for step in lander.transforms if isinstance(step, Parse)), spec.transforms[0])
    if (theirs.reads_by, theirs.into) != (spec.transforms[0].reads_by, spec.transforms[0].into):
        return f"{lander.name} reads records by another contract, or into other columns"
    for index, step in enumerate(lander.transforms):
        new = isinstance(step, Derive) and not any(c in made.columns for made in lander.contracts.values()
                                                   for c in step.columns)  # fmt: skip
        if index and not new:
            return f"{lander.name} changes or leaves out rows in transforms[{index}].{step.key}"
    return f"{lander.name} leaves out rows by its checks" if lander.checks else None


def _landed_from(log: DeltaLog) -> dict[int, int] | None:
    """The offset that each partition's landing began at, None when the log does not tell any more."""
    first = log.record_of(0) if 0 in log.versions() else None
    return {int(p): int(at["from"]) for p, at in first["positions"].items()} if first else None


def _topic(spark: SparkSession, member: Member, read: Read, to: Connections) -> Past:
    """Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC, TOPIC_RECREATED."""
    assert isinstance(member.spec.source, Kafka)
    source = member.spec.source
    bootstrap_servers = to.kafka(source.connection)
    found = broker.describe_all(bootstrap_servers, [part.name for part in read.topics.parts], where=source.reached)
    for topic, part in zip(found, read.topics.parts, strict=True):
        if topic.id != part.id:
            raise RunError("TOPIC_RECREATED", f"the topic {part.name} is another one than {read.pipeline} has read")
    topic = joined(found, read.topics) if read.several else found[0]
    starts = {place: max(read.first(place), first) for place, first in topic.firsts.items()}
    ends = {place: max(read.next.get(place, 0), first) for place, first in starts.items()}
    frame = kafka.read_range(spark, topic.topics, bootstrap_servers, starts, ends, source.prefix)
    return Past(f"the topic{'s' * (len(found) > 1)} {read.topic}", frame, member.rows, topic.firsts)


def _table(spark: SparkSession, member: Member, source: DeltaSource, read: Read, storage: Path) -> Past:
    """The table that a stream follows, at the version before its position. Rows that were deleted from it are gone.

    Which rows a stream found there that began later, with ``start: latest``, is not told.

    Raises ``RunError`` BEGUN_LATER, TABLE_RECREATED, DATA_LOST, TABLE_DIFFERS.
    """
    spec, version = member.spec, read.next[0] - 1
    if read.first(0):
        raise RunError("BEGUN_LATER", f"{read.pipeline} has begun at version {read.first(0)} of {read.topic}, and its"
                       " rows cannot be told from those before")  # fmt: skip
    path = delta_sink.table_path(storage, source.table)
    table = OfTable(source, path, spec.tables_have[source.table], spec.where("source"))
    if table.topic.id != read.topic_id:
        raise recreated(source.table, spec.name, spec.where("source"))
    there = version in DeltaLog(path).versions()
    frame = table.at(spark, version) if there else None
    if frame is None or not all(Path(unquote(urlparse(file).path)).exists() for file in frame.inputFiles()):
        raise RunError("DATA_LOST", f"version {version} of {source.table}, up to which {spec.name} has read, is no"
                       " longer there as it was: its log, or vacuum_after, has passed")  # fmt: skip
    return Past(f"version {version} of {source.table}", frame, member.rows, {})


def stream_rows(cursor: Any, pipeline: str, topic: str | None) -> Read:
    """What the pipeline has read, by its ledger; ``topic``: None where it reads several.

    Raises ``RunError`` NOT_STARTED, TOPIC_RECREATED.
    """
    epoch = epoch_of(cursor, pipeline)
    cursor.execute("select topic_id, topic, partition, next_offset from lakehouse.positions where pipeline = %s"
                   " and epoch = %s", (pipeline, epoch))  # fmt: skip
    found = cursor.fetchall()
    if not found:
        raise RunError("NOT_STARTED", f"{pipeline} has not run yet: it has closed no window; run it first",
                       where=pipeline)  # fmt: skip
    parts = sorted({Part(topic_id, name) for topic_id, name, _, _ in found}, key=lambda part: (part.name, part.id))
    if topic is None and len({part.name for part in parts}) == len(parts):
        several = Topics(tuple(parts), several=True)
        places = ((several.place(topic_id, partition), offset) for topic_id, _, partition, offset in found)
        read = {place: offset for place, offset in places if place is not None}
        return Read(pipeline, several.name, several.id, read, epoch, several)
    if len(parts) > 1 or parts[0].name != topic:
        names = ", ".join(sorted({f"{row[1]} ({row[0]})" for row in found}))
        raise RunError("TOPIC_RECREATED", f"{pipeline} has read more than this topic: {names}; offsets of one say"
                       " nothing of another, so its rows cannot be told apart", where=pipeline)  # fmt: skip
    return Read(pipeline, topic, found[0][0], {row[2]: row[3] for row in found}, epoch)


def begun(cursor: Any, read: Read) -> dict[int, int]:
    """Where the first batch began that has read a partition, by its place."""
    cursor.execute("select key, coalesce(value ->> 'topic_id', topic_id), min((value ->> 'from')::bigint)"
                   " from lakehouse.batches, jsonb_each(ranges) where (pipeline, epoch) = (%s, %s) group by 1, 2",
                   (read.pipeline, read.epoch))  # fmt: skip
    found = ((read.topics.place(topic_id, int(key.rpartition("/")[2])), first) for key, topic_id, first
             in cursor.fetchall())  # fmt: skip
    return {place: first for place, first in found if place is not None}


def spelled(member: Member) -> list[str] | None:
    """What the window's key columns are called among the columns that are kept of a late row."""
    assert member.window is not None
    stored = {name.lower(): name for name in member.rows.stored}
    found = [stored.get(name.lower()) for name in member.window.by]
    return None if None in found else [name for name in found if name is not None]
