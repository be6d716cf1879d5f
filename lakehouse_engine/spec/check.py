"""What a file means, checked without Spark: a literal list of small functions over one spec, and over the whole set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol

from lakehouse_engine import sources, sql
from lakehouse_engine.checks import Freshness, Relationship, RowCount, TableCheck, Unique
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.rows import Rows
from lakehouse_engine.sinks import Console, Delta, Postgres
from lakehouse_engine.sources import Kafka
from lakehouse_engine.sources import kafka as kafka_source
from lakehouse_engine.spec.pipeline import MAINTENANCE, SERVING_LAYER, SERVING_TASK, PipelineSpec
from lakehouse_engine.transforms import (
    LATER,
    TRANSFORMS,
    Aggregate,
    Cast,
    Check,
    Dedupe,
    Derive,
    Drop,
    Explode,
    Filter,
    Parse,
    Rename,
    Select,
    Watermark,
    Window,
)

Columns = dict[str, str]
_CLOCKS = {"now", "current_timestamp", "current_date", "localtimestamp", "curdate"}
#: steps that leave the columns as they are
_SAME_COLUMNS = {"filter", "watermark", "dedupe", "check"}
_LANDED = ("_topic", "_partition", "_offset", "_timestamp")


class Upstream(Protocol):
    def find(self, name: str, beside: str) -> PipelineSpec | None: ...

    def names(self, beside: str) -> set[str]: ...


def _at(spec: PipelineSpec, path: str, code: str, message: str) -> Problem:
    file, _, line = spec.where(path).rpartition(":")
    origin = spec.lines.get(path)
    if origin is not None and file != spec.file and origin.through:
        message += f" (in {spec.file})"
    return Problem(file, int(line), code, message, path)


def _known(columns: Columns) -> Columns:
    """By name in lower case, as Spark compares them."""
    return {name.lower(): kind for name, kind in columns.items()}


def _step(spec: PipelineSpec, index: int) -> str:
    return f"transforms[{index}].{spec.transforms[index].key}"


def _leaf(spec: PipelineSpec, path: str, text: str, word: str = "") -> str:
    """Where below a path a text stands; else where the word does, as a key or in a value; else the path itself."""
    below = {place: str(origin.value) for place, origin in spec.lines.items()
             if place == path or place.startswith((f"{path}.", f"{path}["))}  # fmt: skip
    asked = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)", re.IGNORECASE) if word else re.compile(r"(?!)")
    tests: tuple[Callable[[str, str], object], ...] = (
        lambda place, value: value == text,
        lambda place, value: asked.fullmatch(value) or asked.fullmatch(place.rpartition(".")[2]),
        lambda place, value: asked.search(value),
        lambda place, value: len(value) > 2 and not word and (value in text or text in value),
    )
    return next((place for test in tests for place, value in below.items() if test(place, value)), path)


def _unsure(spec: PipelineSpec) -> bool:
    """Whether a step could be anything, a window or a watermark too."""
    known = TRANSFORMS.keys() | LATER
    return any(isinstance(step, Unread) and step.key not in known for step in spec.transforms)


def _after_unread(step: Unread, columns: Columns | None) -> Columns | None:
    if step.key in _SAME_COLUMNS:
        return columns
    if step.key == Cast.key:
        return None if columns is None else dict.fromkeys(columns, "")
    made = None if step.columns is None else dict.fromkeys(step.columns, "")
    if step.key == "derive":
        return None if columns is None or made is None else columns | made
    if step.key == "window" and made is not None:
        return {"window_start": "timestamp", **made}
    return made if step.key == "aggregate" else None


def _nobody(spec: PipelineSpec, path: str, name: str, upstream: Upstream) -> Iterator[Problem]:
    """A table that no pipeline writes. A layer that this project does not have may be another project's."""
    known = upstream.names(spec.file)
    layer, close = name.partition(".")[0], get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    if name not in known and (close or any(one.startswith(f"{layer}.") for one in known)):
        others = sorted(one for one in known if one.startswith(f"{layer}."))
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(others)}"
        yield _at(spec, path, "MISSING_TABLE", f"no pipeline writes {name}; {hint}")


