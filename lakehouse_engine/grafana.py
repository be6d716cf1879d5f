"""``lakehouse grafana``: from specs to Grafana's dashboards and alert rules. Reads files alone, touches no service.

Two dashboards: the overview, made of every ``panel:``, and one for operators over the ledger (``lakehouse.batches``,
``positions``, ``served``). Formats: dashboard JSON of schema 42, and alert rules as Grafana provisions them from files.
``$__`` names are the macros of Grafana's PostgreSQL data source. A condition stands before what is computed, so that an
hour of a table of years is read through the index that begins with its time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lakehouse_engine.component import format_duration
from lakehouse_engine.errors import UsageError
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.spec.pipeline import Panel, PipelineSpec
from lakehouse_engine.transforms import Window

DATA_SOURCE = {"type": "grafana-postgresql-datasource", "uid": "lakehouse-postgres"}
OVERVIEW, PIPELINES = "dashboards/overview.json", "dashboards/pipelines.json"
ALERTS = "provisioning/alerting/lakehouse.yaml"
_UNITS = {"number": "short", "share": "percentunit", "seconds": "s", "bytes": "bytes"}
#: rows of the overview from the top: type of panel, height, panels side by side
_ROWS = (("stat", 4, 4), ("timeseries", 9, 2), ("bars", 9, 2), ("table", 9, 1))
#: how often a job is due (hours), by its schedule or that of the job it follows; with two hours to do it in
_DUE = {"hourly": 1 + 2, "daily": 24 + 2, "weekly": 168 + 2}
#: a stream is stale after so many seconds without a commit, or three of its triggers
_STALE = 300


def stale_after(trigger: float) -> float:
    """Seconds without a commit after which a stream of this trigger (seconds) is stale."""
    return max(_STALE, 3 * trigger)


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


def rendered(specs: Sequence[PipelineSpec]) -> dict[str, str]:
    """The generated files: path below the Grafana folder, and text."""
    overview = _dashboard("lakehouse-overview", "Lakehouse Platform Overview", _overview(specs))
    operators = _dashboard("lakehouse-pipelines", "Pipelines", _placed(_operators(specs), 9, 2))
    alerts = yaml.dump(_provisioned(_alerts(specs)), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    return {
        OVERVIEW: _json(overview),
        PIPELINES: _json(operators),
        ALERTS: f"# Written by: lakehouse grafana\n{alerts}",
    }


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def check(folder: Path, files: Mapping[str, str]) -> None:
    """Raises ``UsageError`` GRAFANA_STALE for files that are not as they would be written."""
    stale = [name for name, text in files.items()
             if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text]  # fmt: skip
    if stale:
        raise UsageError("GRAFANA_STALE", f"{', '.join(stale)}: not as the pipelines say; write with: lakehouse"
                         " grafana", where=str(folder))  # fmt: skip


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- what a panel of a spec asks --------------------------------------------------------------------------------------

_FROM_DAY = "($__timeFrom()::timestamptz at time zone 'UTC')::date"
_TO_DAY = "($__timeTo()::timestamptz at time zone 'UTC')::date"


def view(spec: PipelineSpec, panel: Panel) -> View:
    """A panel as Grafana draws it. The loader has checked that its columns are there and that they add up."""
    value, table, time = spec.panel_value(panel), spec.postgres_table, spec.time_column
    assert value is not None
    assert table is not None
    window = next((t for t in spec.transforms if isinstance(t, Window)), None)
    source = ".".join(map(_name, table.split(".")))
    total = f"{panel.aggregate}({_name(value)})"
    if window is not None and panel.aggregate == "sum":  # a minute without an event has no row
        total = f"coalesce({total}, 0)"
    total += "::double precision"
    where, series = "true", False
    if window is not None:
        where = '$__timeFilter("window_start")'
    elif time is not None:
        # the last day that there is stays in sight: today's comes with the job's next run
        last = f"(select max({_name(time)}) from {source} where {_name(time)} <= {_TO_DAY})"
        where = f"{_name(time)} between least({_FROM_DAY}, {last}) and {_TO_DAY}"
        if panel.type == "stat":
            where = f"{_name(time)} = {last}"
    if panel.type == "stat":
        text = f"select {total} as {_name(value)} from {source} where {where}"
    elif panel.type == "timeseries":
        assert time is not None
        series = True
        gap = "0" if panel.aggregate == "sum" else "NULL"
        at = f'$__timeGroupAlias("window_start", $__interval, {gap})' if window is not None else (
            f"({_name(time)}::timestamp at time zone 'UTC') as \"time\"")  # fmt: skip
        by = f"coalesce({_name(panel.by)}::text, '') as metric, " if panel.by else ""
        text = f"select {at}, {by}{total} as {_name(value)} from {source} where {where} group by 1"
        text += ", 2 order by 1, 2" if panel.by else " order by 1"
    elif panel.type == "bars":
        assert panel.by is not None
        text = (f"select {_name(panel.by)}::text as {_name(panel.by)}, {total} as {_name(value)} from {source}"
                f" where {where} group by 1 order by 2 desc nulls last, 1 limit 10")  # fmt: skip
    else:
        columns = [name for name in dict.fromkeys((time, *spec.key_columns, panel.by, value)) if name]
        order = f" order by {_name(time)} desc" if time else ""
        text = f"select {', '.join(map(_name, columns))} from {source} where {where}{order} limit 100"
    every = f"{max(window.every // 1_000_000, 1)}s" if window is not None else None
    kind = "barchart" if panel.type == "bars" else panel.type
    return View(panel.title, kind, text, _UNITS[panel.unit], spec.description.strip(),
                series, every)  # fmt: skip


def _name(column: str) -> str:
    return f'"{column}"'  # the loader takes letters, digits and _ alone


def ordered(specs: Iterable[PipelineSpec]) -> list[tuple[PipelineSpec, Panel]]:
    """The panels of the overview with their pipelines, from its top left; a panel's id is its place, from 1."""
    found = sorted(((panel.position, spec.name, panel.title, spec, panel) for spec in specs for panel in spec.panel),
                   key=lambda item: item[:3])  # fmt: skip
    return [(spec, panel) for kind, *_ in _ROWS for *_, spec, panel in found if panel.type == kind]


