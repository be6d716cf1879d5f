"""What operators ask of the ledger (``ledger.py``): panels and alerts as queries. ``grafana.py`` gives them their form.

A stream's micro-batches are in ``lakehouse.commits``, whichever store they go to. A condition stands before what is
computed, so that an hour of a table of years is read through the index that begins with its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lakehouse_engine.component import format_duration
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import Delta, Postgres, Unkept
from lakehouse_engine.spec.pipeline import PipelineSpec

#: how often a job is due (hours), by its schedule or that of the job it follows; with two hours to do it in
_DUE = {"hourly": 1 + 2, "daily": 24 + 2, "weekly": 168 + 2}
#: a stream is stale after so many seconds without a commit, or three of its triggers
_STALE = 300
#: records of its topic that a stream may have before it for five minutes
BEHIND_LIMIT = 100_000
#: share of the rows of 15 minutes that may be in quarantine
QUARANTINE_LIMIT = 0.05


@dataclass(frozen=True)
class View:
    """One panel of a dashboard. ``kind`` is Grafana's; ``series``: the query has a column ``time``."""

    title: str
    kind: str
    sql: str
    unit: str = "short"
    description: str = ""
    series: bool = False
    every: str | None = None
    limit: float | None = None
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """Fires for each row whose ``value`` is above ``limit``; the row's text columns are the alert's labels."""

    uid: str
    title: str
    sql: str
    limit: float
    lasting: str
    summary: str
    severity: str = "warning"


def streams(specs: Iterable[PipelineSpec]) -> list[tuple[str, float]]:
    """Streams whose commits are seen, with their trigger in seconds."""
    return [(s.name, s.trigger.every / 1e6) for s in specs
            if s.trigger and not s.ends and isinstance(s.sink, Postgres | Delta | Unkept)]  # fmt: skip


def stale_after(trigger: float) -> float:
    """Seconds without a commit after which a stream of this trigger (seconds) is stale."""
    return max(_STALE, 3 * trigger)


def due(specs: Sequence[PipelineSpec]) -> list[tuple[str, float]]:
    """Served jobs and the hours after which their copy is overdue; those that run by hand or by a cron line are not."""
    by_name = {spec.name: spec for spec in specs}

    def hours(spec: PipelineSpec) -> float | None:
        if spec.schedule != "upstream":
            return _DUE.get(spec.schedule or "")
        upstream = by_name.get(getattr(spec.source, "table", ""))
        return hours(upstream) if upstream is not None else None

    return [(s.name, limit) for s in specs if s.serve and (limit := hours(s)) is not None]


_READ = " + ".join(COUNTERS)
#: with the data source's own step; a batch belongs to the moment of its commit
_COMMITS = "from lakehouse.commits where $__timeFilter(committed_at) group by 1, 2 order by 1, 2"
_AT = "select $__timeGroupAlias(committed_at, $__interval), pipeline as metric, "


def _values(rows: Iterable[tuple[str, float | None]], number: str) -> str:
    """The specs' pipelines as a table ``s``, so that one that never ran is not missing."""
    shown = ", ".join(f"('{name}', {'null' if value is None else f'{value:g}'}::double precision)"
                      for name, value in rows)  # fmt: skip
    return f"(values {shown}) as s (pipeline, {number})"


#: the last commit of each ``s``, found through a key and not by reading the year: in PostgreSQL, or in Delta
_LAST = ("left join lateral (select * from (select epoch, topic_id, started_at, committed_at, watermark, behind"
         " from lakehouse.batches b where b.pipeline = s.pipeline order by epoch desc, batch_id desc limit 1) w"
         " union all select * from (select null::int, null::text, started_at, ended_at, null::timestamptz, behind"
         " from lakehouse.runs r where r.pipeline = s.pipeline and r.kind = 'batch' and r.outcome = 'committed'"
         " order by ended_at desc limit 1) d order by committed_at desc limit 1) b on true")  # fmt: skip
#: how far its slowest partition has come, in event time; one that gives nothing does not count while others do
_REACHED = ("left join lateral (select coalesce(min(max_event_time) filter (where not idle), max(max_event_time)) as at"
            " from lakehouse.positions p where (p.pipeline, p.epoch) = (s.pipeline, b.epoch)"
            " and p.topic_id = any(string_to_array(b.topic_id, ' '))"
            ") reached on true")  # fmt: skip


