"""``postgres``: a table in PostgreSQL 15 or newer.

**Delivery guarantees**: exactly-once effect. The rows, the late rows, the position and the counters of a micro-batch
are one transaction; comparing and setting the position fences off a second writer.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.sql import Composable

from lakehouse_engine import sql as spark_sql
from lakehouse_engine.component import Columns, Component, Expression, Flag, Table
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.progress import from_micros

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Postgres(Component):
    """A table in PostgreSQL.

    ``append`` adds each row of a stream without a window once, and each window with ``emit: final``. ``upsert`` of a
    stream without a window replaces the row of the same ``keys`` that is not greater in ``order_by``. What
    ``delete_when`` deletes is remembered, keys and ``order_by``, in ``<table>__deleted``, for good: an older row that
    arrives later brings nothing back.
    """

    later: ClassVar[frozenset[str]] = frozenset({"connection"})

    #: its schema and name; default: the pipeline's
    table: Table | None = None
    #: ``upsert`` merges a micro-batch's base aggregates into one row per window and key, or a stream's rows by ``keys``
    mode: Literal["append", "upsert", "replace"] | None = None
    #: of a stream without a window that upserts: the row with the greatest wins; columns of the result
    order_by: Columns = ()
    #: of a stream without a window that upserts: rows for which it is true delete the row of their keys; it may read
    #: columns that are not stored
    delete_when: Expression | None = None
    #: adds ``updated_at timestamp``, the transaction that last changed the row
    updated_at: Flag = True

    def target(self, pipeline: str) -> str:
        """The table."""
        return self.table or pipeline


#: Spark type to PostgreSQL type; decimal(p,s) becomes numeric(p,s), an array of what is in ``_ELEMENTS`` such an array,
#: other nested values jsonb
TYPES = {"string": "text", "bigint": "bigint", "int": "integer", "smallint": "smallint", "tinyint": "smallint",
         "double": "double precision", "float": "real", "boolean": "boolean", "timestamp": "timestamptz",
         "date": "date", "binary": "bytea"}  # fmt: skip

_ELEMENTS = {"string", "bigint", "int", "smallint", "tinyint", "double", "boolean", "date"}
_NESTED = ("array<", "map<", "struct<", "variant")
#: the columns of a late table that a batch fills
LATE_COLUMNS = ["arrived_at", "batch_id", "step", "event_time", "watermark", "missed", "origin", "partition", "offset",
                "row"]  # fmt: skip
LATE = """create table if not exists {} (arrived_at timestamptz not null, batch_id bigint not null, step text not null,
  event_time timestamptz, watermark timestamptz, missed timestamptz[], origin text not null, partition int not null,
  "offset" bigint not null, row jsonb, applied_at timestamptz)"""
QUARANTINE = """create table if not exists {} (quarantined_at timestamptz not null, batch_id bigint not null,
  step text not null, reasons text[] not null, origin text not null, partition int, "offset" bigint, key bytea,
  value bytea, row jsonb, unit text, "timestamp" timestamptz)"""


def ensure_quarantine(cursor: Any, table: str) -> None:
    """Creates the quarantine of ``table`` where there is none; one of an older version gets the record's time."""
    aside = identifier(side_table(table, "quarantine"))
    cursor.execute(sql.SQL(QUARANTINE).format(aside))
    # asked first: what adds a column locks the table, also where there is nothing to add
    cursor.execute("select from pg_attribute where attrelid = %s::regclass and attname = 'timestamp'",
                   (aside.as_string(cursor),))  # fmt: skip
    if cursor.fetchone() is None:
        cursor.execute(sql.SQL('alter table {} add column if not exists "timestamp" timestamptz').format(aside))