def source_fits(spec: PipelineSpec) -> Iterator[Problem]:
    if spec.is_stream and spec.source.key == "delta":
        yield _at(spec, "source", "NOT_YET", "a stream over a Delta table comes with a later version")
    if not spec.is_stream and spec.source.key == "kafka":
        yield _at(spec, "source", "NOT_YET", "a job over kafka comes with a later version; give it a trigger")


def watermark_once_and_before_window(spec: PipelineSpec) -> Iterator[Problem]:
    seen = 0
    for index, transform in enumerate(spec.transforms):
        if transform.key == "watermark":
            seen += 1
            if seen > 1:
                yield _at(spec, _step(spec, index), "WATERMARK_TWICE", "an input has one watermark")
        if transform.key == "window" and spec.is_stream and not seen and not _unsure(spec):
            yield _at(spec, _step(spec, index), "WATERMARK_MISSING", "a window needs a watermark before it, e.g."
                      " - watermark: {column: timestamp, delay: 2 minutes}")  # fmt: skip


def windows_have_names_of_their_own(spec: PipelineSpec) -> Iterator[Problem]:
    """An average is kept as ``n__sum`` and ``n__count``."""
    for index, transform in enumerate(spec.transforms):
        if isinstance(transform, Window):
            averages = [name for name, text in transform.measures.items() if sql.measure(text).function == "avg"]
            kept = {f"{name}__{part}" for name in averages for part in ("sum", "count")}
            for name in sorted(kept & {*transform.by, *transform.measures}):
                place = f"{_step(spec, index)}.measures.{name}"
                yield _at(spec, place, "RESERVED_COLUMN", f"{name} is where the engine keeps an average:"
                          " rename yours")  # fmt: skip


def steps_fit_streams_and_jobs(spec: PipelineSpec) -> Iterator[Problem]:
    for index, transform in enumerate(spec.transforms):
        place = _step(spec, index)
        if spec.is_stream and isinstance(transform, Aggregate):
            yield _at(spec, place, "JOB_ONLY", "aggregate is for jobs; a stream has window")
        if spec.is_stream and isinstance(transform, Dedupe):
            yield _at(spec, place, "NOT_YET", "dedupe in a stream comes with a later version; use it in a job")
        if not spec.is_stream and isinstance(transform, Window | Watermark):
            yield _at(spec, place, "NOT_YET", f"{transform.key} in a job comes with a later version; use aggregate")
        if isinstance(transform, Window) and spec.is_stream:
            if any(before.key == Explode.key for before in spec.transforms[:index]):
                yield _at(spec, place, "NOT_YET", "a window over exploded rows comes with a later version; land the"
                          " rows with explode in one pipeline and aggregate them in a job")  # fmt: skip
            if index != len(spec.transforms) - 1:
                yield _at(spec, place, "NOT_YET", "steps after a window come with a later version")
            if spec.checks:
                yield _at(spec, "checks", "NOT_YET", "checks of a window's result come with a later version")


def _once(spec: PipelineSpec, index: int) -> bool:
    """Whether a window is sent once, or may be meant to be."""
    window, said = spec.transforms[index], spec.lines.get(f"{_step(spec, index)}.emit")
    return not isinstance(window, Window) or window.emit == "final" or (said is not None and said.value != "updates")