def _overview(specs: Iterable[PipelineSpec]) -> list[dict[str, Any]]:
    found = ordered(specs)
    placed: list[dict[str, Any]] = []
    for kind, height, across in _ROWS:
        views = [view(spec, panel) for spec, panel in found if panel.type == kind]
        placed += _placed(views, height, min(across, len(views) or 1), placed)
    return placed


# --- what operators see -----------------------------------------------------------------------------------------------

_READ = " + ".join(COUNTERS)
#: with the data source's own step; a batch belongs to the moment of its commit
_BATCHES = "from lakehouse.batches where $__timeFilter(committed_at) group by 1, 2 order by 1, 2"
_AT = "select $__timeGroupAlias(committed_at, $__interval), pipeline as metric, "


def _streams(specs: Iterable[PipelineSpec]) -> list[tuple[str, float]]:
    """Pipelines whose ledger is in PostgreSQL, with their trigger in seconds."""
    return [(s.name, s.trigger.every / 1e6) for s in specs if s.trigger and s.postgres_table]


def _values(rows: Iterable[tuple[str, float]], number: str) -> str:
    """The specs' pipelines as a table ``s``, so that one that never ran is not missing."""
    shown = ", ".join(f"('{name}', {value:g}::double precision)" for name, value in rows)
    return f"(values {shown}) as s (pipeline, {number})"


#: the last batch of each ``s``, found through the ledger's key and not by reading the year
_LAST = ("left join lateral (select epoch, topic_id, committed_at, watermark from lakehouse.batches b"
         " where b.pipeline = s.pipeline order by epoch desc, batch_id desc limit 1) b on true")  # fmt: skip
#: how far its slowest partition has come, in event time; one that gives nothing does not count while others do
_REACHED = ("left join lateral (select coalesce(min(max_event_time) filter (where not idle), max(max_event_time)) as at"
            " from lakehouse.positions p where (p.pipeline, p.epoch, p.topic_id) = (s.pipeline, b.epoch, b.topic_id)"
            ") reached on true")  # fmt: skip


def _since(moment: str) -> str:
    return f"extract(epoch from now() - {moment})::double precision"


def due(specs: Sequence[PipelineSpec]) -> list[tuple[str, float]]:
    """Served jobs and the hours after which their copy is overdue; those that run by hand or by a cron line are not."""
    by_name = {spec.name: spec for spec in specs}

    def hours(spec: PipelineSpec) -> float | None:
        if spec.schedule != "upstream":
            return _DUE.get(spec.schedule or "")
        upstream = by_name.get(getattr(spec.source, "table", ""))
        return hours(upstream) if upstream is not None else None

    return [(s.name, limit) for s in specs if s.serve and (limit := hours(s)) is not None]


