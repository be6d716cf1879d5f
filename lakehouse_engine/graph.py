"""The lakehouse as a graph, from the specs alone: topics, tables, copies in PostgreSQL, panels, what is kept aside."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lakehouse_engine.component import format_duration
from lakehouse_engine.plan import Plan
from lakehouse_engine.rows import QUARANTINED
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Kafka, Source
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Cast, Check, Lookup, Parse

#: how a node is told apart in words and in Mermaid, where its shape is
_KINDS = {"kafka": "topic"}
_WORDS = {"topic": "topic", "files": "files",
          "delta": "Delta", "postgres": "PostgreSQL", "jdbc": "JDBC", "console": "console", "panel": "panel",
          "aside": "kept aside"}  # fmt: skip
_SHAPES = {"topic": ("([", "])"), "delta": ("[(", ")]"), "postgres": ("[(", ")]"), "jdbc": ("[(", ")]"),
           "panel": ("{{", "}}"), "aside": ("[/", "/]")}  # fmt: skip
#: edges that make the tree in which a node stands; the others are told beside it
_MAIN = ("stream", "job", "serve", "copy", "panel", "late", "quarantine")


def graph(specs: Sequence[PipelineSpec], aside: Plan | None = None) -> dict[str, Any]:
    """``nodes``: id, kind (topic, files, jdbc, delta, postgres, console, panel, aside), title, pipeline (None: not
    ours), ``rank`` (the longest way from a source). ``edges``: from, to, kind (``stream`` or ``job``; ``input`` and
    ``check``: what is read beside the source; ``serve``, ``copy`` into a job's further sink, ``panel``, ``quarantine``,
    ``late``, ``deletes``).

    ``aside``: the plan of the specs, which knows who keeps refused and late rows; without it those tables are left out.
    """
    nodes: dict[str, dict[str, Any]] = {}
    edges: list[dict[str, str]] = []

    def node(kind: str, title: str, pipeline: str | None = None) -> str:
        name = f"{kind}:{pipeline}:{title}" if kind == "panel" else f"{kind}:{title}"
        known = nodes.setdefault(name, {"id": name, "kind": kind, "title": title, "pipeline": pipeline, "rank": 0})
        known["pipeline"] = known["pipeline"] or pipeline
        return name

    def edge(start: str, end: str, kind: str) -> None:
        if {"from": start, "to": end, "kind": kind} not in edges:
            edges.append({"from": start, "to": end, "kind": kind})

    kept = _kept_aside(aside) if aside else {}
    for spec in specs:
        title = spec.sink.target(spec.name)
        result = node(_KINDS.get(spec.sink.key, spec.sink.key), title, spec.name)
        for what, name, how in _reads(spec):
            edge(node(what, name), result, how)
        if spec.deletes_from:
            edge(result, node("delta", spec.deletes_from), "deletes")
        for sink in spec.sinks[1:]:
            further = node(_KINDS.get(sink.key, sink.key), sink.target(spec.name), spec.name)
            if spec.is_stream:  # which gives each sink its rows itself
                for title in _titles(spec.source):
                    edge(node(next(_reads(spec))[0], title), further, "stream")
            else:
                edge(result, further, "copy")
        for suffix in kept.get(spec.name, ()):
            edge(result, node("aside", f"{title}__{suffix}", spec.name), suffix)
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


def _reads(spec: PipelineSpec) -> Iterator[tuple[str, str, str]]:
    """What a pipeline reads: kind and title of a node, and how; its source first."""
    how = "stream" if spec.is_stream else "job"
    for title in _titles(spec.source):
        yield _KINDS.get(spec.source.key, spec.source.key), title, how
    for one in spec.inputs.values():
        if not isinstance(one.source, DeltaSource):
            for title in _titles(one.source):
                yield _KINDS.get(one.source.key, one.source.key), title, "input"
    for table in spec.reads:
        if table != getattr(spec.source, "table", None):
            yield "delta", table, "check" if table in spec.related else "input"


def _titles(source: Source) -> Sequence[str]:
    return source.origins if isinstance(source, Kafka) else (source.origin,)


def _kept_aside(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By pipeline the endings of the tables in which it keeps rows aside."""
    found: dict[str, tuple[str, ...]] = {}
    for member in (member for scan in plan.scans for member in scan.members):
        refuses = any(v.outcome == QUARANTINED and v.step in member.keeps for v in member.rows.verdicts)
        found[member.name] = (("quarantine",) if refuses else ()) + (("late",) if member.window else ())
    for query in plan.queries:
        judged = [(branch.rows, branch.keeps) for branch in query.branches]
        refuses = any(v.outcome == QUARANTINED and v.step in keeps for rows, keeps in judged for v in rows.verdicts)
        refuses = refuses or any(v.outcome == QUARANTINED for v in query.rows.verdicts)
        found[query.name] = (("quarantine",) if refuses else ()) + ("late",)
    for job in plan.jobs:
        refuses = any(check.on_fail == "quarantine" for check in job.spec.checks)
        steps = [*job.spec.transforms, *(t for one in job.spec.inputs.values() for t in one.transforms)]
        refuses = refuses or any(isinstance(t, Cast | Check | Parse) for t in steps)
        refuses = refuses or any(isinstance(t, Lookup) and t.missing == "quarantine" for t in steps)
        found[job.name] = ("quarantine",) if refuses else ()
    return found


