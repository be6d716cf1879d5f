"""Steps that read other inputs: which names there are, what they need, and the columns that come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches

from lakehouse_engine import queries, sql
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import Columns, at, known_as, leaf, near, step_of, unsure
from lakehouse_engine.transforms import Cast, Check, Combining, Join, Lookup, Parse, Sql, Union
from lakehouse_engine.transforms.lookup import VALID
from lakehouse_engine.transforms.taken import taken


def inputs_are_there(spec: PipelineSpec) -> Iterator[Problem]:
    for place, step in spec.combining():
        for name in step.others:
            if "." not in name and name not in spec.inputs:
                known = [*spec.inputs, *([queries.INPUT] if isinstance(step, Sql) else [])]
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else (
                    "name one in inputs, or write a pipeline's <layer>.<name>")  # fmt: skip
                yield at(spec, leaf(spec, place, name, name), "UNKNOWN_INPUT", f"there is no input {name}; {hint}")


def inputs_are_used(spec: PipelineSpec) -> Iterator[Problem]:
    if any(isinstance(step, Unread) for step in spec.transforms):
        return
    used = {name for _, step in spec.combining() for name in step.others}
    for name in spec.inputs:
        if name not in used:
            yield at(spec, f"inputs.{name}", "UNUSED_INPUT", f"no step reads {name}: take it out, or name it in a"
                     " lookup, join, union or sql")  # fmt: skip


def an_input_is_a_stream_or_a_table(spec: PipelineSpec) -> Iterator[Problem]:
    for name in spec.inputs if spec.is_stream else ():
        kinds = {isinstance(step, Join | Union) for _, step in spec.combining() if name in step.others}
        if len(kinds) > 1:
            yield at(spec, f"inputs.{name}", "ILLEGAL_INPUT", f"{name} is a stream to join and union and a table to"
                     " lookup and sql: make it two inputs")  # fmt: skip


def tables_are_of_delta(spec: PipelineSpec) -> Iterator[Problem]:
    for name, one in spec.inputs.items():
        key, place = one.source.key, f"inputs.{name}.source"
        if key == "kafka" and not spec.streams(name):
            yield at(spec, place, "ILLEGAL_INPUT", f"{name} is read as a table, and a topic is none: land it with a"
                     " pipeline of its own, and name its table")  # fmt: skip
        elif key not in ("kafka", "delta", ""):
            yield at(spec, place, "NOT_YET", f"{key} as another input comes with a later version; make its rows a table"
                     " with a pipeline of its own")  # fmt: skip


def inputs_read_no_others(spec: PipelineSpec) -> Iterator[Problem]:
    for name, one in spec.inputs.items():
        for index, step in enumerate(one.transforms):
            if isinstance(step, Combining):
                yield at(spec, f"inputs.{name}.transforms[{index}].{step.key}", "NOT_YET", f"{step.key} within an input"
                         " comes with a later version; make it a pipeline of its own")  # fmt: skip


def combining_fits_streams_and_jobs(spec: PipelineSpec) -> Iterator[Problem]:
    for place, step in spec.combining():
        if spec.is_stream:
            yield from _in_a_stream(spec, place, step)
            continue
        if isinstance(step, Join) and step.within is not None:
            yield at(spec, f"{place}.within", "STREAM_ONLY", "within is for streams; a job sees all rows: leave it out")
        if isinstance(step, Lookup) and step.refresh is not None:
            yield at(spec, f"{place}.refresh", "STREAM_ONLY", "refresh is for streams; a job reads one version of the"
                     " table: leave it out")  # fmt: skip


def _in_a_stream(spec: PipelineSpec, place: str, step: Combining) -> Iterator[Problem]:
    if isinstance(step, Sql):
        yield at(spec, place, "JOB_ONLY", "sql is for jobs; a stream has the other steps")
        return
    if isinstance(step, Join) and step.within is None:
        yield at(spec, place, "MISSING_KEY", "within is missing: in a stream rows wait for each other, for how long?"
                 " e.g. within: {before: 0 minutes, after: 10 minutes}")  # fmt: skip
    if isinstance(step, Lookup) and step.on_change != "recompute":
        yield at(spec, f"{place}.on_change", "JOB_ONLY", "on_change is for jobs; a stream's rows keep what the table"
                 " said when they came")  # fmt: skip
    if isinstance(step, Lookup):
        one = spec.inputs.get(step.from_)
        for index, inner in enumerate(one.transforms if one else ()):
            if isinstance(inner, Parse | Cast | Check):  # nobody keeps what they refuse
                yield at(spec, f"inputs.{step.from_}.transforms[{index}].{inner.key}", "NOT_YET", f"{inner.key} in a"
                         " table that a stream looks up comes with a later version; make it a job")  # fmt: skip
        return


def all_streams_of_a_union_have_event_times(spec: PipelineSpec) -> Iterator[Problem]:
    """Or none: what comes after it knows the time of each row."""
    for index, step in enumerate(spec.transforms if spec.is_stream and not unsure(spec) else ()):
        if not isinstance(step, Union):
            continue
        ours = any(before.key == "watermark" for before in spec.transforms[:index])
        for name in step.inputs:
            other = spec.inputs.get(name)
            if other is None and "." not in name:
                continue  # it is not there, which is said elsewhere
            steps = other.transforms if other else ()
            theirs = any(one.key == "watermark" for one in steps)
            if ours == theirs or any(isinstance(one, Unread) for one in steps):
                continue
            if theirs:
                yield at(spec, f"inputs.{name}", "WATERMARK_MISSING", f"{name} has a watermark, and the rows that it is"
                         " added to have none: put one before the union, or take this one out")  # fmt: skip
            else:
                place = f"inputs.{name}" if other else leaf(spec, step_of(spec, index), name, name)
                yield at(spec, place, "WATERMARK_MISSING", f"{name} is added to rows that have an event time: put a"
                         " watermark among its own transforms" + ("" if other else f" (inputs: {{x: {{source: {name},"
                         " transforms: [...]}})"))  # fmt: skip


def joins_have_event_times(spec: PipelineSpec) -> Iterator[Problem]:
    """In a stream each side of a join needs a watermark before it."""
    seen = False
    for index, step in enumerate(spec.transforms if spec.is_stream and not unsure(spec) else ()):
        seen = seen or step.key == "watermark"
        if not isinstance(step, Join):
            continue
        place = step_of(spec, index)
        if not seen:
            yield at(spec, place, "WATERMARK_MISSING", "a join of streams needs a watermark before it, e.g."
                     " - watermark: {column: timestamp, delay: 2 minutes}")  # fmt: skip
        other = spec.inputs.get(step.with_)
        if "." in step.with_:
            yield at(spec, place, "WATERMARK_MISSING", f"{step.with_} has no watermark: make it one of inputs, with"
                     f" source: {step.with_} and a watermark in its transforms")  # fmt: skip
        elif other and not any(one.key == "watermark" or isinstance(one, Unread) for one in other.transforms):
            yield at(spec, f"inputs.{step.with_}", "WATERMARK_MISSING", f"{step.with_} is joined as a stream and needs"
                     " a watermark among its transforms")  # fmt: skip


RULES: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    inputs_are_there,
    inputs_are_used,
    an_input_is_a_stream_or_a_table,
    tables_are_of_delta,
    inputs_read_no_others,
    combining_fits_streams_and_jobs,
    joins_have_event_times,
    all_streams_of_a_union_have_event_times,
)


def after(step: Combining, columns: Columns | None, theirs: Mapping[str, Columns | None]) -> Columns | None:
    """The columns of the result; ``theirs``: those of each other input that is there. None: not known."""
    if isinstance(step, Sql):
        return queries.columns(step.query, columns)
    if columns is None:
        return None
    if isinstance(step, Union):
        sides = [theirs.get(name) for name in step.inputs]
        hidden = [name for name in columns if name.startswith("_") and any(s is None or name not in s for s in sides)]
        return {name: kind for name, kind in columns.items() if name not in hidden}
    other = theirs.get(step.others[0])
    if other is None and step.take is None:
        return None
    kinds = known_as(other or {})
    return columns | {name: kinds.get(their.lower(), "") for name, their in takes(step, other or {}).items()}


def takes(step: Lookup | Join, theirs: Iterable[str]) -> dict[str, str]:
    """New name to theirs, of the other side's columns ``theirs``."""
    return taken(step.take, step.keys, theirs, VALID if isinstance(step, Lookup) and step.as_of else ())


