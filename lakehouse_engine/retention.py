"""How long PostgreSQL keeps what grows for ever: rows kept aside, windows of the past, micro-batches one by one.

By a pipeline's ``maintain``: rows in ``__late`` and ``__quarantine`` are deleted ``aside_after`` their arrival, which
the comment of the late table says, so that an audit does not miss them; closed windows ``rows_after`` before the
watermark. The ledger's micro-batches of an hour become one row, ``LEDGER_AFTER`` days later: with the same ranges, sums
of counters and greatest event times, ``first_batch`` the first of them. The last one keeps its number, so nobody who
goes on from it sees a difference.

A stream that runs does it at its start and every hour (``Keeping``), one that stands still has it done by
``lakehouse maintain --apply``. Only rows that no batch touches any more are concerned: it needs no claim.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from psycopg2 import sql

from lakehouse_engine import ledger
from lakehouse_engine.component import format_duration
from lakehouse_engine.progress import COUNTERS, epoch_of
from lakehouse_engine.sinks import Postgres
from lakehouse_engine.sinks.postgres import connect, identifier, side_table
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Window

Report = Callable[[str], None]
#: days for which every micro-batch has a row of its own
LEDGER_AFTER = 30
#: seconds between two times that a running stream looks
EVERY = 3600.0
_ASIDE = {"late": "arrived_at", "quarantine": "quarantined_at"}


def keep(dsn: str, specs: Sequence[PipelineSpec], report: Report, *, apply: bool) -> None:
    """Deletes and joins what is old of these pipelines, each in a transaction; without ``apply`` only says so.

    Pipelines without a table in PostgreSQL are left out. Raises ``RunError`` POSTGRES_UNREACHABLE.
    """
    ours = [spec for spec in specs if spec.is_stream and isinstance(spec.sink, Postgres)]
    if not ours:
        return
    with closing(connect(dsn, name="lakehouse retention")) as connection:
        with connection, connection.cursor() as cursor:
            ledger.make(cursor)
        for spec in ours:
            with connection, connection.cursor() as cursor:
                for number, what in _kept(cursor, spec, apply=apply):
                    if number:
                        report(f"{spec.name}: {'' if apply else 'would '}{what.format(f'{number:,}')}")


def _kept(cursor: Any, spec: PipelineSpec, *, apply: bool) -> Iterator[tuple[int, str]]:
    """How many rows, and what is done with them."""
    yield from _aside(cursor, spec, apply=apply)
    yield from _windows(cursor, spec, apply=apply)
    number = _rolled_up(cursor, spec.name, apply=apply)
    yield number, f"join {{}} micro-batches older than {LEDGER_AFTER} days by the hour"


def _aside(cursor: Any, spec: PipelineSpec, *, apply: bool) -> Iterator[tuple[int, str]]:
    after = spec.maintain.aside_after
    if after is None:
        return
    for side, column in _ASIDE.items():
        table = side_table(spec.table, side)
        if not _exists(cursor, table):
            continue
        cursor.execute("select now() - %s", (timedelta(microseconds=after),))
        (before,) = cursor.fetchone()
        number = _delete(cursor, table, sql.SQL("{} < %s").format(sql.Identifier(column)), before, apply=apply)
        if apply and number and side == "late":
            said = _GONE + before.isoformat()
            cursor.execute(sql.SQL("comment on table {} is %s").format(identifier(table)), (said,))
        yield number, f"delete {{}} rows of {table}, older than {format_duration(after)}"


#: how the comment of a late table begins that lacks rows; then a time
_GONE = "rows are deleted that arrived before "
#: SQL: that time for the table of this name; no row where none was deleted
GONE_BEFORE = f"""select substr(d, {len(_GONE) + 1})::timestamptz from obj_description(%s::regclass, 'pg_class') d
  where starts_with(d, '{_GONE}')"""


def _windows(cursor: Any, spec: PipelineSpec, *, apply: bool) -> Iterator[tuple[int, str]]:
    """A window's state goes with it. What is not closed stays, however old it is."""
    after = spec.maintain.rows_after
    window = next((step for step in reversed(spec.transforms) if isinstance(step, Window)), None)
    if after is None or window is None or not _exists(cursor, spec.table):
        return
    cursor.execute("select watermark from lakehouse.batches where (pipeline, epoch) = (%s, %s)"
                   " order by batch_id desc limit 1", (spec.name, epoch_of(cursor, spec.name)))  # fmt: skip
    (watermark,) = cursor.fetchone() or (None,)
    if watermark is None:
        return
    old = sql.SQL("{} < %s").format(sql.Identifier("window_end" if window.session else "window_start"))
    before = watermark - timedelta(microseconds=max(after, window.size))
    state = side_table(spec.table, "state")
    if not window.session and _exists(cursor, state):
        _delete(cursor, state, old, before, apply=apply)
    number = _delete(cursor, spec.table, old, before, apply=apply)
    yield number, f"delete {{}} windows of {spec.table}, {format_duration(after)} before the watermark"


