"""From specs to what will run: scans with their members, and jobs in the order of what they read. No Spark here.

The dry run (``lakehouse plan``) prints this very value; the run executes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from lakehouse_engine.checks import Freshness
from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.locality import Other, locality, others
from lakehouse_engine.rows import Rows
from lakehouse_engine.scan import WindowMember
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Files, Kafka, Streamed, versions
from lakehouse_engine.spec.further import TO, branches
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.stages import Query
from lakehouse_engine.stages import query as query_of
from lakehouse_engine.steps import VALID_FROM, StepError, row_wise, streamed, table_checks, with_checks
from lakehouse_engine.transforms import (
    Aggregate,
    Dedupe,
    Filter,
    Join,
    Lookup,
    Parse,
    Sql,
    Union,
    Window,
)
from lakehouse_engine.transforms.lookup import REFRESH

LANDING_COLUMNS = ("_topic", "_partition", "_offset", "_timestamp")


@dataclass(frozen=True)
class Copy:
    """What a stream holds of a table that a step looks up, as ``view``; ``part``: how it is computed, as a job.

    ``refresh``: microseconds.
    """

    view: str
    step: Lookup
    place: str
    part: Job
    refresh: int


@dataclass(frozen=True)
class Member:
    """One stream pipeline in its scan. ``window`` None: rows are written as they are."""

    spec: PipelineSpec
    rows: Rows
    window: Window | None
    #: steps whose refused rows this pipeline keeps itself; the others it only counts
    keeps: frozenset[str]
    copies: tuple[Copy, ...] = ()
    #: whether another pipeline reads what changes in its table
    fed: bool = False
    #: of a further sink: the rows that it gets
    where: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def table(self) -> str:
        return self.spec.table

    @property
    def merged(self) -> dict[str, str]:
        """The columns that it stores; where its rows replace each other also what says how."""
        return self.rows.stored if self.window is not None else merged(self.spec, self.rows)

    @property
    def place(self) -> tuple[str, str]:
        """SQL of where a row came from: partition and offset."""
        if self.spec.follows is None:
            return "_partition", "_offset"
        return versions.place(self.spec.tables_have[self.spec.follows])

    @property
    def several(self) -> bool:
        """Whether its rows come of several topics."""
        return isinstance(self.spec.source, Kafka) and self.spec.source.several

    def window_member(self) -> WindowMember:
        assert self.window is not None
        return WindowMember(self.name, self.rows, self.window, self.keeps, self.place, self.several,
                            raw=self.spec.raw)  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """One streaming query: a source read once, at one trigger, for all its members; over a table there is one."""

    name: str
    source: Streamed
    every: int
    members: tuple[Member, ...]

    @property
    def reads(self) -> tuple[Streamed, ...]:
        """What comes in as a stream."""
        return (self.source,)

    @property
    def ends(self) -> bool:
        """Whether it ends when it has taken what is there."""
        return self.members[0].spec.ends


@dataclass(frozen=True)
class Job:
    """A batch pipeline. ``local``: a slice of the result depends on that slice of the source alone.

    ``rowwise``: what rows add to the source adds rows to the result, once a dedupe has seen the others of their keys.
    """

    spec: PipelineSpec
    source: str
    slice_by: str | None
    local: bool
    reason: str
    fingerprint: str
    rowwise: bool
    others: tuple[Other, ...] = ()
    #: whether another pipeline reads what changes in its table
    fed: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def changes(self) -> bool:
        """Whether it reads what changes in its source."""
        return self.spec.reads_changes


@dataclass(frozen=True)
class Plan:
    scans: tuple[Scan, ...] = ()
    jobs: tuple[Job, ...] = ()
    served: tuple[PipelineSpec, ...] = field(default=())
    #: streams whose state is Spark's, each on its own
    queries: tuple[Query, ...] = ()

    @property
    def streams(self) -> tuple[Scan | Query, ...]:
        return (*self.scans, *self.queries)

    @property
    def reads(self) -> tuple[Streamed, ...]:
        """What comes in as a stream, of all of them."""
        return tuple(source for stream in self.streams for source in stream.reads)

    @property
    def specs(self) -> tuple[PipelineSpec, ...]:
        """The streams' pipelines, then the jobs'."""
        members = [member.spec for stream in self.streams for member in stream.members if TO not in member.name]
        return (*members, *(job.spec for job in self.jobs))


def compile_plan(specs: Sequence[PipelineSpec]) -> Plan:
    """Raises ``SpecError`` with every step that does not fit its rows."""
    problems: list[Problem] = []
    members: list[Member] = []
    queries = []
    landed = {(s.source.origin, _contract(s)): s.name for s in sorted(specs, key=lambda s: s.name, reverse=True)
              if isinstance(s.source, Kafka) and s.lands and s.source.history is None}  # fmt: skip
    for spec in specs:
        if spec.is_stream:
            try:
                if needs_state(spec):
                    queries.append(_query(spec, landed))
                else:
                    members += _members(spec, landed)
            except StepError as error:
                problems.append(error.problem)
    if problems:
        raise SpecError(problems)
    fed = {spec.source.table for spec in specs if isinstance(spec.source, DeltaSource) and spec.source.changes}
    members = [replace(member, fed=member.name in fed) for member in members]
    queries = [replace(query, fed=query.name in fed) for query in queries]
    jobs = [replace(_job(spec), fed=spec.name in fed) for spec in _ordered([s for s in specs if not s.is_stream])]
    served = tuple(job.spec for job in jobs if job.spec.serve)
    return Plan(_scans(members), tuple(jobs), served, tuple(sorted(queries, key=lambda query: query.name)))


def _keeper(spec: PipelineSpec, landed: Mapping[tuple[str, str | None], str]) -> str:
    """The pipeline that keeps the records which ``parse`` refuses: of a table's rows, the one that reads it.

    Whoever lands a topic keeps them itself: two that land it must not leave it to each other.
    """
    if not isinstance(spec.source, Kafka):
        return spec.name
    if spec.source.history is None and spec.lands:
        return spec.name
    return spec.source.history or landed.get((spec.source.origin, _contract(spec)), spec.name)


def _query(spec: PipelineSpec, landed: Mapping[tuple[str, str | None], str]) -> Query:
    copies: list[Copy] = []

    def copied(step: Lookup, place: str) -> str:
        copies.append(_copy(spec, step, place))
        return copies[-1].view

    return replace(query_of(spec, lambda part: _keeper(part, landed), copied), copies=tuple(copies))


def _contract(spec: PipelineSpec) -> str | None:
    return next((t.reads_by for t in spec.transforms if isinstance(t, Parse)), None)


def _members(spec: PipelineSpec, landed: Mapping[tuple[str, str | None], str]) -> Iterator[Member]:
    """The pipeline, then one for each further sink: it has its own position, and counts what it is not given.

    Windows have none: what changes in their table is sent on.
    """
    first = _member(spec, landed)
    yield first
    for part, further in zip(branches(spec), spec.further, strict=True) if first.window is None else ():
        rows = first.rows
        if further.where is not None:
            rows = row_wise(part, rows, Filter(condition=further.where), "sink.where")
        yield replace(first, spec=part, rows=rows, keeps=frozenset(), where=further.where)


def _member(spec: PipelineSpec, landed: Mapping[tuple[str, str | None], str]) -> Member:
    rows = streamed(spec)
    window = None
    keeps: set[str] = set()
    copies: list[Copy] = []
    keeper = _keeper(spec, landed)
    keeps |= {f"source.{Files.key}"} if isinstance(spec.source, Files) else set()
    for index, transform in enumerate(spec.transforms):
        step = f"transforms[{index}].{transform.key}"
        if isinstance(transform, Window):
            window, rows = transform, transform.row(rows, step)
            keeps.add(step)
            break
        assert not isinstance(transform, Aggregate | Dedupe | Join | Union | Sql), "the loader refuses it in a stream"
        if isinstance(transform, Lookup):
            copies.append(_copy(spec, transform, step))
        rows = row_wise(spec, rows, transform, step, copies[-1].view if copies else "")
        if not isinstance(transform, Parse) or keeper == spec.name:
            keeps.add(step)
    rows = with_checks(rows, spec)
    keeps |= {"checks", VALID_FROM}
    return Member(spec, rows, window, frozenset(keeps), tuple(copies))


def _copy(spec: PipelineSpec, step: Lookup, place: str) -> Copy:
    """Steps that ask the same of a table share its copy."""
    part = spec.part(step.from_)
    asked = [part.source.model_dump_json(), *(f"{one.key} {one.model_dump_json()}" for one in part.transforms),
             *step.view(), str(step.refresh)]  # fmt: skip
    view = "looked_up_" + hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]
    return Copy(view, step, place, _job(part), REFRESH if step.refresh is None else step.refresh)


def after_landing(member: Member, columns: Mapping[str, str]) -> Rows:
    """A window stream's rows at its window, where they come from the table that lands its topic.

    They enter after ``parse``, the first step. ``columns``: the table's, with their Spark types.
    """
    spec, rows = member.spec, Rows.identity(columns)
    views = {copy.place: copy.view for copy in member.copies}
    for index, transform in enumerate(spec.transforms[1:], start=1):
        step = f"transforms[{index}].{transform.key}"
        if isinstance(transform, Window):
            break
        assert not isinstance(transform, Aggregate | Dedupe | Join | Union | Sql)
        rows = row_wise(spec, rows, transform, step, views.get(step, ""))
    return rows


def merged(spec: PipelineSpec, rows: Rows) -> dict[str, str]:
    """The columns that are stored, of requests to delete the keys; rows that may delete have ``_deletes boolean``,
    never null.

    States have ``valid_from``, changes ``_later``: of those of a key and an order the greatest is the last.
    """
    sink = spec.sink
    if spec.deletes_from:
        return {name: rows.resolve(name) for name in spec.key_columns}
    if not isinstance(sink, Delta | Postgres) or sink.mode not in ("upsert", "scd2"):
        return rows.stored
    since = {"valid_from": rows.resolve(sink.valid_from)} if isinstance(sink, Delta) and sink.valid_from else {}
    deletes = {} if sink.delete_when is None else {"_deletes": f"coalesce({rows.resolve(sink.delete_when)}, false)"}
    later = {}
    if spec.reads_changes and {"_version", "_op"} <= rows.columns.keys():
        later = {"_later": rows.resolve("struct(_version, _op <> 'delete')")}
    return {**rows.stored, **since, **deletes, **later}


def always_judged(spec: PipelineSpec) -> bool:
    """Whether a run that finds nothing to do has something to judge all the same."""
    return any(isinstance(check, Freshness) for check in spec.checks)


def _scans(members: Iterable[Member]) -> tuple[Scan, ...]:
    """Members with the same topic, options (``history`` aside) and trigger share a scan."""
    grouped: dict[tuple[str, str, int, int, bool, bool, str], list[Member]] = {}
    for member in members:
        source, trigger = member.spec.source, member.spec.trigger
        assert isinstance(source, Streamed)
        assert trigger is not None
        console = isinstance(member.spec.sink, Console)
        # the rows of a table do not say which commit they came by: members at different ones share no batch
        most, alone = (source.max_per_trigger, "") if isinstance(source, Kafka) else (0, member.name)
        start = json.dumps(source.start) if isinstance(source, Kafka | DeltaSource) else ""
        key = (source.origin, start, most, trigger.every, trigger.ends, console, alone)
        grouped.setdefault(key, []).append(member)
    scans = []
    for (origin, *_), found in sorted(grouped.items(), key=lambda item: item[0]):
        found.sort(key=lambda m: m.name)
        # the least name of its members: the same files give the same name
        source = found[0].spec.source
        assert isinstance(source, Streamed)
        trigger = found[0].spec.trigger
        assert trigger is not None
        name = f"{quote(origin, safe='*')}@{found[0].name}"  # folders are called so
        scans.append(Scan(name, source, trigger.every, tuple(found)))
    return tuple(scans)


def _job(spec: PipelineSpec) -> Job:
    slice_by = spec.sink.replace_by if isinstance(spec.sink, Delta) else None
    local, reason = locality(spec, slice_by)
    if not isinstance(spec.source, DeltaSource):
        local, reason = False, f"{spec.source.key} does not tell which rows of it changed"
    return Job(spec, spec.source.origin, slice_by, local, reason, fingerprint(spec), _rowwise(spec),
               others(spec, slice_by))  # fmt: skip


def _rowwise(spec: PipelineSpec) -> bool:
    """A dedupe holds new rows against the old ones as they come into it: nothing may be put to them before."""
    dedupes = [index for index, transform in enumerate(spec.transforms) if isinstance(transform, Dedupe)]
    looked_up = [index for index, transform in enumerate(spec.transforms) if isinstance(transform, Lookup)]
    if len(dedupes) > 1 or (dedupes and looked_up and looked_up[0] < dedupes[0]) or table_checks(spec):
        return False
    return not any(isinstance(transform, Aggregate | Window | Join | Union | Sql) for transform in spec.transforms)


def fingerprint(spec: PipelineSpec) -> str:
    """Changes when the pipeline computes something else, or something the engine cannot tell from it."""
    aside = {"file", "lines", "complete", "description", "airflow", "schedule", "serve", "trigger", "maintain", "panel",
             "below", "further", "tables_have"}  # fmt: skip
    aside |= set() if spec.inputs else {"inputs"}
    # where a contract lies does not matter: the same files may be named by another path
    text = spec.model_dump_json(exclude={**dict.fromkeys(aside, True), "contracts": {"__all__": {"file"}}})
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()[:16]


def _ordered(specs: Sequence[PipelineSpec]) -> list[PipelineSpec]:
    """What a job reads comes before it; ties by name. The loader has refused cycles."""
    by_name = {spec.name: spec for spec in specs}
    done: dict[str, PipelineSpec] = {}

    def visit(spec: PipelineSpec) -> None:
        if spec.name in done:
            return
        for table in spec.reads:
            upstream = by_name.get(table)
            if upstream is not None and upstream is not spec:
                visit(upstream)
        done[spec.name] = spec

    for spec in sorted(specs, key=lambda s: s.name):
        visit(spec)
    return list(done.values())