def pg_type(spark_type: str, where: str) -> str:
    """Raises ``PlanError`` COLUMN_TYPE for a type that PostgreSQL cannot take."""
    element = spark_type.removeprefix("array<").removesuffix(">")
    if spark_type.startswith("array<") and element in _ELEMENTS:
        return f"{TYPES[element]}[]"
    if spark_type.startswith(_NESTED):
        return "jsonb"
    if spark_type.startswith("decimal"):
        return spark_type.replace("decimal", "numeric")
    if spark_type not in TYPES:
        raise PlanError("COLUMN_TYPE", f"a column of type {spark_type} cannot be stored in PostgreSQL", where=where)
    return TYPES[spark_type]


def merged_type(spark_type: str, where: str) -> str:
    """Of a window's column. Raises ``PlanError`` COLUMN_TYPE also for nested values, by which nothing is merged."""
    if spark_type.startswith(_NESTED):
        raise PlanError("COLUMN_TYPE", f"a column of type {spark_type} cannot be one of a window in PostgreSQL: derive"
                        " what you need of it before the window", where=where)  # fmt: skip
    return pg_type(spark_type, where)


_OPTIONS = "-c timezone=UTC -c statement_timeout=600000 -c lock_timeout=60000"


def connect(dsn: str, options: str = _OPTIONS, name: str = "lakehouse") -> Connection:
    """A connection in UTC that does not wait for ever. Raises ``RunError`` POSTGRES_UNREACHABLE, POSTGRES_REFUSED."""
    try:
        return psycopg2.connect(dsn, connect_timeout=5, application_name=name, options=options)
    except psycopg2.OperationalError as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1].strip() if lines else "no answer"
        refused = any(word in str(error) for word in ("password", "role", 'database "', "pg_hba"))
        code = "POSTGRES_REFUSED" if refused else "POSTGRES_UNREACHABLE"
        raise RunError(code, f"{reason}; check the connection, or start the stack with: lakehouse up",
                       where="connection postgres") from None  # fmt: skip


#: the tables that may stand beside one; in Delta the state of windows does not
SIDES = ("late", "quarantine", "state", "deleted")


def window_days(cursor: Any, table: str) -> tuple[str, str] | None:
    """The first and the last day (ISO) in which a window of the table begins; None where it has no windows."""
    if "window_start" not in columns_of(cursor, table):
        return None
    cursor.execute(sql.SQL("select min(window_start)::date::text, max(window_start)::date::text from {}").format(
        identifier(table)))  # fmt: skip
    first, last = cursor.fetchone()
    return None if first is None else (first, last)


def identifier(table: str) -> Composable:
    return sql.Identifier(*table.split("."))


def side_table(table: str, suffix: str) -> str:
    return f"{table}__{suffix}"


def ensure_schema(cursor: Any, table: str) -> None:
    """Creates the schema of the table; whoever else creates one waits for the caller's transaction."""
    schema = table.partition(".")[0]
    cursor.execute("select to_regnamespace(%s)", (f'"{schema}"',))
    if cursor.fetchone() == (None,):
        cursor.execute("select pg_advisory_xact_lock(7241203)")
        cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))


def ensure_table(cursor: Any, table: str, columns: Mapping[str, str], keys: Sequence[str], where: str) -> list[str]:
    """Creates the table, or adds the columns that it lacks, whose names it returns.

    Raises ``PlanError`` TABLE_DIFFERS for a column that is there with another type.
    """
    present = columns_of(cursor, table)
    if not present:
        # one at a time: two transactions that create the same collide
        ensure_schema(cursor, table)
        cursor.execute("select pg_advisory_xact_lock(7241203, hashtext(%s))", (table,))
        present = columns_of(cursor, table)
    if not present:
        parts = [sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(kind)) for c, kind in columns.items()]
        if keys:
            unique = sql.SQL(", ").join(map(sql.Identifier, keys))
            parts.append(sql.SQL("unique nulls not distinct ({})").format(unique))
        cursor.execute(sql.SQL("create table {} ({})").format(identifier(table), sql.SQL(", ").join(parts)))
        return []
    for column, kind in columns.items():
        if present.get(column, kind) != kind:
            raise PlanError("TABLE_DIFFERS", f"{table}.{column} is {present[column]} and the pipeline gives {kind}:"
                            " give the column another name, or begin anew with lakehouse reset",
                            where=where)  # fmt: skip
    missing = [column for column in columns if column not in present]
    for column in missing:
        cursor.execute(sql.SQL("alter table {} add column {} {}").format(
            identifier(table), sql.Identifier(column), sql.SQL(columns[column])))  # fmt: skip
    return missing


