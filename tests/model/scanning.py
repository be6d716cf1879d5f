"""One start of a scan, step by step: ``ScanRun``, ``_Windows``, ``Inserts`` and ``Landing`` without Spark.

Each ``yield`` names the function of the engine that runs next (``STEPS`` in ``steps.py``); whoever holds the generator
may go on, drop it (a crash), throw into it (a failure) or leave it standing for as long as it likes (SIGSTOP). What is
decided between the stores is decided by the engine's own functions: ``_Windows._record``, ``next_watermark``,
``reached``, ``scan_floors``, ``starting_offsets``, ``check_held``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lakehouse_engine import progress
from lakehouse_engine.errors import RunError
from lakehouse_engine.progress import Claim, Position, Record
from lakehouse_engine.scan import scan_floors
from lakehouse_engine.sources import broker
from lakehouse_engine.streams import _Windows
from tests.model import steps
from tests.model.landing import Landing, ends_of
from tests.model.pipelines import Judged, Pipeline, Records, judged
from tests.model.stores import Late, Noted, Transaction
from tests.model.topic import NAME

if TYPE_CHECKING:
    from tests.model.world import Process, World

Steps = Iterator[str]


class StreamFailed(RunError):
    """Spark ends the query."""


class ScanRun:
    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.rules = world, process, world.rules
        self.storage = world.storages[process.host]
        self.members = [p for p in process.pipelines if p.into == "windows"]
        self.claims: list[Claim] = []
        self.rows: list[tuple[Pipeline, Claim]] = []
        self.landings: list[Landing] = []
        self.left: list[Mapping[int, Position]] = []
        self.topic = world.broker.describe()
        #: its connections are those of a database that has been restored so often
        self.connected = world.database.restores
        self.at: dict[int, int] = {}
        self.began: dict[int, int] = {}

    def start(self) -> Steps:
        """From the claim of the members to the first batch."""
        world, writer = self.world, self.process.writer
        yield steps.ACQUIRE
        if self.rules.locks:
            names = [p.name for p in self.process.pipelines]
            for name in (f"scan {min(names)}", *names):
                self.storage.acquire(name, writer)
        if self.members:
            yield steps.CLAIM_WINDOWS
            yield from self._unlocked(steps.CLAIM_WINDOWS)
            for pipeline in self.members:
                claim = world.database.claim(pipeline.name, self.topic, self.starts(pipeline), writer)
                closed = world.database.held.table(pipeline.name).closed_until(pipeline)
                known = [claim.watermark] + [closed] * self.rules.closed_until
                watermark = max((time for time in known if time is not None), default=None)
                self.claims.append(replace(claim, watermark=watermark))
        for pipeline in self.process.pipelines:
            if pipeline.into == "rows":
                yield steps.CLAIM_ROWS
                yield from self._unlocked(steps.CLAIM_ROWS)
                claim = world.database.claim(pipeline.name, self.topic, self.starts(pipeline), writer)
                self.rows.append((pipeline, claim))
            if pipeline.into == "landing":
                yield steps.LANDING
                self.landings.append(Landing(self, pipeline))
        yield steps.STREAM
        topic = world.broker.describe()
        for held in self._held():
            broker.check_held(topic, held, NAME)
        if self.rules.topic_watched and topic.id != self.topic.id:
            raise RunError("TOPIC_RECREATED", NAME)
        found = json.loads(broker.starting_offsets(topic, self._held()))[NAME]
        self.at = {int(p): o for p, o in found.items()}

    def _unlocked(self, step: str) -> Steps:
        while self.world.database.waits_for_table():
            self.process.waits = True
            yield step

    def starts(self, pipeline: Pipeline) -> dict[int, int]:
        return broker.offsets_at("", self.topic, self.world.starts.get(pipeline.name, "earliest"))

    def _held(self) -> list[dict[int, int]]:
        found = [c.positions for c in (*self.claims, *(claim for _, claim in self.rows))]
        found += [landing.positions for landing in self.landings]
        return [{p: q.next_offset for p, q in positions.items()} for positions in found]

    def batches(self) -> Steps:
        while True:
            yield steps.BATCH
            ends = self._planned()
            while not ends:
                self.process.waits = True
                yield steps.BATCH
                ends = self._planned()
            started_at = self.world.clock
            yield steps.READ
            records = self._fetched(self.at, ends)
            self.began = dict(self.at)
            self.at.update(ends)
            self._look_up()
            if self.members:
                yield from self._write_windows(records, started_at)
            for index, (pipeline, claim) in enumerate(self.rows):
                yield steps.INSERTS
                records = self._fetched(self.began, ends)  # each sink has Spark read for itself
                self.rows[index] = (pipeline, (yield from self._insert(pipeline, claim, records, started_at)))
            for landing in self.landings:
                yield from landing.write(self._fetched(self.began, ends), started_at)

    def _planned(self) -> dict[int, int]:
        """Where Spark lets the batch end; it finds new partitions by itself and begins them at 0.

        Raises ``StreamFailed`` where it misses records (``failOnDataLoss``).
        """
        offsets, ends = self.world.broker.describe().offsets, {}
        for partition, (first, end) in offsets.items():
            since = self.at.setdefault(partition, 0)
            if not first <= since <= end:
                if self.rules.fail_on_data_loss:
                    raise StreamFailed("STREAM_FAILED", "some data may have been missed")
                since = self.at[partition] = first
            if end > since:
                ends[partition] = end
        limits = {p: self.world.cut >> 2 * p & 3 for p in ends}
        cut = {p: min(end, self.at[p] + (limits[p] or self.world.limit or end)) if limits[p] != 3 else self.at[p]
               for p, end in ends.items()}  # fmt: skip
        cut = {p: end for p, end in cut.items() if end > self.at[p]}
        return cut or ends

    def _fetched(self, since: Mapping[int, int], ends: Mapping[int, int]) -> Records:
        """What the executors read from ``since`` on; by the topic's name, whichever that is by now."""
        offsets = self.world.broker.describe().offsets
        here = all(p in offsets and offsets[p][0] <= since[p] and end <= offsets[p][1] for p, end in ends.items())
        if self.rules.fail_on_data_loss and not here:
            raise StreamFailed("STREAM_FAILED", "some data may have been missed")
        if self.rules.topic_watched and self.world.broker.topic.id != self.topic.id:
            raise RunError("TOPIC_RECREATED", NAME)
        return {p: self.world.broker.topic.records(p, since[p], end) for p, end in ends.items()}

    def _look_up(self) -> None:
        """Members whose tables cannot be looked up are taken out at their positions."""
        gone = [i for i, p in enumerate(self.members) if p.name in self.world.unreadable]
        left = [self.claims[i].positions for i in gone]
        self._take_out(gone)
        self.left += left * self.rules.left_by_lookup

    def _take_out(self, gone: list[int]) -> None:
        for index in reversed(gone):
            self.process.said.append(f"detached {self.members[index].name}")
            del self.members[index], self.claims[index]

    def _write_windows(self, records: Records, started_at: int) -> Steps:
        others = [claim.positions for _, claim in self.rows]
        others += [landing.positions for landing in self.landings] + self.left
        watermarks = [self._next(claim.positions, claim.watermark) for claim in self.claims]
        ends = {p: rows[-1][0] + 1 for p, rows in records.items() if rows}
        if not ends or not self.members:
            return
        greatest = {p: max(times) for p, rows in records.items()
                    if (times := [e.time for _, e in rows if e.time is not None])}  # fmt: skip
        floors = scan_floors([claim.positions for claim in self.claims], others)
        results, used = [], []
        for pipeline, claim, watermark, floor in zip(self.members, self.claims, watermarks, floors, strict=True):
            if not self.rules.watermark_before:
                after = {p: progress.advance(claim.positions.get(p, Position(0)), 0, time, started_at)
                         for p, time in greatest.items()}  # fmt: skip
                watermark = self._next({**claim.positions, **after}, watermark)
            used.append(watermark)
            results.append(judged(pipeline, records, watermark, floor if self.rules.floors else None))
        transaction = self._begin()
        made: dict[int, Record] = {}
        failed = []
        for index, pipeline in enumerate(self.members):
            record = self._record(index, started_at, ends, greatest, results[index], used[index])
            if record is None:
                continue
            yield steps.WRITE_MEMBER
            self._alive(transaction)
            savepoint = transaction.savepoint()
            self._write_member(transaction, pipeline, results[index], record)
            if pipeline.name in self.world.poisoned:
                failed.append(index)
                if self.rules.savepoint:
                    transaction.rollback_to(savepoint)
            else:
                made[index] = record
        batches = [Noted(record, self.process.delay, self.began) for record in made.values()]
        yield from self._committed(transaction, batches)
        for index, record in made.items():
            self.claims[index] = _claim(record)
        left = [self.claims[i].positions for i in failed]
        self._take_out(failed)
        self.left += left * self.rules.left_by_commit

    def _begin(self) -> Transaction:
        if self.connected != self.world.database.restores:
            raise RunError("CONNECTION_LOST", "")
        transaction = self.process.transaction = Transaction(self.world.database)
        return transaction

    def _alive(self, transaction: Transaction) -> None:
        if transaction not in self.world.database.open:
            raise RunError("CONNECTION_LOST", "")

    def _next(self, positions: Mapping[int, Position], previous: int | None) -> int | None:
        found = [p if self.rules.idle else replace(p, idle=False) for p in positions.values()]
        if not self.rules.watermark_stays:
            return progress.next_watermark(found, self.process.delay, None)
        return progress.next_watermark(found, self.process.delay, previous)

    def _record(self, index: int, started_at: int, ends: Mapping[int, int], greatest: Mapping[int, int],
                result: Judged, watermark: int | None) -> Record | None:  # fmt: skip
        run = SimpleNamespace(
            _members=self.members, _claims=self.claims,
            _ends=SimpleNamespace(behind=lambda _: 0),
            _read=SimpleNamespace(topic=self.topic, commit=lambda _: None))  # fmt: skip
        counted = SimpleNamespace(counters=result.counters, tallied=[])
        return _Windows._record(run, index, started_at, ends, [greatest] * (index + 1), counted, watermark)

    def _write_member(self, transaction: Transaction, pipeline: Pipeline, result: Judged, record: Record) -> None:
        watermark = record.watermark
        close = self._next(record.after, watermark) if self.rules.close_by_next else watermark
        assert pipeline.window is not None
        late = [Late(place, record.topic_id, pipeline.window.missed(place[2].at, watermark), record.batch_id)
                for place in result.late if watermark is not None]  # fmt: skip
        refused = [(record.topic_id, place) for place in result.refused]
        database = self.world.database

        def rows() -> None:
            table = database.held.table(pipeline.name)
            table.merge(pipeline, result.partials)
            if pipeline.window is not None and pipeline.window.final:
                table.close(pipeline, close)

        def aside() -> None:
            table = database.held.table(pipeline.name)
            table.late += late
            table.quarantine += refused

        transaction.writes.append(rows)
        if self.rules.one_transaction:
            transaction.writes.append(aside)
        else:
            aside()

    def _committed(self, transaction: Transaction, batches: list[Noted]) -> Steps:
        """``progress.commit`` and the transaction's end. Raises ``FencedError``."""
        database = self.world.database
        yield steps.COMMIT
        self._alive(transaction)
        while database.waits_for_rows(transaction, [batch.record for batch in batches]):
            self.process.waits = True
            yield steps.COMMIT
            self._alive(transaction)
        database.commit(transaction, batches, self.process.writer)
        yield steps.END
        self._alive(transaction)
        transaction.commit()
        self.process.committed()
        yield steps.COMMITTED

    def _insert(self, pipeline: Pipeline, claim: Claim, records: Records, started_at: int) -> Any:
        """``Inserts._write``; the claim afterwards."""
        held = {p: q.next_offset for p, q in claim.positions.items()}
        result = judged(pipeline, records, None, held if self.rules.floors else None)
        ends = ends_of(records, held if self.rules.floors else {})
        if not ends:
            return claim
        after = progress.reached(claim.positions, ends)
        record = Record(pipeline.name, claim.epoch, claim.batch_id + 1, started_at, self.topic.id, NAME,
                        claim.positions, after, None, result.counters)  # fmt: skip
        transaction = self._begin()
        database = self.world.database

        def write() -> None:
            table = database.held.table(pipeline.name)
            table.rows += [(record.topic_id, place) for place in result.counted]
            table.quarantine += [(record.topic_id, place) for place in result.refused]

        transaction.writes.append(write)
        yield from self._committed(transaction, [Noted(record, 0, self.began)])
        return _claim(record)


def _claim(record: Record) -> Claim:
    return Claim(dict(record.after), record.batch_id, record.watermark, record.epoch)
