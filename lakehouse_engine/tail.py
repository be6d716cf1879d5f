"""``lakehouse tail``: the micro-batches and runs of pipelines as they commit, from PostgreSQL's ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import postgres as postgres_sink

#: seconds between two looks
EVERY = 0.5
_FIELDS = ("at", "pipeline", "kind", "outcome", "seconds", "rows", "behind", *COUNTERS, "version", "code", "message")
_COUNTS = ", ".join(COUNTERS)
#: columns of both: a place in their order first (batches: epoch and number; runs: id), then ``_FIELDS``
_BATCHES = f"""select array[epoch, batch_id], committed_at, pipeline, 'batch', 'committed',
  extract(epoch from committed_at - started_at)::float8, counted, behind, {_COUNTS}, null::bigint, null, null
  from lakehouse.batches where pipeline = %s and (epoch, batch_id) > (%s, %s)
  order by epoch desc, batch_id desc limit %s"""
_RUNS = f"""select array[0, id], ended_at, pipeline, kind, outcome,
  extract(epoch from ended_at - started_at)::float8, rows, behind, {_COUNTS}, version, code, message
  from lakehouse.runs where pipeline = %s and id > %s
  and ended_at > coalesce(%s::timestamptz - interval '1 minute', '-infinity')
  order by ended_at desc, id desc limit %s"""
#: what one look takes at most of each pipeline
_MOST = 10_000


class Tail:
    """Follows pipelines from the ``last`` entries of each on."""

    def __init__(self, dsn: str, pipelines: Sequence[str], last: int) -> None:
        self._dsn, self._last = dsn, last
        self._batches = dict.fromkeys(pipelines, (-1, -1))
        self._runs: dict[str, tuple[datetime | None, int]] = dict.fromkeys(pipelines, (None, 0))

    def follow(self, *, once: bool) -> Iterator[dict[str, Any]]:
        """Entries in the order of their commits, for ever, or ``once`` what is there. Raises ``RunError`` of
        ``postgres.connect``."""
        with closing(postgres_sink.connect(self._dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("set timezone = 'UTC'")
                yield from self._look(cursor, self._last)
                while not once:
                    time.sleep(EVERY)
                    yield from self._look(cursor, _MOST)

    def _look(self, cursor: Any, most: int) -> list[dict[str, Any]]:
        cursor.execute("select to_regclass('lakehouse.commits') is not null")
        if cursor.fetchone() != (True,):
            return []
        found: list[tuple[Any, ...]] = []
        for pipeline, mark in self._batches.items():
            cursor.execute(_BATCHES, (pipeline, *mark, max(most, 1)))
            rows = cursor.fetchall()
            since, seen = self._runs[pipeline]
            cursor.execute(_RUNS, (pipeline, seen, since, max(most, 1)))
            runs = cursor.fetchall()
            self._batches[pipeline] = max((mark, *(tuple(row[0]) for row in rows)))
            if runs:  # the newest comes first
                self._runs[pipeline] = (runs[0][1], max(row[0][1] for row in runs))
            both = sorted([*rows, *runs], key=lambda row: row[1])
            found += both[max(len(both) - most, 0) :]
        return [dict(zip(_FIELDS, row[1:], strict=True)) for row in sorted(found, key=lambda row: row[1])]


def line(entry: dict[str, Any]) -> str:
    """An entry for people."""
    at: datetime = entry["at"]
    parts = [f"{at:%H:%M:%S}", entry["pipeline"], entry["kind"]]
    if entry["outcome"] == "failed":
        return "  ".join([*parts, f"failed: {entry['code']}: {entry['message']}"])
    if entry["outcome"] == "nothing":
        return "  ".join([*parts, "nothing new"])
    counts = [f"{entry[name]:,} {name}" for name in ("late", "quarantined", "duplicate", "filtered") if entry[name]]
    rows = f"{entry['rows'] or 0:,} rows in {entry['seconds']:.2f} s"
    behind = [] if entry["behind"] is None else [f"{entry['behind']:,} behind"]
    version = [] if entry["version"] is None else [f"version {entry['version']}"]
    return "  ".join([*parts, ", ".join([rows, *counts, *behind, *version])])


def plain(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry for machines: without what has no value."""
    return {name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in entry.items() if value is not None}  # fmt: skip