def sink_fits(spec: PipelineSpec) -> Iterator[Problem]:
    windowed = any(transform.key == "window" for transform in spec.transforms)
    sink = spec.sink
    if isinstance(sink, Unread) or _unsure(spec):
        return
    if isinstance(sink, Console):
        if windowed:
            yield _at(spec, "sink", "NOT_YET", "a window into this sink comes with a later version; use postgres")
        return
    final = any(t.key == "window" and _once(spec, index) for index, t in enumerate(spec.transforms))
    window = ("upsert", "append") if final else ("upsert",)
    rowwise = ("append", "upsert") if isinstance(sink, Postgres) else ("append",)
    allowed = window if windowed else rowwise if spec.is_stream else ("replace",)
    if isinstance(sink, Delta) and windowed:
        yield _at(spec, "sink", "NOT_YET", "a window into delta comes with a later version; use postgres")
    elif sink.mode is not None and sink.mode not in allowed:
        kind = "a stream with a window" if windowed else "a stream" if spec.is_stream else "a job"
        hint = "; a window that is added once needs emit: final" if windowed and sink.mode == "append" else ""
        yield _at(spec, f"sink.{sink.key}.mode", "ILLEGAL_MODE", f"{kind} into {sink.key} writes with mode"
                  f" {' or '.join(allowed)}, not {sink.mode}{hint}")  # fmt: skip
    if isinstance(sink, Postgres):
        upserts = spec.is_stream and not windowed and sink.mode == "upsert"
        if upserts and not spec.keys:
            yield _at(spec, "sink.postgres.mode", "MISSING_KEY", "rows of which columns replace each other? say it in"
                      " keys")  # fmt: skip
        if upserts and not sink.order_by:
            yield _at(spec, "sink.postgres.mode", "MISSING_KEY", "order_by is missing: which of two rows of a key wins,"
                      " whatever comes first")  # fmt: skip
        if sink.order_by and not upserts:
            yield _at(spec, "sink.postgres.order_by", "ILLEGAL_MODE", "order_by goes with mode: upsert of a stream"
                      " without a window")  # fmt: skip
    if isinstance(sink, Delta) and sink.replace_by and spec.is_stream:
        yield _at(spec, "sink.delta.replace_by", "ILLEGAL_MODE", "replace_by is for jobs; a stream appends")
    if spec.serve and (spec.is_stream or not isinstance(sink, Delta)):
        yield _at(spec, "serve", "ILLEGAL_SERVE", "serve copies a job's Delta table; this pipeline has none")


def layouts_exclude_each_other(spec: PipelineSpec) -> Iterator[Problem]:
    """A table is partitioned (and may be z-ordered within) or clustered."""
    sink, order = spec.sink, spec.maintain.zorder_by
    if not isinstance(sink, Delta):
        if order:
            yield _at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", "only a Delta table has a layout")
        return
    if sink.cluster_by and sink.partition_by:
        yield _at(spec, "sink.delta.cluster_by", "ILLEGAL_LAYOUT", "a table is partitioned or clustered, not both")
    if sink.cluster_by and order:
        yield _at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", "a clustered table is in order already; keep one")
    for name in order:
        if name in sink.partition_by:
            yield _at(spec, "maintain.zorder_by", "ILLEGAL_LAYOUT", f"{name} is a partition column: all rows of a"
                      " partition have the same")  # fmt: skip


def slices_do_not_depend_on_the_clock(spec: PipelineSpec) -> Iterator[Problem]:
    if spec.is_stream or not (isinstance(spec.sink, Delta) and spec.sink.replace_by):
        return
    asked = [(_step(spec, index), step.expressions()) for index, step in enumerate(spec.transforms)]
    asked += [(f"checks[{index}]", check.expressions()) for index, check in enumerate(spec.checks)]
    for place, expressions in asked:
        for text in expressions:
            if sql.calls(text) & _CLOCKS:
                yield _at(spec, _leaf(spec, place, text), "UNSTABLE_EXPRESSION", f"`{text}`: with replace_by a slice is"
                          " recomputed at other times; the clock would make it another one")  # fmt: skip


def checks_fit_streams_and_jobs(spec: PipelineSpec) -> Iterator[Problem]:
    for index, check in enumerate(spec.checks):
        place = f"checks[{index}]"
        if spec.is_stream and isinstance(check, Unique | RowCount):
            yield _at(spec, place, "JOB_ONLY", f"{check.key} is for jobs; it judges a whole result")
        elif spec.is_stream and isinstance(check, Relationship):
            yield _at(spec, place, "JOB_ONLY", "relationship is for jobs; a stream does not wait for another table")
        elif isinstance(check, Unique) and not (check.columns or spec.key_columns or _some_unread(spec)):
            yield _at(spec, place, "MISSING_KEY", "unique of what? name its columns, or the pipeline's keys")
        if spec.is_stream and isinstance(check, Freshness) and check.on_fail != "warn":
            yield _at(spec, place, "BAD_CHECK", "a stream that is behind reads old rows and would stop for ever: say"
                      " on_fail: warn")  # fmt: skip


