"""What files mean, checked without Spark: each alone with what it reads, then what only shows between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Delta, Files, Jdbc, Postgres
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec import further
from lakehouse_engine.spec.columns import Walk
from lakehouse_engine.spec.further import branches
from lakehouse_engine.spec.pipeline import MAINTENANCE, SERVING_LAYER, SERVING_TASK, PipelineSpec
from lakehouse_engine.spec.problems import (
    Columns,
    Upstream,
    at,
    nobody,
    step_of,
)
from lakehouse_engine.spec.rules import ONE, SINK, STEPS
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.transforms import Lookup, Union


def check_one(spec: PipelineSpec, upstream: Upstream) -> list[Problem]:
    """Everything that one file, with what it reads, can get wrong."""
    problems = [problem for rule in ONE for problem in rule(spec)]
    refused = {one.path for one in problems if one.code == "NOT_YET"}
    parts = [part for number, part in enumerate(branches(spec), 1) if f"sink[{number}]" not in refused]
    problems += [problem for part in parts for rule in SINK for problem in rule(part)]
    for name in spec.inputs:
        part = spec.part(name, stream=spec.streams(name))
        problems += [problem for rule in STEPS for problem in rule(part)]
    walk = Walk(spec, upstream)
    walk.result()
    others = (*_history(spec, upstream), *_deleted(spec, upstream), *_followed(spec, upstream),
              *_of_others(spec, upstream))  # fmt: skip
    return problems + walk.problems + [*others]


def _streamed(spec: PipelineSpec) -> Iterator[tuple[str, DeltaSource]]:
    """The tables that a stream reads as streams, each with its place in the file."""
    parts = [("source", spec.source)] if spec.is_stream else []
    parts += [(f"inputs.{name}", one.source) for name, one in spec.inputs.items() if spec.streams(name)]
    for place, step in spec.combining() if spec.is_stream else ():
        parts += [(place, DeltaSource(table=name)) for name in step.others if "." in name and isinstance(step, Union)]
    for place, source in parts:
        if isinstance(source, DeltaSource):
            yield place, source


def _followed(spec: PipelineSpec, upstream: Upstream) -> Iterator[Problem]:
    """A stream over a table: what columns it has must show, and that its rows stay as they were added."""
    for place, source in _streamed(spec):
        owner = upstream.find(source.table, spec.file)
        if owner is None or not (owner.complete and spec.complete):
            if owner is None and source.table not in upstream.names(spec.file):
                yield at(spec, place, "MISSING_TABLE", f"no pipeline here writes {source.table}: a stream over a table"
                         " needs the file of its pipeline, which says what columns it has")  # fmt: skip
            continue
        if not isinstance(owner.sink, Delta):
            continue
        if output_columns(owner, upstream) is None:
            yield at(spec, place, "UNKNOWN_COLUMNS", f"what columns {source.table} has does not show in its file: end"
                     " its steps with a select")  # fmt: skip
        if not source.changes and source.rewrites == "fail" and (owner.merges or not owner.is_stream):
            how = f"with mode {owner.sink.mode}" if owner.merges else "by a job, anew"
            yield at(spec, place, "ILLEGAL_INPUT", f"{source.table} is written {how}, so rows change under the stream:"
                     f" read what changes ({{delta: {{table: {source.table}, changes: true}}}}), or say rewrites:"
                     " ignore to pass over such commits")  # fmt: skip


def with_tables(spec: PipelineSpec, upstream: Upstream) -> PipelineSpec:
    """A stream knows the columns of the tables that it reads as streams: its own stay the same."""
    have: dict[str, Columns] = {}
    for _, source in _streamed(spec):
        owner = upstream.find(source.table, spec.file)
        columns = output_columns(owner, upstream) if owner is not None else None
        have[source.table] = {name: kind for name, kind in (columns or {}).items() if name != "updated_at"}
    return spec.model_copy(update={"tables_have": have}) if have else spec


def with_taken(spec: PipelineSpec, upstream: Upstream) -> PipelineSpec:
    """A stream's lookups that take all take the columns that their tables have now: its own stay the same."""
    open_ends = [place for place, step in spec.combining() if isinstance(step, Lookup) and step.take is None]
    if not (spec.is_stream and open_ends):
        return spec
    walk = Walk(spec, upstream)
    walk.result()
    steps = [step.model_copy(update={"take": walk.taken[place]}) if place in open_ends else step
             for place, step in ((step_of(spec, i), step) for i, step in enumerate(spec.transforms))]  # fmt: skip
    return spec.model_copy(update={"transforms": tuple(steps)})


def output_columns(spec: PipelineSpec, upstream: Upstream) -> Columns | None:
    """What the pipeline's table holds, by name and Spark type ('' unknown); None when its source cannot be known."""
    return Walk(spec, upstream).result()


def _history(spec: PipelineSpec, upstream: Upstream) -> Iterator[Problem]:
    source = spec.source
    if not isinstance(source, Kafka) or source.history is None:
        return
    lander = upstream.find(source.history, spec.file)
    if lander is None:
        yield from nobody(spec, "source.kafka.history", source.history, upstream)
        return
    if not (spec.complete and lander.complete):
        return  # what it is is not known, and is said there
    lands = isinstance(lander.source, Kafka) and lander.source.origin == source.origin
    lands = lands and isinstance(lander.sink, Delta) and not (lander.merges or lander.deletes_from)
    if not lands or lander.parsed != spec.parsed:
        yield at(spec, "source.kafka.history", "BAD_HISTORY", f"{source.history} does not land {source.origin} with the"
                  " same contract")  # fmt: skip