def _since(moment: str) -> str:
    return f"extract(epoch from now() - {moment})::double precision"


def views(specs: Sequence[PipelineSpec]) -> list[View]:
    """The panels of the operators' dashboard, in their order."""
    return [*_of_streams(specs), *_of_tables(specs)]


def _of_streams(specs: Sequence[PipelineSpec]) -> list[View]:
    found = streams(specs)
    if not found:
        return []
    triggers = _values(found, "trigger")
    told = ", ".join(f"{name} {format_duration(round(every * 1e6))}" for name, every in found)
    sizes = [(s.name, s.postgres_table) for s in specs if s.trigger and s.postgres_table]
    states = ", ".join(f"('{name}', '{table}', '{table}__state')" for name, table in sizes)
    made = [
        View("Streams", "table", "select s.pipeline, s.trigger as trigger_seconds, "
             f"{_since('b.committed_at')} as last_commit_seconds, b.behind, extract(epoch from b.committed_at"
             f" - b.started_at)::double precision as batch_seconds, {_since('reached.at')} as lag_seconds,"
             f" {_since('b.watermark')} as watermark_seconds from {triggers} {_LAST} {_REACHED} order by 1",
             description="Time since the last commit; records that were left to read then; how long it took; time"
             " since the newest event time read, and since the watermark.",
             units={"trigger_seconds": "s", "last_commit_seconds": "s", "batch_seconds": "s", "lag_seconds": "s",
                    "watermark_seconds": "s"}),
        View("Records read", "timeseries",
             f"{_AT}sum({_READ})::double precision / ($__interval_ms / 1000.0) as rate {_COMMITS}",
             "rowsps", "Records a second, whatever became of them.", series=True),
        View("Records behind", "timeseries", f"{_AT}max(behind)::double precision as behind {_COMMITS}",
             description="Records of the topic that were not read yet when a batch committed.", series=True,
             limit=BEHIND_LIMIT),
        View("Batch time / trigger", "timeseries",
             "select $__timeGroupAlias(committed_at, $__interval), b.pipeline as metric,"
             " max(extract(epoch from committed_at - started_at) / trigger)::double precision as share"
             f" from lakehouse.commits b join {triggers} on s.pipeline = b.pipeline where trigger > 0 and"
             " $__timeFilter(committed_at) group by 1, 2 order by 1, 2",
             "percentunit", f"The slowest batch; above 100 % the stream is slower than its trigger. {told}.",
             series=True, limit=1),
        View("Watermark delay", "timeseries",
             f"{_AT}max(extract(epoch from committed_at - watermark))::double precision as delay"
             f" {_COMMITS.replace('commits', 'batches')}", "s",
             "From the watermark to the commit: how old an event may be and still count.", series=True),
        View("Late", "timeseries", f"{_AT}sum(late)::double precision as late {_COMMITS}",
             description="Rows kept aside because their window was closed.", series=True),
        View("Quarantined", "timeseries", f"{_AT}sum(quarantined)::double precision as quarantined {_COMMITS}",
             description="Rows that broke a contract or a check.", series=True),
        View("What became of it", "table",
             "select pipeline, count(*) as batches, "
             + ", ".join(f"sum({name})::bigint as {name}" for name in COUNTERS)
             + " from lakehouse.commits where $__timeFilter(committed_at) group by 1 order by 1",
             description="Batches and rows of the dashboard's time."),
        View("Failures", "table",
             "select ended_at as at, pipeline, kind, code, message from lakehouse.runs where outcome = 'failed'"
             " and $__timeFilter(ended_at) order by ended_at desc limit 50",
             description="Of streams, jobs and loads, in the dashboard's time."),
    ]  # fmt: skip
    if states:
        made.append(View(
            "Results and state", "table",
            "select pipeline, pg_total_relation_size(to_regclass(result)) as result_bytes,"
            f" pg_total_relation_size(to_regclass(state)) as state_bytes from (values {states}) as"
            " s (pipeline, result, state) order by 1",
            description="Windows in PostgreSQL, and the state that averages keep beside them.",
            units={"result_bytes": "bytes", "state_bytes": "bytes"}))  # fmt: skip
    return made


