"""``lakehouse backfill`` of a stream, step by step: ``_Recount`` without Spark.

What is read again comes from the landing, else from the topic (``past.py``); sessions are put together by the engine's
own ``recounted.sessions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lakehouse_engine import progress
from lakehouse_engine.errors import FencedError, RunError
from lakehouse_engine.past import DAY
from lakehouse_engine.progress import Claim
from lakehouse_engine.sinks import recounted
from lakehouse_engine.sources.broker import TopicState
from tests.model import steps
from tests.model.pipelines import Partial, Pipeline, partials
from tests.model.stores import Recounted, Table, Transaction
from tests.model.topic import NAME, Event

if TYPE_CHECKING:
    from tests.model.world import Process, World

#: the least offset of each partition that a source can hold, and what it holds
Past = tuple[dict[int, int], list[tuple[int, int, Event]]]


class Recount:
    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.rules = world, process, world.rules
        (self.pipeline,) = process.pipelines
        assert self.pipeline.window is not None
        self.window, self.connected = self.pipeline.window, world.database.restores

    def steps(self) -> Iterator[str]:
        world, process, pipeline = self.world, self.process, self.pipeline
        yield steps.ACQUIRE
        if self.rules.locks:
            world.storages[process.host].acquire(pipeline.name, process.writer)
        yield steps.RECOUNT
        while world.database.waits_for_table():
            process.waits = True
            yield steps.RECOUNT
        self._claim()
        yield steps.PAST
        pasts = self._pasts()
        yield steps.DAYS
        days, since = self._days(pasts)
        for number, day in enumerate(days, start=1):
            yield steps.DAY
            yield from self._day(day, since, number == len(days), pasts)

    def _claim(self) -> None:
        """Raises ``RunError`` NOT_STARTED, TOPIC_RECREATED."""
        world, name = self.world, self.pipeline.name
        read = list(world.database.held.rows(name))
        if not read:
            raise RunError("NOT_STARTED", name)
        topics = {topic for topic, *_ in read}
        if len(topics) > 1:
            raise RunError("TOPIC_RECREATED", name)
        (self.topic_id,) = topics
        topic = TopicState(NAME, self.topic_id, {})
        starts = {p: position.next_offset for _, p, position, _ in read}
        self.claim: Claim = world.database.claim(name, topic, starts, self.process.writer)
        closed = world.database.held.table(name).closed_until(self.pipeline)
        known = [time for time in (closed, self.claim.watermark) if time is not None]
        self.watermark = progress.next_watermark(self.claim.positions.values(), self.process.delay,
                                                 max(known, default=None))  # fmt: skip
        self.next = {p: q.next_offset for p, q in self.claim.positions.items()}

    def _pasts(self) -> list[Past]:
        """Raises ``RunError`` RANGE_MISSING."""
        found = []
        storage, topic = self.world.storages[self.process.host], self.world.broker.topic
        last = storage.last(restore_seen=self.rules.restore_seen)
        if last is not None:
            landed = {p: q.next_offset for p, q in last.after.items()}
            first = storage.landed[0].record if self.rules.history_of_topic else last
            behind = any(landed.get(p, 0) < offset for p, offset in self.next.items())
            if {first.topic_id, last.topic_id} == {self.topic_id} and not behind:
                firsts = {int(p): int(r["from"]) for p, r in storage.landed[0].record.ranges().items()}
                found.append((firsts, self._below([place for _, place in storage.rows()])))
        if topic.id == self.topic_id:
            firsts = {i: p.first for i, p in enumerate(topic.partitions)}
            every = [(p, o, e) for p, first in firsts.items() for o, e in topic.records(p, first, 1 << 62)]
            found.append((firsts, self._below(every)))
        if not found:
            raise RunError("RANGE_MISSING", self.pipeline.name)
        return found

    def _below(self, rows: list[tuple[int, int, Event]]) -> list[tuple[int, int, Event]]:
        if not self.rules.recount_below:
            return rows
        return [(p, o, e) for p, o, e in rows if o < self.next.get(p, 0)]

    def _days(self, pasts: list[Past]) -> tuple[list[int], int]:
        if self.watermark is None:
            return [], 0
        first, last = self.process.span
        last = min(last, (self.watermark - 1) // DAY * DAY)
        if first is not None:
            pasts[:] = [self._holding(first, pasts)]
        size = self.window.size
        table = self.world.database.held.table(self.pipeline.name)
        good = [e for _, _, e in pasts[0][1] if e.kind in ("good",)]
        found = {t // DAY * DAY for e in good for t in (e.at, e.at - size)}
        found |= {start // DAY * DAY for start, _ in table.sent}
        days = sorted(day for day in found if day <= last and (first is None or day >= first))
        if days:
            self._holding(days[0], pasts)
        since = first if first is not None else min(days, default=0)
        epoch = self.world.database.held.epoch(self.pipeline.name)
        before = self.world.database.held.backfills.get(self.pipeline.name)
        if before is not None and before[:2] == (epoch, self._id) and not before[3]:
            days = [day for day in days if day > before[2]]
        return days, since

    @property
    def _id(self) -> str:
        return f"{self.process.delay} {self.process.span}"

    def _holding(self, first: int, pasts: list[Past]) -> Past:
        for past in pasts:
            if not self._missing(past[0], first):
                return past
        raise RunError("RANGE_MISSING", self.pipeline.name)

    def _missing(self, firsts: Mapping[int, int], first: int) -> bool:
        """``past.missing``: by the ledger's batches."""
        for partition, offset in sorted(firsts.items()):
            ranges = [(n.record.before[partition].next_offset if partition in n.record.before else 0,
                       n.record.after[partition]) for n in self.world.database.held.batches(self.pipeline.name)
                      if n.record.topic_id == self.topic_id and partition in n.record.after]  # fmt: skip
            if not ranges:
                continue
            start = min(since for since, _ in ranges)
            passed = [q.max_event_time for _, q in ranges if q.next_offset >= offset]
            ever = max((q.max_event_time for _, q in ranges if q.max_event_time is not None), default=None)
            greatest = passed[0] if passed else ever
            if offset > start and greatest is not None and greatest >= first:
                return True
        return False

    def _day(self, day: int, since: int, last: bool, pasts: list[Past]) -> Iterator[str]:
        assert self.watermark is not None
        world, name = self.world, self.pipeline.name
        span = recounted.Span(day, day + DAY, since, self.watermark)
        found = self._sessions(span, pasts) if self.window.session else []
        size = self.window.size
        firsts, _ = self._holding(day, pasts)
        rows = [] if self.window.session else self._partials(day, day + DAY + size, pasts)
        database, epoch = world.database, self.claim.epoch
        if self.connected != database.restores:
            raise RunError("CONNECTION_LOST", "")
        transaction = self.process.transaction = Transaction(database)

        def write() -> None:
            table = database.held.table(name)
            if self.window.session:
                replace_sessions(table, self.pipeline, found, span)
            else:
                replace_windows(table, self.pipeline, rows, span)
            database.held.backfills[name] = (epoch, self._id, day, last)
            database.held.logs.setdefault((name, epoch), []).append(
                Recounted(self.topic_id, firsts, day, span.end, since, span.watermark, self.next))  # fmt: skip

        transaction.writes.append(write)
        yield steps.COMPARE
        self._alive(transaction)
        here = {p: (q.next_offset, w) for _, p, q, w in database.held.rows(name, self.topic_id)}
        mine = {p: offset for p, (offset, writer) in here.items() if writer == self.process.writer}
        keys = {(name, epoch, self.topic_id, p) for p in mine}
        while any(keys & one.moved for one in database.open if one is not transaction):
            self.process.waits = True
            yield steps.COMPARE
            self._alive(transaction)
            here = {p: (q.next_offset, w) for _, p, q, w in database.held.rows(name, self.topic_id)}
            mine = {p: offset for p, (offset, writer) in here.items() if writer == self.process.writer}
        if self.rules.recount_compares and (mine != self.next or epoch != database.held.epoch(name)):
            raise FencedError("FENCED", name)
        transaction.moved |= keys
        yield steps.END
        self._alive(transaction)
        if database.held.owners.get(name) != self.process.writer:
            raise AssertionError(f"a zombie, {self.process.writer}, commits a recount of {name}")
        transaction.commit()
        self.process.committed()

    def _alive(self, transaction: Transaction) -> None:
        if transaction not in self.world.database.open:
            raise RunError("CONNECTION_LOST", "")

    def _partials(self, first: int, end: int, pasts: list[Past]) -> list[Partial]:
        _, rows = self._holding(first, pasts)
        within = [(o, e) for _, o, e in rows if e.kind == "good" and first <= e.at < end]
        return partials(self.pipeline, (e for _, e in within), None)

    def _sessions(self, span: recounted.Span, pasts: list[Past]) -> list[recounted.Session]:
        gap, margin = self.window.size, 4 * self.window.size
        while True:
            first, end = span.first - margin, span.end + margin
            made = [[p[0], p[1], p[2], p[3], p[4]] for p in self._partials(first, end, pasts)]
            found = [s for s in recounted.sessions(made, 1, gap) if s.first < span.end and s.last >= span.first]
            if all(s.first - first >= gap and (s.last + gap < end or s.last + gap >= span.watermark) for s in found):
                return found
            margin *= 2