def _operators(specs: Sequence[PipelineSpec]) -> list[View]:
    views = []
    streams = _streams(specs)
    if streams:
        triggers = _values(streams, "trigger")
        told = ", ".join(f"{name} {format_duration(round(every * 1e6))}" for name, every in streams)
        views += [
            View("Streams", "table", "select s.pipeline, s.trigger as trigger_seconds, "
                 f"{_since('b.committed_at')} as last_commit_seconds, {_since('reached.at')} as lag_seconds,"
                 f" {_since('b.watermark')} as watermark_seconds from {triggers} {_LAST} {_REACHED} order by 1",
                 description="Time since the last commit, since the newest event time read, and since the watermark.",
                 units={"trigger_seconds": "s", "last_commit_seconds": "s", "lag_seconds": "s",
                        "watermark_seconds": "s"}),
            View("Records read", "timeseries",
                 f"{_AT}sum({_READ})::double precision / ($__interval_ms / 1000.0) as rate {_BATCHES}",
                 "rowsps", "Records a second, whatever became of them.", series=True),
            View("Batch time / trigger", "timeseries",
                 "select $__timeGroupAlias(committed_at, $__interval), b.pipeline as metric,"
                 " max(extract(epoch from committed_at - started_at) / trigger)::double precision as share"
                 f" from lakehouse.batches b join {triggers} on s.pipeline = b.pipeline where trigger > 0 and"
                 " $__timeFilter(committed_at) group by 1, 2 order by 1, 2",
                 "percentunit", f"The slowest batch; above 100 % the stream is slower than its trigger. {told}.",
                 series=True, limit=1),
            View("Watermark delay", "timeseries",
                 f"{_AT}max(extract(epoch from committed_at - watermark))::double precision as delay {_BATCHES}", "s",
                 "From the watermark to the commit: how old an event may be and still count.", series=True),
            View("Late", "timeseries", f"{_AT}sum(late)::double precision as late {_BATCHES}",
                 description="Rows kept aside because their window was closed.", series=True),
            View("Quarantined", "timeseries", f"{_AT}sum(quarantined)::double precision as quarantined {_BATCHES}",
                 description="Rows that broke a contract or a check.", series=True),
            View("What became of it", "table",
                 "select pipeline, count(*) as batches, "
                 + ", ".join(f"sum({name})::bigint as {name}" for name in COUNTERS)
                 + " from lakehouse.batches where $__timeFilter(committed_at) group by 1 order by 1",
                 description="Batches and rows of the dashboard's time."),
        ]  # fmt: skip
    served = [(s.name, 0.0) for s in specs if s.serve]
    if served:
        views.append(View(
            "Freshness of the copies", "table",
            f"select s.pipeline, v.version, v.rows, {_since('v.served_at')} as age_seconds from"
            f" {_values(served, 'hours')} left join lakehouse.served v on v.pipeline ="
            " s.pipeline order by 1", description="Version and age of what PostgreSQL holds of the Delta tables.",
            units={"age_seconds": "s"}))  # fmt: skip
    return views


def _alerts(specs: Sequence[PipelineSpec]) -> list[Alert]:
    found = []
    streams = _streams(specs)
    if streams:
        triggers = _values(streams, "trigger")
        allowed = _values([(name, stale_after(every)) for name, every in streams], "allowed")
        recent = "from lakehouse.batches where committed_at > now() - interval '15 minutes' group by 1"
        found += [
            Alert("lakehouse-stale", "Stale pipeline",
                  f"select s.pipeline, coalesce({_since('b.committed_at')} / s.allowed, 1000) as value"
                  f" from {allowed} {_LAST} order by 1", 1, "2m",
                  "{{ .Labels.pipeline }} has not committed for longer than it may, or never", "critical"),
            Alert("lakehouse-lag", "Event time lags",
                  f"select s.pipeline, coalesce({_since('reached.at')}, 0) as value from {triggers} {_LAST} {_REACHED}"
                  " order by 1", 600, "5m", "{{ .Labels.pipeline }} has read no event of the last ten minutes"),
            Alert("lakehouse-quarantine", "Quarantine rate",
                  "select s.pipeline, coalesce(b.share, 0) as value from"
                  f" {triggers} left join (select pipeline,"
                  f" sum(quarantined)::double precision / nullif(sum({_READ}), 0) as share {recent}) b"
                  " on b.pipeline = s.pipeline order by 1", 0.05, "0s",
                  "{{ .Labels.pipeline }} put more than 5 % of the last 15 minutes into quarantine"),
        ]  # fmt: skip
    overdue = due(specs)
    if overdue:
        found.append(Alert(
            "lakehouse-gold", "Failed gold",
            f"select s.pipeline, coalesce({_since('v.served_at')} / 3600 / s.hours, 1000) as value from"
            f" {_values(overdue, 'hours')} left join lakehouse.served v on v.pipeline = s.pipeline"
            " order by 1", 1, "0s", "The copy of {{ .Labels.pipeline }} is overdue: its job or its load has failed",
            "critical"))  # fmt: skip
    return found