def text(found: dict[str, Any], specs: Sequence[PipelineSpec]) -> str:
    """A tree from the sources down; what else a table reads is told beside it."""
    nodes = {node["id"]: node for node in found["nodes"]}
    clocks = {spec.name: spec.schedule or "" if spec.ends or spec.trigger is None
              else f"every {format_duration(spec.trigger.every)}" for spec in specs}  # fmt: skip
    below: dict[str, list[str]] = defaultdict(list)
    beside: dict[str, list[str]] = defaultdict(list)
    owned: set[str] = set()
    for edge in found["edges"]:
        if edge["kind"] in _MAIN and edge["to"] not in owned:
            owned.add(edge["to"])
            below[edge["from"]].append(edge["to"])
        else:
            beside[edge["to"]].append(f"{edge['kind']} {nodes[edge['from']]['title']}")
    results = {edge["to"] for edge in found["edges"] if edge["kind"] in ("stream", "job")}
    lines: list[str] = []

    def told(name: str) -> str:
        node = nodes[name]
        clock = f", {clocks[node['pipeline']]}" if name in results and clocks.get(node["pipeline"]) else ""
        also = f"  (also: {', '.join(beside[name])})" if beside[name] else ""
        return f"{node['title']}  {_WORDS[node['kind']]}{clock}{also}"

    def branch(name: str, head: str, inner: str) -> None:
        lines.append(f"{head}{told(name)}")
        last = len(below[name]) - 1
        for index, child in enumerate(below[name]):
            branch(child, inner + ("└─ " if index == last else "├─ "), inner + ("   " if index == last else "│  "))

    for name in nodes:
        if name not in owned:
            branch(name, "", "")
    return "\n".join(lines)


def mermaid(found: dict[str, Any]) -> str:
    """A Mermaid flowchart, as Markdown viewers draw it."""
    names = {node["id"]: f"n{index}" for index, node in enumerate(found["nodes"])}
    lines = ["flowchart LR"]
    for node in found["nodes"]:
        start, end = _SHAPES.get(node["kind"], ("[", "]"))
        title = re.sub(r"[\"<>&#]", lambda match: f"#{ord(match[0])};", node["title"])
        lines.append(f'  {names[node["id"]]}{start}"{title}<br/>{_WORDS[node["kind"]]}"{end}')
    for edge in found["edges"]:
        arrow = "-.->" if edge["kind"] in ("quarantine", "late", "check") else "-->"
        label = "" if edge["kind"] in ("panel", "quarantine", "late") else f"|{edge['kind']}|"
        lines.append(f"  {names[edge['from']]} {arrow}{label} {names[edge['to']]}")
    return "\n".join(lines)