def columns_of(cursor: Any, table: str) -> dict[str, str]:
    schema, _, name = table.partition(".")
    cursor.execute(
        "select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a where a.attrelid = to_regclass(%s)"
        " and a.attnum > 0 and not a.attisdropped", (f'"{schema}"."{name}"',))  # fmt: skip
    return {column: _short(kind) for column, kind in cursor.fetchall()}


def ensure_index(cursor: Any, table: str, column: str) -> None:
    """What replaces a slice, and what a dashboard asks by, finds its rows without reading them all."""
    name = index_name(table, column)
    # asked for first: `create index if not exists` waits for writers of the table even where the index is there
    cursor.execute("select to_regclass(%s)", (f'"{table.partition(".")[0]}".{name}',))
    if cursor.fetchone() != (None,):
        return
    cursor.execute(sql.SQL("create index if not exists {} on {} ({})").format(
        sql.Identifier(name), identifier(table), sql.Identifier(column)))  # fmt: skip


def index_name(table: str, column: str) -> str:
    return "by_" + hashlib.sha256(f"{table} {column}".encode()).hexdigest()[:16]


def _short(kind: str) -> str:
    return {"timestamp with time zone": "timestamptz"}.get(kind, kind)


@dataclass(frozen=True)
class Part:
    """The rows whose ``column`` is one of ``slices`` (text; None is null)."""

    column: str
    slices: tuple[str | None, ...]

    def where(self, columns: Mapping[str, str]) -> Composable:
        """The condition, by the columns' PostgreSQL types. Parameter: the slices that are not null, as a list."""
        name = sql.Identifier(self.column)
        text = sql.SQL("{} = any(%s::{}[])").format(name, sql.SQL(columns[self.column]))
        return sql.SQL("({} or {} is null)").format(text, name) if None in self.slices else text

    @property
    def values(self) -> list[str]:
        return [value for value in self.slices if value is not None]


@dataclass(frozen=True)
class Loaded:
    """``rows`` written; their ``checksum`` is the same however they are ordered."""

    rows: int
    checksum: int


def load(cursor: Any, table: str, frame: DataFrame, where: str, part: Part | None = None) -> Loaded:
    """Writes the frame in place of the table's rows, or of one part of them, in the caller's transaction.

    What is there afterwards is read back and compared. Readers see the old rows until the caller commits. Raises
    ``PlanError`` COLUMN_TYPE, TABLE_DIFFERS; ``RunError`` MIRROR_DIFFERS.
    """
    columns = {f.name: pg_type(f.dataType.simpleString(), where) for f in frame.schema.fields}
    ensure_table(cursor, table, columns, [], where)
    condition = part.where(columns) if part else sql.SQL("true")
    values = [part.values] if part else None
    cursor.execute(sql.SQL("delete from {} where {}").format(identifier(table), condition), values)
    nested = {i for i, kind in enumerate(columns.values()) if kind == "jsonb"}
    sent = _Sum(nested)
    copy(cursor, identifier(table), columns, sent.passing(python_rows(frame)))
    stored = _Sum(nested)
    names = sql.SQL(", ").join(
        sql.SQL("{}::text" if i in nested else "{}").format(sql.Identifier(name)) for i, name in enumerate(columns)
    )
    with cursor.connection.cursor("stored") as reader:  # on the server: a large table does not come here at once
        reader.execute(sql.SQL("select {} from {} where {}").format(names, identifier(table), condition), values)
        for _ in stored.passing(reader):
            pass
    if stored.loaded != sent.loaded:
        raise RunError("MIRROR_DIFFERS", f"{table} does not hold what was written to it: {stored.loaded.rows:,} rows"
                       f" instead of {sent.loaded.rows:,}, or other values; does a trigger or a rule change them?"
                       " Nothing was changed", where=where)  # fmt: skip
    return sent.loaded