def replace_windows(table: Table, pipeline: Pipeline, rows: list[Partial], span: recounted.Span) -> None:
    """``recounted.replace_windows``."""
    assert pipeline.window is not None
    until = min(span.end - 1, span.watermark - pipeline.window.size)
    for into in (table.sent, table.state, table.ends):
        for key in [k for k in into if span.first <= k[0] <= until]:
            del into[key]
    table.merge(pipeline, [row for row in rows if span.first <= row[0] <= until])
    if pipeline.window.final:
        table.close(pipeline, span.watermark, stream=False)
    for late in table.late:
        if late.missed[0] >= span.since and span.first <= late.missed[-1] <= until:
            late.applied = True


def replace_sessions(table: Table, pipeline: Pipeline, found: list[recounted.Session], span: recounted.Span) -> None:
    """``recounted.replace_sessions``."""
    assert pipeline.window is not None
    gap = pipeline.window.size
    over = [s for s in found if s.last + gap < span.watermark]
    open_ = [s for s in found if s.last + gap >= span.watermark]

    def within(key: str, start: int, some: list[recounted.Session]) -> bool:
        return any(s.key == (key,) and s.first <= start <= s.last for s in some)

    for start, key in list(table.sent):
        end = table.ends[start, key]
        vanished = span.first <= start < span.end and end < span.watermark and not within(key, start, open_)
        if within(key, start, over) or vanished:
            del table.sent[start, key], table.ends[start, key]
    for key, states in table.sessions.items():
        mine = [s for s in over if s.key == (key,)]
        table.sessions[key] = [one for one in states if not any(s.first - gap < one[0] <= s.last for s in mine)]
    for s in over:
        for part in s.parts:
            table.merge(pipeline, [list(part)])
    table.close(pipeline, span.watermark, stream=False)
    for late in table.late:
        if not late.applied and within(late.place[2].key, late.place[2].at, over):
            late.applied = True
