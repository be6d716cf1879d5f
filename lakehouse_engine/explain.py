"""A plan in words: what ``lakehouse plan`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lakehouse_engine.analysis import Analysed
from lakehouse_engine.component import format_duration
from lakehouse_engine.plan import Job, Member, Plan, Scan
from lakehouse_engine.sinks import Delta
from lakehouse_engine.spec.further import Further
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.stages import Query

#: of sinks that do not write at least once
_GUARANTEE = {"delta": ", exactly once", "postgres": ", exactly once", "console": "",
              "files": ", each row once in the folder"}  # fmt: skip


class Explanation(dict[str, Any]):
    """``scans`` and ``jobs`` as JSON; ``text`` for people."""

    def text(self) -> str:
        lines = []
        for scan in self["scans"]:
            lines.append(f"scan of {scan['topic']}, {scan['when']}: read once for {len(scan['members'])}")
            for member in scan["members"]:
                lines.append(f"  {member['pipeline']}: {member['does']}")
                lines += self._steps(member["pipeline"])
                lines.append(f"    -> {member['sink']}")
                lines += [f"       {member['appears']}"] if member.get("appears") else []
        for query in self["queries"]:
            lines.append(f"query {query['pipeline']} over {' and '.join(query['topics'])}, {query['when']}:"
                         f" {query['reason']}")  # fmt: skip
            lines += [f"  {query['does']}", *self._steps(query["pipeline"])]
            lines += [f"    {query['lateness']}", f"    -> {query['sink']}"]
        for job in self["jobs"]:
            read = ", ".join([job["source"], *job["others"]])
            lines.append(f"job {job['pipeline']} ({job['schedule']}), reads {read}")
            lines += self._steps(job["pipeline"])
            lines.append(f"    -> {job['sink']}; {job['incremental']}")
            lines += [f"    -> {further}" for further in job["further"]]
        for pipeline, values in self.get("origins", {}).items():
            lines += ["", pipeline]
            texts = [(f"  {one['path']}: {json.dumps(one['value'], ensure_ascii=False)}", one) for one in values]
            width = min(max((len(text) for text, _ in texts), default=0), 70)
            lines += [f"{text:<{width}}  {one['file']}:{one['line']}" + "".join(f", {t}" for t in one["through"])
                      for text, one in texts]  # fmt: skip
        return "\n".join(lines)

    def _steps(self, pipeline: str) -> list[str]:
        """What each step adds, changes and takes away."""
        found = []
        for step in self.get("columns", {}).get(pipeline, ()):
            said = [f"+ {_typed(step['added'])}"] if step["added"] else []
            said += [f"~ {_typed(step['changed'])}"] if step["changed"] else []
            said += [f"- {', '.join(step['removed'])}"] if step["removed"] else []
            found.append(f"      {step['step'].rpartition('.')[2]}: {'; '.join(said) or 'same columns'}")
        return found


def _typed(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}".rstrip() for name, kind in columns.items())


def _changes(walk: Sequence[tuple[str, Mapping[str, str]]], before: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for step, after in walk:
        found.append({
            "step": step,
            "added": {name: kind for name, kind in after.items() if name not in before},
            "changed": {name: kind for name, kind in after.items() if before.get(name, kind) != kind},
            "removed": [name for name in before if name not in after and not name.startswith("_")],
            "columns": dict(after),
        })  # fmt: skip
        before = after
    return found


def explain(plan: Plan, *, origins: bool = False, analysed: Analysed | None = None) -> Explanation:
    """``origins``: also each pipeline's values with the place that each comes from; secrets are masked.

    ``analysed``: also the columns after each step, with what it changed, and those that are stored.
    """
    made = Explanation(scans=[_scan(scan) for scan in plan.scans], jobs=[_job(job) for job in plan.jobs],
                       queries=[_query(query) for query in plan.queries])  # fmt: skip
    if origins:
        made["origins"] = {spec.name: _origins(spec) for spec in sorted(plan.specs, key=lambda spec: spec.name)}
    if analysed is not None:
        made["columns"] = {name: _changes(walk, analysed.sources.get(name) or {})
                           for name, walk in analysed.after.items()}  # fmt: skip
        made["results"] = {name: columns for name, columns in analysed.results.items() if columns is not None}
    return made


def _origins(spec: PipelineSpec) -> list[dict[str, Any]]:
    leaves = {path: origin for path, origin in spec.lines.items() if origin.value is not None}
    return [{"path": path, "value": origin.value, "file": origin.file, "line": origin.line,
             "through": list(origin.through)} for path, origin in leaves.items()
            if path.partition(".")[0] not in ("use", "params")]  # fmt: skip


def _scan(scan: Scan) -> dict[str, Any]:
    return {"name": scan.name, "topic": scan.source.origin, "every": format_duration(scan.every), "when": _when(scan),
            "members": [_member(member) for member in scan.members]}  # fmt: skip


def _when(stream: Scan | Query) -> str:
    if stream.ends:
        return f"started {stream.members[0].spec.schedule}, until it has taken what is there"
    return f"every {format_duration(stream.every)}"


_LATE = (": late is what Spark's watermark says when a row comes, the slowest input's; the number of late rows is a"
         " lower bound")  # fmt: skip


def _query(query: Query) -> dict[str, Any]:
    """A stream whose state is Spark's; its lateness is Spark's too."""
    does = ", ".join(transform.key for transform in query.spec.transforms)
    sink, timed = query.spec.sink, query.branches[0].timed
    target = f"{sink.key} {sink.target(query.name)}"
    return {"pipeline": query.name, "topics": list(dict.fromkeys(source.origin for source in query.reads)),
            "every": format_duration(query.every), "when": _when(query), "reason": query.reason, "does": does,
            "lateness": "a query of its own on Spark's state, with a checkpoint that must be kept" + _LATE * timed,
            "sink": target + ", exactly once" * (sink.key != "console")}  # fmt: skip


def _member(member: Member) -> dict[str, Any]:
    does = ", ".join(transform.key for transform in member.spec.transforms) or "rows as they come"
    if member.window is not None:
        of = "sessions, gap" if member.window.session else member.window.kind
        does += f" ({of} {format_duration(member.window.size)}: exact lateness, merged in the database{_sent(member)})"
    for copy in member.copies:
        does += f"; looks up {copy.part.source}, at most {format_duration(copy.refresh)} old"
    sink = member.spec.sink
    target = f"{sink.key} {member.table}" + (f", where {member.where}" if member.where is not None else "")
    target += _GUARANTEE.get(sink.key, ", at least once") + _deletes(member.spec)
    sent = [f"each change to {_name(member.spec, one)}, at least once" for one in member.spec.further
            if member.window is not None]  # fmt: skip
    return {"pipeline": member.name, "does": does, "sink": "; ".join([target, *sent]), "appears": _appears(member)}


def _deletes(spec: PipelineSpec) -> str:
    return f"; {spec.deletes_from} deletes its rows of these keys" if spec.deletes_from else ""


def _sent(member: Member) -> str:
    """When a window's row appears."""
    window, time = member.window, member.rows.event_time
    assert window is not None
    assert time is not None
    after = format_duration(window.size + time.delay)
    if window.session:
        return f", sent once: when an event has come that is more than {after} newer than its last one"
    return f", sent once: when an event has come that is {after} newer than its start" if window.final else ""