def problems(spec: PipelineSpec, place: str, step: Combining, columns: Columns,
             theirs: Mapping[str, Columns | None]) -> Iterator[Problem]:  # fmt: skip
    """What does not fit between our columns and those of the other inputs."""
    if isinstance(step, Union):
        for name in step.inputs:
            other = theirs.get(name)
            if other is not None:
                yield from _apart(spec, leaf(spec, place, name, name), name, columns, other)
    if not isinstance(step, Lookup | Join):
        return
    other = theirs.get(step.others[0])
    ours = known_as(columns)
    if other is not None:
        yield from _unknown(spec, place, step, other)
        for our, their in step.keys.items():
            one, two = ours.get(our.lower(), ""), known_as(other).get(their.lower(), "")
            if one and two and not sql.comparable(one, two):
                yield at(spec, leaf(spec, f"{place}.keys", our, our), "COLUMN_TYPE", f"{our} is {one} and {their} of"
                         f" {step.others[0]} is {two}; cast one of them")  # fmt: skip
    elif spec.is_stream and isinstance(step, Lookup) and step.take is None:
        yield at(spec, place, "MISSING_KEY", f"take is missing: which columns? Those of {step.from_} are not known"
                 " here")  # fmt: skip
    names = takes(step, other or {})
    for name in names:
        if name.lower() in ours:
            where = leaf(spec, f"{place}.take", name, name) if step.take is not None else place
            yield at(spec, where, "SAME_COLUMN", f"both sides have a column {name}: write take: {{another_name:"
                     f" {names[name]}}}, or rename ours")  # fmt: skip
    if isinstance(step, Lookup) and step.as_of and ours.get(step.as_of.lower(), "") not in ("", "timestamp", "date"):
        yield at(spec, f"{place}.as_of", "COLUMN_TYPE", f"{step.as_of} is {ours[step.as_of.lower()]}; when theirs must"
                 " be valid, a timestamp or a date says")  # fmt: skip


