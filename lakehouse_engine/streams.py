"""Runs a scan: one Structured Streaming query whose batches end in the members' own sinks and ledgers.

The query's checkpoint is scratch. It is thrown away at each start, and the query begins where the sinks say: there is
no second truth that could disagree with them.
"""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg2

from lakehouse_engine import definitions, journal, ledger, progress, rows, sql
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import LakehouseError, RunError
from lakehouse_engine.inserts import QUARANTINED, Inserts, claimed, stored_types, typed
from lakehouse_engine.journal import See, seen
from lakehouse_engine.judged import LEAST_JUDGED
from lakehouse_engine.landing import Landing
from lakehouse_engine.locks import acquire
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.outbox import Outbox
from lakehouse_engine.plan import Member, Scan
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.rowwise import RowWise
from lakehouse_engine.scan import Result, ScanQuery, scan_floors
from lakehouse_engine.sent import Sent
from lakehouse_engine.sinks import Console, Delta, Postgres, Unkept
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.final import FinalMerge, emit_changed, mark_of
from lakehouse_engine.sinks.sessions import SessionMerge
from lakehouse_engine.sources import kafka
from lakehouse_engine.sources.reading import Held, Reading
from lakehouse_engine.spec.further import branches
from lakehouse_engine.streamrun import Report, StreamRun, reading

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: seconds between two looks for what other pipelines ask to be deleted, where no batch comes
REST = 1.0


