"""What a stream may say of steps with state: each has a bound, and Spark must be able to chain them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from lakehouse_engine import sql
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Postgres
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at, some_unread, step_of, unsure
from lakehouse_engine.transforms import Cast, Check, Dedupe, Join, Lookup, Parse, Union, Window

#: steps of a stream that keep state, and the one that puts streams together
STATEFUL = ("dedupe", "window", "join", "union")


def needs_state(spec: PipelineSpec) -> str:
    """Why a stream is a query of its own on Spark's state: the first step that asks for it; '' for none."""
    for index, step in enumerate(spec.transforms):
        if isinstance(step, Dedupe | Join):
            return f"{step.key} keeps rows or keys"
        if isinstance(step, Union):
            return "union reads several streams"
        if isinstance(step, Window):
            if not step.merges:
                other = next(name for name, text in step.measures.items() if not sql.merges(text))
                return f"the measure {other} does not merge"
            if not isinstance(spec.sink, Postgres):
                return f"a window into {spec.sink.key} is kept by Spark until it is over"
            if index < len(spec.transforms) - 1 or spec.checks:
                return "steps or checks follow the window"
            if any(before.key == "explode" for before in spec.transforms[:index]):
                return "a record of exploded rows may be in many windows"
    return ""


def ends_in_windows(spec: PipelineSpec) -> bool:
    """Whether the rows of the result are windows: no later step with state makes others of them."""
    states = [step.key for step in spec.transforms if step.key in STATEFUL]
    return states[-1:] == ["window"]


def dedupe_has_a_bound(spec: PipelineSpec) -> Iterator[Problem]:
    """A key that is kept for ever is a disk that fills."""
    seen = False
    for index, step in enumerate(spec.transforms if spec.is_stream else ()):
        seen = seen or step.key == "watermark"
        if isinstance(step, Dedupe) and not seen and not unsure(spec):
            yield at(spec, step_of(spec, index), "WATERMARK_MISSING", "a stream's dedupe knows a key for the"
                     " watermark's delay and needs one before it, e.g. - watermark: {column: timestamp, delay: 1 hour}")


def dedupe_keeps_the_first(spec: PipelineSpec) -> Iterator[Problem]:
    for index, step in enumerate(spec.transforms if spec.is_stream else ()):
        if not isinstance(step, Dedupe):
            continue
        for key, said in (("keep", step.keep != "first"), ("order_by", bool(step.order_by))):
            if said:
                yield at(spec, f"{step_of(spec, index)}.{key}", "JOB_ONLY", "a stream keeps the row that arrives first;"
                         f" {key} is for jobs")  # fmt: skip


def watermarks_stand_before_the_state(spec: PipelineSpec) -> Iterator[Problem]:
    before: str | None = None
    for index, step in enumerate(spec.transforms if spec.is_stream else ()):
        if step.key == "watermark" and before is not None:
            said = f"the watermark stands after {before}, which needs it: move it up"
            if before == "union":
                said = "rows of several streams come together in union: each has its own watermark, before it"
            yield at(spec, step_of(spec, index), "WATERMARK_MISSING", said)
        if step.key in STATEFUL:
            before = before or step.key


def chains_are_possible(spec: PipelineSpec) -> Iterator[Problem]:
    """What Spark refuses, or would answer wrongly, where one step with state follows another.

    A stream's input goes into a join.
    """
    if not spec.is_stream:
        return
    states = [index for index, step in enumerate(spec.transforms) if step.key in STATEFUL]
    ends = [*states, len(spec.transforms)] if spec.below and states else states
    last = spec.transforms[states[-1]] if states else None
    if isinstance(last, Window) and not last.final:
        for step in (spec.transforms[index] for index in states[:-1]):
            if (isinstance(step, Window) and step.final) or (isinstance(step, Join) and step.how in ("left", "right")):
                late = "a window that is over" if isinstance(step, Window) else "a row that matches nothing"
                name = f"a {step.how} join" if isinstance(step, Join) else "a window"
                yield at(spec, step_of(spec, states[-1]), "ILLEGAL_CHAIN", f"after {name} a window is sent once: {late}"
                         " comes late. Say emit: final")  # fmt: skip
                break
    for index, following in pairwise(ends):
        step, place = spec.transforms[index], step_of(spec, index)
        after = spec.transforms[following] if following < len(spec.transforms) else None
        name = after.key if after else "a join"
        if isinstance(step, Window) and not step.final:
            yield at(spec, place, "ILLEGAL_CHAIN", f"{name} after a window would see it again on each change: say"
                     " emit: final in the window")  # fmt: skip
        if isinstance(step, Join) and step.how == "full":
            yield at(spec, f"{place}.how", "ILLEGAL_CHAIN", f"{name} after a full join meets rows without event"
                     " time: join left or right, or end with the join")  # fmt: skip
        for between in range(index + 1, following):  # a row that is refused there is in no result, and no record
            refusing = spec.transforms[between]
            if isinstance(refusing, Parse | Cast | Check):
                yield at(spec, step_of(spec, between), "ILLEGAL_CHAIN", f"{refusing.key} between {step.key} and {name}"
                         " could not keep aside what it refuses: put it before the first of them, or after the"
                         " last")  # fmt: skip