def _unknown(spec: PipelineSpec, place: str, step: Lookup | Join, theirs: Columns) -> Iterator[Problem]:
    known = known_as(theirs)
    asked = [("keys", name) for name in step.keys.values()]
    asked += [("take", name) for name in (step.take or {}).values()]
    asked += [("as_of", name) for name in VALID if isinstance(step, Lookup) and step.as_of]
    for key, name in asked:
        if name.lower() not in known:
            yield at(spec, leaf(spec, f"{place}.{key}", name, name), "UNKNOWN_COLUMN", f"{step.others[0]} has no column"
                     f" {name}; {near(name, theirs)}")  # fmt: skip


def _apart(spec: PipelineSpec, place: str, name: str, ours: Columns, theirs: Columns) -> Iterator[Problem]:
    """What two inputs of a union do not agree on."""
    here, there = ({n: k for n, k in known_as(side).items() if not n.startswith("_")} for side in (ours, theirs))
    for missing in sorted(here.keys() - there.keys()):
        yield at(spec, place, "COLUMNS_DIFFER", f"{name} has no column {missing}, which the rows so far have: derive it"
                 " there, or drop it here")  # fmt: skip
    for more in sorted(there.keys() - here.keys()):
        yield at(spec, place, "COLUMNS_DIFFER", f"{name} has a column {more}, which the rows so far have not: drop it"
                 " there, or derive it here")  # fmt: skip
    for both in sorted(here.keys() & there.keys()):
        if here[both] and there[both] and here[both] != there[both]:
            yield at(spec, place, "COLUMN_TYPE", f"{both} is {here[both]} in the rows so far and {there[both]} in"
                     f" {name}; cast one of them")  # fmt: skip
