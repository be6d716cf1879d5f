"""The model's world: a broker, a database, two storages, processes, and what may happen to them.

Everything that happens is an act with small whole numbers, so a schedule is a list that JSON holds. An act that does
not apply does nothing and says so.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

from lakehouse_engine.errors import FencedError, LakehouseError, RunError
from lakehouse_engine.past import DAY
from tests.model import laws
from tests.model.pipelines import ALL, HOUR, WINDOWS, Pipeline
from tests.model.recounting import Recount
from tests.model.rules import ENGINE, Rules
from tests.model.scanning import ScanRun
from tests.model.stores import Database, Held, Storage, Transaction
from tests.model.topic import KINDS, Broker, Event

MAX_RESTARTS = 3
#: what may happen, and how many values each of its numbers has
ACTS = {
    "produce": (3, 8, 18, 2), "run": (2, 32, 2), "backfill": (2, 3, 3, 6, 2), "advance": (4, 9, 64), "finish": (4,),
    "crash": (4,), "fail": (4,), "tick": (3,), "backup": (), "restore": (2,), "poison": (5,), "blind": (5,),
    "reset": (5,), "partition": (), "retain": (3, 3), "recreate_stopped": (), "latest": (5,), "recreate": (),
    "restore_table": (2, 6),
}  # fmt: skip


def _none() -> Generator[str, None, None]:
    yield from ()

@dataclass
class Process:
    """``at``: the step that it takes next; ``waits``: for a lock, or for records."""

    writer: str
    host: int
    pipelines: list[Pipeline]
    delay: int
    span: tuple[int | None, int] = (None, 0)
    at: str = ""
    ended: str = ""
    waits: bool = False
    restarts: int = 0
    commits: int = 0
    said: list[str] = field(default_factory=list)
    transaction: Transaction | None = None
    steps: Generator[str, None, None] = field(default_factory=_none)

    def committed(self) -> None:
        self.commits += 1
        self.transaction = None
        self.restarts = 0


class World:
    def __init__(self, rules: Rules = ENGINE, pipelines: Sequence[Pipeline] = ALL, partitions: int = 2,
                 limit: int = 0) -> None:  # fmt: skip
        """``limit``: records that a micro-batch takes of a partition at most, where its act says nothing; 0: all."""
        self.rules, self.pipelines, self.limit = rules, tuple(pipelines), limit
        self.broker, self.database = Broker(partitions), Database(rules)
        self.storages = [Storage("one"), Storage("other")]
        self.processes: list[Process] = []
        self.poisoned: set[str] = set()
        self.unreadable: set[str] = set()
        self.starts: dict[str, str] = {}
        self.furthest: dict[tuple[str, int, str, int], int] = {}
        self.backups: list[Held] = []
        self.clock, self.cut, self.taken, self.uids, self.newest = 0, 0, 0, 0, 24 * HOUR
        self._checked = -1

    # what happens

    def act(self, name: str, *values: int) -> bool:
        """Whether it could happen. Raises ``AssertionError`` when a law is broken."""
        if name not in ACTS:
            raise ValueError(f"{name} is no act")
        done: bool = getattr(self, name)(*values)
        return done

    def produce(self, partition: int, kind: int, hours: int, key: int) -> bool:
        """``hours``: from the newest event time, 0 for twelve before it."""
        partitions = self.broker.topic.partitions
        at = self.newest + (hours - 12) * HOUR
        self.newest = max(self.newest, at)
        self.uids += 1
        partitions[partition % len(partitions)].events.append(Event(self.uids, KINDS[kind], "ab"[key], at))
        return True

    def run(self, host: int, members: int, delay: int) -> bool:
        """A process begins. ``members``: its pipelines, by bits; their files have now one ``delay``, now another."""
        chosen = [p for i, p in enumerate(self.pipelines) if members >> i & 1]
        if not chosen or len(self.alive) >= 4:
            return False
        process = Process(f"w{len(self.processes)}", host, chosen, (0, 5 * HOUR)[delay])
        process.steps = self._supervised(process)
        self.processes.append(process)
        self._advance(process)
        return True

    def backfill(self, host: int, member: int, first: int, last: int, delay: int) -> bool:
        """Days from ``first`` (0: whichever is the first) to ``last``."""
        windows = [p for p in self.pipelines if p in WINDOWS]
        if not windows or len(self.alive) >= 4:
            return False
        span = ((first * DAY if first else None), last * DAY)
        process = Process(f"w{len(self.processes)}", host, [windows[member % len(windows)]], (0, 5 * HOUR)[delay], span)
        process.steps = self._once(process, Recount(self, process).steps())
        self.processes.append(process)
        self._advance(process)
        return True

    def advance(self, which: int, number: int, cut: int) -> bool:
        """A process goes on by some steps. ``cut``: of two partitions how many records a batch takes, 0 for all."""
        if not self.alive:
            return False
        process = self.alive[which % len(self.alive)]
        self.cut = cut
        for _ in range(number):
            if process.ended:
                break
            self._advance(process)
            if process.waits:
                break
        return True

    def finish(self, which: int) -> bool:
        """A process goes on until it waits or has ended."""
        return self.advance(which, 300, 0)

    def crash(self, which: int) -> bool:
        """kill -9; what it had begun is rolled back."""
        if not self.alive:
            return False
        process = self.alive[which % len(self.alive)]
        self._gone(process, "KILLED")
        return True

    def fail(self, which: int) -> bool:
        """Its connection breaks: it starts again as the same writer. After COMMIT the answer is what was lost."""
        if not self.alive:
            return False
        process = self.alive[which % len(self.alive)]
        self._advance(process, RunError("CONNECTION_LOST", ""))
        return True

    def tick(self, seconds: int) -> bool:
        self.clock += (1, 29, 31)[seconds] * 1_000_000
        return True

    def backup(self) -> bool:
        if len(self.backups) >= 2:
            return False
        self.backups.append(copy.deepcopy(self.database.held))
        return True

    def restore(self, which: int) -> bool:
        """PostgreSQL is as it was then; every connection is closed."""
        if not self.backups:
            return False
        held = copy.deepcopy(self.backups[which % len(self.backups)])
        for transaction in list(self.database.open):
            transaction.rollback()
        self.database.held = held
        self.database.commits += 1
        self.database.restores += 1
        self.furthest = {key: position.next_offset for key, (position, _) in held.positions.items()}
        self._check()
        return True

    def retain(self, partition: int, number: int) -> bool:
        """Kafka deletes the oldest records."""
        partitions = self.broker.topic.partitions
        one = partitions[partition % len(partitions)]
        one.first = min(one.first + number, one.end)
        return True

    def partition(self) -> bool:
        """The topic gets one more."""
        if len(self.broker.topic.partitions) >= 3:
            return False
        self.broker.topic.partitions.append(type(self.broker.topic.partitions[0])())
        return True

    def recreate(self) -> bool:
        """The topic is deleted and made anew, whoever reads it."""
        if len(self.broker.ever) >= 3:
            return False
        self.broker.make(len(self.broker.topic.partitions))
        return True

    def recreate_stopped(self) -> bool:
        """The same where nobody runs."""
        return not self.alive and self.recreate()

    def poison(self, member: int) -> bool:
        """The sink refuses what the pipeline writes, until it is mended."""
        self.poisoned ^= {self.pipelines[member % len(self.pipelines)].name}
        return True

    def blind(self, member: int) -> bool:
        """The table that it looks up cannot be read, until it is mended."""
        self.unreadable ^= {self.pipelines[member % len(self.pipelines)].name}
        return True

    def reset(self, member: int) -> bool:
        """``lakehouse reset`` begins a new epoch; it takes the claim from whoever has it."""
        pipeline = self.pipelines[member % len(self.pipelines)]
        held = self.database.held
        if pipeline.into == "landing" or self.database.waits_for_table() or held.epoch(pipeline.name) >= 2:
            return False
        for key, (position, _) in list(held.positions.items()):
            if key[0] == pipeline.name:
                held.positions[key] = (position, "reset")
        held.epochs[pipeline.name] = held.epoch(pipeline.name) + 1
        held.owners[pipeline.name] = "reset"
        held.tables.pop(pipeline.name, None)
        held.backfills.pop(pipeline.name, None)
        self.database.commits += 1
        self._check()
        return True

    def restore_table(self, host: int, version: int) -> bool:
        """Delta's RESTORE of the landing: rows of newer commits go, their records stay in the log."""
        storage = self.storages[host]
        if version >= len(storage.landed) or storage.locks:
            return False
        storage.restored |= set(range(version + 1, len(storage.landed)))
        self.database.commits += 1
        return True

    def latest(self, member: int) -> bool:
        """``start: latest`` in the pipeline's file."""
        self.starts[self.pipelines[member % len(self.pipelines)].name] = "latest"
        return True

    # how

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if not process.ended]

    def _advance(self, process: Process, error: RunError | None = None) -> None:
        self.taken += 1
        process.waits = False
        try:
            process.at = next(process.steps) if error is None else process.steps.throw(error)
        except StopIteration:
            self._gone(process, process.ended or "DONE")
        self._check()

    def _check(self) -> None:
        if self.database.commits != self._checked:
            self._checked = self.database.commits
            laws.hold(self)

    def _gone(self, process: Process, why: str) -> None:
        process.ended = why
        if process.transaction is not None:
            process.transaction.rollback()
        self.storages[process.host].release(process.writer)

    def _supervised(self, process: Process) -> Generator[str, None, None]:
        """``Supervised``: what failed is started again, what was fenced is not."""
        while True:
            try:
                run = ScanRun(self, process)
                yield from run.start()
                yield from run.batches()
            except LakehouseError as error:
                process.said.append(error.code)
                if process.transaction is not None:
                    process.transaction.rollback()
                    process.transaction = None
                self.storages[process.host].release(process.writer)
                process.restarts += 1
                if isinstance(error, FencedError) or error.code == "LOCKED" or process.restarts > MAX_RESTARTS:
                    process.ended = error.code
                    return

    def _once(self, process: Process, found: Iterable[str]) -> Generator[str, None, None]:
        try:
            yield from found
        except LakehouseError as error:
            process.said.append(error.code)
            process.ended = error.code
