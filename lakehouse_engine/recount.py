"""``lakehouse backfill`` of a stream: the closed windows of a range counted anew, late rows included, day by day.

The stream stands still meanwhile. The recount takes the pipeline's claim, as a start of the stream does: on the same
storage a stream that runs holds the pipeline's lock, and the command is refused, naming who does (LOCKED); on another
host the stream's next batch finds that its position is not its own any more, is rolled back, and ends (FENCED). Each
day's transaction compares the claim and the positions again. So neither can add to what the other has counted.

What is counted: the rows that the stream has read, those below its positions and no others. A window that ended at or
before the next batch's watermark is closed: whatever the stream reads later is late there. So after a recount the
table holds every row that was read, ``__late`` says which of its rows were counted by that (``applied_at``), and rows
that come later are kept in ``__late`` as ever. Windows that are not closed are left to the stream. A ``lookup`` finds
what its table holds now.

**Delivery guarantees**: a day's windows, its late rows and the progress are one transaction. Interrupted, the same
command goes on after the last day that was finished.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from lakehouse_engine import ledger, progress
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import FencedError, PlanError, RunError
from lakehouse_engine.journal import Run, See
from lakehouse_engine.locks import acquire
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.past import DAY, Past, Read, begun, missing, reading, spelled, stream_rows
from lakehouse_engine.plan import Member, fingerprint
from lakehouse_engine.request import Span
from lakehouse_engine.rows import FILTERED, Verdict
from lakehouse_engine.scan import ScanQuery, WindowMember
from lakehouse_engine.session import apart
from lakehouse_engine.sinks import Postgres, recounted
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.sessions import SessionMerge
from lakehouse_engine.sources import Delta, Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.streamrun import reading as stream_source
from lakehouse_engine.streams import defined, ensure_merge, merge_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]


def check(member: Member, span: Span) -> None:
    """Raises ``PlanError`` NOT_YET, ``RunError`` BAD_RANGE."""
    if member.window is None or not isinstance(member.spec.sink, Postgres):
        raise PlanError("NOT_YET", f"{member.name} has no windows that are merged in PostgreSQL; only those can be"
                        " counted anew", where=member.spec.where("sink"))  # fmt: skip
    source = member.spec.source
    changing = isinstance(source, Delta) and (source.changes or source.rewrites == "ignore")
    if not isinstance(source, Kafka | Delta) or changing:
        what = f"what changes in {source.table}" if isinstance(source, Delta) else source.key
        raise PlanError("NOT_YET", f"{member.name} reads {what}; counting its windows anew from there comes with a"
                        " later version", where=member.spec.where("source"))  # fmt: skip
    if member.window.column is not None:
        raise PlanError("NOT_YET", f"{member.name} puts rows into windows by {member.window.column}; counting those"
                        " anew comes with a later version", where=member.spec.where("transforms"))  # fmt: skip
    for text in (span.first, span.last):
        try:
            date.fromisoformat(text or "2026-01-01")
        except ValueError:
            raise RunError("BAD_RANGE", f"{text} is not a day like 2026-01-01; a stream is counted anew day by day",
                           where=member.name) from None  # fmt: skip


def recount(spark: SparkSession, member: Member, lander: PipelineSpec | None, span: Span, to: Connections,
            report: Report, stopped: Callable[[], bool] = lambda: False,
            done: See = lambda _: None) -> int:  # fmt: skip
    """Replaces the closed windows of ``span`` (days of event time, in UTC); returns the number of days.

    ``lander``: the pipeline that the source's ``history`` names. ``stopped`` is asked before each day, ``done`` told
    after it.

    Raises ``PlanError`` NOT_YET; ``RunError`` BAD_RANGE, LOCKED, NOT_STARTED, TOPIC_RECREATED, RANGE_MISSING, STOPPED;
    ``FencedError`` FENCED.
    """
    check(member, span)
    assert to.postgres_dsn is not None
    session = apart(spark)
    with closing(acquire(spark, to.storage, member.name, member.name)), closing(
        Lookups(session, [member], to.storage, report)
    ) as lookups, closing(postgres_sink.connect(to.postgres_dsn)) as connection:
        for error in lookups.refresh(session, progress.now_micros()).values():
            raise error
        return _Recount(session, member, lander, span, to, connection, report).execute(stopped, done)


@dataclass(frozen=True)
class _Claimed:
    read: Read
    claim: progress.Claim
    watermark: int | None


class _Recount:
    def __init__(self, spark: SparkSession, member: Member, lander: PipelineSpec | None, span: Span, to: Connections,
                 connection: Any, report: Report) -> None:  # fmt: skip
        assert member.window is not None
        assert member.rows.event_time is not None
        self._spark, self._member, self._lander, self._to = spark, member, lander, to
        self._window, self._time, self._span = member.window, member.rows.event_time, span
        self._connection, self._report = connection, report
        self._merge = merge_of(spark, member, stream_source(member.spec, to).nothing(spark))
        self._id = hashlib.sha256(f"{fingerprint(member.spec)} {span}".encode()).hexdigest()[:16]

    def execute(self, stopped: Callable[[], bool], done: See) -> int:
        with self._connection, self._connection.cursor() as cursor:
            claimed = self._claim(cursor)
            self._epoch = claimed.claim.epoch
        pasts, reasons = reading(self._spark, self._member, claimed.read, self._lander, self._to)
        if not pasts:
            raise self._gone(reasons)
        days = self._days(claimed, pasts, reasons)
        left, finished = self._left(days)
        since = _micros(self._span.first) if self._span.first else min(days, default=0)
        if finished:
            self._report(f"{self._member.name}: going on after {finished} of {len(days)} days")
        for number, day in enumerate(left, start=finished + 1):
            if stopped():
                raise RunError("STOPPED", f"{number - 1} of {len(days)} days are done; the same command goes on",
                               where=self._member.name)  # fmt: skip
            began, started_at = time.monotonic(), progress.now_micros()
            written = self._day(day, since, number == len(days), claimed, pasts, reasons)
            self._report(f"{self._member.name}: {number} of {len(days)}: {_date(day)}: {written:,} windows in"
                         f" {time.monotonic() - began:.1f} s")  # fmt: skip
            done(Run(self._member.name, "backfill", "committed", started_at, rows=written, sink="postgres"))
        return len(left)

    def _claim(self, cursor: Any) -> _Claimed:
        """Takes the pipeline over. From the commit on no other writer can add to its windows."""
        source = self._member.spec.source
        assert isinstance(source, Kafka | Delta)
        ledger.make(cursor)
        read = stream_rows(cursor, self._member.name, source.topic if isinstance(source, Kafka) else source.table)
        added = ensure_merge(cursor, self._merge, self._member)
        self._merge.stage(cursor)
        claim = progress.claim(cursor, self._member.name, read.topic_id, read.topic, read.next, self._to.writer,
                               several=read.several)  # fmt: skip
        defined(cursor, claim.epoch, self._merge, self._member, added)  # closed windows have every measure, now
        closed = self._merge.closed_until(cursor) if isinstance(self._merge, FinalMerge) else None
        known = [w for w in (closed, claim.watermark) if w is not None]
        watermark = progress.next_watermark(claim.positions.values(), self._time.delay, max(known, default=None))
        read = replace(read, next=progress.offsets(claim.positions))
        if isinstance(source, Delta) or source.start != "earliest":
            read = replace(read, begun=begun(cursor, read))
        return _Claimed(read, claim, watermark)

    def _days(self, claimed: _Claimed, pasts: list[Past], reasons: list[str]) -> list[int]:
        """The starts (microseconds) of the days that have, or had, a closed window, in order.

        Raises ``RunError`` RANGE_MISSING before anything is changed.
        """
        if claimed.watermark is None:
            self._report(f"{self._member.name}: no window is closed yet")
            return []
        last = (claimed.watermark - 1) // DAY * DAY
        if self._span.last and _micros(self._span.last) < last:
            last = _micros(self._span.last)
        else:
            at = progress.from_micros(claimed.watermark)
            self._report(f"{self._member.name}: windows that end after {at:%Y-%m-%dT%H:%M:%SZ} are open, and left to"
                         " the stream")  # fmt: skip
        first = _micros(self._span.first) if self._span.first else None
        if first is not None:
            pasts = [self._holding(first, claimed, pasts, reasons)]
        with self._connection, self._connection.cursor() as cursor:
            found = set(recounted.late_days(cursor, self._merge.table) if self._span.late else
                        [*pasts[0].days(self._window.size), *recounted.days(cursor, self._merge.table)])  # fmt: skip
        kept = self._member.spec.maintain.rows_after
        least = claimed.watermark - kept if kept is not None else None  # what is deleted by its age does not come again
        days = sorted(day for day in found if day <= last and (first is None or day >= first)
                      and (least is None or day + DAY > least))  # fmt: skip
        if days:
            self._holding(days[0], claimed, pasts, reasons)
        return days

    def _left(self, days: list[int]) -> tuple[list[int], int]:
        """The days that are not done, and how many are: of those with late rows none is, or it would not be one."""
        if self._span.late:
            return days, 0
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("select done from lakehouse.backfills where (pipeline, epoch, id) = (%s, %s, %s)"
                           " and not finished", (self._member.name, self._epoch, self._id))  # fmt: skip
            row = cursor.fetchone()
        left = [day for day in days if row is None or _date(day) > row[0]]
        return left, len(days) - len(left)

    def _day(self, day: int, since: int, last: bool, claimed: _Claimed, pasts: list[Past],
             reasons: list[str]) -> int:  # fmt: skip
        assert claimed.watermark is not None
        span = recounted.Span(day, day + DAY, since, claimed.watermark)
        merge, found = self._merge, list[recounted.Session]()
        if isinstance(merge, SessionMerge):
            found = self._sessions(span, claimed, pasts, reasons)
        else:
            partials = self._partials(span.first, span.end + self._window.size, claimed, pasts, reasons)
        with self._connection, self._connection.cursor() as cursor:
            if isinstance(merge, SessionMerge):
                written = recounted.replace_sessions(cursor, merge, found, span, spelled(self._member))
            else:
                written = recounted.replace_windows(cursor, merge, self._window.size, partials, span)
            cursor.execute(
                "insert into lakehouse.backfills (pipeline, epoch, id, done, finished) values (%s, %s, %s, %s, %s)"
                " on conflict (pipeline) do update set epoch = excluded.epoch, id = excluded.id, done = excluded.done,"
                " finished = excluded.finished, at = excluded.at",
                (self._member.name, self._epoch, self._id, _date(day), last))  # fmt: skip
            self._compare(cursor, claimed)
        return written

    def _compare(self, cursor: Any, claimed: _Claimed) -> None:
        """Last, as a batch of the stream does: two transactions never wait for one another in two orders."""
        cursor.execute(
            "update lakehouse.positions set writer = writer where pipeline = %s and epoch = %s and topic_id = any(%s)"
            " and writer = %s returning topic_id, partition, next_offset",
            (self._member.name, self._epoch, [part.id for part in claimed.read.topics.parts],
             self._to.writer))  # fmt: skip
        stand = {claimed.read.topics.place(id_, partition): at for id_, partition, at in cursor.fetchall()}
        if stand != dict(claimed.read.next):
            raise FencedError("FENCED", f"{self._member.name} was taken over by another process; this one stops. What"
                              " is done stays; the same command goes on", where="connection postgres")  # fmt: skip

    def _partials(self, first: int, end: int, claimed: _Claimed, pasts: list[Past],
                  reasons: list[str]) -> list[list[Any]]:  # fmt: skip
        """Aggregates by window and key of the rows with event times from ``first`` to before ``end``."""
        past = self._holding(first, claimed, pasts, reasons)
        outside = f"not (unix_micros({past.time}) between {first}L and {end - 1}L)"
        rows = past.rows.refuse(Verdict("backfill", FILTERED, f"coalesce({outside}, true)"))
        query = ScanQuery([WindowMember(self._member.name, rows, self._window)])
        view = f"recount_{self._id}"
        past.within(first, end).createOrReplaceTempView(view)
        _, _, (result,) = query.read(self._spark.sql(query.text(view, [None], [None])).collect(), [None])
        return result.partials

    def _holding(self, first: int, claimed: _Claimed, pasts: list[Past], reasons: list[str]) -> Past:
        why = list(reasons)
        with self._connection, self._connection.cursor() as cursor:
            for past in pasts:
                lacking = missing(cursor, past, claimed.read, first)
                if lacking is None:
                    return past
                why.append(lacking)
        raise self._gone(why)

    def _gone(self, reasons: list[str]) -> RunError:
        return RunError("RANGE_MISSING", f"{'; '.join(reasons)}; nothing was changed",
                        where=self._member.spec.where("source"))  # fmt: skip

    def _sessions(self, span: recounted.Span, claimed: _Claimed, pasts: list[Past],
                  reasons: list[str]) -> list[recounted.Session]:  # fmt: skip
        """Every session that touches the day, whole: rows around it are read until none can reach further.

        A row before ``first`` reaches a session that begins less than a gap after it, one at ``end`` a session whose
        last row is at most a gap before; a session that is not over will not be written, however far it goes.
        """
        gap = self._window.size
        for margin in _doubling(4 * gap):
            first, end = span.first - margin, span.end + margin
            partials = self._partials(first, end, claimed, pasts, reasons)
            found = [s for s in recounted.sessions(partials, len(self._window.by), gap)
                     if s.first < span.end and s.last >= span.first]  # fmt: skip
            if all(s.first - first >= gap and (s.last + gap < end or s.last + gap >= span.watermark) for s in found):
                break
        return found


def _doubling(value: int) -> Iterator[int]:
    while True:
        yield value
        value *= 2


def _micros(day: str) -> int:
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY


def _date(micros: int) -> date:
    return date(1970, 1, 1) + timedelta(days=micros // DAY)