# --- Grafana's formats ------------------------------------------------------------------------------------------------

_CALCULATED = {"stat": {"reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
                        "colorMode": "value", "graphMode": "none", "textMode": "value"},
               "timeseries": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                              "tooltip": {"mode": "multi", "sort": "desc"}},
               "barchart": {"orientation": "horizontal", "legend": {"showLegend": False}, "showValue": "auto"},
               "table": {"showHeader": True, "cellHeight": "sm"}}  # fmt: skip


def _query(ref: str, text: str, series: bool) -> dict[str, Any]:
    return {"refId": ref, "datasource": DATA_SOURCE, "editorMode": "code", "rawQuery": True, "rawSql": text,
            "format": "time_series" if series else "table"}  # fmt: skip


def _placed(
    views: Sequence[View], height: int, across: int, above: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Panels from left to right, ``across`` of them side by side, below those ``above``."""
    width, top = 24 // across, max((p["gridPos"]["y"] + p["gridPos"]["h"] for p in above), default=0)
    panels = []
    for number, one in enumerate(views):
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        custom: dict[str, Any] = {}
        if one.limit is not None:
            steps.append({"color": "red", "value": one.limit})
            custom = {"thresholdsStyle": {"mode": "line"}}
        overrides = [{"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
                     for name, unit in one.units.items()]  # fmt: skip
        panels.append({
            "id": len(above) + number + 1, "title": one.title, "description": one.description, "type": one.kind,
            "datasource": DATA_SOURCE,
            "gridPos": {"x": number % across * width, "y": top + number // across * height, "w": width, "h": height},
            "fieldConfig": {"defaults": {"unit": one.unit, "custom": custom,
                                         "thresholds": {"mode": "absolute", "steps": steps}}, "overrides": overrides},
            "options": _CALCULATED[one.kind], "targets": [_query("A", one.sql, one.series)],
            **({"interval": one.every} if one.every else {}),
        })  # fmt: skip
    return panels


def _dashboard(uid: str, title: str, panels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "uid": uid, "title": title, "tags": ["lakehouse"], "schemaVersion": 42, "version": 1, "editable": False,
        "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "utc", "graphTooltip": 1,
        "timepicker": {"refresh_intervals": ["10s", "30s", "1m", "5m"]}, "templating": {"list": []},
        "annotations": {"list": []}, "links": [], "panels": list(panels),
    }  # fmt: skip


def _provisioned(alerts: Sequence[Alert]) -> dict[str, Any]:
    """One group of rules: query A, and B its threshold. Texts hold no ``$``: Grafana would take it for a variable."""
    rules = []
    for alert in alerts:
        above = {"evaluator": {"type": "gt", "params": [alert.limit]}}
        threshold = {"refId": "B", "type": "threshold", "expression": "A", "conditions": [above],
                     "datasource": {"type": "__expr__", "uid": "__expr__"}}  # fmt: skip
        rules.append({
            "uid": alert.uid, "title": alert.title, "condition": "B", "for": alert.lasting,
            "data": [{"refId": "A", "datasourceUid": DATA_SOURCE["uid"], "relativeTimeRange": {"from": 900, "to": 0},
                      "model": _query("A", alert.sql, series=False)},
                     {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": {"from": 0, "to": 0},
                      "model": threshold}],
            "noDataState": "Alerting", "execErrState": "Error", "isPaused": False,
            "labels": {"severity": alert.severity}, "annotations": {"summary": alert.summary},
        })  # fmt: skip
    return {"apiVersion": 1, "groups": [{"orgId": 1, "name": "lakehouse", "folder": "Lakehouse", "interval": "1m",
                                         "rules": rules}]}  # fmt: skip