def python_rows(frame: DataFrame) -> Iterator[list[Any]]:
    """The rows as Python values. Times go through microseconds: PySpark would give them in this process's zone.

    What is jsonb in PostgreSQL is JSON; a field that is null is left out of it.
    """
    from datetime import timedelta

    kinds = [_form(f.dataType.simpleString(), f.dataType.typeName()) for f in frame.schema.fields]
    times = {i for i, kind in enumerate(kinds) if kind == "timestamp"}
    # a float's shortest decimal form is what PostgreSQL gives back; as a double it would have other digits
    forms = {"jsonb": f"to_json({{}}, {spark_sql.AS_JSON})", "timestamp": "unix_micros({})",
             "float": "cast(cast({} as string) as double)"}  # fmt: skip
    quoted = [f"`{f.name.replace('`', '``')}`" for f in frame.schema.fields]
    chosen = [f"{forms.get(kind, '{}').format(q)} as {q}" for kind, q in zip(kinds, quoted, strict=True)]
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    for row in frame.selectExpr(*chosen).toLocalIterator():
        yield [epoch + timedelta(microseconds=v) if i in times and v is not None else v for i, v in enumerate(row)]


def _form(kind: str, name: str) -> str:
    return "jsonb" if kind.startswith(_NESTED) and pg_type(kind, "") == "jsonb" else name


