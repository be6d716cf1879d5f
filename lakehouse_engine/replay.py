"""``lakehouse quarantine replay``: what was refused is judged again by the files as they are now; what passes is added.

The stream stands still meanwhile: the replay holds the pipeline's lock and takes its claim, as ``lakehouse backfill``
does. A record that passes is added to the table and leaves the quarantine; one that would be filtered leaves it too.
The counters of the replay move it from ``quarantined`` to what it came to, and no position changes, so that all that
was ever read still adds up.

**Delivery guarantees**: exactly once. In PostgreSQL a replay is one transaction. In Delta it is two commits: that of
the table says which records of the quarantine it has judged well (``replays``), and that of the quarantine takes those
away and names the first (``replayed``). When the process dies in between, the next replay does the second one first.
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql as pg

from lakehouse_engine import deletions, ledger, progress, rows, sql
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.inserts import stored_types
from lakehouse_engine.judged import Judge
from lakehouse_engine.locks import acquire
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.plan import LANDING_COLUMNS, Member
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.session import apart
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import Kafka
from lakehouse_engine.sources.kafka import COLUMNS, NO_RECORDS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Report = Callable[[str], None]
#: records judged, and moved, at a time
MOST = 50_000
HEADERS = "_headers"
#: by partition, the offsets of records
Places = Mapping[int, list[int]]


@dataclass(frozen=True)
class Replayed:
    """Records by what they came to (``counted``, ``filtered``), and those that stay: ``quarantined``."""

    outcomes: Mapping[str, int]

    def text(self) -> str:
        added, gone, left = (self.outcomes.get(name, 0) for name in (rows.COUNTED, rows.FILTERED, rows.QUARANTINED))
        filtered = f", {gone:,} are filtered now" if gone else ""
        return f"{added:,} records added{filtered}, {left:,} are still refused"


def check(member: Member) -> None:
    """Raises ``PlanError`` NOT_YET, NO_HEADERS."""
    sink, instead = member.spec.sink, "comes with a later version"
    texts = [*member.rows.stored.values(), *(layer.sql for layer in member.rows.layers),
             *(verdict.refused for verdict in member.rows.verdicts)]  # fmt: skip
    if any(HEADERS in sql.columns(text) for text in texts):
        raise PlanError("NO_HEADERS", f"{member.name} reads {HEADERS}, which a quarantine does not keep; it cannot be"
                        " judged again", where=member.spec.where("source"))  # fmt: skip
    if member.window is not None:
        instead = f"is done by counting anew: lakehouse backfill {member.spec.file} --from DAY"
    elif member.several:
        instead = "reads several topics: that comes with a later version"
    elif member.spec.further:
        instead = "would reach the first of its sinks alone: with several it comes with a later version"
    elif (member.spec.placed and not member.rows.expanded
          and (member.spec.lands or (isinstance(sink, Postgres) and sink.mode != "upsert"))):  # fmt: skip
        return
    raise PlanError("NOT_YET", f"{member.name}: a replay is for streams that add a row for each record to Delta or"
                    f" PostgreSQL; of this one it {instead}", where=member.spec.where("sink"))  # fmt: skip


def replay(spark: SparkSession, member: Member, to: Connections, report: Report) -> Replayed:
    """Judges the quarantine of a stream again.

    Raises ``PlanError`` NOT_YET; ``RunError`` LOCKED, NOT_STARTED, CHECK_FAILED; ``FencedError`` FENCED.
    """
    check(member)
    session = apart(spark)
    with closing(acquire(spark, to.storage, member.name, member.name)), closing(
        Lookups(session, [member], to.storage, report)
    ) as lookups:
        for error in lookups.refresh(session, progress.now_micros()).values():
            raise error
        kinds = stored_types(session, member, NO_RECORDS)  # what a step gets wrong shows here
        if isinstance(member.spec.sink, Delta):
            path = delta_sink.table_path(to.storage, member.name)
            delta_sink.widen(session, path, kinds, member.spec.where("sink"))
            return _Landed(session, member, to.storage).replay()
        assert to.postgres_dsn is not None
        with closing(postgres_sink.connect(to.postgres_dsn)) as connection:
            return _Inserted(session, member, kinds, connection, to.writer).replay()


class _Replay:
    """Records with the columns of a topic, judged as a micro-batch of the stream would be."""

    def __init__(self, spark: SparkSession, member: Member, columns: Mapping[str, str]) -> None:
        source = member.spec.source
        assert isinstance(source, Kafka)
        self._spark, self._member, self._topic = spark, member, source.one
        self._judge = Judge(member, columns)
        self._view = f"replay_{uuid.uuid4().hex}"
        self._started_at = progress.now_micros()

    def replay(self) -> Replayed:
        """All of it, ``MOST`` records at a time, in the order of their places."""
        found: dict[str, int] = {}
        after: tuple[int, int] = (-1, -1)
        while True:
            frame = self._records(after).persist()
            try:
                last = frame.selectExpr("max(struct(_partition, _offset)) as last").collect()[0]["last"]
                if last is None:
                    return Replayed(found)
                self._round(frame, found)
            finally:
                frame.unpersist()
            after = (last[0], last[1])

    def _round(self, frame: DataFrame, found: dict[str, int]) -> None:
        judged = self._judge.judge(frame, self._view, {}).persist()
        try:
            counts = self._judge.count(judged)
            warnings = self._judge.warnings(counts, self._started_at)
            for name, number in counts.outcomes.items():
                found[name] = found.get(name, 0) + number
            moved = {name: number for name, number in counts.outcomes.items() if name != rows.QUARANTINED}
            if moved:
                places: dict[int, list[int]] = {}
                passing = judged.filter(f"_outcome <> '{rows.QUARANTINED}'")
                for row in passing.select("_at_partition", "_at_offset").collect():
                    places.setdefault(row["_at_partition"], []).append(row["_at_offset"])
                good = judged.filter(f"_outcome = '{rows.COUNTED}'").select(*map(sql.name, self._judge.columns))
                self._move(good, places, {**moved, rows.QUARANTINED: -sum(moved.values())}, warnings)
        finally:
            judged.unpersist()

    def _records(self, after: tuple[int, int]) -> DataFrame:
        """The next ones after a place, with the columns of ``COLUMNS``. One of which there are several stays."""
        raise NotImplementedError

    def _move(self, good: DataFrame, places: Places, counters: Mapping[str, int], warnings: Mapping[str, int]) -> None:
        raise NotImplementedError


#: SQL of a record's columns but its time; headers are not kept
_RECORD = ("key as _key", "value as _value", "origin as _topic", "partition as _partition", "offset as _offset",
           f"cast(null as {COLUMNS[HEADERS]}) as {HEADERS}")  # fmt: skip


class _Landed(_Replay):
    """A stream into Delta that adds its rows."""

    def __init__(self, spark: SparkSession, member: Member, storage: Path) -> None:
        landed = {name: name for name in LANDING_COLUMNS if name in member.rows.columns}
        super().__init__(spark, member, {**member.rows.stored, **landed})
        self._path = delta_sink.table_path(storage, member.name)
        self._aside = delta_sink.beside(self._path, "quarantine")
        self._log, self._kept = DeltaLog(self._path), DeltaLog(self._aside)
        if self._log.record() is None:
            raise _not_started(member)
        self._finish()

    def _finish(self) -> None:
        """Takes away what an earlier replay has added when it died."""
        made = _newest(self._log, "replays")
        answered = _newest(self._kept, "replayed")
        if made is not None and (answered is None or answered["replayed"] != self._named(made["version"])):
            self._leave(_unpacked(made["replays"]["places"]), made["version"])

    def _named(self, version: int) -> dict[str, Any]:
        return {"id": self._log.table_id(), "version": version, "commit": self._log.commit_id(version)}

    def _records(self, after: tuple[int, int]) -> DataFrame:
        if self._kept.version() is None:
            return self._spark.createDataFrame([], ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items()))
        held = self._spark.read.format("delta").load(str(self._aside))
        time = "coalesce(timestamp, quarantined_at)" if "timestamp" in held.columns else "quarantined_at"
        alone = "count(*) over (partition by partition, offset) = 1"
        found = held.filter(f"origin = {sql.string(self._topic)} and offset is not null").selectExpr(
            *_RECORD, f"{time} as _timestamp", f"{alone} as alone")  # fmt: skip
        later = f"alone and (_partition, _offset) > ({after[0]}, {after[1]}L)"
        return found.filter(later).drop("alone").orderBy("_partition", "_offset").limit(MOST)

    def _move(self, good: DataFrame, places: Places, counters: Mapping[str, int], warnings: Mapping[str, int]) -> None:
        held = self._log.record()
        assert held is not None
        batch_id, positions = progress.from_user_metadata(held)
        record = Record(self._member.name, int(held.get("epoch", 1)), batch_id + 1, self._started_at,
                        held["topic_id"], held["topic"], positions, positions, None,
                        counters, warnings, deletes=deletions.done(self._log))  # fmt: skip
        sink = self._member.spec.sink
        assert isinstance(sink, Delta)
        delta_sink.append(good.coalesce(1), self._path, record.user_metadata(replays={"places": _packed(places)}),
                          partition_by=sink.partition_by, cluster_by=sink.cluster_by)  # fmt: skip
        version = self._log.version()
        assert version is not None
        self._leave(places, version)

    def _leave(self, places: Places, version: int) -> None:
        """The records leave the quarantine, in a commit that repeats what its newest one says of positions."""
        told = delta_sink.repeated(self._kept.record() or {}, counters={}, warnings={}, replayed=self._named(version))
        gone = [(partition, offset) for partition, offsets in places.items() for offset in offsets]
        frame = self._spark.createDataFrame(gone, "partition int, offset bigint")
        on = f"t.origin = {sql.string(self._topic)} and t.partition = s.partition and t.offset = s.offset"
        delta_sink.merge(frame, self._aside, told, on, "when matched then delete")


class _Inserted(_Replay):
    """A stream into PostgreSQL that adds its rows."""

    def __init__(self, spark: SparkSession, member: Member, kinds: Mapping[str, str], connection: Any,
                 writer: str) -> None:  # fmt: skip
        super().__init__(spark, member, member.rows.stored)
        where = member.spec.where("sink")
        columns = {name: postgres_sink.pg_type(kind, where) for name, kind in kinds.items()}
        self._connection, self._writer = connection, writer
        self._aside = postgres_sink.identifier(postgres_sink.side_table(member.table, "quarantine"))
        with connection, connection.cursor() as cursor:
            ledger.make(cursor)
            epoch = progress.epoch_of(cursor, member.name)
            cursor.execute("select topic_id, topic from lakehouse.positions p where (pipeline, epoch) = (%s, %s)"
                           " order by (select max(batch_id) from lakehouse.batches b where (b.pipeline, b.epoch,"
                           " b.topic_id) = (p.pipeline, p.epoch, p.topic_id)) desc nulls last limit 1",
                           (member.name, epoch))  # fmt: skip
            found = cursor.fetchone()
            if found is None:
                raise _not_started(member)
            self._source = (found[0], found[1])
            postgres_sink.ensure_table(cursor, member.table, columns, [], where)
            postgres_sink.ensure_quarantine(cursor, member.table)
            self._claim = progress.claim(cursor, member.name, *self._source, {}, writer)
            cursor.execute("update lakehouse.positions set writer = %s where (pipeline, epoch, topic_id)"
                           " = (%s, %s, %s)", (writer, member.name, epoch, self._source[0]))  # fmt: skip

    def _records(self, after: tuple[int, int]) -> DataFrame:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(pg.SQL(
                'select key, value, origin, partition, "offset", extract(epoch from at) * 1000000 from ('
                'select *, coalesce("timestamp", quarantined_at) as at,'
                ' count(*) over (partition by partition, "offset") as copies'
                ' from {} where origin = %s and "offset" is not null) q'
                ' where copies = 1 and (partition, "offset") > (%s, %s) order by partition, "offset" limit %s'
            ).format(self._aside), (self._topic, *after, MOST))  # fmt: skip
            found = [(_bytes(key), _bytes(value), *place, int(at)) for key, value, *place, at in cursor.fetchall()]
        kinds = "key binary, value binary, origin string, partition int, offset bigint, at bigint"
        frame = self._spark.createDataFrame(found, kinds)
        return frame.selectExpr(*_RECORD, "timestamp_micros(at) as _timestamp")

    def _move(self, good: DataFrame, places: Places, counters: Mapping[str, int], warnings: Mapping[str, int]) -> None:
        held = self._claim
        record = Record(self._member.name, held.epoch, held.batch_id + 1, self._started_at, *self._source,
                        held.positions, held.positions, None, counters, warnings)  # fmt: skip
        with self._connection, self._connection.cursor() as cursor:
            postgres_sink.copy(cursor, postgres_sink.identifier(self._member.table), list(self._judge.columns),
                               postgres_sink.python_rows(good))  # fmt: skip
            for partition, offsets in places.items():
                cursor.execute(pg.SQL('delete from {} where origin = %s and partition = %s and "offset" = any(%s)')
                               .format(self._aside), (self._topic, partition, offsets))  # fmt: skip
            progress.commit(cursor, [record], self._writer)
        self._claim = replace(held, positions=dict[int, Position](record.after), batch_id=record.batch_id)


def _not_started(member: Member) -> RunError:
    return RunError("NOT_STARTED", f"{member.name} has not run yet: there is nothing in quarantine", where=member.name)


def _newest(log: DeltaLog, key: str) -> dict[str, Any] | None:
    """The newest record that says something under ``key`` itself, with its ``version``."""
    for version in reversed(log.versions()):
        record = log.record_of(version)
        if record is not None and key in record and (key != "replays" or not record.get("repeats")):
            return {**record, "version": version}
    return None


def _packed(places: Places) -> str:
    """Offsets as what they are above the one before, compressed: a record of a commit is one line of its log."""
    near = {}
    for partition, offsets in places.items():
        ordered = sorted(offsets)
        near[partition] = [b - a for a, b in zip([0, *ordered], ordered, strict=False)]
    return base64.b64encode(zlib.compress(json.dumps(near).encode())).decode()


def _unpacked(text: str) -> Places:
    found: dict[int, list[int]] = {}
    for partition, steps in json.loads(zlib.decompress(base64.b64decode(text))).items():
        offset, offsets = 0, []
        for step in steps:
            offset += step
            offsets.append(offset)
        found[int(partition)] = offsets
    return found


def _bytes(value: memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)