def _deleted(spec: PipelineSpec, upstream: Upstream) -> Iterator[Problem]:
    """The table that rows are deleted from: another pipeline's, in Delta, with the keys."""
    table = spec.deletes_from
    if table is None:
        return
    owner, place = upstream.find(table, spec.file), "sink.delta.table"
    if owner is None:
        yield from nobody(spec, place, table, upstream)
        return
    if owner.complete and (owner.deletes_from or not isinstance(owner.sink, Delta)):
        kind = "asks for rows to be deleted itself" if owner.deletes_from else f"writes to {owner.sink.key}"
        yield at(spec, place, "MISSING_TABLE", f"{table} {kind}; mode: delete deletes from tables of Delta")
        return
    if owner.complete and owner.is_stream and needs_state(owner):
        yield at(spec, place, "NOT_YET", f"{table} is written by a stream on Spark's state ({needs_state(owner)}), from"
                 " which deleting comes with a later version")  # fmt: skip
        return
    theirs, ours = Walk(owner, upstream).result(), Walk(spec, upstream).result()
    if theirs is None:
        return
    place = "keys" if spec.keys else place
    for name in spec.key_columns:
        their, our = theirs.get(name), (ours or {}).get(name, "")
        if their is None:
            yield at(spec, place, "UNKNOWN_COLUMN", f"{table} has no column {name}; keys are"
                     f" columns of both: there are {', '.join(sorted(theirs))}")  # fmt: skip
        elif their != our and their and our:
            yield at(spec, place, "COLUMN_TYPE", f"{name} is {our} here and {their} in {table}; cast it")  # fmt: skip


def _of_others(spec: PipelineSpec, upstream: Upstream) -> Iterator[Problem]:
    """A further table of Delta that another file is the pipeline of, whether or not that file is looked at now."""
    for number, one in enumerate(spec.further, 1):
        name = one.sink.target(spec.name)
        if isinstance(one.sink, Delta) and name != spec.name and name in upstream.names(spec.file):
            yield at(spec, further.place(number), "SAME_TABLE", f"{name} is another pipeline's table")


def one_table_has_one_writer(specs: Sequence[PipelineSpec]) -> Iterator[Problem]:
    """With ``mode: delete`` a pipeline writes a table of its own; the other's writer reads it."""
    writers: dict[tuple[str, str], str] = {}
    own = {spec.name for spec in specs}
    for spec in specs:
        tables = [(f"{sink.key} {sink.connection}" if isinstance(sink, Jdbc) else sink.key, sink.target(spec.name),
                   further.place(number))
                  for number, sink in enumerate(spec.sinks) if isinstance(sink, Postgres | Jdbc | Files) or (
                      # that it is another pipeline's table is said already
                      isinstance(sink, Delta) and number and sink.target(spec.name) not in own)]  # fmt: skip
        if spec.serve:
            tables.append(("postgres", spec.name, "serve"))
        for key, table, place in tables:
            if writers.get((key, table), spec.name) != spec.name:  # of one pipeline it is said there
                yield at(spec, place, "SAME_TABLE", f"{writers[key, table]} writes {key} {table} as well")
            writers.setdefault((key, table), spec.name)


def jobs_form_no_cycle(specs: Sequence[PipelineSpec]) -> Iterator[Problem]:
    reads: Mapping[str, tuple[str, ...]] = {s.name: s.reads for s in specs}

    def way(name: str, to: str, seen: tuple[str, ...]) -> tuple[str, ...] | None:
        """The tables from one to another, each of which the one before it reads."""
        for table in reads.get(name, ()):
            if table == to:
                return (*seen, to)
            found = None if table in seen else way(table, to, (*seen, table))
            if found is not None:
                return found
        return None

    for spec in specs:
        found = way(spec.name, spec.name, (spec.name,))
        if found is not None:
            yield at(spec, spec.tables[found[1]], "CYCLE", " reads ".join(found))


def tasks_have_names_of_their_own(specs: Sequence[PipelineSpec]) -> Iterator[Problem]:
    """In its DAG a job's name is neither another one's nor that of a group or task that is added there."""
    jobs = [spec for spec in specs if not spec.is_stream]
    added = {SERVING_TASK, SERVING_LAYER, *(spec.layer for spec in jobs)}
    taken: dict[tuple[str, str], str] = {}
    for spec in jobs:
        if spec.airflow.dag == MAINTENANCE:
            yield at(spec, "airflow.dag", "SAME_TASK", f"{MAINTENANCE} is the DAG that maintains all tables")
        name = (spec.airflow.dag, spec.task_id)
        if name in taken or spec.task_id in added:
            other = f"is {taken[name]}'s" if name in taken else "is what the engine adds to every DAG"
            yield at(spec, "airflow.task_id", "SAME_TASK", f"the task {spec.task_id} of {name[0]} {other}")
        taken.setdefault(name, spec.name)


SET: tuple[Callable[[Sequence[PipelineSpec]], Iterable[Problem]], ...] = (
    one_table_has_one_writer,
    jobs_form_no_cycle,
    tasks_have_names_of_their_own,
)


def check_all(specs: Sequence[PipelineSpec]) -> list[Problem]:
    """What only shows between files."""
    return [problem for rule in SET for problem in rule(specs)]
