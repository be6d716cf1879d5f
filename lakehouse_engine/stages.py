"""A stream whose state is Spark's, cut where the state is: rows before it, a step that keeps state, rows after it.

``dedupe`` and ``join`` of a stream, windows that cannot be merged in PostgreSQL, and whatever follows a window make a
query of their own beside the scans. Rows before the first such step (its ``Branch``) and after each one (its
``Stage``) are symbolic, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lakehouse_engine import sql
from lakehouse_engine.rows import Rows
from lakehouse_engine.sources import Streamed
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.steps import row_wise, streamed, with_checks
from lakehouse_engine.transforms import Aggregate, Dedupe, Join, Lookup, Parse, Sql, Transform, Union, Window
from lakehouse_engine.transforms.taken import taken
from lakehouse_engine.transforms.watermark import EVENT_TIME as TIME

#: a union keeps nothing, and yet its rows come of several streams, each with its own records
Stateful = Dedupe | Window | Join | Union
#: what a record weighs most; a step with state does not carry it unless a later step reads it
_RAW = ("_key", "_value", "_headers")


@dataclass(frozen=True)
class Stage:
    """A step with state, and the row-wise steps between it and the next one, or the end."""

    transform: Stateful
    place: str
    #: the columns that reach it, the event time aside
    into: tuple[str, ...]
    rows: Rows
    #: join only: theirs by their new name
    taken: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Branch:
    """An input: read, judged row by row (``rows``), then through its own ``stages``. The main one has no name."""

    name: str
    spec: PipelineSpec
    rows: Rows
    stages: tuple[Stage, ...]
    keeps: frozenset[str]

    @property
    def source(self) -> Streamed:
        assert isinstance(self.spec.source, Streamed)
        return self.spec.source

    @property
    def timed(self) -> bool:
        """Whether its rows have an event time."""
        return self.rows.event_time is not None

    @property
    def end(self) -> Rows:
        return self.stages[-1].rows if self.stages else self.rows


@dataclass(frozen=True)
class Query:
    """One streaming query of its own. ``reason``: the step that needs Spark's state, and why."""

    spec: PipelineSpec
    #: the main one first
    branches: tuple[Branch, ...]
    reason: str
    #: what it looks up after its last step with state (``plan.Copy``)
    copies: tuple[Any, ...] = ()
    #: whether another pipeline reads what changes in its table
    fed: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def members(self) -> tuple[Query, ...]:
        """As a scan has them: the query is the only one."""
        return (self,)

    @property
    def reads(self) -> tuple[Streamed, ...]:
        """What comes in as a stream."""
        return tuple(branch.source for branch in self.branches)

    @property
    def every(self) -> int:
        assert self.spec.trigger is not None
        return self.spec.trigger.every

    @property
    def ends(self) -> bool:
        return self.spec.ends

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.branches[0].stages

    @property
    def rows(self) -> Rows:
        """What follows the last step with state."""
        return self.branches[0].end

    @property
    def table(self) -> str:
        return self.spec.table

    @property
    def window(self) -> Window | None:
        """The window that the result's rows are of; None when a later step with state makes others of them."""
        last = self.stages[-1].transform
        return last if isinstance(last, Window) else None

    @property
    def mode(self) -> Literal["append", "update"]:
        """Spark's output mode."""
        return "append" if self.window is None or self.window.final else "update"

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the state was made by: sources and steps up to the last one with state, by their places."""
        found = {}
        for branch in self.branches:
            below = branch.spec.below
            source = branch.source
            found[f"{below}source"] = f"{source.key} {source.origin}"
            last = len(branch.spec.transforms)
            if not below:
                last = 1 + max(i for i, t in enumerate(branch.spec.transforms) if isinstance(t, Stateful))
            for index, step in enumerate(branch.spec.transforms[:last]):
                text = step.model_dump_json(exclude={"tolerance"}, exclude_defaults=True)
                if isinstance(step, Parse):
                    contract = branch.spec.contracts[step.reads_by]
                    text += contract.model_dump_json(exclude={"file"}, exclude_defaults=True)
                found[f"{below}transforms[{index}].{step.key}"] = text
        return found


def query(spec: PipelineSpec, keeper: Callable[[PipelineSpec], str], copied: Callable[[Lookup, str], str]) -> Query:
    """``keeper`` names the pipeline that keeps what ``parse`` refuses, ``copied`` the view of what a step looks up.

    Raises ``StepError``.
    """
    branches = [_branch(spec, "", spec, keeper, copied)]
    for stage in branches[0].stages:
        for name in stage.transform.others if isinstance(stage.transform, Join | Union) else ():
            branches.append(_branch(spec, name, spec.part(name, stream=True), keeper))
    main = branches[0]
    stages = list(main.stages)
    rows = with_checks(main.end, spec)
    stages[-1] = replace(stages[-1], rows=rows)
    return Query(spec, (replace(main, stages=tuple(stages)), *branches[1:]), needs_state(spec))


def _branch(pipeline: PipelineSpec, name: str, spec: PipelineSpec, keeper: Callable[[PipelineSpec], str],
            copied: Callable[[Lookup, str], str] | None = None) -> Branch:  # fmt: skip
    first: Rows | None = None
    current = streamed(spec)
    timed = False
    stages: list[Stage] = []
    keeps = set()
    for index, transform in enumerate(spec.transforms):
        step = f"transforms[{index}].{transform.key}"
        if isinstance(transform, Stateful):
            if stages:
                stages[-1] = replace(stages[-1], rows=current)
            else:
                first = current
            timed = timed or current.event_time is not None
            carried = _carried(current, spec.transforms[index:])
            if isinstance(transform, Union):
                carried = _shared(pipeline, transform, carried, keeper)
            theirs = _theirs(pipeline, transform, keeper) if isinstance(transform, Join) else None
            current = Rows.identity(_after(transform, carried, theirs, last=_last(spec, index) or not timed))
            stages.append(Stage(transform, step, tuple(carried), current, theirs))
            continue
        assert not isinstance(transform, Aggregate | Sql), "the loader refuses these in a stream"
        view = ""
        if isinstance(transform, Lookup):
            assert copied is not None, "the loader refuses it in an input"
            view = copied(transform, step)
        current = row_wise(spec, current, transform, step, view)
        if not isinstance(transform, Parse) or keeper(spec) == spec.name:
            keeps.add(f"{spec.below}{step}")
    if stages:
        stages[-1] = replace(stages[-1], rows=current)
    return Branch(name, spec, first or current, tuple(stages), frozenset(keeps))


def _last(spec: PipelineSpec, index: int) -> bool:
    return not any(isinstance(step, Stateful) for step in spec.transforms[index + 1 :]) and not spec.below


def _theirs(pipeline: PipelineSpec, join: Join, keeper: Callable[[PipelineSpec], str]) -> dict[str, str]:
    other = _branch(pipeline, join.with_, pipeline.part(join.with_, stream=True), keeper)
    return taken(join.take, join.keys, other.end.columns)


def _shared(pipeline: PipelineSpec, union: Union, ours: Mapping[str, str],
            keeper: Callable[[PipelineSpec], str]) -> dict[str, str]:  # fmt: skip
    """Our columns without those, beginning with ``_``, that not all others have."""
    ends = [_branch(pipeline, name, pipeline.part(name, stream=True), keeper).end for name in union.inputs]
    there = [{name.lower() for name in end.columns} for end in ends]
    return {name: kind for name, kind in ours.items()
            if not name.startswith("_") or all(name.lower() in columns for columns in there)}  # fmt: skip


def _carried(rows: Rows, later: tuple[Transform, ...]) -> dict[str, str]:
    """The columns that reach a step with state, with their types."""
    read = {column for step in later for text in step.expressions() for column in sql.columns(text)}
    names = [name for name in rows.columns if name != TIME and (name not in _RAW or name in read)]
    return {name: rows.types.get(name, "") for name in names}


def _after(transform: Stateful, columns: Mapping[str, str], theirs: Mapping[str, str] | None, *,
           last: bool) -> dict[str, str]:  # fmt: skip
    time = {TIME: "timestamp"}
    if isinstance(transform, Window):
        known = {name.lower(): kind for name, kind in columns.items()}
        made = dict.fromkeys(transform.made, "timestamp")
        by = {name: known.get(name.lower(), "") for name in transform.by}
        return {**made, **by, **dict.fromkeys(transform.measures, ""), **({} if last else time)}
    untimed = isinstance(transform, Union) and last
    return {**columns, **dict.fromkeys(theirs or {}, ""), **({} if untimed else time)}