class ScanRun(StreamRun):
    """One start of a scan, from claiming its members to the end of its query."""

    def __init__(self, spark: SparkSession, scan: Scan, connections: Connections, report: Report,
                 see: See = lambda _: None) -> None:  # fmt: skip
        self.scan = scan
        self._read = reading(scan.members[0].spec, connections)
        super().__init__(scan.name, spark, connections, report, see, self._read.ends)
        self._rested = 0.0
        self._view = "batch_" + re.sub(r"\W", "_", scan.name)
        self._checkpoint = connections.storage / "_checkpoints" / scan.name
        self._windows: _Windows | None = None
        self._landings: list[RowWise | _Print] = []
        self._lookups: Lookups | None = None
        #: where landings stand that were taken out: the next batch may begin there
        self._left: list[Mapping[int, Position]] = []

    def start(self, *, available_now: bool) -> None:
        """Takes the members over and starts the query. Nothing has been written when this raises."""
        holder = ", ".join(member.name for member in self.scan.members)
        try:
            self._locks.append(acquire(self._spark, self._to.storage, f"scan {self.scan.name}", holder))
            self._lookups = Lookups(self._spark, self.scan.members, self._to.storage, self._report)
            windows = [m for m in self.scan.members if m.window is not None]
            for member in self.scan.members:  # whoever counts windows of the past, or begins anew, holds it, too
                if not isinstance(member.spec.sink, Console):
                    held = member.table if isinstance(member.spec.sink, Delta) else member.name
                    self._locks.append(acquire(self._spark, self._to.storage, held, member.name))
            if windows:
                self._windows = _Windows(self._spark, windows, self._read, self.scan, self._to)
            for member in self.scan.members:
                if isinstance(member.spec.sink, Delta):
                    path = delta_sink.table_path(self._to.storage, member.table)
                    lacks = member.rows.stored.keys() - (DeltaLog(path).columns() or member.rows.stored).keys()
                    if member.spec.merges or (lacks and not member.spec.deletes_from):
                        # a batch that fails would come again and again
                        kinds = stored_types(self._spark, member, self._read.nothing(self._spark))
                        delta_sink.widen(self._spark, path, kinds, member.spec.where("sink"))
                    if member.fed:
                        delta_sink.feed(self._spark, path, DeltaLog(path).record())
                    landing = Landing(member, self._read, self.scan, self._to)
                    landing.delete(self._spark, self._report)
                    self._landings.append(landing)
                elif isinstance(member.spec.sink, Postgres) and member.window is None:
                    assert self._to.postgres_dsn is not None
                    self._landings.append(Inserts(self._spark, member, self._read, self._to.postgres_dsn,
                                                  self._to.writer, self.scan.every))  # fmt: skip
                elif isinstance(member.spec.sink, Unkept):
                    self._landings.append(Sent(self._spark, member, self._read, self._to, self.scan.every))
                elif isinstance(member.spec.sink, Console):
                    self._landings.append(_Print(member))
            shutil.rmtree(self._checkpoint, ignore_errors=True)
            stream = self._read.stream(self._spark, self._checkpoint, self._held())
            self._begin(stream, self._checkpoint, self.scan.every, available_now=available_now)
        except BaseException:
            self.release()
            raise

    def _held(self) -> list[Held]:
        held: list[Held] = [*self._windows.positions()] if self._windows else []
        return held + [(landing.name, progress.offsets(landing.positions))
                       for landing in self._landings if not isinstance(landing, _Print)]  # fmt: skip

    def _explained(self) -> LakehouseError | None:
        found = (self._read.explained(positions, name) for name, positions in self._held())
        return next((error for error in found if error is not None), None)

    def _idle(self) -> bool:
        return self._read.idle()

    def _write(self, frame: DataFrame, number: int, started_at: int) -> int:
        count = 0
        self._look_up(frame.sparkSession, started_at)
        frame = self._read.batch(frame, self._checkpoint, number)
        reached = self._read.reached(self._checkpoint, number)
        if self._windows:
            others = [landing.positions for landing in self._landings if not isinstance(landing, _Print)]
            others += self._left
            count = self._windows.write(frame, self._view, started_at, others, reached, self._see)
            self.detached.update(self._windows.detached)
        for landing in self._landings:
            if isinstance(landing, Landing):
                landing.delete(self._spark, self._report)
            count = max(count, landing.write(frame, self._view, started_at, reached, self._see))
        return count

    def _look_up(self, session: SparkSession, started_at: int) -> None:
        """Members whose tables cannot be looked up are taken out at their positions; the others go on."""
        assert self._lookups is not None
        failed = self._lookups.refresh(session, started_at)
        for name, error in failed.items():
            self.detached[name] = f"{name}: {_line(error)}"
            self._see(journal.failed(name, "stream", started_at, error, step="detached"))
        if failed:
            self._lookups.forget(failed)
            if self._windows:
                self._windows.take_out(failed)
            for landing in [one for one in self._landings if one.name in failed]:
                self._landings.remove(landing)
                self._left.append(landing.positions)
                landing.close()
        if len(self.detached) == len(self.scan.members):
            raise RunError("ALL_DETACHED", "every pipeline of this scan has failed")

    def rest(self) -> None:
        """Where no batch is at work: what other pipelines ask to be deleted, also of a topic that is silent."""
        if time.monotonic() < self._rested + REST or self._stopping or not self._busy.acquire(blocking=False):
            return
        try:
            for landing in self._landings:
                if isinstance(landing, Landing):
                    landing.delete(self._spark, self._report)
        except Exception as error:
            self.error = error
        finally:
            self._rested = time.monotonic()
            self._busy.release()
        if self.error is not None and self.query is not None:
            self.query.stop()  # as when a batch fails; it is started again

    def release(self) -> None:
        if self._windows:
            self._windows.close()
        if self._lookups:
            self._lookups.close()
        for landing in self._landings:
            landing.close()
        super().release()


