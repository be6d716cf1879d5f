"""The world of a stream on Spark's state: checkpoints are lost, copied, put back and torn."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from lakehouse_engine import audit
from lakehouse_engine.errors import LakehouseError, RunError
from tests.model.oracle import ranges
from tests.model.rules import Rules
from tests.model.stateful import PIPELINE, Queries, StateRules, StateRun
from tests.model.stores import Database, Storage, Transaction
from tests.model.topic import NAME, Broker, Event

#: what may happen, and how many values each of its numbers has
ACTS = {"produce": (6,), "run": (2,), "advance": (3, 7, 3), "finish": (3,), "crash": (3,), "fail": (3,), "backup": (),
        "restore": (2,), "lose": (2,), "keep": (2,), "replace": (2,), "forget": (2, 2)}  # fmt: skip
WEIGHTS = {"advance": 8.0, "produce": 5.0, "finish": 3.0, "run": 3.0, "crash": 1.5, "fail": 1.0, "backup": 0.4,
           "restore": 0.4, "lose": 0.2, "keep": 0.3, "replace": 0.3, "forget": 0.3}  # fmt: skip


@dataclass
class Process:
    writer: str
    host: int
    at: str = ""
    ended: str = ""
    waits: bool = False
    said: list[str] = field(default_factory=list)
    transaction: Transaction | None = None
    steps: Generator[str, None, None] = field(default_factory=lambda: _none())


def _none() -> Generator[str, None, None]:
    yield from ()


class StateWorld:
    def __init__(self, rules: StateRules) -> None:
        self.rules, self.broker, self.database = rules, Broker(1), Database(Rules(writer=rules.writer))
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        self.storages = [Storage("one"), Storage("other")]
        self.processes: list[Process] = []
        self.queries: Queries | None = None
        #: what has moved the row last, and holds it until it ends
        self.moves: Transaction | None = None
        self.backups: list[tuple[object, Queries | None]] = []
        self.cut, self.taken, self.uids, self._checked = 0, 0, 0, -1

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def act(self, name: str, *numbers: int) -> bool:
        done: bool = getattr(self, name)(*numbers)
        return done

    # what happens

    def produce(self, key: int) -> bool:
        self.uids += 1
        self.broker.topic.partitions[0].events.append(Event(self.uids, "bad" if key == 5 else "good", str(key), 0))
        return True

    def run(self, host: int) -> bool:
        if len(self.alive) >= 3:
            return False
        process = Process(f"w{len(self.processes)}", host)
        process.steps = self._supervised(process)
        self.processes.append(process)
        self._advance(process)
        return True

    def advance(self, which: int, number: int, cut: int) -> bool:
        if not self.alive:
            return False
        process, self.cut = self.alive[which % len(self.alive)], cut
        for _ in range(number):
            if process.ended:
                break
            self._advance(process)
            if process.waits:
                break
        return True

    def finish(self, which: int) -> bool:
        return self.advance(which, 100, 0)

    def crash(self, which: int) -> bool:
        if not self.alive:
            return False
        self._gone(self.alive[which % len(self.alive)], "KILLED")
        return True

    def fail(self, which: int) -> bool:
        if not self.alive:
            return False
        self._advance(self.alive[which % len(self.alive)], RunError("CONNECTION_LOST", ""))
        return True

    def backup(self) -> bool:
        self.backups.append(copy.deepcopy((self.database.held, self.queries)))
        return True

    def restore(self, which: int) -> bool:
        if not self.backups:
            return False
        for transaction in list(self.database.open):
            transaction.rollback()
        self.database.held, self.queries = copy.deepcopy(self.backups[which % len(self.backups)])  # type: ignore[assignment]
        self.database.commits += 1
        self.database.restores += 1
        return True

    def lose(self, host: int) -> bool:
        """The checkpoint is gone."""
        return self._stopped(host) and self._removed(self.checkpoint(host))

    def keep(self, host: int) -> bool:
        """A copy of the checkpoint."""
        if not self._stopped(host) or not self.checkpoint(host).exists():
            return False
        self._removed(self.folder / f"copy{host}")
        shutil.copytree(self.checkpoint(host), self.folder / f"copy{host}")
        return True

    def replace(self, host: int) -> bool:
        """The copy takes the checkpoint's place."""
        if not self._stopped(host) or not (self.folder / f"copy{host}").exists():
            return False
        self._removed(self.checkpoint(host))
        shutil.copytree(self.folder / f"copy{host}", self.checkpoint(host))
        return True

    def forget(self, host: int, kind: int) -> bool:
        """The newest file of one kind is lost."""
        folder = self.checkpoint(host) / ("commits", "offsets")[kind]
        files = sorted(folder.glob("*"), key=lambda file: int(file.name))
        if not self._stopped(host) or not files:
            return False
        files[-1].unlink()
        return True

    def _stopped(self, host: int) -> bool:
        return all(process.host != host for process in self.alive)

    def _removed(self, folder: Path) -> bool:
        there = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        return there

    def checkpoint(self, host: int) -> Path:
        return self.folder / f"checkpoint{host}"

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
        if self.database.commits != self._checked:
            self._checked = self.database.commits
            self.hold()

    def _gone(self, process: Process, why: str) -> None:
        process.ended = why
        if process.transaction is not None:
            process.transaction.rollback()
        self.storages[process.host].release(process.writer)

    def _supervised(self, process: Process) -> Generator[str, None, None]:
        for _ in range(3):
            try:
                yield from StateRun(self, process).steps()
            except LakehouseError as error:
                process.said.append(error.code)
                if process.transaction is not None:
                    process.transaction.rollback()
                    process.transaction = None
                self.storages[process.host].release(process.writer)
                if error.code not in ("CONNECTION_LOST", "UNIQUE_VIOLATION"):
                    process.ended = error.code
                    return
        process.ended = process.said[-1]

    def hold(self) -> None:
        """Raises ``AssertionError`` where a law is broken."""
        batches = [noted.record for noted in self.database.held.batches(PIPELINE)]
        ends = {self.broker.topic.id: {p: q.next_offset for _, p, q, _ in self.database.held.rows(PIPELINE)}}
        noted = [audit.Batch(r.batch_id, r.topic_id, NAME, ranges(r), dict(r.counters)) for r in batches]
        found = audit.judge(PIPELINE, "", 1, noted, ends, lambda topic, read: sum(
            len(self.broker.topic.records(p, since, until)) for p, (since, until) in read.items()))  # fmt: skip
        assert not found.wrong, found.wrong[0]
        seen: dict[str, int] = {}
        for record in batches:
            counters: Counter[str] = Counter()
            for p, (since, until) in noted[batches.index(record)].ranges.items():
                for _, event in self.broker.topic.records(p, since, until):
                    what = "quarantined" if event.kind == "bad" else "duplicate" if event.key in seen else "counted"
                    counters[what] += 1
                    if what == "counted":
                        seen[event.key] = event.uid
            assert {k: n for k, n in record.counters.items() if n} == dict(counters), f"batch {record.batch_id}"
        rows = self.queries.rows if self.queries else []
        assert Counter(rows) == Counter(seen.items()), f"the table has {rows}, not {seen}"
