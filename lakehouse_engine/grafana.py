"""``lakehouse grafana``: from specs to Grafana's dashboards and alert rules. Reads files alone, touches no service.

Two dashboards: the overview, made of every ``panel:``, and one for operators over the ledger (``operators.py``).
Formats: dashboard JSON of schema 42, and alert rules as Grafana provisions them from files. ``$__`` names are the
macros of Grafana's PostgreSQL data source. ``ledger.sql`` makes the tables that they ask, before the engine ever ran.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lakehouse_engine import ledger
from lakehouse_engine.errors import UsageError
from lakehouse_engine.operators import Alert, View, due, stale_after
from lakehouse_engine.operators import alerts as alerts_of
from lakehouse_engine.operators import views as operators_of
from lakehouse_engine.spec.pipeline import Panel, PipelineSpec
from lakehouse_engine.transforms import Window

DATA_SOURCE = {"type": "grafana-postgresql-datasource", "uid": "lakehouse-postgres"}
OVERVIEW, PIPELINES = "dashboards/overview.json", "dashboards/pipelines.json"
ALERTS, LEDGER = "provisioning/alerting/lakehouse.yaml", "ledger.sql"
_UNITS = {"number": "short", "share": "percentunit", "seconds": "s", "bytes": "bytes"}
#: rows of the overview from the top: type of panel, height, panels side by side
_ROWS = (("stat", 4, 4), ("timeseries", 9, 2), ("bars", 9, 2), ("table", 9, 1))


def rendered(specs: Sequence[PipelineSpec]) -> dict[str, str]:
    """The generated files: path below the Grafana folder, and text."""
    overview = _dashboard("lakehouse-overview", "Lakehouse Platform Overview", _overview(specs))
    operators = _dashboard("lakehouse-pipelines", "Pipelines", _placed(operators_of(specs), 9, 2))
    alerts = yaml.dump(_provisioned(alerts_of(specs)), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    return {
        OVERVIEW: _json(overview),
        PIPELINES: _json(operators),
        ALERTS: f"# Written by: lakehouse grafana\n{alerts}",
        LEDGER: "-- Written by: lakehouse grafana. Run it as the role that the engine connects as; it may be run again."
                f"\n{ledger.DDL}",
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
    window = next((t for t in spec.transforms if isinstance(t, Window)), None) if time == "window_start" else None
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
    # sessions begin at any time
    every = f"{60 if window.session else max(window.every // 1_000_000, 1)}s" if window is not None else None
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


__all__ = ["ALERTS", "DATA_SOURCE", "LEDGER", "OVERVIEW", "PIPELINES", "View", "check", "due", "ordered", "rendered",
           "stale_after", "view", "write"]  # fmt: skip
