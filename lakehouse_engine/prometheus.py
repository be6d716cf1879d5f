"""``lakehouse grafana``, beside Grafana's files: Prometheus' alert rules and scrape configuration. Reads files alone.

The alerts are Grafana's, asked of metrics (``metrics.py``). Where those are shown stands in ``targets.yaml``, by hand.
A pipeline may be seen twice, by its own process and by the ledger: the greatest value counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lakehouse_engine.metrics import BEHIND, COMMITTED, FAILED, ROWS, SUCCEEDED, Metric
from lakehouse_engine.operators import BEHIND_LIMIT, QUARANTINE_LIMIT, due, stale_after, streams
from lakehouse_engine.spec.pipeline import PipelineSpec

ALERTS, CONFIGURATION, TARGETS = "alerts.yaml", "prometheus.yaml", "targets.yaml"
_WRITTEN = "# Written by: lakehouse grafana\n"


def rendered(specs: Sequence[PipelineSpec]) -> dict[str, str]:
    """The generated files: path below the Prometheus folder, and text."""
    configuration = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"}, "rule_files": [ALERTS],
        "scrape_configs": [{"job_name": "lakehouse", "file_sd_configs": [{"files": [TARGETS]}]}],
    }  # fmt: skip
    rules = {"groups": [{"name": "lakehouse", "rules": _rules(specs)}]}
    return {
        ALERTS: _yaml(rules),
        CONFIGURATION: _yaml(configuration),
    }


def _rules(specs: Sequence[PipelineSpec]) -> list[dict[str, Any]]:
    rules = []
    found = streams(specs)
    if found:
        share = (f'sum by (pipeline) (max by (pipeline, outcome) (increase({ROWS.name}{{outcome="quarantined"}}[15m])))'
                 f" / sum by (pipeline) (max by (pipeline, outcome) (increase({ROWS.name}[15m])))")  # fmt: skip
        rules += [
            _rule("LakehouseStale", _older(COMMITTED, [(name, stale_after(every)) for name, every in found]), "2m",
                  "critical", "{{ $labels.pipeline }} has not committed for longer than it may, or never"),
            _rule("LakehouseBehind", f"max by (pipeline) ({BEHIND.name}) > {BEHIND_LIMIT}", "5m", "warning",
                  "{{ $labels.pipeline }} has {{ $value }} records of its topic still to read"),
            _rule("LakehouseQuarantine", f"{share} > {QUARANTINE_LIMIT:g}", "0s", "warning",
                  "{{ $labels.pipeline }} put more than 5 % of the last 15 minutes into quarantine"),
        ]  # fmt: skip
    served = "|".join(spec.name for spec in specs if spec.serve)
    if served:
        failed = f'max by (pipeline) ({FAILED.name}{{pipeline=~"{served}",kind=~"job|serve"}}) > 0'
        overdue = _older(SUCCEEDED, [(name, hours * 3600) for name, hours in due(specs)], ',kind="serve"')
        rules.append(_rule(
            "LakehouseFailedGold", " or ".join(filter(None, (failed, overdue))), "2m", "critical",
            "{{ $labels.pipeline }}: its last run or its last load has failed, or is overdue"))  # fmt: skip
    return rules


def _older(metric: Metric, limits: Sequence[tuple[str, float]], more: str = "") -> str:
    """Those whose moment is longer ago than their limit (seconds), or is not there."""
    by_limit: dict[float, list[str]] = defaultdict(list)
    for name, limit in limits:
        by_limit[limit].append(name)
    parts = [f'time() - max by (pipeline) ({metric.name}{{pipeline=~"{"|".join(names)}"{more}}}) > {limit:g}'
             for limit, names in by_limit.items()]  # fmt: skip
    parts += [f'absent({metric.name}{{pipeline="{name}"{more}}})' for name, _ in limits]
    return " or ".join(parts)


def _rule(alert: str, expression: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {"alert": alert, "expr": expression, "for": lasting, "labels": {"severity": severity},
            "annotations": {"summary": summary}}  # fmt: skip


def _yaml(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return _WRITTEN + str(yaml.safe_dump(value, sort_keys=False, width=110, allow_unicode=True))
