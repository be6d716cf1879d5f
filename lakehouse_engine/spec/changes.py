"""Pipelines over what changes in a table: each change comes once, so what needs all rows has no place here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lakehouse_engine.checks import TableCheck
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Delta
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at, step_of
from lakehouse_engine.transforms import Aggregate, Combining, Dedupe


def changes_are_merged(spec: PipelineSpec) -> Iterator[Problem]:
    """In a job: recomputing a table from changes would need all of them, and the log forgets."""
    if not spec.reads_changes or spec.is_stream:
        return
    source, sink = spec.source, spec.sink
    assert isinstance(source, DeltaSource)
    if source.as_of is not None:
        yield at(spec, "source.delta.as_of", "ILLEGAL_INPUT", "changes have no moment: leave as_of or changes out")
    if not (spec.merges or spec.deletes_from or isinstance(sink, Unread)):
        place = f"sink.{sink.key}.mode" if f"sink.{sink.key}.mode" in spec.lines else "sink"
        yield at(spec, place, "ILLEGAL_MODE", "a job over changes writes into delta with mode upsert, scd2 or delete:"
                 " each change comes once, and a table that is computed anew would need them all")  # fmt: skip


def changes_go_row_by_row(spec: PipelineSpec) -> Iterator[Problem]:
    if not spec.reads_changes or spec.is_stream:
        return
    for index, step in enumerate(spec.transforms):
        if isinstance(step, Aggregate | Dedupe | Combining):
            yield at(spec, step_of(spec, index), "ILLEGAL_INPUT", f"{step.key} looks at many rows, and a run over"
                     " changes sees the new ones alone: write the table first, and another job over it")  # fmt: skip
    for index, check in enumerate(spec.checks):
        if isinstance(check, TableCheck):
            yield at(spec, f"checks[{index}]", "BAD_CHECK", f"{check.key} judges a whole result, and a run over changes"
                     " sees the new rows alone")  # fmt: skip


def inputs_are_no_changes(spec: PipelineSpec) -> Iterator[Problem]:
    for name, one in spec.inputs.items():
        if isinstance(one.source, DeltaSource) and one.source.changes:
            yield at(spec, f"inputs.{name}", "ILLEGAL_INPUT", f"{name} is read whole; changes are for the source of a"
                     " pipeline")  # fmt: skip


def merged_rows_come_once(spec: PipelineSpec) -> Iterator[Problem]:
    """A job over a table computes its result anew: what left the table must leave the result."""
    if spec.is_stream or not isinstance(spec.sink, Delta) or isinstance(spec.source, Unread) or spec.reads_changes:
        return
    if spec.deletes_from:
        yield at(spec, "sink.delta.mode", "ILLEGAL_MODE", "a job over a whole table would ask for the same rows again"
                 " at each run: read its changes (source: {delta: {table: ..., changes: true}})")  # fmt: skip
    if spec.merges:
        yield at(spec, "sink.delta.mode", "ILLEGAL_MODE", f"a job over a whole table writes with mode replace, not"
                 f" {spec.sink.mode}: rows that leave the table would stay in the result; read its changes (source:"
                 " {delta: {table: ..., changes: true}}), or keep the newest row with dedupe")  # fmt: skip


RULES: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    changes_are_merged,
    changes_go_row_by_row,
    inputs_are_no_changes,
    merged_rows_come_once,
)