class _Windows:
    """The window members of a scan: one query, one transaction."""

    def __init__(self, spark: SparkSession, members: Sequence[Member], read: Reading, scan: Scan,
                 to: Connections) -> None:  # fmt: skip
        assert to.postgres_dsn is not None
        self.detached: dict[str, str] = {}
        self._members = list(members)
        #: where members stand that were taken out: the next batch may begin there
        self._left: list[Mapping[int, Position]] = []
        self._to, self._read, self._trigger = to, read, scan.every
        self._ends = read.ends
        self._query = ScanQuery([m.window_member() for m in members])
        self._merges = [merge_of(spark, member, read.nothing(spark)) for member in members]
        self._connection = postgres_sink.connect(to.postgres_dsn)
        with self._connection, self._connection.cursor() as cursor:
            ledger.make(cursor)
            self._outboxes = {member.name: _outboxes(member, merge, to) for member, merge
                              in zip(self._members, self._merges, strict=True)}  # fmt: skip
            added = []
            for member, merge in zip(self._members, self._merges, strict=True):
                added.append(ensure_merge(cursor, merge, member))
                merge.stage(cursor)
            self._claims = [claimed(cursor, m, read, to.writer) for m in self._members]
            self._merges = [defined(cursor, claim.epoch, merge, member, new) for claim, merge, member, new
                            in zip(self._claims, self._merges, self._members, added, strict=True)]  # fmt: skip
            for index, merge in enumerate(self._merges):
                closed = merge.closed_until(cursor) if isinstance(merge, FinalMerge) else None
                known = [time for time in (closed, self._claims[index].watermark) if time is not None]
                self._claims[index] = replace(self._claims[index], watermark=max(known, default=None))
        self._send_on(spark)

    def _send_on(self, spark: SparkSession) -> None:
        """What changed goes to further sinks; also what a run that ended had not sent."""
        for member in self._members:
            for outbox in self._outboxes[member.name]:
                outbox.send(spark, self._connection)

    def positions(self) -> list[tuple[str, dict[int, int]]]:
        """Each member's name and next offset per partition."""
        return [(member.name, progress.offsets(claim.positions))
                for member, claim in zip(self._members, self._claims, strict=True)]  # fmt: skip

    def write(self, frame: DataFrame, view: str, started_at: int, others: Sequence[Mapping[int, Position]],
              reached: Mapping[int, int] | None, see: See) -> int:  # fmt: skip
        """``others``: how far the members that are no windows have read; the batch begins at the least of all.

        ``reached``: where the batch ends, if its rows do not tell.
        """
        if not self._members:
            return 0
        watermarks = [progress.next_watermark(c.positions.values(), _delay(m), c.watermark)
                      for m, c in zip(self._members, self._claims, strict=True)]  # fmt: skip
        frame.createOrReplaceTempView(view)
        floors = scan_floors([claim.positions for claim in self._claims], [*others, *self._left])
        collected = frame.sparkSession.sql(self._query.text(view, watermarks, floors)).collect()
        ends, greatest, results = self._query.read(collected, floors)
        if not ends:
            return 0
        self._read.still()
        ends = dict(reached or ends)
        failed = self._commit(started_at, ends, greatest, results, watermarks)
        self._send_on(frame.sparkSession)
        read = sum(end - min(c.positions[p].next_offset for c in self._claims if p in c.positions)
                   for p, end in ends.items() if any(p in c.positions for c in self._claims))  # fmt: skip
        if reached:  # those are no records
            read = max((sum(result.counters.values()) for result in results), default=0)
        for index, record in failed["records"].items():
            self._claims[index] = progress.Claim(dict(record.after), record.batch_id, record.watermark, record.epoch)
            see(seen(record, self._trigger, "postgres"))
        for index, error in failed["errors"].items():
            see(journal.failed(self._members[index].name, "stream", started_at, error, step="detached"))
        self.detached |= {self._members[i].name: f"{self._members[i].name}: {_line(error)}"
                          for i, error in failed["errors"].items()}  # fmt: skip
        self.take_out({self._members[i].name for i in failed["errors"]})
        return max(read, 0)

    def _commit(self, started_at: int, ends: Mapping[int, int], greatest: Sequence[Mapping[int, int]],
                results: Sequence[Result], watermarks: Sequence[int | None]) -> dict[str, Any]:  # fmt: skip
        records: dict[int, Record] = {}
        errors: dict[int, psycopg2.Error | RunError] = {}
        with self._connection, self._connection.cursor() as cursor:
            for index in range(len(self._members)):
                record = self._record(index, started_at, ends, greatest, results[index], watermarks[index])
                if record is None:
                    continue
                cursor.execute("savepoint member")
                try:
                    self._write_member(cursor, index, results[index], record)
                    records[index] = record
                except (psycopg2.Error, RunError) as error:
                    if self._connection.closed or isinstance(error, psycopg2.OperationalError):
                        raise  # the database, not this member: the batch comes again
                    cursor.execute("rollback to savepoint member")
                    errors[index] = error
            progress.commit(cursor, list(records.values()), self._to.writer)
        return {"records": records, "errors": errors}

    def _record(self, index: int, started_at: int, ends: Mapping[int, int], greatest: Sequence[Mapping[int, int]],
                result: Result, watermark: int | None) -> Record | None:  # fmt: skip
        """None when the member already had every row of the batch."""
        member, claim = self._members[index], self._claims[index]
        after = {}
        for partition in {*claim.positions, *ends}:
            before = claim.positions.get(partition, Position(0))
            end = max(before.next_offset, ends.get(partition, 0))
            fresh = greatest[index].get(partition) if end > before.next_offset else None
            after[partition] = progress.advance(before, end, fresh, started_at)
        if all(p in claim.positions and after[p].next_offset == claim.positions[p].next_offset for p in after):
            return None
        warnings, _ = rows.concluded(result.tallied, LEAST_JUDGED)
        offsets = progress.offsets(after)
        topic = self._read.topic
        return Record(member.name, claim.epoch, claim.batch_id + 1, started_at, topic.id, topic.name,
                      claim.positions, after, watermark, result.counters, warnings, several=topic.several,
                      behind=self._ends.behind(offsets), commit=self._read.commit(offsets))  # fmt: skip

    def _write_member(self, cursor: Any, index: int, result: Result, record: Record) -> None:
        merge, member = self._merges[index], self._members[index]
        assert member.window is not None
        _, stop = rows.concluded(result.tallied, LEAST_JUDGED)
        if stop is not None:
            raise RunError("CHECK_FAILED", f"{stop.message}; nothing was written", where=member.spec.where(stop.place))
        partials = [[progress.from_micros(row[0]), *row[1:]] for row in result.partials]
        merge.write(cursor, partials)
        if isinstance(merge, FinalMerge):  # what the next batch's watermark makes late is over
            merge.close(cursor, progress.next_watermark(record.after.values(), _delay(member), record.watermark))
        now = record.began_at
        if result.late:
            assert record.watermark is not None
            step = f"transforms[{len(member.spec.transforms) - 1}].window"
            watermark = progress.from_micros(record.watermark)
            late = [(now, record.batch_id, step, progress.from_micros(d["time"]), watermark,
                     [progress.from_micros(w) for w in member.window.missed(d["time"], record.watermark)],
                     d.get("topic", self._read.topic.name), d["p"], d["o"], d["row"]) for d in result.late]  # fmt: skip
            _insert(cursor, postgres_sink.side_table(member.table, "late"), postgres_sink.LATE_COLUMNS, late)
        if result.refused:
            origin = self._read.topic.name
            refused = [(now, record.batch_id, d["step"], d["reasons"], d.get("topic", origin), d["p"], d["o"],
                        _bytes(d.get("key")), _bytes(d.get("value")), d.get("row"))
                       for d in result.refused]  # fmt: skip
            _insert(cursor, postgres_sink.side_table(member.table, "quarantine"), QUARANTINED, refused)

    def take_out(self, names: Collection[str]) -> None:
        """Failed members leave at their positions; the others go on, and these catch up when mended."""
        gone = [index for index, member in enumerate(self._members) if member.name in names]
        self._left += [self._claims[index].positions for index in gone]
        for index in reversed(gone):
            for part in (self._members, self._merges, self._claims):
                del part[index]
        if gone:
            self._query = ScanQuery([m.window_member() for m in self._members])

    def close(self) -> None:
        self._connection.close()


