"""How each pipeline stands: from the ledgers in PostgreSQL and the Delta tables' own logs.

``lakehouse.runs``, which is kept for people, adds failures; where it is missing nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lakehouse_engine import grafana
from lakehouse_engine.component import format_duration
from lakehouse_engine.database import Answer, Database, known, plain
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import Console, Delta, Postgres, delta
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec

BATCHES, COMMITS, SERVED = "lakehouse.batches", "lakehouse.commits", "lakehouse.served"
RUNS, LAST_RUNS = "lakehouse.runs", "lakehouse.last_runs"
#: kinds of runs that take each other's place: what failed is mended by any later one of its group
_GROUPS = (("batch", "stream"), ("job", "backfill"), ("serve",))
_READ = " + ".join(COUNTERS)

# a column that an older ledger does not have is null: to_jsonb asks the row and not the catalog
_LEDGER = """
select s.pipeline, b.committed_at, b.watermark, (to_jsonb(b) ->> 'behind')::bigint as behind, reached.at
from unnest(%s::text[]) as s (pipeline)
join lateral (select * from lakehouse.batches b where b.pipeline = s.pipeline
  order by epoch desc, batch_id desc limit 1) b on true
left join lateral (select coalesce(min(max_event_time) filter (where not idle), max(max_event_time)) as at
  from lakehouse.positions p where (p.pipeline, p.epoch) = (s.pipeline, b.epoch)
    and p.topic_id = any(string_to_array(b.topic_id, ' '))
  ) reached on true"""
_HOUR = f"""
select pipeline, count(*) as batches, {", ".join(f"sum({name})::bigint as {name}" for name in COUNTERS)},
  coalesce(sum({_READ}) filter (where committed_at > now() - interval '1 minute'), 0)::bigint as read
