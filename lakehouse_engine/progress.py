"""How far a pipeline has read, kept where its results are: the ledger.

Every commit carries the position of its source, so whatever else is lost heals from the sink. In PostgreSQL the ledger
is two tables, written in the transaction that writes the rows:

``lakehouse.positions``: one row per (pipeline, epoch, topic_id, partition): ``next_offset`` (the fence: compared and
set), ``max_event_time``, ``idle``, ``last_row_at``, and ``writer``, the process that owns the pipeline.
``lakehouse.batches``: append-only, one row per micro-batch with its ranges, watermark, counters and, for people,
``behind``: the records of the topic that were not read yet. What is old stands together by the hour, then
``first_batch`` is the first of those that a row tells of (``retention.py``).

In Delta the same record stands in ``userMetadata`` of the commit (``Record.json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from psycopg2.extras import execute_values

from lakehouse_engine import places
from lakehouse_engine.errors import FencedError, RunError
from lakehouse_engine.places import BITS, Topics

#: a partition that has given no row for so long does not hold the watermark back (microseconds)
IDLE_AFTER = 30_000_000
COUNTERS = ("quarantined", "filtered", "duplicate", "late", "counted")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def to_micros(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int | None) -> datetime | None:
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def now_micros() -> int:
    return (datetime.now(timezone.utc) - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Position:
    """One partition as a pipeline has read it. Times are microseconds since 1970, None while there is none."""

    next_offset: int
    max_event_time: int | None = None
    idle: bool = False
    last_row_at: int | None = None


def advance(position: Position, next_offset: int, max_event_time: int | None, started_at: int) -> Position:
    """The position after a batch that began at ``started_at`` and read up to ``next_offset``.

    ``max_event_time`` is the greatest event time that reached the watermark step in this batch, None for no such row.
    """
    if max_event_time is not None:
        before = position.max_event_time
        greatest = max_event_time if before is None else max(max_event_time, before)
        return Position(next_offset, greatest, False, started_at)
    silent = position.last_row_at is not None and started_at - position.last_row_at >= IDLE_AFTER
    return replace(position, next_offset=next_offset, idle=position.idle or silent)


def reached(positions: Mapping[int, Position], ends: Mapping[int, int]) -> dict[int, Position]:
    """The positions after a batch without event time that ended at ``ends`` (next offsets); none goes back."""
    read = {p: Position(max(end, positions.get(p, Position(0)).next_offset)) for p, end in ends.items()}
    return {**positions, **read}


def offsets(positions: Mapping[int, Position]) -> dict[int, int]:
    """The next offset of each partition."""
    return {partition: position.next_offset for partition, position in positions.items()}


def going_on(positions: Mapping[int, Position], starts: Mapping[int, int],
             firsts: Mapping[int, int] | None = None) -> dict[int, Position]:  # fmt: skip
    """Where a pipeline goes on, which begins at ``starts``; partitions that are new to it, of a topic that it has read,
    begin at 0, whatever its ``start`` says, and of several topics a new one at ``firsts``, its first records."""
    known = {place >> BITS for place in positions}
    begins = {place: (0 if place >> BITS in known else (firsts or starts).get(place, 0)) if known else start
              for place, start in starts.items()}  # fmt: skip
    return {**{place: Position(offset) for place, offset in begins.items()}, **positions}


def next_watermark(positions: Iterable[Position], delay: int, previous: int | None) -> int | None:
    """The watermark for the next batch, in microseconds; None while nothing has been seen.

    The minimum over the partitions that take part of the greatest event time seen, less the delay; it never goes back,
    and stays when no partition takes part.
    """
    seen = [p.max_event_time for p in positions if p.max_event_time is not None and not p.idle]
    if not seen:
        return previous
    reached = min(seen) - delay
    return reached if previous is None else max(previous, reached)


@dataclass(frozen=True)
class Record:
    """What one commit did: who, from where to where, and what became of every row it read."""

    pipeline: str
    epoch: int
    batch_id: int
    started_at: int
    topic_id: str
    topic: str
    before: Mapping[int, Position]
    after: Mapping[int, Position]
    watermark: int | None
    counters: Mapping[str, int]
    warnings: Mapping[str, int] = field(default_factory=dict)
    behind: int | None = None
    #: in Delta: how far requests to delete from the table have been applied, by pipeline (see ``deletions``)
    deletes: Mapping[str, Any] = field(default_factory=dict)
    #: of a table: what tells the version before the position from another one of its number
    commit: str | None = None
    #: where ``topic`` is several; ``topic_id`` are their ids then
    several: Topics | None = None
    #: in Delta: where topics stand that are not read any more
    left: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return self.several or places.one(self.topic_id, self.topic)

    @property
    def began_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.started_at)

    @property
    def offsets(self) -> dict[int, int]:
        """The next offset of each partition after it."""
        return offsets(self.after)

    def by_partition(self) -> dict[tuple[str, int], int]:
        """The next offset of each topic's name and partition after it."""
        at = {place: self.topics.at(place) for place in self.after}
        return {(part.name, partition): self.after[place].next_offset for place, (part, partition) in at.items()}

    def ranges(self) -> dict[str, dict[str, Any]]:
        """``from`` inclusive, ``to`` exclusive; ``max_event_time`` and ``idle`` as they stand after the batch."""
        found, topics = {}, self.topics
        for place, position in sorted(self.after.items()):
            start = self.before[place].next_offset if place in self.before else 0
            time = from_micros(position.max_event_time)
            found[topics.key(place)] = {"from": start, "to": position.next_offset, "idle": position.idle,
                                        "max_event_time": time.isoformat() if time else None,
                                        **({"commit": self.commit} if self.commit else {}),
                                        **({"topic_id": topics.at(place)[0].id} if topics.several else {})}  # fmt: skip
        return found

    def user_metadata(self, **more: Any) -> str:
        """The record as a Delta commit carries it, with what else it has to say."""
        return json.dumps({
            **more,
            "pipeline": self.pipeline, "epoch": self.epoch, "batch_id": self.batch_id, "kind": "stream",
            "started_at": self.began_at.isoformat(),
            "topic_id": self.topic_id, "topic": self.topic, "positions": {**self.left, **self.ranges()},
            "counters": dict(self.counters), "warnings": dict(self.warnings),
            **({"deletes": dict(self.deletes)} if self.deletes else {}),
        })  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """Where a pipeline stands, read while taking it over: positions, the last batch and its watermark."""

    positions: dict[int, Position]
    batch_id: int
    watermark: int | None
    epoch: int = 1


