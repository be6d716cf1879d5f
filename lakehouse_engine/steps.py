"""Row-wise steps of a pipeline, one after the other, as one symbolic row. What does not fit is said at file:line."""

from __future__ import annotations

from lakehouse_engine import sql
from lakehouse_engine.checks import RowCheck, TableCheck, judge
from lakehouse_engine.errors import Problem
from lakehouse_engine.rows import QUARANTINED, Rows, Verdict
from lakehouse_engine.sinks import Delta
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Files, Judged, Kafka, Rate, files, kafka, rate, versions
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Aggregate, Combining, Dedupe, Lookup, Parse, RowWise, Watermark, Window
from lakehouse_engine.transforms.watermark import EVENT_TIME

#: where a state that does not say since when is refused
VALID_FROM = "sink.delta.valid_from"


class StepError(ValueError):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def row_wise(spec: PipelineSpec, rows: Rows, transform: RowWise | Lookup, step: str, view: str = "") -> Rows:
    """``step`` is its place in the spec, or in the part of one that an input is; ``view``: the copy that it reads."""
    place = f"{spec.below}{step}"
    try:
        if isinstance(transform, Lookup):
            return transform.row(rows, place, view)
        if isinstance(transform, Parse):
            return transform.row(rows, place, spec.contracts[transform.reads_by])
        return transform.row(rows, place)
    except ValueError as error:  # a column or an expression that does not fit the rows
        file, _, line = spec.where(step).rpartition(":")
        code = str(getattr(error, "code", "BAD_EXPRESSION"))
        raise StepError(Problem(file, int(line), code, str(error))) from error


def as_read(spec: PipelineSpec, rows: Rows) -> Rows | None:
    """The rows of a source that has a contract, judged by it; None where the source has none."""
    source = spec.source
    if not isinstance(source, Judged):
        return None
    return row_wise(spec, rows, Parse(contract=source.contract), f"source.{source.key}")


def streamed(spec: PipelineSpec) -> Rows:
    """A stream's rows as they come: the records of a topic, the lines of files as their contract judges them, the rows
    of a table, or those that are made."""
    source = spec.source
    if isinstance(source, Kafka):
        return Rows.identity(kafka.COLUMNS)
    if isinstance(source, Rate):
        return Rows.identity(rate.COLUMNS)
    if isinstance(source, Files):
        return as_read(spec, Rows.identity(files.COLUMNS)) or Rows.identity(files.COLUMNS)
    assert isinstance(source, DeltaSource)
    columns = versions.columns_of(source, spec.tables_have[source.table])
    return Rows({name: sql.name(versions.own(name)) for name in columns}, columns)


def row_step(spec: PipelineSpec, rows: Rows, index: int) -> Rows:
    """A job's row-wise step."""
    transform = spec.transforms[index]
    assert not isinstance(transform, Window | Aggregate | Dedupe | Combining)
    step = f"transforms[{index}].{transform.key}"
    if not isinstance(transform, Watermark):
        return row_wise(spec, rows, transform, step)
    slices = isinstance(spec.sink, Delta) and spec.sink.replace_by
    rows = transform.row(rows, f"{spec.below}{step}", None if slices else "current_timestamp()")
    return rows.with_columns({EVENT_TIME: transform.column})


def with_checks(rows: Rows, spec: PipelineSpec) -> Rows:
    """The row checks of ``checks`` as one step."""
    checks = [(f"checks[{i}]", check) for i, check in enumerate(spec.checks) if isinstance(check, RowCheck)]
    rows = judge(rows, checks, "checks")
    if not (isinstance(spec.sink, Delta) and spec.sink.valid_from):
        return rows
    column = spec.sink.valid_from
    reasons = f"array({sql.string(f'{column} is null: from when on is this valid?')})"
    return rows.refuse(Verdict(VALID_FROM, QUARANTINED, f"({rows.resolve(column)}) is null", reasons))


def table_checks(spec: PipelineSpec) -> list[tuple[str, TableCheck]]:
    """Each with its place in the file."""
    return [(f"checks[{i}]", check) for i, check in enumerate(spec.checks) if isinstance(check, TableCheck)]