def check_steps_judge_rows(spec: PipelineSpec) -> Iterator[Problem]:
    for index, transform in enumerate(spec.transforms):
        for number, check in enumerate(transform.checks if isinstance(transform, Check) else ()):
            if isinstance(check, TableCheck | Relationship):
                does = "looks into another table" if isinstance(check, Relationship) else "judges a whole result"
                yield _at(spec, f"{_step(spec, index)}[{number}]", "BAD_CHECK", f"{check.key} {does}; write it under"
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
            if name.lower() in _LANDED:
                place = _leaf(spec, _step(spec, index), name, name)
                yield _at(spec, place, "RESERVED_COLUMN", f"{name} says where and when the record came:"
                          " derive another column from it")  # fmt: skip


def _some_unread(spec: PipelineSpec) -> bool:
    return isinstance(spec.sink, Unread) or any(isinstance(step, Unread) for step in spec.transforms)


def panels_show_what_is_there(spec: PipelineSpec) -> Iterator[Problem]:
    for index, panel in enumerate(spec.panel):
        if isinstance(panel, Unread):
            continue
        place = f"panel[{index}]" if f"panel[{index}]" in spec.lines else "panel"
        if panel.type == "bars" and panel.by is None:
            yield _at(spec, place, "MISSING_KEY", "by is missing: the column that has a bar for each of its values")
        if panel.type == "stat" and panel.by is not None:
            yield _at(spec, f"{place}.by", "ILLEGAL_PANEL", "a stat is one number; leave by out, or use bars")
        if _some_unread(spec):
            continue
        if spec.postgres_table is None:
            yield _at(spec, place, "ILLEGAL_PANEL", "the result is not in PostgreSQL, where panels read; a job's comes"
                      " there with serve: postgres")  # fmt: skip
        value = spec.panel_value(panel)
        if value is None:
            there = f", one of {', '.join(spec.measures)}" if spec.measures else ""
            yield _at(spec, place, "MISSING_KEY", f"value is missing: the column to show{there}")
        if panel.type == "timeseries" and spec.time_column is None:
            yield _at(spec, place, "ILLEGAL_PANEL", "the result has no time: a window has, and a job with replace_by")
        text = spec.measures.get(value or "")
        if panel.type != "table" and panel.aggregate == "sum" and text and not _adds_up(spec, text):
            together = set(spec.key_columns) - ({spec.time_column, panel.by} if _apart(spec, panel.type) else set())
            if together:
                yield _at(spec, place, "ILLEGAL_PANEL", f"`{text}` does not add up over {', '.join(sorted(together))}:"
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


ONE: tuple[Callable[[PipelineSpec], Iterable[Problem]], ...] = (
    source_fits,
    watermark_once_and_before_window,
    steps_fit_streams_and_jobs,
    sink_fits,
    layouts_exclude_each_other,
    slices_do_not_depend_on_the_clock,
    checks_fit_streams_and_jobs,
    check_steps_judge_rows,
    records_keep_their_place,
    windows_have_names_of_their_own,
    panels_show_what_is_there,
)


def check_one(spec: PipelineSpec, upstream: Upstream) -> list[Problem]:
    """Everything that one file, with what it reads, can get wrong."""
    problems = [problem for rule in ONE for problem in rule(spec)]
    walk = _Columns(spec, upstream)
    walk.result()
    return problems + walk.problems + list(_history(spec, upstream))


def output_columns(spec: PipelineSpec, upstream: Upstream) -> Columns | None:
    """What the pipeline's table holds, by name and Spark type ('' unknown); None when its source cannot be known."""
    return _Columns(spec, upstream).result()


class _Columns:
    """Follows the columns through the steps."""

    def __init__(self, spec: PipelineSpec, upstream: Upstream, readers: frozenset[str] = frozenset()) -> None:
        """``readers`` are the pipelines on the way here: in a cycle they would be asked again."""
        self._spec, self._upstream = spec, upstream
        self._readers = readers | {spec.name}
        self.problems: list[Problem] = []

    def result(self) -> Columns | None:
        spec = self._spec
        columns = self._source()
        for index, transform in enumerate(spec.transforms):
            step = _step(spec, index)
            if isinstance(transform, Unread):
                columns = _after_unread(transform, columns)
                continue
            if isinstance(transform, Parse) and transform.contract not in spec.contracts:
                columns = None
                continue
            if columns is None:  # what came before is not known; what groups rows begins anew
                columns = self._after(transform, {}) if isinstance(transform, Window | Aggregate) else None
                continue
            if isinstance(transform, Check):
                for number, one in enumerate(transform.checks):
                    self._read(one.expressions(), columns, f"{step}[{number}]")
            else:
                self._read(transform.expressions(), columns, step)
            self._names(transform, columns, step)
            if isinstance(transform, Watermark):
                self._event_time(transform, columns, step)
            before, columns = columns, self._after(transform, columns)
            self._one_case(columns.keys() - before.keys(), columns, step)
        if columns is None:
            return None
        for index, check in enumerate(spec.checks):
            self._read(check.expressions(), columns, f"checks[{index}]")
            if isinstance(check, Freshness):
                self._time(check.column, columns, f"checks[{index}]")
            if isinstance(check, Relationship):
                self._related(check, f"checks[{index}]")
        return self._stored(columns)

    def _time(self, column: str, columns: Columns, path: str) -> None:
        kind = _known(columns).get(column.lower(), "")
        if kind not in ("", "timestamp", "date"):
            self.problems.append(_at(self._spec, path, "COLUMN_TYPE", f"{column} is {kind}; how old a row is, a"
                                     " timestamp or a date says"))  # fmt: skip

    def _related(self, check: Relationship, path: str) -> None:
        for _, table, column in check.others():
            writer = self._upstream.find(table, self._spec.file)
            place = _leaf(self._spec, path, f"{table}.{column}")
            if writer is None:
                self.problems += _nobody(self._spec, place, table, self._upstream)
                continue
            if writer.name in self._readers:
                continue  # a cycle, which is a problem of its own
            if not isinstance(writer.sink, Delta | Unread):
                self.problems.append(_at(self._spec, place, "MISSING_TABLE", f"{table} writes to {writer.sink.key}; a"
                                         " job reads tables of Delta"))  # fmt: skip
                continue
            theirs = _Columns(writer, self._upstream, self._readers).result()
            if theirs is not None and column.lower() not in _known(theirs):
                close = get_close_matches(column, list(theirs), n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(theirs))}"
                said = f"{table} has no column {column}; {hint}"
                self.problems.append(_at(self._spec, place, "UNKNOWN_COLUMN", said))

    def _event_time(self, watermark: Watermark, columns: Columns, path: str) -> None:
        kind = _known(columns).get(watermark.column.lower(), "")
        if kind not in ("", "timestamp"):
            self.problems.append(_at(self._spec, path, "COLUMN_TYPE", f"{watermark.column} is {kind}; event time is a"
                                     f" timestamp: derive one, e.g. try_to_timestamp({watermark.column})"))  # fmt: skip

    def _one_case(self, new: Iterable[str], columns: Columns, path: str) -> None:
        for name in sorted(new):
            others = [other for other in columns if other != name and other.lower() == name.lower()]
            if others:
                place = _leaf(self._spec, path, name, name)
                self.problems.append(_at(self._spec, place, "SAME_COLUMN", f"{others[0]} and {name} are one column to"
                                         " Spark, which does not tell cases apart"))  # fmt: skip

    def _source(self) -> Columns | None:
        source = self._spec.source
        if isinstance(source, Kafka | Unread):
            return dict(kafka_source.COLUMNS) if source.key == "kafka" else None
        writer = self._upstream.find(source.table, self._spec.file)
        if writer is None:
            place = "source.delta.table" if "source.delta.table" in self._spec.lines else "source"
            self.problems += _nobody(self._spec, place, source.table, self._upstream)
            return None
        if not isinstance(writer.sink, Delta | Unread):
            self.problems.append(_at(self._spec, "source", "MISSING_TABLE", f"{source.table} writes to"
                                     f" {writer.sink.key}; a job reads tables of Delta"))  # fmt: skip
            return None
        if writer.name in self._readers:
            return None
        columns = _Columns(writer, self._upstream, self._readers).result()
        return None if columns is None else {n: t for n, t in columns.items() if n != "updated_at"}

    def _read(self, expressions: Iterable[str], columns: Columns, path: str) -> None:
        known = _known(columns)
        for text in expressions:
            for missing in sorted(sql.columns(text) - known.keys()):
                close = get_close_matches(missing, list(known), n=1)
                by_name = {name.lower(): name for name in columns}
                hint = f"did you mean {by_name[close[0]]}?" if close else f"there are {', '.join(sorted(columns))}"
                place = _leaf(self._spec, path, text, missing)
                self.problems.append(_at(self._spec, place, "UNKNOWN_COLUMN", f"there is no column {missing}; {hint}"))
            if self._spec.is_stream:
                try:
                    sql.check_stream(text, known)
                except sql.ExpressionError as error:
                    place = _leaf(self._spec, path, text)
                    written = f"`{self._spec.lines[place].value}`" if place != path else f"`{text}`"
                    message = str(error).replace(f"`{text}`", written)
                    self.problems.append(_at(self._spec, place, error.code, message))

    def _after(self, transform: object, columns: Columns) -> Columns:
        spec = self._spec
        if isinstance(transform, Parse):
            found = spec.contracts.get(transform.contract)
            return {**columns, **(found.columns if found else {})}
        if isinstance(transform, Derive):
            return columns | {name: sql.kind(text, _known(columns)) for name, text in transform.columns.items()}
        if isinstance(transform, Select):
            items = [sql.select_item(item) for item in transform.items]
            hidden = {name: kind for name, kind in columns.items() if name.startswith("_")}
            return hidden | {item.name: columns.get(item.expression, "") for item in items}
        if isinstance(transform, Window):
            keys = {"window_start": "timestamp", **{name: columns.get(name, "") for name in transform.by}}
            return {**keys, **dict.fromkeys(transform.measures, "")}
        if isinstance(transform, Aggregate):
            return {**{name: columns.get(name, "") for name in transform.by}, **dict.fromkeys(transform.measures, "")}
        if isinstance(transform, Rename):
            renamed = dict(zip(transform.renamed(columns), columns.values(), strict=True))
            return renamed | {name: "" for name in transform.columns if name not in renamed}
        if isinstance(transform, Drop):
            return {name: kind for name, kind in columns.items() if not transform.drops(name)}
        if isinstance(transform, Cast):
            kinds = {name.lower(): kind for name, kind in transform.columns.items()}
            return {name: kinds.get(name.lower(), kind) for name, kind in columns.items()}
        if isinstance(transform, Explode):
            kept = {name: kind for name, kind in columns.items() if name.lower() != transform.column.lower()}
            return kept | {transform.element: ""} | ({transform.position: "int"} if transform.position else {})
        assert isinstance(transform, Filter | Watermark | Dedupe | Check)
        return columns

    def _names(self, transform: object, columns: Columns, path: str) -> None:
        """A step that gives a name which a column has that stays, or leaves no column."""
        taken: Iterable[str] = ()
        if isinstance(transform, Rename):
            taken = transform.taken(columns)
        elif isinstance(transform, Explode):
            rest = {name.lower() for name in columns} - {transform.column.lower()}
            taken = [name for name in transform.made if name.lower() in rest]
        elif isinstance(transform, Drop) and transform.leaves_none(columns):
            self.problems.append(_at(self._spec, path, "NO_COLUMNS", "no column is left that would be stored"))
        for name in taken:
            place = _leaf(self._spec, path, name, name)
            self.problems.append(_at(self._spec, place, "SAME_COLUMN", f"there is a column {name} already"))

    def _stored(self, columns: Columns) -> Columns | None:
        spec, sink = self._spec, self._spec.sink
        if isinstance(sink, Unread):
            return None
        landing = spec.is_stream and isinstance(sink, Delta)
        stored = Rows.identity(columns).stored
        kept = {n: t for n, t in columns.items() if n in stored or (landing and n in _LANDED)}
        if not isinstance(sink, Console) and sink.updated_at and not _appends(spec):
            if "updated_at" in kept:
                self.problems.append(_at(spec, "sink", "RESERVED_COLUMN", "updated_at is the engine's column: rename"
                                         " yours, or say updated_at: false in the sink"))  # fmt: skip
            kept["updated_at"] = "timestamp"
        if isinstance(sink, Postgres):
            self._read(sink.order_by, kept, "sink.postgres.order_by")
        if isinstance(sink, Delta):
            for path, names in (("partition_by", sink.partition_by), ("replace_by", (sink.replace_by,)),
                                ("cluster_by", sink.cluster_by)):  # fmt: skip
                self._read([n for n in names if n], kept, f"sink.delta.{path}")
            self._read(spec.maintain.zorder_by, kept, "maintain.zorder_by")
        self._read(spec.keys or (), kept, "keys")
        for index, panel in enumerate(spec.panel):
            if isinstance(panel, Unread):
                continue
            place = f"panel[{index}]" if f"panel[{index}]" in spec.lines else "panel"
            self._read([name for name in (panel.value, panel.by) if name], kept, place)
            kind = _known(kept).get((spec.time_column or "").lower(), "")
            if kind not in ("", "timestamp" if spec.time_column == "window_start" else "date"):
                self.problems.append(_at(spec, place, "COLUMN_TYPE", f"{spec.time_column} is {kind}; a panel's time is"
                                         " a window's start or a date"))  # fmt: skip
        return kept


def _appends(spec: PipelineSpec) -> bool:
    """Rows are added and never changed, so nothing says when they were."""
    upserts = isinstance(spec.sink, Postgres) and spec.sink.mode == "upsert"
    return spec.is_stream and not upserts and not any(transform.key == "window" for transform in spec.transforms)


def _history(spec: PipelineSpec, upstream: Upstream) -> Iterator[Problem]:
    source = spec.source
    if not isinstance(source, Kafka) or source.history is None:
        return
    lander = upstream.find(source.history, spec.file)
    if lander is None:
        yield from _nobody(spec, "source.kafka.history", source.history, upstream)
        return
    if not (spec.complete and lander.complete):
        return  # what it is is not known, and is said there
    lands = isinstance(lander.source, Kafka) and lander.source.topic == source.topic and isinstance(lander.sink, Delta)
    if not lands or set(lander.contracts) != set(spec.contracts):
        yield _at(spec, "source.kafka.history", "BAD_HISTORY", f"{source.history} does not land {source.topic} with the"
                  " same contract")  # fmt: skip


def one_table_has_one_writer(specs: Sequence[PipelineSpec]) -> Iterator[Problem]:
    writers: dict[tuple[str, str], str] = {}
    for spec in specs:
        sink = spec.sink
        tables = [("delta", spec.name)] if isinstance(sink, Delta) else []
        if isinstance(sink, Postgres):
            tables.append(("postgres", sink.table or spec.name))
        if spec.serve:
            tables.append(("postgres", spec.name))
        for table in tables:
            if table in writers:
                yield _at(spec, "sink", "SAME_TABLE", f"{writers[table]} writes {table[0]} {table[1]} as well")
            writers.setdefault(table, spec.name)


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
            source = isinstance(spec.source, sources.Delta) and found[1] == spec.source.table
            yield _at(spec, "source" if source else "checks", "CYCLE", " reads ".join(found))


def tasks_have_names_of_their_own(specs: Sequence[PipelineSpec]) -> Iterator[Problem]:
    """In its DAG a job's name is neither another one's nor that of a group or task that is added there."""
    jobs = [spec for spec in specs if not spec.is_stream]
    added = {SERVING_TASK, SERVING_LAYER, *(spec.layer for spec in jobs)}
    taken: dict[tuple[str, str], str] = {}
    for spec in jobs:
        if spec.airflow.dag == MAINTENANCE:
            yield _at(spec, "airflow.dag", "SAME_TASK", f"{MAINTENANCE} is the DAG that maintains all tables")
        name = (spec.airflow.dag, spec.task_id)
        if name in taken or spec.task_id in added:
            other = f"is {taken[name]}'s" if name in taken else "is what the engine adds to every DAG"
            yield _at(spec, "airflow.task_id", "SAME_TASK", f"the task {spec.task_id} of {name[0]} {other}")
        taken.setdefault(name, spec.name)


SET: tuple[Callable[[Sequence[PipelineSpec]], Iterable[Problem]], ...] = (
    one_table_has_one_writer,
    jobs_form_no_cycle,
    tasks_have_names_of_their_own,
)


def check_all(specs: Sequence[PipelineSpec]) -> list[Problem]:
    """What only shows between files."""
    return [problem for rule in SET for problem in rule(specs)]