def epoch_of(cursor: Any, pipeline: str) -> int:
    """The pipeline's epoch: 1, and one more with each ``lakehouse reset``. The ledger is there."""
    cursor.execute("select coalesce(max(epoch), 1) from lakehouse.definitions where pipeline = %s", (pipeline,))
    return int(cursor.fetchone()[0])


def state_differs(pipeline: str, reset: str) -> RunError:
    return RunError("STATE_DIFFERS", f"{pipeline} was a stream on Spark's state until now, and what that holds is not"
                    f" in its table. Nothing was changed; to begin anew: {reset}", where=pipeline)  # fmt: skip


def claim(cursor: Any, pipeline: str, topic_id: str, topic: str, starts: Mapping[int, int], writer: str, *,
          on_state: bool = False, several: Topics | None = None,
          firsts: Mapping[int, int] | None = None) -> Claim:  # fmt: skip
    """Takes a pipeline over for ``writer``; partitions without a row begin as ``going_on`` says: what came into a new
    one meanwhile is not skipped. ``several``: where ``topic`` is more than one.

    ``on_state``: it is a query with a checkpoint; what such a one has written goes on as one. From its commit on, a
    batch of any other writer fails on the fence. No batch commits until then: its positions and these would be locked
    in two orders.

    Raises ``RunError`` STATE_DIFFERS.
    """
    cursor.execute("lock table lakehouse.positions in share row exclusive mode")
    epoch = epoch_of(cursor, pipeline)
    cursor.execute("select 1 from lakehouse.queries where (pipeline, epoch) = (%s, %s) and batch >= 0",
                   (pipeline, epoch))  # fmt: skip
    if not on_state and cursor.fetchone() is not None:
        raise state_differs(pipeline, "lakehouse reset")
    topics = several or places.one(topic_id, topic)
    cursor.execute(_POSITIONS, (pipeline, epoch, [part.id for part in topics.parts]))
    there = {place for read, partition, *_ in cursor.fetchall() if (place := topics.place(read, partition)) is not None}
    # also those of a topic that was called so before: who still reads that one adds nothing any more
    cursor.execute("update lakehouse.positions set writer = %s where (pipeline, epoch) = (%s, %s)",
                   (writer, pipeline, epoch))  # fmt: skip
    begins = going_on(dict.fromkeys(there, Position(0)), starts, firsts)
    for place, position in sorted(begins.items()):
        part, partition = topics.at(place)
        cursor.execute(
            "insert into lakehouse.positions (pipeline, epoch, topic_id, partition, topic, next_offset, writer)"
            " values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
            (pipeline, epoch, part.id, partition, part.name, position.next_offset, writer),
        )
    cursor.execute(_POSITIONS, (pipeline, epoch, [part.id for part in topics.parts]))
    positions = {topics.place(read, p): Position(o, to_micros(t), idle, to_micros(at))
                 for read, p, o, t, idle, at in cursor.fetchall()}  # fmt: skip
    cursor.execute(
        "select batch_id, watermark from lakehouse.batches where pipeline = %s and epoch = %s"
        " order by batch_id desc limit 1", (pipeline, epoch))  # fmt: skip
    batch_id, watermark = cursor.fetchone() or (0, None)
    return Claim({place: at for place, at in positions.items() if place is not None}, batch_id, to_micros(watermark),
                 epoch)  # fmt: skip


_POSITIONS = ("select topic_id, partition, next_offset, max_event_time, idle, last_row_at from lakehouse.positions"
              " where pipeline = %s and epoch = %s and topic_id = any(%s)")  # fmt: skip


