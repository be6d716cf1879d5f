"""From specs to what will run: scans with their members, and jobs in the order of what they read. No Spark here.

The dry run (``lakehouse plan``) prints this very value; the run executes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lakehouse_engine import sql
from lakehouse_engine.checks import Freshness, RowCheck, TableCheck, judge
from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.rows import Rows
from lakehouse_engine.scan import WindowMember
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sources import Kafka
from lakehouse_engine.sources import kafka as kafka_source
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import (
    Aggregate,
    Cast,
    Dedupe,
    Derive,
    Drop,
    Explode,
    Parse,
    Rename,
    RowWise,
    Select,
    Watermark,
    Window,
)
from lakehouse_engine.transforms.watermark import EVENT_TIME

#: raised by a reset or an incompatible change; both come with a later version
EPOCH = 1
LANDING_COLUMNS = ("_topic", "_partition", "_offset", "_timestamp")


@dataclass(frozen=True)
class Member:
    """One stream pipeline in its scan. ``window`` None: rows are written as they are."""

    spec: PipelineSpec
    rows: Rows
    window: Window | None
    #: steps whose refused rows this pipeline keeps itself; the others it only counts
    keeps: frozenset[str]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def table(self) -> str:
        sink = self.spec.sink
        return sink.table if isinstance(sink, Postgres) and sink.table else self.name

    def window_member(self) -> WindowMember:
        assert self.window is not None
        return WindowMember(self.name, self.rows, self.window, self.keeps)


@dataclass(frozen=True)
class Scan:
    """One streaming query: a source read once, at one trigger, for all its members."""

    name: str
    source: Kafka
    every: int
    members: tuple[Member, ...]


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

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True)
class Plan:
    scans: tuple[Scan, ...] = ()
    jobs: tuple[Job, ...] = ()
    served: tuple[PipelineSpec, ...] = field(default=())


def compile_plan(specs: Sequence[PipelineSpec]) -> Plan:
    """Raises ``SpecError`` with every step that does not fit its rows."""
    problems: list[Problem] = []
    members = []
    landed = {(s.source.topic, _contract(s)): s.name for s in specs
              if isinstance(s.source, Kafka) and isinstance(s.sink, Delta)}  # fmt: skip
    for spec in specs:
        if spec.is_stream:
            try:
                members.append(_member(spec, landed))
            except StepError as error:
                problems.append(error.problem)
    if problems:
        raise SpecError(problems)
    jobs = [_job(spec) for spec in _ordered([s for s in specs if not s.is_stream])]
    return Plan(_scans(members), tuple(jobs), tuple(job.spec for job in jobs if job.spec.serve))


class StepError(ValueError):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _contract(spec: PipelineSpec) -> str | None:
    return next((t.contract for t in spec.transforms if isinstance(t, Parse)), None)


def _member(spec: PipelineSpec, landed: Mapping[tuple[str, str | None], str]) -> Member:
    assert isinstance(spec.source, Kafka)
    rows = Rows.identity(kafka_source.COLUMNS)
    window = None
    keeps = set()
    keeper = spec.source.history or landed.get((spec.source.topic, _contract(spec)), spec.name)
    for index, transform in enumerate(spec.transforms):
        step = f"transforms[{index}].{transform.key}"
        if isinstance(transform, Window):
            window = transform
            break
        assert not isinstance(transform, Aggregate | Dedupe), "the loader refuses these in a stream"
        rows = _step(spec, rows, transform, step)
        if not isinstance(transform, Parse) or keeper == spec.name:
            keeps.add(step)
    rows = with_checks(rows, spec)
    keeps.add("checks")
    return Member(spec, rows, window, frozenset(keeps))


def _step(spec: PipelineSpec, rows: Rows, transform: RowWise, step: str) -> Rows:
    try:
        if isinstance(transform, Parse):
            return transform.row(rows, step, spec.contracts[transform.contract])
        return transform.row(rows, step)
    except ValueError as error:  # a column or an expression that does not fit the rows
        file, _, line = spec.where(step).rpartition(":")
        code = str(getattr(error, "code", "BAD_EXPRESSION"))
        raise StepError(Problem(file, int(line), code, str(error))) from error


def row_step(spec: PipelineSpec, rows: Rows, index: int) -> Rows:
    """A job's row-wise step."""
    transform = spec.transforms[index]
    assert not isinstance(transform, Window | Aggregate | Dedupe)
    step = f"transforms[{index}].{transform.key}"
    if not isinstance(transform, Watermark):
        return _step(spec, rows, transform, step)
    slices = isinstance(spec.sink, Delta) and spec.sink.replace_by
    rows = transform.row(rows, step, None if slices else "current_timestamp()")
    return rows.with_columns({EVENT_TIME: transform.column})