class _Sum:
    """Counts rows that pass through it and adds up their hashes. ``nested``: places of JSON."""

    def __init__(self, nested: Container[int] = ()) -> None:
        self._rows, self._sum, self._nested = 0, 0, nested

    def passing(self, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        for row in rows:
            self._rows += 1
            values = [_same_json(v) if v is not None and i in self._nested else v for i, v in enumerate(row)]
            text = repr([_canonical(value) for value in values]).encode()
            self._sum += int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
            yield row

    @property
    def loaded(self) -> Loaded:
        return Loaded(self._rows, self._sum % 2**63)


def _canonical(value: Any) -> Any:
    """One value for what Spark gives and what PostgreSQL gives back."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, Decimal):
        return str(value.normalize())
    return value


def _same_json(text: str) -> str:
    """One text for all that say the same: in any order, and with numbers as they may be written."""
    value = json.loads(text, parse_int=Decimal, parse_float=Decimal)
    return json.dumps(value, sort_keys=True, default=lambda number: f"{number.normalize()}")


def copy(cursor: Any, target: Composable, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> int:
    """COPY of text rows; returns their number. ``None`` is NULL."""
    buffer, count = io.StringIO(), 0
    for row in rows:
        buffer.write("\t".join(map(_text, row)) + "\n")
        count += 1
    buffer.seek(0)
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    cursor.copy_expert(sql.SQL("copy {} ({}) from stdin").format(target, names), buffer)
    return count


def _text(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes | bytearray):
        return "\\\\x" + value.hex()
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).isoformat()
    if isinstance(value, list):
        inner = ",".join("NULL" if v is None else '"' + str(v).replace("\\", "\\\\").replace('"', '\\"') + '"'
                         for v in value)  # fmt: skip
        return _escape("{" + inner + "}")
    return _escape(str(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@dataclass(frozen=True)
class Merge:
    """How the partial aggregates of one window pipeline go into its table.

    ``keys``: column and PostgreSQL type, ``window_start`` first. ``measures``: column, function (count, sum, min, max,
    avg), type. An average is not its own state: then ``<table>__state`` holds sum and count beside the others.
    """

    table: str
    keys: Mapping[str, str]
    measures: Mapping[str, tuple[str, str]]
    updated_at: bool = True
    #: branches that send each change on: rows of the table that change are written into ``lakehouse.outbox`` for each
    outbox: tuple[str, ...] = field(default=(), kw_only=True)
    #: measures that came later than the table: windows that begin at or before the time (microseconds) have none, for
    #: the rows that they had before were not counted
    since: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    @property
    def base(self) -> dict[str, tuple[str, str]]:
        """Base aggregates: column, merging function and type. What a micro-batch delivers, in this order."""
        found: dict[str, tuple[str, str]] = {}
        for name, (function, kind) in self.measures.items():
            if function == "avg":
                # the average's own type would hold a sum of few rows only
                found[f"{name}__sum"] = ("sum", "numeric" if kind.startswith("numeric") else kind)
                found[f"{name}__count"] = ("sum", "bigint")
            else:
                found[name] = ("sum" if function == "count" else function, kind)
        return found

    @property
    def columns(self) -> dict[str, str]:
        columns = {**self.keys, **{name: kind for name, (_, kind) in self.measures.items()}}
        return {**columns, "updated_at": "timestamptz"} if self.updated_at else columns

    @property
    def has_state(self) -> bool:
        return any(function == "avg" for function, _ in self.measures.values())

    def ensure(self, cursor: Any, where: str) -> list[str]:
        """Makes the tables; the columns that the table lacked and has now. Raises ``PlanError`` TABLE_DIFFERS."""
        added = ensure_table(cursor, self.table, self.columns, list(self.keys), where)
        if self.has_state:
            state = {**self.keys, **{name: kind for name, (_, kind) in self.base.items()}}
            ensure_table(cursor, side_table(self.table, "state"), state, list(self.keys), where)
        for suffix, ddl, time in (("late", LATE, "arrived_at"), ("quarantine", QUARANTINE, "quarantined_at")):
            table = side_table(self.table, suffix)
            cursor.execute(sql.SQL(ddl).format(identifier(table)))
            ensure_index(cursor, table, time)  # people look at the newest
        return added

    @property
    def _staged(self) -> dict[str, str]:
        return {**self.keys, **{name: kind for name, (_, kind) in self.base.items()}}

    @cached_property
    def _stage(self) -> Composable:
        return sql.Identifier(f"stage_{hashlib.sha256(self.table.encode()).hexdigest()[:16]}")

    def stage(self, cursor: Any) -> None:
        """Creates the table that ``write`` copies into, for as long as the connection lives."""
        columns = [sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(kind)) for n, kind in self._staged.items()]
        cursor.execute(sql.SQL("create temp table {} ({}) on commit delete rows").format(
            self._stage, sql.SQL(", ").join(columns)))  # fmt: skip

    def write(self, cursor: Any, rows: Sequence[Sequence[Any]]) -> None:
        """Merges partial aggregates (keys, then base aggregates) into the table, in the caller's transaction.

        ``stage`` has been called on the same connection.
        """
        if rows:
            copy(cursor, self._stage, self._staged, rows)
            for measure, begun in self.since.items():
                names = [name for name in self.base if name in (measure, f"{measure}__sum", f"{measure}__count")]
                unknown = sql.SQL(", ").join(sql.SQL("{} = null").format(sql.Identifier(name)) for name in names)
                cursor.execute(sql.SQL("update {} set {} where window_start <= %s").format(self._stage, unknown),
                               (from_micros(begun),))  # fmt: skip
            cursor.execute(self._statement)

    @property
    def _names(self) -> Composable:
        return sql.SQL(", ").join(map(sql.Identifier, self._staged))

    @property
    def _key_names(self) -> Composable:
        return sql.SQL(", ").join(map(sql.Identifier, self.keys))

    @property
    def _updates(self) -> list[Composable]:
        return [_merged(name, function) for name, (function, _) in self.base.items()]

    @cached_property
    def _statement(self) -> Composable:
        if self.has_state:
            columns, values = self.results
            replaced = sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in columns if c not in self.keys
            )
            merged = sql.SQL("merged as ({} returning *)").format(self.into_state)
            return self.sent_on(merged, sql.SQL(
                "insert into {table} ({columns}) select {values} from merged"
                " order by {keys} on conflict ({keys}) do update set {replaced}"
            ).format(
                table=identifier(self.table), values=sql.SQL(", ").join(values),
                columns=sql.SQL(", ").join(map(sql.Identifier, columns)), keys=self._key_names,
                replaced=replaced))  # fmt: skip
        updates = self._updates
        if self.updated_at:
            updates.append(sql.SQL("updated_at = excluded.updated_at"))
        # sorted by key, so that two writers of one table cannot deadlock
        return self.sent_on(None, sql.SQL(
            "insert into {table} as t ({names}{stamp}) select {names}{now} from {stage} order by {keys}"
            " on conflict ({keys}) do update set {set}"
        ).format(
            table=identifier(self.table), names=self._names, stage=self._stage, keys=self._key_names,
            stamp=sql.SQL(", updated_at" if self.updated_at else ""), now=sql.SQL(", now()" if self.updated_at else ""),
            set=sql.SQL(", ").join(updates)))  # fmt: skip

    def sent_on(self, before: Composable | None, insert: Composable) -> Composable:
        """The statement of an insert into the table, after the queries ``before``; with an outbox, what it changes goes
        there."""
        queries = [before] if before is not None else []
        if self.outbox:
            queries.append(sql.SQL("changed as ({} returning *)").format(insert))
            insert = sql.SQL("insert into lakehouse.outbox (branch, row) select b, to_jsonb(changed) - 'updated_at'"
                             " from changed cross join unnest({}::text[]) b").format(
                                 sql.Literal(list(self.outbox)))  # fmt: skip
        return sql.SQL("with {} {}").format(sql.SQL(", ").join(queries), insert) if queries else insert

    @property
    def into_state(self) -> Composable:
        """What was staged, merged into ``<table>__state``."""
        return sql.SQL(
            "insert into {state} as t ({names}) select {names} from {stage} order by {keys} on conflict ({keys}) do"
            " update set {set}"
        ).format(
            state=identifier(side_table(self.table, "state")), names=self._names, stage=self._stage,
            keys=self._key_names, set=sql.SQL(", ").join(self._updates))  # fmt: skip

    @property
    def results(self) -> tuple[list[str], list[Composable]]:
        """The table's columns, and their values out of the state's."""
        columns = [*self.keys]
        found: list[Composable] = [*map(sql.Identifier, self.keys)]
        for name, (function, kind) in self.measures.items():
            columns.append(name)
            if function == "avg":
                found.append(sql.SQL("({} / nullif({}, 0))::{}").format(
                    sql.Identifier(f"{name}__sum"), sql.Identifier(f"{name}__count"), sql.SQL(kind)))  # fmt: skip
            else:
                found.append(sql.Identifier(name))
        if self.updated_at:
            columns.append("updated_at")
            found.append(sql.SQL("now()"))
        return columns, found


def _merged(name: str, function: str) -> Composable:
    column = sql.Identifier(name)
    if function == "sum":  # null + x is x: a sum over no value is null, not zero
        return sql.SQL("{0} = case when t.{0} is null then excluded.{0} when excluded.{0} is null then t.{0}"
                       " else t.{0} + excluded.{0} end").format(column)  # fmt: skip
    return sql.SQL("{0} = {1}(t.{0}, excluded.{0})").format(
        column, sql.SQL("least" if function == "min" else "greatest"))  # fmt: skip