def _of_tables(specs: Sequence[PipelineSpec]) -> list[View]:
    made = []
    tables = [(s.name, None) for s in specs if isinstance(s.sink, Delta)]
    if tables:
        made += [
            View("Delta tables", "table",
                 "select s.pipeline, t.version, t.files, t.bytes, l.kind as last_run, l.outcome,"
                 f" {_since('l.ended_at')} as age_seconds, extract(epoch from l.ended_at - l.started_at)"
                 f"::double precision as run_seconds, l.rows, l.code from {_values(tables, 'nothing')}"
                 " left join lateral (select version, files, bytes from lakehouse.runs r where r.pipeline = s.pipeline"
                 " and r.version is not null and r.kind <> 'serve' order by ended_at desc limit 1) t on true"
                 " left join lateral (select * from lakehouse.runs r where r.pipeline = s.pipeline"
                 " and r.kind <> 'serve' order by ended_at desc limit 1) l on true order by 1",
                 description="Version, live files and bytes of each table, and how its last run ended.",
                 units={"bytes": "bytes", "age_seconds": "s", "run_seconds": "s"}),
            View("Table files", "timeseries",
                 "select $__timeGroupAlias(ended_at, $__interval), pipeline as metric, max(files)::double precision as"
                 " files from lakehouse.runs where files is not null and $__timeFilter(ended_at) group by 1, 2"
                 " order by 1, 2", description="Live files of the Delta tables after each run.", series=True),
        ]  # fmt: skip
    served = [(s.name, None) for s in specs if s.serve]
    if served:
        made.append(View(
            "Freshness of the copies", "table",
            f"select s.pipeline, v.version, v.rows, {_since('v.served_at')} as age_seconds from"
            f" {_values(served, 'hours')} left join lakehouse.served v on v.pipeline ="
            " s.pipeline order by 1", description="Version and age of what PostgreSQL holds of the Delta tables.",
            units={"age_seconds": "s"}))  # fmt: skip
    return made


def alerts(specs: Sequence[PipelineSpec]) -> list[Alert]:
    made = []
    found = streams(specs)
    if found:
        triggers = _values(found, "trigger")
        allowed = _values([(name, stale_after(every)) for name, every in found], "allowed")
        recent = "from lakehouse.commits where committed_at > now() - interval '15 minutes' group by 1"
        made += [
            Alert("lakehouse-stale", "Stale pipeline",
                  f"select s.pipeline, coalesce({_since('b.committed_at')} / s.allowed, 1000) as value"
                  f" from {allowed} {_LAST} order by 1", 1, "2m",
                  "{{ .Labels.pipeline }} has not committed for longer than it may, or never", "critical"),
            Alert("lakehouse-lag", "Lag in records",
                  "select s.pipeline, coalesce(b.behind, 0)::double precision as value"
                  f" from {triggers} {_LAST} order by 1", BEHIND_LIMIT, "5m",
                  "{{ .Labels.pipeline }} has many records of its topic still to read"),
            Alert("lakehouse-quarantine", "Quarantine rate",
                  "select s.pipeline, coalesce(b.share, 0) as value from"
                  f" {triggers} left join (select pipeline,"
                  f" sum(quarantined)::double precision / nullif(sum({_READ}), 0) as share {recent}) b"
                  " on b.pipeline = s.pipeline order by 1", QUARANTINE_LIMIT, "0s",
                  "{{ .Labels.pipeline }} put more than 5 % of the last 15 minutes into quarantine"),
        ]  # fmt: skip
    hours = dict(due(specs))
    served = [(s.name, hours.get(s.name)) for s in specs if s.serve]
    if served:
        good = ("(select ended_at from lakehouse.runs r where r.pipeline = s.pipeline and r.kind = 'serve'"
                " and r.outcome <> 'failed' order by ended_at desc limit 1)")  # fmt: skip
        overdue = f"{_since(f'greatest({good}, v.served_at)')} / 3600 / s.hours"
        made.append(Alert(
            "lakehouse-gold", "Failed gold",
            "select s.pipeline, case when l.failed then 1000 when s.hours is null then 0"
            f" else coalesce({overdue}, 1000) end::double precision as value from {_values(served, 'hours')}"
            " left join lakehouse.served v on v.pipeline = s.pipeline left join (select pipeline,"
            " bool_or(outcome = 'failed') as failed from lakehouse.last_runs where kind in ('job', 'serve') group by 1)"
            " l on l.pipeline = s.pipeline order by 1", 1, "0s",
            "{{ .Labels.pipeline }}: its last run or its last load has failed, or is overdue", "critical"))  # fmt: skip
    return made