def read_another(cursor: Any, pipeline: str, topic_id: str, topic: str) -> bool:
    """Whether the pipeline has read something else that was called so."""
    cursor.execute("select exists (select from lakehouse.positions where (pipeline, epoch, topic) = (%s, %s, %s)"
                   " and topic_id <> %s)", (pipeline, epoch_of(cursor, pipeline), topic, topic_id))  # fmt: skip
    found: tuple[bool] = cursor.fetchone()
    return found[0]


def last_commit(cursor: Any, pipeline: str, epoch: int, topic_id: str) -> str | None:
    """``Record.commit`` of its last batch."""
    cursor.execute("select ranges -> '0' ->> 'commit' from lakehouse.batches"
                   " where (pipeline, epoch, topic_id) = (%s, %s, %s) order by batch_id desc limit 1",
                   (pipeline, epoch, topic_id))  # fmt: skip
    found: tuple[str | None] = cursor.fetchone() or (None,)
    return found[0]


_MOVE = """
update lakehouse.positions p set next_offset = v.next_offset, max_event_time = v.max_event_time, idle = v.idle,
  last_row_at = v.last_row_at
from (values %s) as v (pipeline, epoch, topic_id, partition, writer, next_offset, max_event_time, idle, last_row_at,
  before)
where (p.pipeline, p.epoch, p.topic_id, p.partition) = (v.pipeline, v.epoch, v.topic_id, v.partition)
  and p.next_offset = v.before and p.writer = v.writer
returning p.pipeline, p.topic_id, p.partition"""
_MOVED = "(%s, %s, %s, %s, %s, %s::bigint, %s::timestamptz, %s, %s::timestamptz, %s::bigint)"
#: a partition that was added to the topic while the pipeline ran
_ADD = """
insert into lakehouse.positions (pipeline, epoch, topic_id, partition, writer, next_offset, max_event_time, idle,
  last_row_at, topic)
values %s on conflict do nothing returning pipeline, topic_id, partition"""
_APPEND = f"""
insert into lakehouse.batches (pipeline, epoch, batch_id, started_at, topic_id, ranges, watermark,
  {", ".join(COUNTERS)}, warnings, behind)
values %s"""


def commit(cursor: Any, records: Sequence[Record], writer: str) -> None:
    """Moves the positions and appends the batches inside the caller's transaction, all of them in two statements.

    Raises ``FencedError`` FENCED when a position is not where this writer left it: another process reads on.
    """
    move(cursor, records, writer)
    _write(cursor, _APPEND, [
        (r.pipeline, r.epoch, r.batch_id, from_micros(r.started_at), r.topic_id, json.dumps(r.ranges()),
         from_micros(r.watermark), *(r.counters.get(name, 0) for name in COUNTERS), json.dumps(dict(r.warnings)),
         r.behind)
        for r in records])  # fmt: skip


def move(cursor: Any, records: Sequence[Record], writer: str) -> None:
    """Moves the positions alone. Raises ``FencedError`` FENCED."""
    moved: list[tuple[Any, ...]] = []
    added: list[tuple[Any, ...]] = []
    for record in records:
        topics = record.topics
        for place, position in record.after.items():
            greatest, last = from_micros(position.max_event_time), from_micros(position.last_row_at)
            part, partition = topics.at(place)
            key = (record.pipeline, record.epoch, part.id, partition, writer)
            values = (*key, position.next_offset, greatest, position.idle, last)
            before = record.before.get(place)
            if before is None:
                added.append((*values, part.name))
            else:
                moved.append((*values, before.next_offset))
    done = {*_write(cursor, _MOVE, moved, _MOVED), *_write(cursor, _ADD, added)}
    fenced = sorted({row[0] for row in (*moved, *added) if (row[0], row[2], row[3]) not in done})
    if fenced:
        raise FencedError("FENCED", f"{', '.join(fenced)}: written by another process; this one stops."
                          " Nothing was lost or doubled", where="connection postgres")  # fmt: skip


def _write(cursor: Any, statement: str, values: Sequence[Sequence[Any]], template: str | None = None) -> Any:
    """One statement for all the rows; what it returns."""
    if not values:
        return []
    execute_values(cursor, statement, values, template, page_size=len(values))
    return cursor.fetchall() if cursor.description else []


def from_user_metadata(stored: Mapping[str, Any], topics: Topics | None = None) -> tuple[int, dict[int, Position]]:
    """The batch id and the positions of a Delta commit's record; ``topics``: those of these, and no others."""
    topics = topics or places.one(stored["topic_id"], stored["topic"])
    positions = {place: Position(at["to"]) for place, at in topics.of(stored["positions"], stored["topic_id"])}
    return int(stored["batch_id"]), positions


__all__ = ["COUNTERS", "Claim", "Position", "Record", "advance", "claim", "commit", "epoch_of",
           "from_micros", "from_user_metadata", "going_on", "last_commit", "move", "next_watermark", "now_micros",
           "read_another", "to_micros"]  # fmt: skip
