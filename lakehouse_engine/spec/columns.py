"""Follows the columns of a pipeline through its steps, without Spark."""

from __future__ import annotations

from collections.abc import Iterable

from lakehouse_engine import sql
from lakehouse_engine.checks import Freshness, Relationship
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.rows import Rows
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import Files as Folder
from lakehouse_engine.sinks import Kafka as Messages
from lakehouse_engine.sources import Judged, Kafka, Rate, jdbc, rate
from lakehouse_engine.sources import files as files_source
from lakehouse_engine.sources import kafka as kafka_source
from lakehouse_engine.sources.delta import CHANGE
from lakehouse_engine.spec import combining
from lakehouse_engine.spec.further import branches
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import (
    LANDED,
    Columns,
    Upstream,
    appends,
    at,
    known_as,
    leaf,
    near,
    nobody,
    step_of,
)
from lakehouse_engine.transforms import (
    Aggregate,
    Cast,
    Check,
    Combining,
    Dedupe,
    Derive,
    Drop,
    Explode,
    Filter,
    Lookup,
    Parse,
    Rename,
    Select,
    Transform,
    Watermark,
    Window,
)

#: steps that leave the columns as they are
SAME_COLUMNS = {"filter", "watermark", "dedupe", "check"}


def after_unread(step: Unread, columns: Columns | None) -> Columns | None:
    if step.key in SAME_COLUMNS:
        return columns
    if step.key == Cast.key:
        return None if columns is None else dict.fromkeys(columns, "")
    made = None if step.columns is None else dict.fromkeys(step.columns, "")
    if step.key == "derive":
        return None if columns is None or made is None else columns | made
    if step.key == "window" and made is not None:
        return {"window_start": "timestamp", **made}
    return made if step.key == "aggregate" else None


