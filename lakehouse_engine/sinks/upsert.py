"""Rows that replace those of their keys: ``mode: upsert`` of a stream without a window into PostgreSQL.

The greatest ``order_by`` of a key wins, whatever the order of arrival; of equal ones the one that arrives later (in a
micro-batch: the greater offset). Null is least in ``order_by``, and a key like any other in ``keys``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.sinks.postgres import copy, ensure_table, identifier

#: where a record stands, beside its columns in what is staged
_PLACE = {"_partition": "int", "_offset": "bigint"}
_STAGE = sql.Identifier("lakehouse_upsert")


@dataclass(frozen=True)
class Upsert:
    """``columns``: name and PostgreSQL type, without ``updated_at``."""

    table: str
    columns: Mapping[str, str]
    keys: Sequence[str]
    order_by: Sequence[str]
    updated_at: bool = True

    def ensure(self, cursor: Any, where: str) -> None:
        """Raises ``PlanError`` TABLE_DIFFERS."""
        stamp = {"updated_at": "timestamptz"} if self.updated_at else {}
        ensure_table(cursor, self.table, {**self.columns, **stamp}, list(self.keys), where)

    def write(self, cursor: Any, rows: Iterable[Sequence[Any]]) -> int:
        """Merges rows (``columns``, then partition and offset) in the caller's transaction; how many have changed."""
        staged = {**self.columns, **_PLACE}
        parts = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in staged.items()]
        cursor.execute(sql.SQL("create temp table {} ({}) on commit drop").format(_STAGE, sql.SQL(", ").join(parts)))
        copy(cursor, _STAGE, staged, rows)
        cursor.execute(self._statement)
        return int(cursor.rowcount)

    @property
    def _statement(self) -> Composable:
        names, keys = _list(self.columns), _list(self.keys)
        newest = sql.SQL(", ").join(
            sql.SQL("{} desc nulls last").format(sql.Identifier(name)) for name in self.order_by
        )
        replaced = [name for name in self.columns if name not in self.keys]
        stamp = sql.SQL(", updated_at" if self.updated_at else "")
        updates = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name))
                   for name in [*(replaced or self.keys), *(["updated_at"] if self.updated_at else [])]]  # fmt: skip
        return sql.SQL(
            "insert into {table} as t ({names}{stamp}) select {names}{now} from (select distinct on ({keys}) * from"
            " {stage} order by {keys}, {newest}, _offset desc, _partition desc) s order by {keys}"
            " on conflict ({keys}) do update set {updates} where {wins}"
        ).format(
            table=identifier(self.table), names=names, keys=keys, stage=_STAGE, newest=newest, stamp=stamp,
            now=sql.SQL(", now()" if self.updated_at else ""), updates=sql.SQL(", ").join(updates),
            wins=_not_less(self.order_by))  # fmt: skip


def _list(names: Iterable[str]) -> Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _not_less(order_by: Sequence[str]) -> Composable:
    """SQL: the new row's ``order_by`` is not below the one that is there, null being least."""
    if not order_by:
        return sql.SQL("true")
    greater = sql.SQL("excluded.{0} is not null and (t.{0} is null or excluded.{0} > t.{0})")
    equal = sql.SQL("excluded.{0} is not distinct from t.{0} and {1}")
    name = sql.Identifier(order_by[0])
    return sql.SQL("({} or ({}))").format(greater.format(name), equal.format(name, _not_less(order_by[1:])))
