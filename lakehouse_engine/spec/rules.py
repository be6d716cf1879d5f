"""What one file may not say, decided by its typed keys alone: a literal list of small functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lakehouse_engine import queries, sql
from lakehouse_engine.checks import Freshness, Relationship, RowCount, TableCheck, Unique
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Console, Delta, Postgres, Unkept
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Files as FileSource
from lakehouse_engine.sources import Kafka as Topic
from lakehouse_engine.sources import Rate
from lakehouse_engine.spec import cells, changes, combining, modes, sinks, streaming
from lakehouse_engine.spec.event_time import measures_of_streams, watermark_once_and_before_window
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import (
    LANDED,
    at,
    leaf,
    some_unread,
    step_of,
    unsure,
)
from lakehouse_engine.transforms import (
    Aggregate,
    Cast,
    Check,
    Derive,
    Drop,
    Explode,
    Rename,
    Sql,
    Window,
)

CLOCKS = {"now", "current_timestamp", "current_date", "localtimestamp", "curdate"}


def source_fits(spec: PipelineSpec) -> Iterator[Problem]:
    if isinstance(spec.source, DeltaSource):
        yield from _table_fits(spec, spec.source)
    if isinstance(spec.source, Rate) and (not spec.is_stream or spec.ends):
        yield at(spec, "source", "STREAM_ONLY", "rate makes rows while it runs, and never ends: say trigger: {every:"
                 " 1 second}")  # fmt: skip
    if isinstance(spec.source, FileSource):
        yield from _files_fit(spec, spec.source)
    if spec.is_stream and spec.source.key == "jdbc":
        yield at(spec, "source", "ILLEGAL_SOURCE", "a database does not tell what is new in a table; give the"
                 " pipeline a schedule")  # fmt: skip
    source = spec.source
    if not isinstance(source, Topic) or spec.below:
        return
    missing = [key for key in ("start", "end") if key not in source.model_fields_set]
    if not spec.is_stream and missing:
        yield at(spec, "source", "MISSING_KEY", f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing: a"
                 " job reads a topic from one time, or offset, to another; a stream has a trigger")  # fmt: skip
    if spec.is_stream and source.end is not None:
        yield at(spec, "source.kafka.end", "ILLEGAL_SOURCE", "a stream has no end; end is for jobs")
    if not spec.is_stream and source.history is not None:
        yield at(spec, "source.kafka.history", "ILLEGAL_SOURCE", "a job keeps what it refuses itself; history is for"
                 " streams")  # fmt: skip
    times = [one for one in (source.start, source.end) if isinstance(one, str) and one[:1].isdigit()]
    if len(times) > 1 and times[0] >= times[1]:
        yield at(spec, "source.kafka.end", "BAD_TIME", "end is not after start")
    if source.end == "earliest" or (source.start == "latest" and not spec.is_stream):
        yield at(spec, "source.kafka", "BAD_TIME", "there is nothing between start and end")


def _files_fit(spec: PipelineSpec, source: FileSource) -> Iterator[Problem]:
    why = streaming.needs_state(spec) or ("another input" if spec.below else "")
    if spec.is_stream and why:
        yield at(spec, "source", "NOT_YET", f"files as a stream on Spark's state ({why}) come with a later version:"
                 " land them in a table of delta, and read that")  # fmt: skip
    if not spec.is_stream and "rewrites" in source.model_fields_set:
        yield at(spec, "source.files.rewrites", "STREAM_ONLY", "rewrites is for streams; a job reads the files as they"
                 " are: leave it out")  # fmt: skip


def _table_fits(spec: PipelineSpec, source: DeltaSource) -> Iterator[Problem]:
    place = "source.delta"
    if not spec.is_stream:
        for key in ("start", "rewrites"):
            if key in source.model_fields_set:
                yield at(spec, f"{place}.{key}", "STREAM_ONLY", f"{key} is for streams; a job reads one version of the"
                         " table: leave it out")  # fmt: skip
        return
    if source.as_of is not None:
        yield at(spec, f"{place}.as_of", "JOB_ONLY", "as_of is one version of the table, for jobs; a stream goes on"
                 " with what is added: leave it out")  # fmt: skip
    if source.changes and "rewrites" in source.model_fields_set:
        yield at(spec, f"{place}.rewrites", "ILLEGAL_INPUT", "with changes: true each rewritten row is a change of its"
                 " own: leave rewrites out")  # fmt: skip
    why = streaming.needs_state(spec) or ("another input" if spec.below else "")
    if why and source.changes:
        yield at(spec, f"{place}.changes", "NOT_YET", f"what changes in a table as a stream on Spark's state ({why})"
                 " comes with a later version")  # fmt: skip
    explode = next((index for index, step in enumerate(spec.transforms) if step.key == "explode"), None)
    if why and explode is not None:
        yield at(spec, step_of(spec, explode), "NOT_YET", f"explode of a table's rows in a stream on Spark's state"
                 f" ({why}) comes with a later version; do it in a pipeline of its own")  # fmt: skip


def steps_fit_streams_and_jobs(spec: PipelineSpec) -> Iterator[Problem]:
    for index, transform in enumerate(spec.transforms):
        place = step_of(spec, index)
        if spec.is_stream and isinstance(transform, Aggregate):
            yield at(spec, place, "JOB_ONLY", "aggregate is for jobs; a stream has window")
        if isinstance(transform, Window) and not spec.is_stream and "emit" in transform.model_fields_set:
            yield at(spec, f"{place}.emit", "BAD_WINDOW", "emit is for streams; a job writes whole windows")


def _once(spec: PipelineSpec, index: int) -> bool:
    """Whether a window is sent once, or may be meant to be."""
    window, said = spec.transforms[index], spec.lines.get(f"{step_of(spec, index)}.emit")
    return not isinstance(window, Window) or window.final or (said is not None and said.value != "updates")


def sink_fits(spec: PipelineSpec) -> Iterator[Problem]:
    windowed = spec.is_stream and streaming.ends_in_windows(spec)
    sink = spec.sink
    if isinstance(sink, Unread) or unsure(spec):
        return
    if isinstance(sink, Console):
        return
    if spec.serve and not isinstance(sink, Delta):
        yield at(spec, "serve", "ILLEGAL_SERVE", "serve copies a job's Delta table; this pipeline has none")
    if isinstance(sink, Unkept):
        return
    final = any(t.key == "window" and _once(spec, index) for index, t in enumerate(spec.transforms))
    window = ("append",) if isinstance(sink, Delta) else ("upsert", "append") if final else ("upsert",)
    rowwise = ("append", "upsert", "scd2", "delete") if isinstance(sink, Delta) else ("append", "upsert")
    jobs = ("replace", "upsert", "scd2", "delete") if isinstance(sink, Delta) else ("replace",)
    allowed = window if windowed else rowwise if spec.is_stream else jobs
    if isinstance(sink, Delta) and windowed and not final:
        yield at(spec, "sink", "ILLEGAL_MODE", "a Delta table takes a window once, when it is over: say emit: final in"
                 " the window, or use postgres")  # fmt: skip
    elif sink.mode is not None and sink.mode not in allowed:
        kind = "a stream with a window" if windowed else "a stream" if spec.is_stream else "a job"
        hint = "; a window that is added once needs emit: final" if windowed and sink.mode == "append" else ""
        either = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
        yield at(spec, f"sink.{sink.key}.mode", "ILLEGAL_MODE", f"{kind} into {sink.key} writes with mode {either}, not"
                  f" {sink.mode}{hint}")  # fmt: skip
    yield from modes.merges(spec, sink, windowed=windowed)
    if isinstance(sink, Delta):
        yield from modes.deletes(spec, sink)
    if isinstance(sink, Delta) and sink.replace_by and spec.is_stream:
        yield at(spec, "sink.delta.replace_by", "ILLEGAL_MODE", "replace_by is for jobs; a stream appends")
    if spec.serve and spec.is_stream and isinstance(sink, Delta):
        yield at(spec, "serve", "ILLEGAL_SERVE", "serve copies a job's Delta table; this pipeline has none")


def layouts_exclude_each_other(spec: PipelineSpec) -> Iterator[Problem]:
    """A table is partitioned (and may be z-ordered within) or clustered."""
    sink, order = spec.sink, spec.maintain.zorder_by
    if not isinstance(sink, Delta):
        if order:
            yield at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", "only a Delta table has a layout")
        return
    if sink.cluster_by and sink.partition_by:
        yield at(spec, "sink.delta.cluster_by", "ILLEGAL_LAYOUT", "a table is partitioned or clustered, not both")
    if sink.cluster_by and order:
        yield at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", "a clustered table is in order already; keep one")
    for name in order:
        if name in sink.partition_by:
            yield at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", f"{name} is a partition column: all rows of a"
                      " partition have the same")  # fmt: skip


def windows_alone_grow_old(spec: PipelineSpec) -> Iterator[Problem]:
    windows = spec.is_stream and isinstance(spec.sink, Postgres) and spec.time_column == "window_start"
    if spec.maintain.rows_after is not None and not windows:
        yield at(spec, "maintain.rows_after", "ILLEGAL_RETENTION", "only a stream's windows in postgres are deleted by"
                 " their age; of other rows nobody knows it")  # fmt: skip


def slices_do_not_depend_on_the_clock(spec: PipelineSpec) -> Iterator[Problem]:
    if spec.is_stream or not (isinstance(spec.sink, Delta) and spec.sink.replace_by):
        return
    asked = [(step_of(spec, index), step.expressions()) for index, step in enumerate(spec.transforms)]
    asked += [(f"checks[{index}]", check.expressions()) for index, check in enumerate(spec.checks)]
    for place, step in spec.combining():
        if isinstance(step, Sql) and queries.calls(step.query) & CLOCKS:
            yield at(spec, place, "UNSTABLE_EXPRESSION", "the query: with replace_by a slice is recomputed at other"
                     " times; the clock would make it another one")  # fmt: skip
    for place, expressions in asked:
        for text in expressions:
            if sql.calls(text) & CLOCKS:
                yield at(spec, leaf(spec, place, text), "UNSTABLE_EXPRESSION", f"`{text}`: with replace_by a slice is"
                          " recomputed at other times; the clock would make it another one")  # fmt: skip


def checks_fit_streams_and_jobs(spec: PipelineSpec) -> Iterator[Problem]:
    for index, check in enumerate(spec.checks):
        place = f"checks[{index}]"
        if spec.is_stream and isinstance(check, Unique | RowCount):
            yield at(spec, place, "JOB_ONLY", f"{check.key} is for jobs; it judges a whole result")
        elif spec.is_stream and isinstance(check, Relationship):
            yield at(spec, place, "JOB_ONLY", "relationship is for jobs; a stream does not wait for another table")
        elif isinstance(check, Unique) and not (check.columns or spec.key_columns or some_unread(spec)):
            yield at(spec, place, "MISSING_KEY", "unique of what? name its columns, or the pipeline's keys")
        if spec.is_stream and isinstance(check, Freshness) and check.on_fail != "warn":
            yield at(spec, place, "BAD_CHECK", "a stream that is behind reads old rows and would stop for ever: say"
                      " on_fail: warn")  # fmt: skip


def check_steps_judge_rows(spec: PipelineSpec) -> Iterator[Problem]:
    for index, transform in enumerate(spec.transforms):
        for number, check in enumerate(transform.checks if isinstance(transform, Check) else ()):
            if isinstance(check, TableCheck | Relationship):
                does = "looks into another table" if isinstance(check, Relationship) else "judges a whole result"
                yield at(spec, f"{step_of(spec, index)}[{number}]", "BAD_CHECK", f"{check.key} {does}; write it under"
                          " checks")  # fmt: skip


def records_keep_their_place(spec: PipelineSpec) -> Iterator[Problem]:
    """In a stream the engine counts by it, keeps it with refused rows, and stores it in a landing."""
    for index, transform in enumerate(spec.transforms if spec.is_stream else ()):
        changed: Iterable[str] = ()
        if isinstance(transform, Rename):
            changed = (*transform.columns.keys(), *transform.columns.values())
        elif isinstance(transform, Drop | Cast | Derive):
            changed = transform.columns
        elif isinstance(transform, Explode):
            changed = (transform.column, *transform.made)
        for name in dict.fromkeys(changed):
            if name.lower() in LANDED:
                place = leaf(spec, step_of(spec, index), name, name)
                yield at(spec, place, "RESERVED_COLUMN", f"{name} says where and when the record came:"
                          " derive another column from it")  # fmt: skip


def panels_show_what_is_there(spec: PipelineSpec) -> Iterator[Problem]:
    for index, panel in enumerate(spec.panel):
        if isinstance(panel, Unread):
            continue
        place = f"panel[{index}]" if f"panel[{index}]" in spec.lines else "panel"
        if panel.type == "bars" and panel.by is None:
            yield at(spec, place, "MISSING_KEY", "by is missing: the column that has a bar for each of its values")
        if panel.type == "stat" and panel.by is not None:
            yield at(spec, f"{place}.by", "ILLEGAL_PANEL", "a stat is one number; leave by out, or use bars")
        if some_unread(spec):
            continue
        if spec.postgres_table is None:
            yield at(spec, place, "ILLEGAL_PANEL", "the result is not in PostgreSQL, where panels read; a job's comes"
                      " there with serve: postgres")  # fmt: skip
        value = spec.panel_value(panel)
        if value is None:
            there = f", one of {', '.join(spec.measures)}" if spec.measures else ""
            yield at(spec, place, "MISSING_KEY", f"value is missing: the column to show{there}")
        if panel.type == "timeseries" and spec.time_column is None:
            yield at(spec, place, "ILLEGAL_PANEL", "the result has no time: a window has, and a job with replace_by")
        text = spec.measures.get(value or "")
        if panel.type != "table" and panel.aggregate == "sum" and text and not _adds_up(spec, text):
            together = set(spec.key_columns) - ({spec.time_column, panel.by} if _apart(spec, panel.type) else set())
            if together:
                yield at(spec, place, "ILLEGAL_PANEL", f"`{text}` does not add up over {', '.join(sorted(together))}:"
                          " say aggregate: max, min or avg")  # fmt: skip


def _apart(spec: PipelineSpec, kind: str) -> bool:
    """Whether the panel shows the days of the result apart; those of windows come together as one zooms out."""
    return kind != "bars" and spec.time_column != "window_start"


def _adds_up(spec: PipelineSpec, text: str) -> bool:
    """Counts and sums do, unless a row is in several windows."""
    if any(isinstance(t, Window) and t.sliding for t in spec.transforms):
        return False
    try:
        return sql.measure(text).function in ("count", "sum")
    except sql.ExpressionError:
        return False


#: what holds of the steps of an input as well
STEPS: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    source_fits,
    watermark_once_and_before_window,
    steps_fit_streams_and_jobs,
    check_steps_judge_rows,
    records_keep_their_place,
    measures_of_streams,
    *streaming.STEPS,
)
#: what holds of each sink
SINK: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (sink_fits, layouts_exclude_each_other)
ONE: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    *STEPS,
    *SINK,
    cells.cells_are_single_values,
    sinks.further_sinks_fit,
    sinks.what_is_read_is_not_written,
    windows_alone_grow_old,
    slices_do_not_depend_on_the_clock,
    checks_fit_streams_and_jobs,
    panels_show_what_is_there,
    *combining.RULES,
    streaming.state_ends_where_it_can,
    streaming.what_ends_begins_at_a_time,
    *changes.RULES,
)