def _exists(cursor: Any, table: str) -> bool:
    cursor.execute("select to_regclass(%s) is not null", (identifier(table).as_string(cursor),))
    found: tuple[bool] = cursor.fetchone()
    return found[0]


def _delete(cursor: Any, table: str, where: sql.Composable, before: datetime, *, apply: bool) -> int:
    """Rows that it deletes, or would."""
    if apply:
        cursor.execute(sql.SQL("delete from {} where {}").format(identifier(table), where), (before,))
        return int(cursor.rowcount)
    cursor.execute(sql.SQL("select count(*) from {} where {}").format(identifier(table), where), (before,))
    found: tuple[int] = cursor.fetchone()
    return found[0]


#: whole hours alone, so that an hour becomes one row once
_OLD = f"""from lakehouse.batches where pipeline = %(name)s and first_batch is null
  and committed_at < date_trunc('hour', now() - interval '{LEDGER_AFTER} days')"""
#: per partition the first `from` and the rest of the last batch that has it; a warning's sum
_HOURS = f"""
create temp table hours on commit drop as
with old as (select *, date_trunc('hour', committed_at) as hour {_OLD}),
ranges as (select epoch, topic_id, hour, jsonb_object_agg(key, range) as ranges from (
  select epoch, topic_id, hour, key, (array_agg(value order by batch_id desc))[1]
    || jsonb_build_object('from', (array_agg(value -> 'from' order by batch_id))[1]) as range
  from old, jsonb_each(ranges) group by 1, 2, 3, 4) r group by 1, 2, 3),
warned as (select epoch, topic_id, hour, jsonb_object_agg(key, number) as warnings from (
  select epoch, topic_id, hour, key, sum(value::numeric) as number from old, jsonb_each_text(warnings)
  group by 1, 2, 3, 4) w group by 1, 2, 3)
select epoch, max(batch_id) as batch_id, min(started_at) as started_at, max(committed_at) as committed_at, topic_id,
  (array_agg(ranges.ranges))[1] as ranges, (array_agg(watermark order by batch_id desc))[1] as watermark,
  {", ".join(f"sum({name})::bigint as {name}" for name in COUNTERS)},
  coalesce((array_agg(warned.warnings))[1], '{{}}') as warnings,
  (array_agg(behind order by batch_id desc))[1] as behind, min(batch_id) as first_batch
from old join ranges using (epoch, topic_id, hour) left join warned using (epoch, topic_id, hour)
group by epoch, topic_id, hour"""
_COLUMNS = ("epoch, batch_id, started_at, committed_at, topic_id, ranges, watermark, "
            f"{', '.join(COUNTERS)}, warnings, behind, first_batch")  # fmt: skip


def _rolled_up(cursor: Any, name: str, *, apply: bool) -> int:
    """Micro-batches that it joins, or would."""
    cursor.execute(f"select count(*) {_OLD}", {"name": name})
    (number,) = cursor.fetchone()
    if apply and number:
        cursor.execute(_HOURS, {"name": name})
        cursor.execute(f"delete {_OLD}", {"name": name})
        cursor.execute(f"insert into lakehouse.batches (pipeline, {_COLUMNS}) select %s, {_COLUMNS} from hours",
                       (name,))  # fmt: skip
    return int(number)


class Keeping:
    """Looks at once and every hour, beside streams that run. What goes wrong is said, and tried again an hour later."""

    def __init__(self, dsn: str, specs: Sequence[PipelineSpec], report: Report) -> None:
        self._dsn, self._specs, self._report = dsn, specs, report
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="retention", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._closing.is_set():
            try:
                keep(self._dsn, self._specs, self._report, apply=True)
            except Exception as error:  # a stream does not end for what can wait
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self._report(f"what is old was not deleted from postgres: {lines[0]}")
            self._closing.wait(EVERY)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