def _appears(member: Member) -> str | None:
    """When a row of a window that is sent at each change is there to be read; ``_sent`` says it of the others."""
    if member.window is None or member.window.final or member.spec.trigger is None:
        return None
    every = format_duration(member.spec.trigger.every)
    return f"a window's row: within one trigger ({every}) of its first event, and at each change"


def _job(job: Job) -> dict[str, Any]:
    sink = job.spec.sink
    incremental = f"recomputes changed {job.slice_by} only" if job.local else f"runs in full: {job.reason}"
    whole = [one.table for one in job.others if one.slice_by is None and one.as_of is None and not one.ignored]
    if job.changes:
        incremental = "merges what changed; the first run takes the table as it is"
    if job.local and whole:
        incremental += f", all of it when {' or '.join(dict.fromkeys(whole))} changed"
    ignored = [one.table for one in job.others if one.ignored]
    if ignored:
        incremental += (f"; changes of {' and '.join(ignored)} are ignored, so what is there need not be what a full"
                        " run would give")  # fmt: skip
    target = f"{sink.key} {sink.target(job.name)}"
    target += (f" by {job.slice_by}" if isinstance(sink, Delta) and job.slice_by else "") + _deletes(job.spec)
    return {"pipeline": job.name, "schedule": job.spec.schedule, "source": job.source,
            "others": list(dict.fromkeys(one.key for one in job.others)), "sink": target, "incremental": incremental,
            "serve": job.spec.serve, "further": [f"{_name(job.spec, one)}, brought to the table's version after it"
                                               for one in job.spec.further]}  # fmt: skip


def _name(spec: PipelineSpec, one: Further) -> str:
    where = f", where {one.where}" if one.where is not None else ""
    return f"{one.sink.key} {one.sink.target(spec.name)}{where}"
