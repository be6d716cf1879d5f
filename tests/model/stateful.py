"""A stream on Spark's state: its checkpoint, which the engine's own ``Checkpoint`` opens on real files, and its sink.

Spark writes ``offsets/N``, runs batch N, whose end is the sink's commit, and writes ``commits/N``; a start repeats the
batch that has offsets and no commit, by the same offsets. The state here is which ids a ``dedupe`` has seen; it stands
in the checkpoint and follows from the batches that are in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakehouse_engine import progress
from lakehouse_engine.checkpoints import Checkpoint, Held, Made
from lakehouse_engine.errors import FencedError, RunError
from lakehouse_engine.progress import Record
from tests.model import steps
from tests.model.stores import Noted, Transaction
from tests.model.topic import NAME

if TYPE_CHECKING:
    from tests.model.stateworld import Process, StateWorld

PIPELINE = "live.once"


@dataclass(frozen=True)
class StateRules:
    """A switch for each defence, as in ``Rules``."""

    #: a commit compares the writer (``IntoPostgres._move`` and ``progress.move``)
    writer: bool = True
    #: a claim finds what was seen before it (``IntoPostgres.claim``)
    claim_seen: bool = True
    #: a start puts checkpoint and sink together or refuses (``Checkpoint.open``)
    opened: bool = True
    #: a batch that the sink has is computed and not written (``StateRun._commit``)
    skips: bool = True


@dataclass
class Queries:
    """The row of ``lakehouse.queries``, and the table: ids, and the records that they came by."""

    checkpoint: str = ""
    batch: int = -1
    writer: str = ""
    rows: list[tuple[str, int]] = field(default_factory=list)


class StateRun:
    """``StateRun`` and ``IntoPostgres``."""

    def __init__(self, world: StateWorld, process: Process) -> None:
        self.world, self.process, self.rules = world, process, world.rules
        self.folder = world.checkpoint(process.host)
        self.connected = world.database.restores

    def steps(self) -> Generator[str, None, None]:
        world, process = self.world, self.process
        yield steps.ACQUIRE
        world.storages[process.host].acquire(PIPELINE, process.writer)
        yield steps.HELD
        found = world.queries
        self.held = Held(found.checkpoint, found.batch) if found is not None and found.batch >= 0 else None
        topic = world.broker.describe()
        yield steps.OPEN
        wanted = Made(PIPELINE, 1, {}, {NAME: topic.id}, "4")
        made = self._opened(wanted)
        yield steps.CLAIM_QUERY
        while world.moves in world.database.open:  # it has locked the row
            process.waits = True
            yield steps.CLAIM_QUERY
        self._claim(made.id)
        yield steps.CLAIM_POSITIONS
        while world.database.waits_for_table():
            process.waits = True
            yield steps.CLAIM_POSITIONS
        claim = world.database.claim(PIPELINE, topic, {0: 0}, process.writer)
        self.positions, self.batch_id = claim.positions, claim.batch_id
        while True:
            yield steps.BATCH
            number = self._planned()
            while number is None:
                process.waits = True
                yield steps.BATCH
                number = self._planned()
            yield steps.STATE_COMMIT
            yield from self._commit(number)
            self._write("commits", number, "{}")

    def _opened(self, wanted: Made) -> Made:
        checkpoint = Checkpoint(self.folder, "", "")
        if self.rules.opened:
            made = checkpoint.open(wanted, self.held)
        else:
            there = self.folder / "lakehouse.json"
            made = Made(**json.loads(there.read_text())) if there.exists() else checkpoint.open(wanted, None)
        metadata = self.folder / "metadata"
        if not metadata.exists():
            metadata.write_text('{"id": "x"}')
        return made

    def _claim(self, checkpoint: str) -> None:
        world = self.world
        if world.queries is None:
            world.queries = Queries()
        row, self.connected = world.queries, world.database.restores
        claimed = Held(checkpoint if row.batch < 0 else row.checkpoint, row.batch)
        if self.rules.claim_seen and claimed != (self.held or Held(checkpoint, -1)):
            raise FencedError("FENCED", PIPELINE)
        row.checkpoint, row.writer = claimed.checkpoint, self.process.writer
        self.claimed = claimed
        world.database.held.owners[PIPELINE] = self.process.writer

    def _planned(self) -> int | None:
        """Spark's next batch: one that has offsets and no commit, or what is there by now."""
        last = max(self._numbers("commits"), default=-1)
        if last + 1 in self._numbers("offsets"):
            return last + 1
        since, end = self._end(last), self.world.broker.topic.partitions[0].end
        if end <= since:
            return None
        until = min(end, since + (self.world.cut or end))
        self._write("offsets", last + 1, '{"batchWatermarkMs":0}\n' + json.dumps({NAME: {"0": until}}))
        return last + 1

    def _commit(self, number: int) -> Generator[str, None, None]:
        if self.rules.skips and self.held is not None and number <= self.held.batch:
            return
        topic = self.world.broker.topic
        seen = {e.key for _, e in topic.records(0, 0, self._end(number - 1)) if e.kind == "good"}
        records = topic.records(0, self._end(number - 1), self._end(number))
        new: dict[str, int] = {}
        counters: Counter[str] = Counter()
        for _, event in records:
            what = "quarantined" if event.kind == "bad" else "duplicate" if event.key in {*seen, *new} else "counted"
            counters[what] += 1
            if what == "counted":
                new[event.key] = event.uid
        after = progress.reached(self.positions, {0: records[-1][0] + 1} if records else {})
        record = Record(PIPELINE, 1, self.batch_id + 1, 0, topic.id, NAME, self.positions, after, None, counters)
        yield from self._ended(number, record, new)
        self.positions, self.batch_id = dict(after), record.batch_id

    def _ended(self, number: int, record: Record, new: Mapping[str, int]) -> Generator[str, None, None]:
        """``IntoPostgres.write``."""
        world, database, process = self.world, self.world.database, self.process
        yield steps.MOVE
        row = world.queries
        if self.connected != database.restores or row is None:
            raise RunError("CONNECTION_LOST", "")
        transaction = process.transaction = Transaction(database)
        while world.moves in database.open:
            process.waits = True
            yield steps.MOVE
            self._alive(transaction)
            row = world.queries
            assert row is not None
        world.moves = transaction
        if Held(row.checkpoint, row.batch) != self.claimed or (self.rules.writer and row.writer != process.writer):
            raise FencedError("FENCED", PIPELINE)
        yield steps.COMMIT
        self._alive(transaction)
        while database.waits_for_rows(transaction, [record]):
            process.waits = True
            yield steps.COMMIT
            self._alive(transaction)
        database.commit(transaction, [Noted(record, 0, {})], process.writer)

        def write() -> None:
            found = world.queries
            assert found is not None
            found.batch = number
            found.rows += [*new.items()]

        transaction.writes.append(write)
        yield steps.END
        self._alive(transaction)
        transaction.commit()
        process.transaction = None
        self.claimed = Held(self.claimed.checkpoint, number)
        yield steps.COMMITTED

    def _alive(self, transaction: Transaction) -> None:
        if transaction not in self.world.database.open:
            raise RunError("CONNECTION_LOST", "")

    def _numbers(self, kind: str) -> list[int]:
        folder = self.folder / kind
        return [int(file.name) for file in folder.iterdir()] if folder.exists() else []

    def _end(self, number: int) -> int:
        if number < 0:
            return 0
        return int(json.loads((self.folder / "offsets" / str(number)).read_text().splitlines()[-1])[NAME]["0"])

    def _write(self, kind: str, number: int, text: str) -> None:
        (self.folder / kind).mkdir(exist_ok=True)
        (self.folder / kind / str(number)).write_text(f"v1\n{text}\n")
