"""One pipeline in detail: its activity over a time, its newest batches, its failures, and what it kept aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lakehouse_engine import history
from lakehouse_engine.dashboard import samples
from lakehouse_engine.dashboard.boards import aligned, hint
from lakehouse_engine.dashboard.macros import Range, expand
from lakehouse_engine.database import Answer, Database, known, plain
from lakehouse_engine.errors import RunError
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.states import BATCHES, COMMITS, RUNS, commits_of

NEWEST = 20
_RATES = {"read", "written"}
_READ = " + ".join(COUNTERS)
_MINE = "from {} where $__timeFilter(committed_at) and pipeline = %s group by 1 order by 1"
#: of a stream into PostgreSQL: records a second, and seconds
_OF_BATCHES = (
    f"select $__timeGroupAlias(committed_at, $__interval), sum({_READ})::float8 / ($__interval_ms / 1000.0) as read,"
    " max(extract(epoch from committed_at - started_at))::float8 as batch_seconds,"
    " max(extract(epoch from committed_at - watermark))::float8 as watermark_delay_seconds, sum(late)::float8 as late,"
    " sum(quarantined)::float8 as quarantined, "
)
#: of what writes Delta, where runs are kept
_OF_RUNS = (
    "select $__timeGroupAlias(ended_at, $__interval), sum(rows)::float8 / ($__interval_ms / 1000.0) as written,"
    " max(extract(epoch from ended_at - started_at))::float8 as run_seconds, max(behind)::float8 as behind,"
    " sum(quarantined)::float8 as quarantined, max(files)::float8 as files "
    f"from {RUNS} where $__timeFilter(ended_at) and pipeline = %s and kind <> 'serve' group by 1 order by 1"
)


def detail(
    spec: PipelineSpec, state: dict[str, Any], shown: Range, database: Database, storage: Path
) -> dict[str, Any]:
    """``state``, ``activity`` (time, and a list a measure), ``counters`` of the time, ``batches`` or ``versions``,
    ``errors`` (None where runs are not kept), ``late`` and ``quarantined`` samples; ``hint`` where nothing ran."""
    there = known(database, [BATCHES, COMMITS, RUNS])
    source = commits_of(there)
    aside: dict[str, Any] = {"late": [], "quarantined": [], "batches": [], "versions": []}
    activity: dict[str, Any] | None = None
    whole = aligned(shown)
    if isinstance(spec.sink, Postgres):
        table = spec.postgres_table or spec.name
        aside["late"] = samples.of_postgres(database, table, "late")
        aside["quarantined"] = samples.of_postgres(database, table, "quarantine")
        if source:
            text = ("max(behind)::float8 as behind " if source == COMMITS else "null as behind ") + _MINE.format(source)
            activity = _columns(database.ask(expand(_OF_BATCHES + text, whole), (spec.name,), limit=10_000), whole)
            aside["batches"] = _batches(database, spec.name)
    elif isinstance(spec.sink, Delta):
        aside["quarantined"] = samples.of_delta(storage, spec.name)
        aside["versions"] = _versions(storage, spec.name)
        if RUNS in there:
            activity = _columns(database.ask(expand(_OF_RUNS, whole), (spec.name,), limit=10_000), whole)
    return {
        **state, "from": plain(shown.start), "to": plain(shown.end), "step": shown.step,
        "activity": activity and {**activity, "from": plain(whole.start)},
        "errors": _errors(database, spec.name) if RUNS in there else None, **aside,
        "totals": _totals(database, source, spec.name, shown) if spec.is_stream and source else None,
        "hint": hint(spec) if state["state"] == "never" else None,
    }  # fmt: skip


def _columns(found: Answer, shown: Range) -> dict[str, Any]:
    """The rows as series. A rate of a step that is not over yet would be too low: it is None."""
    rows = [[None if value is None else float(value) for value in row] for row in found.rows]
    columns = list(map(list, zip(*rows, strict=True))) or [[] for _ in found.columns]
    values = dict(zip(found.columns, columns, strict=True))
    times = values.pop("time")
    for name in _RATES & values.keys():
        values[name] = [None if at is None or at + shown.step > shown.end.timestamp() else value
                        for at, value in zip(times, values[name], strict=True)]  # fmt: skip
    return {"time": times, "series": [{"name": n, "values": v} for n, v in values.items()]}


def _totals(database: Database, source: str, pipeline: str, shown: Range) -> dict[str, int]:
    sums = ", ".join(f"coalesce(sum({name}), 0)::bigint as {name}" for name in COUNTERS)
    text = f"select count(*) as batches, {sums} from {source} where $__timeFilter(committed_at)"
    found = database.ask(expand(f"{text} and pipeline = %s", shown), (pipeline,))
    return dict(zip(found.columns, found.rows[0], strict=True))


def _batches(database: Database, pipeline: str) -> list[dict[str, Any]]:
    text = (f"select batch_id, started_at, committed_at, watermark, ({_READ})::bigint as read, {', '.join(COUNTERS)},"
            " (to_jsonb(b) ->> 'behind')::bigint as behind from lakehouse.batches b where pipeline = %s"
            " order by epoch desc, batch_id desc")  # fmt: skip
    return _records(database.ask(f"{text} limit {NEWEST}", (pipeline,)))


def _errors(database: Database, pipeline: str) -> list[dict[str, Any]]:
    text = ("select ended_at, kind, code, message from lakehouse.runs where pipeline = %s and outcome = 'failed'"
            " and ended_at > now() - interval '30 days' order by ended_at desc")  # fmt: skip
    return _records(database.ask(f"{text} limit {NEWEST}", (pipeline,)))


def _versions(storage: Path, table: str) -> list[dict[str, Any]]:
    try:
        return history.read(storage, table, NEWEST)
    except RunError as error:
        if error.code != "MISSING_TABLE":
            raise
        return []


def _records(found: Answer) -> list[dict[str, Any]]:
    return [dict(zip(found.columns, map(plain, row), strict=True)) for row in found.rows]