from {{}} where committed_at > now() - interval '1 hour' group by 1"""


def states(specs: Sequence[PipelineSpec], database: Database, storage: Path) -> list[dict[str, Any]]:
    """One entry a pipeline, by name. Times are UTC; seconds are counted from now; what is not known is None.

    ``state``: failed (its last run), stale (a stream that has not committed for as long as its alert allows), overdue
    (a copy older than its schedule), never (no commit yet), running, ok.
    """
    names = [spec.name for spec in specs]
    there = known(database, [BATCHES, COMMITS, SERVED, LAST_RUNS])
    ledger = _by_pipeline(database.ask(_LEDGER, (names,))) if BATCHES in there else {}
    recent = commits_of(there)
    hours = _by_pipeline(database.ask(_HOUR.format(recent))) if recent else {}
    served = "select pipeline, version, rows, served_at from lakehouse.served where version >= 0"
    copies = _by_pipeline(database.ask(served)) if SERVED in there else {}
    runs: dict[str, list[dict[str, Any]]] = {}
    if LAST_RUNS in there:
        found = database.ask("select pipeline, kind, ended_at, outcome, code, message, behind, rows from"
                             " lakehouse.last_runs order by ended_at")  # fmt: skip
        for row in found.rows:
            runs.setdefault(row[0], []).append(dict(zip(found.columns, row, strict=True)))
    due = dict(grafana.due(specs))
    now = datetime.now(timezone.utc)
    return [_state(s, ledger.get(s.name), hours.get(s.name), copies.get(s.name), runs.get(s.name, []), due.get(s.name),
                   storage, now) for s in specs]  # fmt: skip


def commits_of(there: set[str]) -> str | None:
    """Where micro-batches are: those of every stream, or with an older ledger of those into PostgreSQL."""
    return COMMITS if COMMITS in there else BATCHES if BATCHES in there else None


def _by_pipeline(found: Answer) -> dict[str, dict[str, Any]]:
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def _state(spec: PipelineSpec, ledger: dict[str, Any] | None, done: dict[str, Any] | None, copy: dict[str, Any] | None,
           runs: list[dict[str, Any]], due: float | None, storage: Path, now: datetime) -> dict[str, Any]:  # fmt: skip
    entry = about(spec)
    last = ledger["committed_at"] if ledger else None
    hour: dict[str, int] | None = None
    rate = None
    if not isinstance(spec.sink, Postgres | Console):
        record, last = _of_log(storage, spec.name) if isinstance(spec.sink, Delta) else (None, None)
        # where the storage cannot be seen from here, PostgreSQL still tells of runs and of the copy
        seen = [r["ended_at"] for r in runs if r["outcome"] != "failed" and r["kind"] != "serve"]
        last = max([*seen, *([last] if last else [])], default=copy["served_at"] if copy else None)
        entry |= {"version": record.get("version"), "counters": record.get("counters")} if record else {}
    if spec.is_stream and last is not None:
        hour = {name: done[name] if done else 0 for name in ("batches", *COUNTERS)}
        rate = done["read"] / 60 if done else 0.0
    failure = _failure(runs, last if spec.is_stream else None)
    age = (now - last).total_seconds() if last else None
    # a load that found nothing new says that the copy is as it should be
    loaded = [r["ended_at"] for r in runs if r["kind"] == "serve" and r["outcome"] != "failed"]
    copied = (now - max([copy["served_at"], *loaded])).total_seconds() if copy else None
    entry |= {
        "last_commit": plain(last), "age_seconds": age, "hour": hour, "rows_per_second": rate,
        "lag_seconds": (now - ledger["at"]).total_seconds() if ledger and ledger["at"] else None,
        "watermark": plain(ledger["watermark"]) if ledger else None,
        "behind": next((b for b in (ledger and ledger["behind"], *(r["behind"] for r in reversed(runs)))
                        if b is not None), None),
        "copy": {"version": copy["version"], "rows": copy["rows"], "served_at": plain(copy["served_at"]),
                 "age_seconds": copied} if copy else None,
        "due_seconds": None if due is None else due * 3600,
        "failure": failure and {"kind": failure["kind"], "code": failure["code"], "message": failure["message"],
                                "at": plain(failure["ended_at"])},
    }  # fmt: skip
    stale = entry["stale_after_seconds"] is not None and age is not None and age > entry["stale_after_seconds"]
    overdue = due is not None and copied is not None and copied > due * 3600
    entry["state"] = ("failed" if failure else "never" if last is None else "stale" if stale else
                      "overdue" if overdue else "running" if spec.is_stream and not spec.ends else "ok")  # fmt: skip
    return entry


def _failure(runs: Sequence[dict[str, Any]], committed: datetime | None) -> dict[str, Any] | None:
    """The newest failure that nothing has mended since. ``runs``: the last of each kind, by time."""
    for group in _GROUPS:
        last: dict[str, Any] | None = next((r for r in reversed(runs) if r["kind"] in group), None)
        if last and last["outcome"] == "failed" and (committed is None or last["ended_at"] >= committed):
            return last
    return None


def about(spec: PipelineSpec) -> dict[str, Any]:
    """What the file itself says."""
    trigger = spec.trigger.every / 1e6 if spec.trigger and not spec.ends else None
    return {
        "name": spec.name, "layer": spec.layer, "kind": "stream" if spec.is_stream else "job",
        "description": spec.description.strip(), "file": spec.file,
        "source": spec.source.origin,
        # what breaks a contract is kept there, and not here
        "kept_by": spec.source.history if isinstance(spec.source, Kafka) else None,
        "source_kind": {"kafka": "topic", "delta": "table"}.get(spec.source.key, spec.source.key),
        "sink": type(spec.sink).__name__.lower(),
        "table": spec.postgres_table, "trigger_seconds": trigger,
        "schedule": (spec.schedule if spec.ends or spec.trigger is None else
                     f"every {format_duration(spec.trigger.every)}"),
        "stale_after_seconds": None if trigger is None else grafana.stale_after(trigger),
        "version": None, "counters": None,
    }  # fmt: skip


def _of_log(storage: Path, table: str) -> tuple[dict[str, Any] | None, datetime | None]:
    """The newest record of ours in the table's log, and when it was committed."""
    log = DeltaLog(delta.table_path(storage, table))
    record = log.record()
    if record is None:
        return None, None
    at = log.info(record["version"]).get("timestamp")
    moment = datetime.fromtimestamp(at / 1000, timezone.utc) if at else datetime.fromisoformat(record["started_at"])
    return record, moment


def health(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``status`` ok or failing: failing where a stream has failed, is stale or never committed."""
    wrong = [{"pipeline": e["name"], "state": e["state"], "age_seconds": e["age_seconds"]} for e in entries
             if e["kind"] == "stream" and e["state"] in ("failed", "stale", "never")]  # fmt: skip
    return {"status": "failing" if wrong else "ok", "streams": sum(e["kind"] == "stream" for e in entries),
            "wrong": wrong}  # fmt: skip
