"""A landing's steps: ``Landing`` and ``Aside``. Into Delta what is refused goes first, in a commit of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lakehouse_engine import progress
from lakehouse_engine.progress import Position, Record
from tests.model import steps
from tests.model.pipelines import Pipeline, Records, judged
from tests.model.stores import Commit
from tests.model.topic import NAME

if TYPE_CHECKING:
    from tests.model.scanning import ScanRun

Steps = Iterator[str]


class Landing:
    """``Landing``: refused rows first, then the rest, each commit with its position."""

    def __init__(self, run: ScanRun, pipeline: Pipeline) -> None:
        self._run, self._pipeline, self._storage = run, pipeline, run.storage
        starts = {p: Position(offset) for p, offset in run.starts(pipeline).items()}
        self._batch_id, self.positions = 0, starts
        last = self._storage.last(restore_seen=run.rules.restore_seen)
        if last is not None:
            self._batch_id = last.batch_id
            if last.topic_id == run.topic.id:
                begin = dict.fromkeys(starts, Position(0)) if run.rules.new_partition_first else starts
                self.positions = {**begin, **_stored(last)}
        self._aside: dict[int, int] = {}
        if self._storage.aside and self._storage.aside[-1].record.topic_id == run.topic.id:
            self._aside = {p: q.next_offset for p, q in self._storage.aside[-1].record.after.items()}

    def write(self, records: Records, started_at: int) -> Steps:
        rules = self._run.rules
        held = {p: q.next_offset for p, q in self.positions.items()} if rules.floors else {}
        result = judged(self._pipeline, records, None, held)
        ends = ends_of(records, held)
        if not ends:
            return
        topic = self._run.topic.id
        record = Record(self._pipeline.name, 1, self._batch_id + 1, started_at, topic, NAME, self.positions,
                        progress.reached(self.positions, ends), None, result.counters)  # fmt: skip
        if result.refused:
            yield steps.ASIDE
            aside = self._aside if rules.aside_position else {}
            kept = tuple((topic, place) for place in result.refused if place[1] >= aside.get(place[0], 0))
            self._aside = {**self._aside, **{p: max(q.next_offset, self._aside.get(p, 0))
                                             for p, q in record.after.items()}}  # fmt: skip
            after = {p: Position(offset) for p, offset in self._aside.items()}
            self._storage.aside.append(Commit(replace(record, after=after), kept))
            self._run.world.database.commits += 1
        yield steps.STORE
        self._storage.landed.append(Commit(record, tuple((topic, place) for place in result.counted)))
        self._run.world.database.commits += 1
        self.positions, self._batch_id = dict(record.after), record.batch_id


def _stored(record: Record) -> dict[int, Position]:
    return progress.from_user_metadata(json.loads(record.user_metadata()))[1]


def ends_of(records: Records, held: Mapping[int, int]) -> dict[int, int]:
    """The next offsets after the rows that are not held yet."""
    return {p: rows[-1][0] + 1 for p, rows in records.items() if rows and rows[-1][0] >= held.get(p, 0)}