class Walk:
    """Follows the columns through the steps."""

    def __init__(self, spec: PipelineSpec, upstream: Upstream, readers: frozenset[str] = frozenset(), *,
                 stream: bool = False) -> None:  # fmt: skip
        """``readers`` are the pipelines on the way here: in a cycle they would be asked again.

        ``stream``: of a table that a stream reads, whose rows must not stop it either.
        """
        self._spec, self._upstream, self._stream = spec, upstream, stream or spec.is_stream
        self._readers = readers | {spec.name}
        self._inputs: dict[str, Columns | None] = {}
        #: what lookups take that do not say it, by their place
        self.taken: dict[str, dict[str, str]] = {}
        self.problems: list[Problem] = []

    def result(self) -> Columns | None:
        """The columns that are stored."""
        spec = self._spec
        for name in spec.inputs:  # of those that no step reads, too
            self._input(name, f"inputs.{name}")
        columns = self.steps()
        if columns is None:
            return None
        for index, check in enumerate(spec.checks):
            self._read(check.expressions(), columns, f"checks[{index}]")
            if isinstance(check, Freshness):
                self._time(check.column, columns, f"checks[{index}]")
            if isinstance(check, Relationship):
                self._related(check, f"checks[{index}]")
        for part, further in zip(branches(spec), spec.further, strict=True):
            self._branch(part, further.where, columns)
        return self._stored(columns)

    def _branch(self, part: PipelineSpec, where: str | None, columns: Columns) -> None:
        """What only a further sink says; the steps are the pipeline's."""
        walk = self._other(part, stream=self._stream)
        walk._stored(columns)
        kept = {name: columns[name] for name in Rows.identity(columns).stored}
        walk._read([where] if where else [], kept, "sink.where")
        walk._boolean(where, kept, "sink.where", "whether a row goes there")
        self.problems += [one for one in walk.problems if one.path.startswith("sink")]

    def steps(self) -> Columns | None:
        """The columns after the last step."""
        spec = self._spec
        columns = self._source()
        for index, transform in enumerate(spec.transforms):
            columns = self._step(transform, columns, step_of(spec, index))
        return columns

    def _step(self, transform: Transform | Unread, columns: Columns | None, step: str) -> Columns | None:
        if isinstance(transform, Unread):
            return after_unread(transform, columns)
        if isinstance(transform, Parse) and transform.reads_by not in self._spec.contracts:
            return None
        theirs: dict[str, Columns | None] = {}
        if isinstance(transform, Combining):
            theirs = {name: self._input(name, leaf(self._spec, step, name, name)) for name in transform.others}
        if columns is None:  # what came before is not known; what groups rows begins anew
            if isinstance(transform, Combining):
                return combining.after(transform, None, theirs)
            return self._after(transform, {}) if isinstance(transform, Window | Aggregate) else None
        if isinstance(transform, Check):
            for number, one in enumerate(transform.checks):
                self._read(one.expressions(), columns, f"{step}[{number}]")
        else:
            self._read(transform.expressions(), columns, step)
        self._names(transform, columns, step)
        if isinstance(transform, Watermark):
            self._event_time(transform, columns, step)
        if isinstance(transform, Window) and transform.column is not None:
            self._placing(transform.column, columns, f"{step}.column")
        if isinstance(transform, Combining):
            self.problems += combining.problems(self._spec, step, transform, columns, theirs)
            made = combining.after(transform, columns, theirs)
            other = theirs.get(transform.others[0]) if isinstance(transform, Lookup) else None
            if isinstance(transform, Lookup) and transform.take is None and other is not None:
                self.taken[step] = combining.takes(transform, other)
        else:
            made = self._after(transform, columns)
        self._one_case((made or {}).keys() - columns.keys(), made or {}, step)
        return made

    def _input(self, name: str, place: str) -> Columns | None:
        """The columns of another input after its own steps. What is wrong with one is said once."""
        if name not in self._inputs:
            self._inputs[name] = None
            if "." in name:
                self._inputs[name] = self._table(name, place)
            elif name in self._spec.inputs:
                part = self._spec.part(name, stream=self._spec.streams(name))
                walk = self._other(part, stream=self._stream)
                self._inputs[name] = walk.steps()
                self.problems += walk.problems
        return self._inputs[name]

    def _table(self, table: str, place: str) -> Columns | None:
        """The columns of a pipeline's Delta table, as they are read."""
        writer = self._upstream.find(table, self._spec.file)
        if writer is None:
            self.problems += nobody(self._spec, place, table, self._upstream)
            return None
        if writer.name in self._readers:
            return None  # a cycle, which is a problem of its own
        if not isinstance(writer.sink, Delta | Unread):
            self.problems.append(at(self._spec, place, "MISSING_TABLE", f"{table} writes to {writer.sink.key}; a job"
                                     " reads tables of Delta"))  # fmt: skip
            return None
        columns = self._other(writer).result()
        return None if columns is None else {n: t for n, t in columns.items() if n != "updated_at"}

    def _other(self, spec: PipelineSpec, *, stream: bool = False) -> Walk:
        """The way through what this one reads."""
        return Walk(spec, self._upstream, self._readers, stream=stream)

    def _kind(self, text: str, columns: Columns) -> str:
        """The Spark type of an expression, '' where it does not show without Spark."""
        return sql.kind(text, known_as(columns))

    def _element(self, column: str, columns: Columns) -> str:
        """The Spark type of an array's elements, '' where it is not known."""
        kind = known_as(columns).get(column.lower(), "")
        return kind[len("array<") : -1] if kind.startswith("array<") else ""

    def _time(self, column: str, columns: Columns, path: str) -> None:
        kind = known_as(columns).get(column.lower(), "")
        if kind not in ("", "timestamp", "date"):
            self.problems.append(at(self._spec, path, "COLUMN_TYPE", f"{column} is {kind}; how old a row is, a"
                                     " timestamp or a date says"))  # fmt: skip

    def _related(self, check: Relationship, path: str) -> None:
        for _, table, column in check.others():
            place = leaf(self._spec, path, f"{table}.{column}")
            theirs = self._table(table, place)
            if theirs is not None and column.lower() not in known_as(theirs):
                said = f"{table} has no column {column}; {near(column, theirs)}"
                self.problems.append(at(self._spec, place, "UNKNOWN_COLUMN", said))

    def _event_time(self, watermark: Watermark, columns: Columns, path: str) -> None:
        kind = known_as(columns).get(watermark.column.lower(), "")
        if kind not in ("", "timestamp"):
            self.problems.append(at(self._spec, path, "COLUMN_TYPE", f"{watermark.column} is {kind}; event time is a"
                                     f" timestamp: derive one, e.g. try_to_timestamp({watermark.column})"))  # fmt: skip
        sink = self._spec.sink
        by_clock = not self._spec.is_stream and "_timestamp" not in known_as(columns)
        if by_clock and isinstance(sink, Delta) and sink.replace_by and "max_ahead" in watermark.model_fields_set:
            self.problems.append(at(self._spec, f"{path}.max_ahead", "UNSTABLE_EXPRESSION", "these rows have no"
                                     " _timestamp, and with replace_by a slice is recomputed at other times: the clock"
                                     " would make it another one; leave max_ahead out"))  # fmt: skip

    def _placing(self, column: str, columns: Columns, path: str) -> None:
        kind = known_as(columns).get(column.lower(), "")
        if kind not in ("", "timestamp"):
            self.problems.append(at(self._spec, path, "COLUMN_TYPE", f"{column} is {kind}; a window is over a"
                                    f" timestamp: derive one, e.g. try_to_timestamp({column})"))  # fmt: skip

    def _one_case(self, new: Iterable[str], columns: Columns, path: str) -> None:
        for name in sorted(new):
            others = [other for other in columns if other != name and other.lower() == name.lower()]
            if others:
                place = leaf(self._spec, path, name, name)
                self.problems.append(at(self._spec, place, "SAME_COLUMN", f"{others[0]} and {name} are one column to"
                                         " Spark, which does not tell cases apart"))  # fmt: skip

    def _source(self) -> Columns | None:
        source = self._spec.source
        if isinstance(source, Kafka | Unread):
            return dict(kafka_source.COLUMNS) if source.key == "kafka" else None
        if isinstance(source, Rate):
            return dict(rate.COLUMNS)
        if isinstance(source, Judged):
            contract, read = self._spec.contracts.get(source.contract), files_source if source.key == "files" else jdbc
            return None if contract is None else {**contract.columns, **read.COLUMNS}
        place = "source.delta.table" if "source.delta.table" in self._spec.lines else "source"
        found = self._table(source.table, place)
        return found if found is None or not source.changes else {**found, **CHANGE}

    def _read(self, expressions: Iterable[str], columns: Columns, path: str) -> None:
        known = known_as(columns)
        for text in expressions:
            for missing in sorted(sql.columns(text) - known.keys()):
                said = f"there is no column {missing}; {near(missing, columns)}"
                self.problems.append(at(self._spec, leaf(self._spec, path, text, missing), "UNKNOWN_COLUMN", said))
            if self._stream:
                try:
                    sql.check_stream(text, known)
                except sql.ExpressionError as error:
                    place = leaf(self._spec, path, text)
                    written = f"`{self._spec.lines[place].value}`" if place != path else f"`{text}`"
                    message = str(error).replace(f"`{text}`", written)
                    self.problems.append(at(self._spec, place, error.code, message))

    def _after(self, transform: object, columns: Columns) -> Columns:
        spec, made = self._spec, dict[str, str]()
        if isinstance(transform, Parse):
            found = spec.contracts.get(transform.reads_by)
            return {**columns, **(transform.made(found) if found else {})}
        if isinstance(transform, Derive):
            return columns | {name: self._kind(text, columns) for name, text in transform.columns.items()}
        if isinstance(transform, Select):
            items = [sql.select_item(item) for item in transform.items]
            hidden = {name: kind for name, kind in columns.items() if name.startswith("_")}
            return hidden | {item.name: self._kind(item.expression, columns) for item in items}
        if isinstance(transform, Window):
            made = dict.fromkeys(transform.made, "timestamp")
        if isinstance(transform, Window | Aggregate):
            by = {name: columns.get(name, "") for name in transform.by}
            return {**made, **by, **{name: self._kind(text, columns) for name, text in transform.measures.items()}}
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
            element = self._element(transform.column, columns)
            return kept | {transform.element: element} | ({transform.position: "int"} if transform.position else {})
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
            self.problems.append(at(self._spec, path, "NO_COLUMNS", "no column is left that would be stored"))
        for name in taken:
            place = leaf(self._spec, path, name, name)
            self.problems.append(at(self._spec, place, "SAME_COLUMN", f"there is a column {name} already"))

    def _boolean(self, text: str | None, columns: Columns, path: str, what: str) -> None:
        kind = self._kind(text, columns) if text else ""
        if kind not in ("", "boolean"):
            self.problems.append(at(self._spec, path, "COLUMN_TYPE", f"`{text}` is {kind}; {what}, a boolean says"))

    def _states(self, since: str, columns: Columns, kept: Columns) -> Columns:
        """What a table of states holds."""
        self._read([since], columns, "sink.delta.valid_from")
        kind = known_as(columns).get(since.lower(), "")
        if kind not in ("", "timestamp", "date"):
            self.problems.append(at(self._spec, "sink.delta.valid_from", "COLUMN_TYPE", f"{since} is {kind}; since when"
                                     " a state is valid, a timestamp or a date says"))  # fmt: skip
        for name in ("valid_from", "valid_to"):
            if name in known_as(kept) and (name, since) != ("valid_from", "valid_from"):
                self.problems.append(at(self._spec, "sink", "RESERVED_COLUMN", f"{name} is the engine's column with"
                                         " mode: scd2: rename yours"))  # fmt: skip
        return {**kept, "valid_from": kind, "valid_to": kind}

    def _stored(self, columns: Columns) -> Columns | None:
        spec, sink = self._spec, self._spec.sink
        if isinstance(sink, Unread):
            return None
        landing = spec.lands
        stored = Rows.identity(columns).stored
        kept = {n: t for n, t in columns.items() if n in stored or (landing and n in LANDED)}
        if isinstance(sink, Delta | Postgres) and sink.updated_at and not appends(spec) and not spec.deletes_from:
            if "updated_at" in kept:
                self.problems.append(at(spec, "sink", "RESERVED_COLUMN", "updated_at is the engine's column: rename"
                                         " yours, or say updated_at: false in the sink"))  # fmt: skip
            kept["updated_at"] = "timestamp"
        if isinstance(sink, Delta | Postgres):
            hidden = [n for n in sink.order_by if n in columns and n not in kept and n.startswith("_")]
            for name in hidden:
                place = leaf(spec, f"sink.{sink.key}.order_by", name)
                self.problems.append(at(spec, place, "UNKNOWN_COLUMN", f"{name} is not stored, and what orders the rows"
                                        " of a key has to be: derive a column from it"))  # fmt: skip
            self._read([n for n in sink.order_by if n not in hidden], kept, f"sink.{sink.key}.order_by")
            self._read([sink.delete_when] if sink.delete_when else [], columns, f"sink.{sink.key}.delete_when")
            self._boolean(sink.delete_when, columns, f"sink.{sink.key}.delete_when", "whether a row deletes")
        if isinstance(sink, Folder):
            self._read(sink.partition_by, kept, "sink.files.partition_by")
        if isinstance(sink, Messages):
            self._read(sink.expressions(), kept, "sink.kafka")
        if isinstance(sink, Delta) and sink.mode == "delete":
            self._read(spec.keys or (), kept, "keys")
            known = {name: kept.get(name, "") for name in spec.key_columns}
            return {**known, "request": "bigint", "requested_at": "timestamp"}
        if isinstance(sink, Delta) and sink.valid_from:
            kept = self._states(sink.valid_from, columns, kept)
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
            kind = known_as(kept).get((spec.time_column or "").lower(), "")
            if kind not in ("", "timestamp" if spec.time_column == "window_start" else "date"):
                self.problems.append(at(spec, place, "COLUMN_TYPE", f"{spec.time_column} is {kind}; a panel's time is"
                                         " a window's start or a date"))  # fmt: skip
        return kept
