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
from lakehouse_engine.dashboard.database import Answer, Database, known
from lakehouse_engine.dashboard.frames import plain
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import Delta, delta
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec

BATCHES, POSITIONS, SERVED, RUNS = "lakehouse.batches", "lakehouse.positions", "lakehouse.served", "lakehouse.runs"
_READ = " + ".join(COUNTERS)

# a column that an older ledger does not have is null: to_jsonb asks the row and not the catalog
_LEDGER = f"""
select s.pipeline, b.started_at, b.committed_at, b.watermark, (to_jsonb(b) ->> 'behind')::bigint as behind, reached.at,
  {", ".join(f"hour.{name}" for name in COUNTERS)}, hour.batches, minute.read
from unnest(%s::text[]) as s (pipeline)
join lateral (select * from lakehouse.batches b where b.pipeline = s.pipeline
  order by epoch desc, batch_id desc limit 1) b on true
left join lateral (select coalesce(min(max_event_time) filter (where not idle), max(max_event_time)) as at
  from lakehouse.positions p where (p.pipeline, p.epoch, p.topic_id) = (s.pipeline, b.epoch, b.topic_id)
  ) reached on true
left join (select pipeline, count(*) as batches, {", ".join(f"sum({name})::bigint as {name}" for name in COUNTERS)}
  from lakehouse.batches where committed_at > now() - interval '1 hour' group by 1) hour on hour.pipeline = s.pipeline
left join (select pipeline, sum({_READ})::bigint as read
  from lakehouse.batches where committed_at > now() - interval '1 minute' group by 1) minute
  on minute.pipeline = s.pipeline"""
_LAST_RUN = """
select s.pipeline, r.ended_at, r.outcome, r.code, r.message, r.behind from unnest(%s::text[]) as s (pipeline)
join lateral (select * from lakehouse.runs r where r.pipeline = s.pipeline order by ended_at desc limit 1) r on true"""


def states(specs: Sequence[PipelineSpec], database: Database, storage: Path) -> list[dict[str, Any]]:
    """One entry a pipeline, by name. Times are UTC; seconds are counted from now; what is not known is None.

    ``state``: failed (its last run), stale (a stream that has not committed for as long as its alert allows), overdue
    (a copy older than its schedule), never (no commit yet), running, ok.
    """
    names = [spec.name for spec in specs]
    there = known(database, [BATCHES, POSITIONS, SERVED, RUNS])
    ledger = _by_pipeline(database.ask(_LEDGER, (names,))) if BATCHES in there else {}
    copies = _by_pipeline(database.ask("select pipeline, version, rows, served_at from lakehouse.served where version"
                                       " >= 0")) if SERVED in there else {}  # fmt: skip
    runs = _by_pipeline(database.ask(_LAST_RUN, (names,))) if RUNS in there else {}
    due = dict(grafana.due(specs))
    now = datetime.now(timezone.utc)
    return [_state(spec, ledger.get(spec.name), copies.get(spec.name), runs.get(spec.name), due.get(spec.name),
                   storage, now) for spec in specs]  # fmt: skip


def _by_pipeline(found: Answer) -> dict[str, dict[str, Any]]:
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def _state(spec: PipelineSpec, ledger: dict[str, Any] | None, copy: dict[str, Any] | None, run: dict[str, Any] | None,
           due: float | None, storage: Path, now: datetime) -> dict[str, Any]:  # fmt: skip
    entry = about(spec)
    last = ledger["committed_at"] if ledger else None
    hour: dict[str, int] | None = None
    rate = None
    if isinstance(spec.sink, Delta):
        record, last = _of_log(storage, spec.name)
        # where the storage cannot be seen from here, PostgreSQL still tells of runs and of the copy
        if run and run["outcome"] != "failed":
            last = max(last, run["ended_at"]) if last else run["ended_at"]
        elif last is None and copy:
            last = copy["served_at"]
        entry |= {"version": record.get("version"), "counters": record.get("counters")} if record else {}
    elif ledger:
        hour = {"batches": ledger["batches"] or 0, **{name: ledger[name] or 0 for name in COUNTERS}}
        rate = (ledger["read"] or 0) / 60
    failed = run is not None and run["outcome"] == "failed" and (last is None or run["ended_at"] >= last)
    age = (now - last).total_seconds() if last else None
    copied = (now - copy["served_at"]).total_seconds() if copy else None
    entry |= {
        "last_commit": plain(last), "age_seconds": age, "hour": hour, "rows_per_second": rate,
        "lag_seconds": (now - ledger["at"]).total_seconds() if ledger and ledger["at"] else None,
        "watermark": plain(ledger["watermark"]) if ledger else None,
        "behind": next((found["behind"] for found in (ledger, run) if found and found["behind"] is not None), None),
        "copy": {"version": copy["version"], "rows": copy["rows"], "served_at": plain(copy["served_at"]),
                 "age_seconds": copied} if copy else None,
        "due_seconds": None if due is None else due * 3600,
        "failure": {"code": run["code"], "message": run["message"], "at": plain(run["ended_at"])}
        if failed and run else None,
    }  # fmt: skip
    stale = entry["stale_after_seconds"] is not None and age is not None and age > entry["stale_after_seconds"]
    overdue = due is not None and copied is not None and copied > due * 3600
    entry["state"] = ("failed" if failed else "never" if last is None else "stale" if stale else
                      "overdue" if overdue else "running" if spec.is_stream else "ok")  # fmt: skip
    return entry


def about(spec: PipelineSpec) -> dict[str, Any]:
    """What the file itself says."""
    trigger = spec.trigger.every / 1e6 if spec.trigger else None
    return {
        "name": spec.name, "layer": spec.layer, "kind": "stream" if spec.is_stream else "job",
        "description": spec.description.strip(), "file": spec.file,
        "source": spec.source.topic if isinstance(spec.source, Kafka) else spec.source.table,
        "source_kind": "topic" if isinstance(spec.source, Kafka) else "table",
        "sink": type(spec.sink).__name__.lower(),
        "table": spec.postgres_table, "trigger_seconds": trigger,
        "schedule": f"every {format_duration(spec.trigger.every)}" if spec.trigger else spec.schedule,
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