def with_checks(rows: Rows, spec: PipelineSpec) -> Rows:
    """The row checks of ``checks`` as one step."""
    checks = [(f"checks[{i}]", check) for i, check in enumerate(spec.checks) if isinstance(check, RowCheck)]
    return judge(rows, checks, "checks")


def table_checks(spec: PipelineSpec) -> list[tuple[str, TableCheck]]:
    """Each with its place in the file."""
    return [(f"checks[{i}]", check) for i, check in enumerate(spec.checks) if isinstance(check, TableCheck)]


def always_judged(spec: PipelineSpec) -> bool:
    """Whether a run that finds nothing to do has something to judge all the same."""
    return any(isinstance(check, Freshness) for check in spec.checks)


def _scans(members: Iterable[Member]) -> tuple[Scan, ...]:
    """Members with the same source (``history`` aside) and trigger share a scan."""
    grouped: dict[tuple[str, str, int, int, bool], list[Member]] = {}
    for member in members:
        source, trigger = member.spec.source, member.spec.trigger
        assert isinstance(source, Kafka)
        assert trigger is not None
        console = isinstance(member.spec.sink, Console)
        key = (source.topic, source.start, source.max_per_trigger, trigger.every, console)
        grouped.setdefault(key, []).append(member)
    scans = []
    for (topic, *_), found in sorted(grouped.items(), key=lambda item: item[0]):
        found.sort(key=lambda m: m.name)
        # the least name of its members: the same files give the same name
        source = found[0].spec.source
        assert isinstance(source, Kafka)
        trigger = found[0].spec.trigger
        assert trigger is not None
        scans.append(Scan(f"{topic}@{found[0].name}", source, trigger.every, tuple(found)))
    return tuple(scans)


def _job(spec: PipelineSpec) -> Job:
    assert not isinstance(spec.source, Kafka)
    slice_by = spec.sink.replace_by if isinstance(spec.sink, Delta) else None
    local, reason = _locality(spec, slice_by)
    dedupes = sum(isinstance(transform, Dedupe) for transform in spec.transforms)
    groups = any(isinstance(transform, Aggregate | Window) for transform in spec.transforms)
    rowwise = dedupes <= 1 and not groups and not table_checks(spec)
    return Job(spec, spec.source.table, slice_by, local, reason, fingerprint(spec), rowwise)


def _locality(spec: PipelineSpec, column: str | None) -> tuple[bool, str]:
    """Whether incremental equals full, and if not, why: the slice column must reach every grouping key unchanged."""
    if column is None:
        return False, "the sink has no replace_by"
    for index, transform in enumerate(spec.transforms):
        step = f"transforms[{index}].{transform.key}"
        if isinstance(transform, Derive | Cast) and column in transform.columns:
            return False, f"{step} computes {column}"
        if isinstance(transform, Explode) and column in (transform.column, *transform.made):
            return False, f"{step} computes {column}"
        if (isinstance(transform, Drop) and transform.drops(column)) or (
            isinstance(transform, Rename) and column.lower() in (*transform.new, *map(str.lower, transform.columns))
        ):
            return False, f"{step} does not pass {column} on as it is"
        if isinstance(transform, Select):
            kept = [item for item in map(sql.select_item, transform.items) if item.name == column]
            if [item.expression for item in kept] != [column]:
                return False, f"{step} does not pass {column} on as it is"
        if isinstance(transform, Dedupe) and column not in transform.keys:
            return False, f"{step} does not have {column} among its keys"
        if isinstance(transform, Aggregate | Window) and column not in transform.by:
            return False, f"{step} does not group by {column}"
    return True, f"every step keeps {column}"


def fingerprint(spec: PipelineSpec) -> str:
    """Changes when the pipeline computes something else, or something the engine cannot tell from it."""
    text = spec.model_dump_json(
        exclude={"file", "lines", "complete", "description", "airflow", "schedule", "serve", "trigger", "maintain",
                 "panel"}
    )
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
