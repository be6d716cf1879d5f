"""The lakehouse as a graph, from the specs alone: topics, tables, copies in PostgreSQL, panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec


def graph(specs: Sequence[PipelineSpec]) -> dict[str, Any]:
    """``nodes``: id, kind (topic, delta, postgres, console, panel), title, pipeline (None: not ours), ``rank`` (the
    longest way from a source). ``edges``: from, to, kind (``stream`` or ``job``, ``serve``, ``panel``)."""
    nodes: dict[str, dict[str, Any]] = {}
    edges: list[dict[str, str]] = []

    def node(kind: str, title: str, pipeline: str | None = None) -> str:
        name = f"{kind}:{pipeline}:{title}" if kind == "panel" else f"{kind}:{title}"
        known = nodes.setdefault(name, {"id": name, "kind": kind, "title": title, "pipeline": pipeline, "rank": 0})
        known["pipeline"] = known["pipeline"] or pipeline
        return name

    def edge(start: str, end: str, kind: str) -> None:
        edges.append({"from": start, "to": end, "kind": kind})

    for spec in specs:
        source = (node("topic", spec.source.topic) if isinstance(spec.source, Kafka)
                  else node("delta", spec.source.table))  # fmt: skip
        kind = "postgres" if isinstance(spec.sink, Postgres) else "delta" if isinstance(spec.sink, Delta) else "console"
        title = spec.postgres_table if kind == "postgres" and spec.postgres_table else spec.name
        result = node(kind, title, spec.name)
        edge(source, result, "stream" if spec.is_stream else "job")
        if spec.serve and spec.postgres_table:
            copy = node("postgres", spec.postgres_table, spec.name)
            edge(result, copy, "serve")
            result = copy
        for panel in spec.panel:
            edge(result, node("panel", panel.title, spec.name), "panel")
    for _ in nodes:  # as often as the longest way is long, at most
        for one in edges:
            nodes[one["to"]]["rank"] = max(nodes[one["to"]]["rank"], nodes[one["from"]]["rank"] + 1)
    return {"nodes": list(nodes.values()), "edges": edges}
