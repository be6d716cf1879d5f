"""What outlives a process: the database with its transactions, and a storage with Delta tables and locks.

``progress.claim``, ``progress.move`` and the merges are SQL; what stands here for them is held to PostgreSQL by
``test_statements.py``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lakehouse_engine.errors import FencedError, RunError
from lakehouse_engine.progress import Claim, Position, Record
from lakehouse_engine.sources.broker import TopicState
from tests.model.pipelines import Partial, Pipeline
from tests.model.rules import Rules
from tests.model.topic import Event

#: window start and key
Key = tuple[int, str]
#: which records a window counts, and how often
Counts = Counter[int]
#: partition, offset, event
Place = tuple[int, int, Event]
Positions = dict[tuple[str, int, str, int], tuple[Position, str]]


@dataclass
class Late:
    place: Place
    topic: str
    missed: list[int]
    batch: int
    applied: bool = False


@dataclass
class Table:
    """Of one pipeline: ``sent`` is what people read; ``state`` of what is sent once holds the open windows.

    A session is (first, last event time, its records), by its start. ``times``: how often a stream has sent a window.
    """

    sent: dict[Key, Counts] = field(default_factory=dict)
    ends: dict[Key, int] = field(default_factory=dict)
    state: dict[Key, Counts] = field(default_factory=dict)
    sessions: dict[str, list[tuple[int, int, Counts]]] = field(default_factory=dict)
    rows: list[tuple[str, Place]] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    quarantine: list[tuple[str, Place]] = field(default_factory=list)
    times: Counter[Key] = field(default_factory=Counter)

    def merge(self, pipeline: Pipeline, partials: Iterable[Partial]) -> None:
        """``Merge.write``."""
        assert pipeline.window is not None
        if pipeline.window.session:
            for _, key, uids, first, last in partials:
                apart = []
                for one in self.sessions.get(key, []):
                    if one[0] <= last + pipeline.window.size and first <= one[1] + pipeline.window.size:
                        first, last, uids = min(first, one[0]), max(last, one[1]), uids + one[2]
                    else:
                        apart.append(one)
                self.sessions[key] = [*apart, (first, last, uids)]
            return
        into = self.state if pipeline.window.final else self.sent
        for start, key, uids in partials:
            into[start, key] = into.get((start, key), Counter()) + uids

    def close(self, pipeline: Pipeline, watermark: int | None, *, stream: bool = True) -> None:
        """``FinalMerge.close``: sends what is over."""
        assert pipeline.window is not None
        if watermark is None:
            return
        size = pipeline.window.size
        over: list[tuple[Key, int, Counts]] = []
        if pipeline.window.session:
            for key, found in self.sessions.items():
                over += [((first, key), last + size, uids) for first, last, uids in found if last + size < watermark]
                self.sessions[key] = [one for one in found if one[1] + size >= watermark]
        else:
            over = [((start, key), start + size, uids) for (start, key), uids in self.state.items()
                    if start + size <= watermark]  # fmt: skip
            for key, *_ in over:
                del self.state[key]
        for key, end, uids in over:
            self.sent[key], self.ends[key] = uids, end
            self.times[key] += stream

    def closed_until(self, pipeline: Pipeline) -> int | None:
        """``FinalMerge.closed_until``."""
        assert pipeline.window is not None
        if not self.ends:
            return None
        return max(self.ends.values()) + (1 if pipeline.window.session else 0)


@dataclass(frozen=True)
class Noted:
    """What the ledger says of a batch, and what it does not: by that the oracle follows the watermark.

    ``began``: where the scan's batch began, which may be before what was new to this pipeline.
    """

    record: Record
    delay: int
    began: Mapping[int, int]


@dataclass(frozen=True)
class Recounted:
    """A day's transaction of a recount; the oracle follows the ledger through these, too.

    ``firsts``: the least offsets that its source holds. They may lie before what the stream has read: a pipeline that
    came later, or was reset, gets its past from there.
    """

    topic: str
    firsts: Mapping[int, int]
    first: int
    end: int
    since: int
    watermark: int
    positions: Mapping[int, int]


class Transaction:
    """What was done so far, to be seen by others when it commits. ``moved``: the rows of the ledger that it locks."""

    def __init__(self, database: Database) -> None:
        self.moved: set[tuple[str, int, str, int]] = set()
        self.writes: list[Callable[[], None]] = []
        self._database = database
        database.open.append(self)

    def savepoint(self) -> int:
        return len(self.writes)

    def rollback_to(self, savepoint: int) -> None:
        del self.writes[savepoint:]

    def rollback(self) -> None:
        if self in self._database.open:
            self._database.open.remove(self)

    def commit(self) -> None:
        """Raises ``RunError`` where a statement would."""
        self._database.open.remove(self)
        before = self._database.held
        self._database.held = copy.deepcopy(before)
        try:
            for write in self.writes:
                write()
        except RunError:
            self._database.held = before
            raise
        self._database.commits += 1


@dataclass
class Held:
    """What a backup has. ``owners``: who claimed a pipeline last; no rule of the engine reads it."""

    positions: Positions = field(default_factory=dict)
    logs: dict[tuple[str, int], list[Noted | Recounted]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    backfills: dict[str, tuple[int, str, int, bool]] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> Held:
        # records, events and counts of a window are never changed in place
        tables = {name: Table(dict(t.sent), dict(t.ends), dict(t.state), dict(t.sessions), list(t.rows),
                              [copy.copy(late) for late in t.late], list(t.quarantine), Counter(t.times))
                  for name, t in self.tables.items()}  # fmt: skip
        return Held(dict(self.positions), {name: list(log) for name, log in self.logs.items()}, tables,
                    dict(self.epochs), dict(self.owners), dict(self.backfills))  # fmt: skip

    def table(self, pipeline: str) -> Table:
        return self.tables.setdefault(pipeline, Table())

    def epoch(self, pipeline: str) -> int:
        return self.epochs.get(pipeline, 1)

    def batches(self, pipeline: str) -> list[Noted]:
        log = self.logs.get((pipeline, self.epoch(pipeline)), [])
        return [one for one in log if isinstance(one, Noted)]

    def rows(self, pipeline: str, topic_id: str | None = None) -> Iterator[tuple[str, int, Position, str]]:
        """Topic, partition, position and writer."""
        for (name, epoch, topic, partition), (position, writer) in self.positions.items():
            if name == pipeline and epoch == self.epoch(name) and topic_id in (None, topic):
                yield topic, partition, position, writer


class Database:
    def __init__(self, rules: Rules) -> None:
        self.held, self.rules = Held(), rules
        self.open: list[Transaction] = []
        self.commits = self.restores = 0

    def waits_for_table(self) -> bool:
        """``lock table lakehouse.positions in share row exclusive mode`` waits for who has moved a row."""
        return self.rules.claim_locks and any(one.moved for one in self.open)

    def waits_for_rows(self, transaction: Transaction, records: Iterable[Record]) -> bool:
        rows = {(r.pipeline, r.epoch, r.topic_id, p) for r in records for p in r.after}
        return any(rows & one.moved for one in self.open if one is not transaction)

    def claim(self, pipeline: str, topic: TopicState, starts: Mapping[int, int], writer: str) -> Claim:
        """``progress.claim``."""
        held, epoch = self.held, self.held.epoch(pipeline)
        began = any(held.rows(pipeline, topic.id))
        if self.rules.claim_all:
            for key, (position, _) in held.positions.items():
                if key[:2] == (pipeline, epoch):
                    held.positions[key] = (position, writer)
        for partition, offset in starts.items():
            key = (pipeline, epoch, topic.id, partition)
            first = Position(0 if began and self.rules.new_partition_first else offset)
            held.positions[key] = (held.positions.get(key, (first, writer))[0], writer)
        held.owners[pipeline] = writer
        self.commits += 1
        positions = {p: position for _, p, position, _ in held.rows(pipeline, topic.id)}
        batches = held.batches(pipeline)
        last = batches[-1].record if batches else None
        return Claim(positions, last.batch_id if last else 0, last.watermark if last else None, epoch)

    def commit(self, transaction: Transaction, batches: Iterable[Noted], writer: str) -> None:
        """``progress.commit``. Raises ``FencedError`` FENCED."""
        for batch in batches:
            record = batch.record
            for partition, position in record.after.items():
                key = (record.pipeline, record.epoch, record.topic_id, partition)
                before, found = record.before.get(partition), self.held.positions.get(key)
                here = found is None if before is None else (
                    found is not None and (found[0].next_offset == before.next_offset or not self.rules.compare)
                    and (found[1] == writer or not self.rules.writer))  # fmt: skip
                if not here:
                    raise FencedError("FENCED", record.pipeline)
                transaction.moved.add(key)
                transaction.writes.append(lambda k=key, p=position: self._move(k, p, writer))  # type: ignore[misc]
            transaction.writes.append(lambda b=batch: self._append(b, writer))  # type: ignore[misc]

    def _move(self, key: tuple[str, int, str, int], position: Position, writer: str) -> None:
        self.held.positions[key] = (position, self.held.positions.get(key, (position, writer))[1])

    def _append(self, batch: Noted, writer: str) -> None:
        record = batch.record
        log = self.held.logs.setdefault((record.pipeline, record.epoch), [])
        if self.rules.batch_key and any(isinstance(b, Noted) and b.record.batch_id == record.batch_id for b in log):
            raise RunError("UNIQUE_VIOLATION", f"{record.pipeline} {record.batch_id}")
        if self.held.owners.get(record.pipeline) != writer:
            raise AssertionError(f"a zombie, {writer}, commits a batch of {record.pipeline}, which"
                                 f" {self.held.owners.get(record.pipeline)} has claimed")  # fmt: skip
        log.append(batch)


@dataclass(frozen=True)
class Commit:
    """Of a Delta table."""

    record: Record
    rows: tuple[tuple[str, Place], ...]


@dataclass
class Storage:
    """A folder: what is locked in it by whom, and a landing's table with its quarantine."""

    name: str
    locks: dict[str, str] = field(default_factory=dict)
    landed: list[Commit] = field(default_factory=list)
    aside: list[Commit] = field(default_factory=list)
    #: commits whose rows a RESTORE has taken away; their records stay in the log
    restored: set[int] = field(default_factory=set)

    def acquire(self, name: str, writer: str) -> None:
        """``locks.acquire``. Raises ``RunError`` LOCKED."""
        if self.locks.setdefault(name, writer) != writer:
            raise RunError("LOCKED", f"{name} is being written by {self.locks[name]}")

    def release(self, writer: str) -> None:
        self.locks = {name: holder for name, holder in self.locks.items() if holder != writer}

    def last(self, *, restore_seen: bool) -> Record | None:
        """``DeltaLog.record``: the newest in the log, also one whose rows a RESTORE has taken away."""
        found = [c.record for i, c in enumerate(self.landed) if not restore_seen or i not in self.restored]
        return found[-1] if found else None

    def rows(self) -> Iterator[tuple[str, Place]]:
        for number, commit in enumerate(self.landed):
            if number not in self.restored:
                yield from commit.rows
