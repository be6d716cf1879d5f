"""What each pipeline has read, counted and kept aside, and how it stands: PostgreSQL's ledger and the Delta logs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from lakehouse_engine import ledger, printed
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import postgres as postgres_sink

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from lakehouse_engine.spec.environment import Environment
    from lakehouse_engine.spec.pipeline import PipelineSpec

#: seconds over which a rate is taken
RATE_OVER = 60
#: a stream that has committed within so many seconds runs
_RUNS_WITHIN = 60.0
#: what people see, in this order
HEADS = ("pipeline", "state", "last_commit", "rate", "behind", "batch_seconds", "watermark_delay", *COUNTERS, "error")


def read(environment: Environment, specs: Sequence[PipelineSpec] = ()) -> list[dict[str, Any]]:
    """One entry a pipeline: ``pipeline``, ``store``, ``batches``, ``last_commit``, ``watermark``, the counters; and how
    it stands: ``state``, ``rate`` (rows a second of the last minute), ``behind`` (records), ``batch_seconds``,
    ``watermark_delay`` (seconds), ``error``. What is not known is None.

    ``state`` is that of ``states.py`` for a pipeline of ``specs``. Of others only what they did is known: running (a
    commit in the last minute), idle, failed, ok.
    """
    from pathlib import Path

    found = {entry["pipeline"]: entry for entry in _delta(Path(environment.storage))}
    with closing(postgres_sink.connect(environment.postgres_dsn())) as connection, connection, \
            connection.cursor() as cursor:  # fmt: skip
        found |= {entry["pipeline"]: entry for entry in _postgres(cursor)}
        commits, runs = _seen(cursor)
    for name in (*runs, *(spec.name for spec in specs)):  # one that has only failed so far, or never ran
        found.setdefault(name, {"pipeline": name, "store": None, "batches": 0, "last_commit": None, "watermark": None,
                                **dict.fromkeys(COUNTERS)})  # fmt: skip
    for name, entry in found.items():
        entry |= _stands(entry, commits.get(name), runs.get(name))
    for known in _judged(environment, specs):
        failure = known["failure"]
        error = f"{failure['code']}: {failure['message']}" if failure else None
        found[known["name"]] |= {"state": known["state"], "error": error}
    return [found[name] for name in sorted(found)]


def _judged(environment: Environment, specs: Sequence[PipelineSpec]) -> list[dict[str, Any]]:
    from pathlib import Path

    from lakehouse_engine import states
    from lakehouse_engine.database import Database

    if not specs:
        return []
    with closing(Database(environment.postgres_dsn)) as database:
        return states.states(specs, database, Path(environment.storage))


def _postgres(cursor: Any) -> list[dict[str, Any]]:
    cursor.execute("select to_regclass('lakehouse.batches') is not null")
    if not cursor.fetchone()[0]:
        return []
    sums = ", ".join(f"sum({name})::bigint" for name in COUNTERS)
    cursor.execute(
        f"select pipeline, {ledger.BATCHES}, max(committed_at), max(watermark), {sums} from lakehouse.batches"
        " group by 1"
    )
    names = ("pipeline", "batches", "last_commit", "watermark", *COUNTERS)
    return [{**dict(zip(names, row, strict=True)), "store": "postgres"} for row in cursor.fetchall()]


def _seen(cursor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """By pipeline: the last micro-batch with the rate of the last minute, and the last run or failure."""
    cursor.execute("select to_regclass('lakehouse.commits') is not null")
    if not cursor.fetchone()[0]:
        return {}, {}
    cursor.execute(
        "select p.pipeline, b.* from (select distinct pipeline from lakehouse.positions) p, lateral (select"
        " committed_at, extract(epoch from committed_at - started_at)::float8,"
        " extract(epoch from committed_at - watermark)::float8, behind"
        " from lakehouse.batches b where b.pipeline = p.pipeline order by epoch desc, batch_id desc limit 1) b"
        " union all select pipeline, ended_at, extract(epoch from ended_at - started_at)::float8, null, behind"
        " from lakehouse.last_runs where kind = 'batch'")  # fmt: skip
    commits = {row[0]: row[1:] for row in cursor.fetchall()}
    read = " + ".join(COUNTERS)
    cursor.execute(f"select pipeline, sum({read})::float8 from lakehouse.commits where committed_at > now()"
                   " - %s * interval '1 second' group by 1", (RATE_OVER,))  # fmt: skip
    rates = dict(cursor.fetchall())
    commits = {name: (*row, rates.get(name, 0.0)) for name, row in commits.items()}
    cursor.execute("select distinct on (pipeline) pipeline, kind, outcome, ended_at, code, message,"
                   " extract(epoch from ended_at - started_at)::float8 from lakehouse.last_runs"
                   " order by pipeline, ended_at desc")  # fmt: skip
    return commits, {row[0]: row[1:] for row in cursor.fetchall()}


def _stands(entry: dict[str, Any], commit: Any, run: Any) -> dict[str, Any]:
    at, seconds, delay, behind, rows = commit or (None,) * 5
    state, error = "ok", None
    if at is not None:
        ago = (datetime.now(timezone.utc) - at).total_seconds()
        state = "running" if ago < _RUNS_WITHIN else "idle"
    if run is not None:
        kind, outcome, ended, code, message, took = run
        if outcome == "failed" and (at is None or ended >= at):
            state, error = "failed", f"{code}: {message}"
        if at is None and kind != "stream":
            seconds = took
            last = entry["last_commit"]
            entry["last_commit"] = last if last is not None or outcome != "committed" else ended
    return {"state": state, "rate": None if rows is None else rows / RATE_OVER, "behind": behind,
            "batch_seconds": seconds, "watermark_delay": delay, "error": error}  # fmt: skip


def _delta(storage: Path) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(storage.glob("[a-z]*/*/_delta_log")):
        log = DeltaLog(folder.parent)
        entry: dict[str, Any] = {"store": "delta", "batches": 0, "last_commit": None, "watermark": None}
        for version in log.versions():
            record = log.record_of(version)
            if record is None or record.get("repeats") or "__" in f"{folder.parent.parent.name}/{folder.parent.name}":
                continue
            entry["pipeline"] = record["pipeline"]
            entry["batches"] += 1
            entry["last_commit"] = record["started_at"]
            stream = record["kind"] == "stream"
            for name in COUNTERS:  # a stream's batches add up; a job's last run says what its table holds
                value = record["counters"].get(name, 0)
                entry[name] = entry.get(name, 0) + value if stream else value
        if entry["batches"]:
            found.append(entry)
    return found


_NUMBERS = {"rate", "behind", "batch_seconds", "watermark_delay", *COUNTERS}
_COLORS = {"running": "green", "failed": "bold red", "stale": "bold red", "overdue": "yellow", "idle": "yellow"}


def table(entries: list[dict[str, Any]]) -> Table:
    """The entries for people."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in HEADS:
        shown.add_column(head, justify="right" if head in _NUMBERS else "left", no_wrap=head != "error",
                         overflow="fold" if head == "error" else "ellipsis")  # fmt: skip
    for entry in entries:
        cells = [Text(_cell(head, entry.get(head))) for head in HEADS]
        cells[1].stylize(_COLORS.get(str(entry["state"]), ""))
        shown.add_row(*cells)
    return shown


def text(entries: list[dict[str, Any]]) -> str:
    """The table as plain lines, as wide as it needs to be."""
    return "\n".join(printed.lines(table(entries)))


def watch(environment: Environment, specs: Sequence[PipelineSpec], every: float) -> None:
    """The table on the terminal, read anew every ``every`` seconds, until Ctrl-C."""
    from contextlib import suppress

    from rich.live import Live

    with suppress(KeyboardInterrupt), Live(table(read(environment, specs)), auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(table(read(environment, specs)), refresh=True)


def _cell(head: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}/s" if head == "rate" else f"{value:,.1f} s"
    return f"{value:,}" if isinstance(value, int) else str(value)[: 19 if head == "last_commit" else 200]
