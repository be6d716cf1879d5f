"""What must hold after every step, by definitions that share nothing with the engine but the ledger they read.

Of each pipeline its batches are gone through in order: which records lie in their ranges, what became of each, which
windows hold what then. ``audit.judge`` is asked, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from lakehouse_engine import audit
from lakehouse_engine.progress import Record
from tests.model.oracle import Windows, once, ranges, records
from tests.model.pipelines import Pipeline
from tests.model.stores import Noted, Storage, Table
from tests.model.topic import Broker

if TYPE_CHECKING:
    from tests.model.world import World

def hold(world: World) -> None:
    """Raises ``AssertionError`` saying which law does not."""
    held = world.database.held
    for pipeline in world.pipelines:
        if pipeline.into == "landing":
            for storage in world.storages:
                _landing(storage, world.broker)
            continue
        log = held.logs.get((pipeline.name, held.epoch(pipeline.name)), [])
        batches = [one.record for one in log if isinstance(one, Noted)]
        _ledger(pipeline.name, batches, world.broker, {
            (topic, p): position.next_offset for topic, p, position, _ in held.rows(pipeline.name)})  # fmt: skip
        table = held.table(pipeline.name)
        if pipeline.into == "rows":
            _rows(pipeline, batches, table, world.broker)
        else:
            Windows(pipeline, world.broker).follow(log, table)
    _positions(world)


def _positions(world: World) -> None:
    """They never go back; what a restore takes back is taken back from ``furthest``, too."""
    for key, (position, _) in world.database.held.positions.items():
        before = world.furthest.get(key, 0)
        assert position.next_offset >= before, f"the position {key} goes back from {before} to {position.next_offset}"
        world.furthest[key] = position.next_offset


def _ledger(name: str, batches: list[Record], broker: Broker, positions: Mapping[tuple[str, int], int]) -> None:
    """In = sum, no hole between two batches, and the watermark stays or moves on."""
    ends: dict[str, dict[int, int]] = {}
    for (topic, partition), offset in positions.items():
        ends.setdefault(topic, {})[partition] = offset
    noted = [audit.Batch(r.batch_id, r.topic_id, r.topic_id, ranges(r), dict(r.counters)) for r in batches]

    def held(topic: str, read: audit.Ranges) -> int:
        return sum(len(broker.ever[topic].records(p, since, until)) for p, (since, until) in read.items())

    found = audit.judge(name, "", 1, noted, ends, held)
    assert not found.wrong, f"{name}: {found.wrong[0]}"
    known: dict[str, set[int]] = {}
    for record in batches:
        before = known.setdefault(record.topic_id, set())
        for p, (since, _) in ranges(record).items():
            assert not before or p in before or since == 0, f"{name}: partition {p} is new and begins at {since}"
        before |= set(record.after)
    for one, other in pairwise(batches):
        if one.watermark is not None:
            assert other.watermark is not None, f"{name}: the watermark is lost"
            assert other.watermark >= one.watermark, f"{name}: the watermark goes back"


def _rows(pipeline: Pipeline, batches: list[Record], table: Table, broker: Broker) -> None:
    good: Counter[tuple[str, int, int]] = Counter()
    refused: Counter[tuple[str, int, int]] = Counter()
    for record in batches:
        for p, o, event in records(record, broker):
            if event.kind == "good":
                good[record.topic_id, p, o] += 1
            elif event.kind != "filtered":
                refused[record.topic_id, p, o] += 1
    once(pipeline.name, "rows", Counter((t, p, o) for t, (p, o, _) in table.rows), good)
    once(pipeline.name, "quarantine", Counter((t, p, o) for t, (p, o, _) in table.quarantine), refused)


def _landing(storage: Storage, broker: Broker) -> None:
    name = f"the landing in {storage.name}"
    commits = [commit.record for commit in storage.landed]
    if not storage.restored:
        _ledger(name, commits, broker, {})
    good: Counter[tuple[str, int, int]] = Counter()
    refused: Counter[tuple[str, int, int]] = Counter()
    # whatever a RESTORE did: from each partition's first range on up to the newest position
    reach: dict[tuple[str, int], tuple[int, int]] = {}
    for record in commits:
        for p, (since, until) in ranges(record).items():
            first, _ = reach.get((record.topic_id, p), (since, 0))
            reach[record.topic_id, p] = (first, until)
    for (topic, p), (since, until) in reach.items():
        if storage.restored and topic != broker.topic.id:
            continue  # what a RESTORE took away cannot be read again
        for o, event in broker.ever[topic].records(p, since, until):
            (refused if event.kind == "bad" else good)[topic, p, o] += 1
    if not storage.restored or len(storage.landed) - 1 not in storage.restored:  # else restored, and not run since
        rows = Counter((t, p, o) for t, (p, o, _) in storage.rows()
                       if not storage.restored or t == broker.topic.id)  # fmt: skip
        once(name, "rows", rows, good)
    kept = Counter((t, p, o) for commit in storage.aside for t, (p, o, _) in commit.rows)
    extra = kept - refused
    # what is refused is kept before the rows are there
    assert not any(n > 1 for n in kept.values()), f"{name}: quarantine: twice {extra}"
    assert not refused - kept, f"{name}: quarantine: too few {dict(refused - kept)}"