def _outboxes(member: Member, merge: postgres_sink.Merge | FinalMerge, to: Connections) -> list[Outbox]:
    return [Outbox(part, further.where, merge.columns, to)
            for part, further in zip(branches(member.spec), member.spec.further, strict=True)]  # fmt: skip


def _delay(member: Member) -> int:
    return member.rows.event_time.delay if member.rows.event_time else 0


def ensure_merge(cursor: Any, merge: postgres_sink.Merge, member: Member) -> list[str]:
    """The member's tables are there; the columns that its table lacked. Raises ``PlanError`` TABLE_DIFFERS,
    EMIT_CHANGED."""
    where = member.spec.where("sink")
    before = mark_of(cursor, postgres_sink.side_table(merge.table, "state"))
    if before is not None and not isinstance(merge, FinalMerge):
        raise emit_changed(merge.table, before, where)
    return merge.ensure(cursor, where)


def defined(cursor: Any, epoch: int, merge: postgres_sink.Merge, member: Member,
            added: Collection[str]) -> postgres_sink.Merge:  # fmt: skip
    """Keeps by what the windows of a claimed pipeline are counted; the merge, which knows the measures that are new."""
    held = definitions.hold(cursor, member.name, epoch, definitions.of(member.spec, merge.columns), added)
    return replace(merge, since={name: at for name, at in held.since.items() if name in merge.measures})


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _insert(cursor: Any, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]]) -> None:
    postgres_sink.copy(cursor, postgres_sink.identifier(table), columns, values)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def merge_of(spark: SparkSession, member: Member, nothing: str = kafka.NO_RECORDS) -> postgres_sink.Merge:
    """The target's columns and types, as Spark sees the pipeline. Raises ``PlanError`` EXPRESSION_TYPE at file:line.

    ``nothing``: SQL of a relation with the columns of what is read.
    """
    assert member.window is not None
    compiled = member.window_member()
    inner = rows.layered(nothing, member.rows.layers)

    step = f"transforms[{len(member.spec.transforms) - 1}].window"
    refusals: list[tuple[str, str]] = []  # each: an expression and where it stands
    for index, transform in enumerate(member.spec.transforms[:-1]):
        place = f"transforms[{index}].{transform.key}"
        refusals += [(verdict.refused, place) for verdict in member.rows.verdicts if verdict.step == place]
    wanted = [(expression, f"{step}.by") for expression in compiled.keys]
    functions = {name: sql.measure(text) for name, text in member.window.measures.items()}
    for name, measure in functions.items():
        argument = "1" if measure.argument is None else member.rows.resolve(measure.argument)
        # an aggregate over a window of its own, so that it can stand beside expressions of a row
        wanted.append((f"{measure.function}({argument}) over ()", f"{step}.measures.{name}"))
    kinds = typed(spark, inner, [*refusals, *wanted], member)[len(refusals) :]
    types = {
        name: postgres_sink.merged_type(kind, member.spec.where(step))
        for name, kind in zip([*member.window.by, *functions], kinds, strict=True)
    }
    keys = {"window_start": "timestamptz", **{column: types[column] for column in member.window.by}}
    measures = {name: (measure.function, types[name]) for name, measure in functions.items()}
    sink = member.spec.sink
    assert isinstance(sink, Postgres)
    outbox = tuple(part.name for part in branches(member.spec))
    if member.window.final:
        kind = SessionMerge if member.window.session else FinalMerge
        return kind(member.table, keys, measures, sink.updated_at, size=member.window.size,
                    append=sink.mode == "append", outbox=outbox)  # fmt: skip
    return postgres_sink.Merge(member.table, keys, measures, sink.updated_at, outbox=outbox)


class _Print:
    """A stream into the console: rows are shown, nothing is kept."""

    positions: Mapping[int, Position] = {}

    def __init__(self, member: Member) -> None:
        self.name, self._member = member.name, member

    def write(self, frame: DataFrame, view: str, started_at: int, reached: Mapping[int, int] | None, see: See) -> int:
        sink = self._member.spec.sink
        assert isinstance(sink, Console)
        frame.createOrReplaceTempView(view)
        chosen = ", ".join(f"{text} as {sql.name(name)}" for name, text in self._member.rows.stored.items())
        inner = rows.layered(view, self._member.rows.layers)
        shown = frame.sparkSession.sql(
            f"select {chosen} from ({inner}) where {rows.passing(self._member.rows.verdicts)}"
        )
        shown.limit(sink.rows).show(sink.rows, truncate=False)
        return 0

    def close(self) -> None:
        """It holds nothing."""
