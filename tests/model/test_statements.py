"""What the model says of the engine's SQL is what PostgreSQL makes of it: claims, the fence, merges and recounts.

The same calls go to both, at random; what they answer and what is there afterwards is compared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from lakehouse_engine import ledger, progress
from lakehouse_engine.errors import FencedError
from lakehouse_engine.past import DAY
from lakehouse_engine.progress import Claim, Position, Record, from_micros, to_micros
from lakehouse_engine.sinks import recounted
from lakehouse_engine.sinks.final import FinalMerge
from lakehouse_engine.sinks.postgres import LATE_COLUMNS, Merge, connect, copy, identifier
from lakehouse_engine.sinks.sessions import SessionMerge
from lakehouse_engine.sources.broker import TopicState
from tests.model.pipelines import FINAL, HOUR, UPDATES, VISITS, Pipeline, partials
from tests.model.recounting import replace_sessions, replace_windows
from tests.model.rules import Rules
from tests.model.stores import Database, Late, Noted, Table, Transaction
from tests.model.topic import Event

#: how many sequences of calls
SEEDS = 25


@pytest.fixture
def connection(database: str) -> Iterator[Any]:
    with closing(connect(database)) as made:
        ledger.prepare(made)
        yield made


def test_claims_and_the_fence_answer_as_the_model_says(connection: Any) -> None:
    fenced = 0
    for seed in range(SEEDS):
        with connection, connection.cursor() as cursor:
            cursor.execute("truncate lakehouse.positions, lakehouse.batches")
            fenced += _claims(cursor, random.Random(seed), Database(Rules()))
    assert fenced > SEEDS


def _claims(cursor: Any, chance: random.Random, model: Database) -> int:
    """How many commits were fenced."""
    claims: dict[tuple[str, str], tuple[str, Claim]] = {}
    fenced = 0
    for _ in range(30):
        name, writer = chance.choice(["a.one", "a.two"]), chance.choice(["A", "B"])
        if chance.random() < 0.35:
            topic = TopicState("events", chance.choice(["t1", "t2"]), {})
            starts = {p: chance.randrange(3) for p in range(chance.randint(1, 3))}
            claimed = progress.claim(cursor, name, topic.id, topic.name, starts, writer)
            assert claimed == model.claim(name, topic, starts, writer)
            claims[name, writer] = (topic.id, claimed)
        elif (name, writer) in claims:
            topic_id, claim = claims[name, writer]
            after = {p: progress.advance(q, q.next_offset + chance.randrange(3), chance.choice([None, 7 * HOUR]), 5)
                     for p, q in claim.positions.items()}  # fmt: skip
            if chance.random() < 0.2:
                after[max(after) + 1] = Position(1)
            record = Record(name, 1, claim.batch_id + 1, 5, topic_id, "events", claim.positions, after,
                            chance.choice([None, 3 * HOUR]), {"counted": 1})  # fmt: skip
            cursor.execute("savepoint batch")
            transaction = Transaction(model)
            answers = []
            for commit in (partial(progress.commit, cursor, [record], writer),
                           partial(model.commit, transaction, [Noted(record, 0, {})], writer)):  # fmt: skip
                try:
                    commit()
                    answers.append("done")
                except FencedError as error:
                    answers.append(error.code)
            assert answers[0] == answers[1]
            if answers[0] == "done":
                transaction.commit()
                claims[name, writer] = (topic_id, Claim(dict(after), record.batch_id, record.watermark, 1))
            else:
                fenced += 1
                transaction.rollback()
                cursor.execute("rollback to savepoint batch")
    cursor.execute("select pipeline, epoch, topic_id, partition, next_offset, max_event_time, idle, last_row_at, writer"
                   " from lakehouse.positions")  # fmt: skip
    stored = {tuple(row[:4]): (Position(row[4], to_micros(row[5]), row[6], to_micros(row[7])), row[8])
              for row in cursor.fetchall()}  # fmt: skip
    assert stored == model.held.positions
    return fenced


KEYS = {"window_start": "timestamptz", "k": "text"}
MEASURES = {"n": ("count", "bigint")}
KINDS = {
    "updates": (UPDATES, Merge("live.n", KEYS, MEASURES)),
    "final": (FINAL, FinalMerge("live.n", KEYS, MEASURES, size=6 * HOUR)),
    "sessions": (VISITS, SessionMerge("live.n", KEYS, MEASURES, size=3 * HOUR)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merges_closings_and_recounts_leave_what_the_model_has(connection: Any, kind: str) -> None:
    pipeline, merge = KINDS[kind]
    with connection, connection.cursor() as cursor:
        merge.ensure(cursor, "x.yaml:1")
        merge.stage(cursor)
    for seed in range(SEEDS):
        with connection, connection.cursor() as cursor:
            tables = ["live.n", "live.n__late", *(["live.n__state"] if merge.has_state else [])]
            cursor.execute(f"truncate {', '.join(tables)}")
        _merged(connection, random.Random(seed), pipeline, merge)


def _merged(connection: Any, chance: random.Random, pipeline: Pipeline, merge: Merge) -> None:
    assert pipeline.window is not None
    model, watermark, read, late = Table(), 12 * HOUR, list[Event](), list[Event]()
    for batch in range(8):
        came = [Event(100 * batch + i, "good", chance.choice("ab"), chance.randrange(8, 60) * HOUR) for i in range(4)]
        good = [e for e in came if not pipeline._late(e.at, watermark)]
        late = [e for e in came if e not in good]
        read += came
        rows = partials(pipeline, good, watermark)
        moved = watermark + chance.randrange(12) * HOUR
        missed = [pipeline.window.missed(e.at, watermark) for e in late]
        with connection, connection.cursor() as cursor:
            merge.write(cursor, [[from_micros(r[0]), r[1], r[2].total(), *r[3:]] for r in rows])
            copy(cursor, identifier("live.n__late"), LATE_COLUMNS, [
                (from_micros(0), batch, "s", from_micros(e.at), from_micros(watermark), [from_micros(m) for m in some],
                 "t", 0, e.uid, f'{{"k": "{e.key}"}}') for e, some in zip(late, missed, strict=True)])  # fmt: skip
            if isinstance(merge, FinalMerge):
                merge.close(cursor, moved)
        model.merge(pipeline, rows)
        if pipeline.window.final:
            model.close(pipeline, moved)
        model.late += [Late((0, e.uid, e), "t", some, batch) for e, some in zip(late, missed, strict=True)]
        watermark = moved
        _same(connection, merge, model)
        if chance.random() < 0.4:
            _recounted(connection, pipeline, merge, model, read, watermark, chance.randrange(3) * DAY)
            _same(connection, merge, model)


def _recounted(connection: Any, pipeline: Pipeline, merge: Merge, model: Table, read: list[Event], watermark: int,
               day: int) -> None:  # fmt: skip
    assert pipeline.window is not None
    span = recounted.Span(day, day + DAY, 0, watermark)
    rows = partials(pipeline, read, None)
    with connection, connection.cursor() as cursor:
        if isinstance(merge, SessionMerge):
            touch = [s for s in recounted.sessions(rows, 1, merge.size) if s.first < span.end and s.last >= span.first]
            parts = [replace(s, parts=tuple([p[0], p[1], p[2].total(), p[3], p[4]] for p in s.parts)) for s in touch]
            recounted.replace_sessions(cursor, merge, parts, span, ["k"])
            replace_sessions(model, pipeline, touch, span)
        else:
            counted = [[r[0], r[1], r[2].total()] for r in rows]
            recounted.replace_windows(cursor, merge, pipeline.window.size, counted, span)
            replace_windows(model, pipeline, rows, span)


def _same(connection: Any, merge: Merge, model: Table) -> None:
    def counts(windows: Any) -> dict[Any, int]:
        return {key: uids.total() for key, uids in windows.items()}

    with connection, connection.cursor() as cursor:
        cursor.execute("select window_start, k, n from live.n")
        assert {(to_micros(start), k): n for start, k, n in cursor.fetchall()} == counts(model.sent)
        if isinstance(merge, SessionMerge):
            cursor.execute("select session__first, session__last, k, n from live.n__state")
            stored = Counter((to_micros(first), to_micros(last), k, n) for first, last, k, n in cursor.fetchall())
            assert stored == Counter((first, last, k, uids.total()) for k, some in model.sessions.items()
                                     for first, last, uids in some)  # fmt: skip
            cursor.execute("select window_start, k, window_end from live.n")
            assert {(to_micros(start), k): to_micros(end) for start, k, end in cursor.fetchall()} == model.ends
        elif isinstance(merge, FinalMerge):
            cursor.execute("select window_start, k, n from live.n__state")
            assert {(to_micros(start), k): n for start, k, n in cursor.fetchall()} == counts(model.state)
        if isinstance(merge, FinalMerge):
            pipeline = next(one for one, other in KINDS.values() if other is merge)
            assert merge.closed_until(cursor) == model.closed_until(pipeline)
        cursor.execute('select "offset", applied_at is not null from live.n__late')
        assert dict(cursor.fetchall()) == {one.place[1]: one.applied for one in model.late}
