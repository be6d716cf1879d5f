"""Rows of the tables in the schemas ``realtime`` and ``gold``, with filters, order and pages.

A name enters a statement only after the catalog has said that it is there, and as an identifier; values are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import psycopg2
from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.database import Database, plain
from lakehouse_engine.errors import LakehouseError, UsageError

SCHEMAS = ("realtime", "gold")
#: rows of a page by default, and at most; how many may be skipped
LIMIT, MOST, DEEPEST = 100, 1000, 1_000_000
OPERATORS = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_ASKING = ("order", "limit", "offset", "columns")


class NotFound(LakehouseError):
    """There is no such table, pipeline, dashboard or panel."""


@dataclass(frozen=True)
class Table:
    """A table as the catalog knows it. ``keys``: the columns of its first unique index."""

    schema: str
    name: str
    columns: dict[str, str]
    keys: tuple[str, ...]


def listed(database: Database) -> list[dict[str, Any]]:
    """``name``, ``kind`` (table, late, quarantine, state, deleted), ``rows`` (PostgreSQL's estimate, None: unknown),
    ``bytes``, ``columns`` (name and type)."""
    text = """
      select n.nspname || '.' || c.relname, nullif(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid),
        (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod))
           order by a.attnum) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = any(%s) and c.relkind in ('r', 'p', 'v', 'm')
        and has_table_privilege(c.oid, 'select') order by 1"""
    rows = database.ask(text, (list(SCHEMAS),), limit=10_000).rows
    return [{"name": name, "kind": _kind(name), "rows": count, "bytes": size, "columns": columns or []}
            for name, count, size, columns in rows]  # fmt: skip


def _kind(name: str) -> str:
    return next((kind for kind in ("late", "quarantine", "state", "deleted") if name.endswith(f"__{kind}")), "table")


def described(database: Database, table: str) -> Table:
    """Raises ``NotFound`` UNKNOWN_TABLE."""
    schema, _, name = table.partition(".")
    text = """
      select a.attname, format_type(a.atttypid, a.atttypmod),
        coalesce(array_position(i.indkey::int[], a.attnum::int), -1)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      left join lateral (select indkey from pg_index where indrelid = c.oid and indisunique and indexprs is null
        order by indexrelid limit 1) i on true
      where n.nspname = any(%s) and n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p', 'v', 'm')
      order by a.attnum"""
    found = [] if "\0" in table else database.ask(text, (list(SCHEMAS), schema, name)).rows
    if not found:
        raise NotFound("UNKNOWN_TABLE", f"there is no table {table!r} in {' or '.join(SCHEMAS)}; GET /api/tables")
    keys = sorted((place, column) for column, _, place in found if place >= 0)
    return Table(schema, name, {column: kind for column, kind, _ in found}, tuple(column for _, column in keys))


def rows(database: Database, table: str, asked: Sequence[tuple[str, str]], path: str) -> dict[str, Any]:
    """One page: ``columns``, ``rows`` (a list of values each), ``next``: the address of the next page, or None.

    Raises ``UsageError`` BAD_FILTER, BAD_ORDER, BAD_COLUMNS, BAD_PAGE, ``NotFound`` UNKNOWN_TABLE.
    """
    known = described(database, table)
    given = {name: value for name, value in asked if name in _ASKING}
    limit, offset = _whole(given, "limit", LIMIT, 1, MOST), _whole(given, "offset", 0, 0, DEEPEST)
    chosen = _columns(known, given["columns"]) if "columns" in given else tuple(known.columns)
    conditions, values = _conditions(known, [pair for pair in asked if pair[0] not in _ASKING])
    statement = sql.SQL("select {} from {} where {} order by {} limit %s offset %s").format(
        _names(chosen), sql.Identifier(known.schema, known.name), conditions, _order(known, given.get("order")),
    )  # fmt: skip
    try:
        found = database.ask(statement, (*values, limit + 1, offset), limit=limit)
    except psycopg2.DataError as error:
        raise UsageError("BAD_FILTER", f"{str(error).strip().splitlines()[0]}; {_told(known)}") from None
    following = None
    if found.more:
        kept = [pair for pair in asked if pair[0] not in ("offset", "limit")]
        following = f"{path}?{urlencode([*kept, ('limit', limit), ('offset', offset + limit)])}"
    return {"table": table, "columns": [{"name": c, "type": known.columns[c]} for c in chosen],
            "rows": plain(found.rows), "limit": limit, "offset": offset, "next": following}  # fmt: skip


def _told(table: Table) -> str:
    return "columns: " + ", ".join(f"{name} ({kind})" for name, kind in table.columns.items())


def _names(columns: Sequence[str]) -> Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _conditions(table: Table, asked: Sequence[tuple[str, str]]) -> tuple[Composable, list[Any]]:
    parts: list[Composable] = [sql.SQL("true")]
    values: list[Any] = []
    for name, value in asked:
        column, operator = (name, "eq") if name in table.columns else name.rpartition(".")[::2]
        if column not in table.columns:
            raise UsageError("BAD_FILTER", f"there is no column {column or name!r}; {_told(table)}")
        if "\0" in value:
            raise UsageError("BAD_FILTER", f"{column}: a value holds no NUL; {_told(table)}")
        kind, quoted = sql.SQL(table.columns[column]), sql.Identifier(column)
        if operator == "null" and value in ("true", "false"):
            parts.append(sql.SQL("{} is null" if value == "true" else "{} is not null").format(quoted))
        elif operator == "in":
            parts.append(sql.SQL("{} = any(%s::{}[])").format(quoted, kind))
            values.append(value.split(","))
        elif operator in OPERATORS:
            parts.append(sql.SQL("{} {} %s::{}").format(quoted, sql.SQL(OPERATORS[operator]), kind))
            values.append(value)
        else:
            known = ", ".join([*OPERATORS, "in", "null"])
            raise UsageError("BAD_FILTER", f"{name}={value!r}: write COLUMN=VALUE or COLUMN.OPERATOR=VALUE with one of"
                             f" {known} (null: true or false); {_told(table)}")  # fmt: skip
    return sql.SQL(" and ").join(parts), values


def _order(table: Table, asked: str | None) -> Composable:
    """As asked, then by the keys: a page begins where the one before it ended."""
    wanted: dict[str, bool] = {}
    for word in asked.split(",") if asked else ():
        column = word.removeprefix("-")
        if column not in table.columns:
            raise UsageError("BAD_ORDER", f"there is no column {column!r}; {_told(table)}")
        wanted.setdefault(column, word.startswith("-"))
    for column in table.keys or table.columns:
        wanted.setdefault(column, False)
    # PostgreSQL's own places for nulls: an index serves both directions
    return sql.SQL(", ").join(sql.SQL("{} desc" if backwards else "{}").format(sql.Identifier(column))
                              for column, backwards in wanted.items())  # fmt: skip


def _columns(table: Table, asked: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(asked.split(",")))
    unknown = [column for column in chosen if column not in table.columns]
    if unknown:
        raise UsageError("BAD_COLUMNS", f"there is no column {unknown[0]!r}; {_told(table)}")
    return chosen


def _whole(given: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise UsageError("BAD_PAGE", f"{name} is a number from {least} to {most:,}, and not {text!r}")
    return int(text)