def _topics_have_one_reader(spec: PipelineSpec, why: str) -> Iterator[Problem]:
    """A pipeline has one position in a topic; a topic that comes later is not known to a plan that Spark keeps."""
    read: list[tuple[Kafka, set[str]]] = []
    for part in (spec, *(spec.part(name, stream=True) for name in spec.inputs)):
        source = part.source
        if not isinstance(source, Kafka):
            continue
        if source.pattern is not None:
            yield at(part, "source.kafka.pattern", "NOT_YET", f"a pattern, in a stream on Spark's state ({why}), comes"
                     " with a later version: say topics")  # fmt: skip
        names = {*(source.topics or ()), *([source.topic] if source.topic is not None else [])}
        for other, theirs in read:
            both = names & theirs
            if both and names != theirs and other.connection == source.connection:
                yield at(part, "source", "NOT_YET", f"{', '.join(sorted(both))} is read by another input as well, and"
                         " not the same topics: in a stream on Spark's state that comes with a later version")
        read.append((source, names))


def state_ends_where_it_can(spec: PipelineSpec) -> Iterator[Problem]:
    if not spec.is_stream or isinstance(spec.sink, Unread):
        return
    why = needs_state(spec)
    if not why:
        return
    sink = spec.sink
    yield from _topics_have_one_reader(spec, why)
    if spec.deletes_from:
        yield at(spec, "sink.delta.mode", "NOT_YET", f"mode: delete of a stream on Spark's state ({why}) comes with a"
                 " later version: append to a table, and delete by that in a job")  # fmt: skip
    upserts = isinstance(sink, Postgres) and sink.mode in (None, "upsert") and ends_in_windows(spec)
    if upserts and not spec.key_columns and not some_unread(spec):
        yield at(spec, "sink", "MISSING_KEY", "the steps after the window drop what tells its rows apart: say it in"
                 " keys, or add each window once (emit: final and mode: append)")  # fmt: skip
    for index, step in enumerate(spec.transforms):
        if isinstance(step, Window) and step.column is not None:
            yield at(spec, f"{step_of(spec, index)}.column", "NOT_YET", f"another column than the watermark's, in a"
                     f" window of a stream on Spark's state ({why}), comes with a later version: put the watermark on"
                     f" {step.column}")  # fmt: skip
    last = max((index for index, step in enumerate(spec.transforms) if step.key in STATEFUL), default=-1)
    for index, step in enumerate(spec.transforms[: last + 1]):
        if isinstance(step, Lookup):
            yield at(spec, step_of(spec, index), "NOT_YET", f"lookup before {spec.transforms[last].key}, in a stream on"
                     f" Spark's state ({why}), comes with a later version; put it after the last such step, if it"
                     " can")  # fmt: skip


def what_ends_begins_at_a_time(spec: PipelineSpec) -> Iterator[Problem]:
    if spec.ends and spec.schedule == "upstream" and not spec.reads:
        yield at(spec, "schedule", "BAD_SCHEDULE", "no job writes what this stream reads: say hourly, daily or a cron"
                 " line")  # fmt: skip


#: of inputs too
STEPS: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    dedupe_has_a_bound,
    dedupe_keeps_the_first,
    watermarks_stand_before_the_state,
    chains_are_possible,
)
