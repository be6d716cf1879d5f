"""Rows that replace those of their keys: ``mode: upsert`` of a stream without a window into PostgreSQL.

The greatest ``order_by`` of a key wins, whatever the order of arrival; of equal ones, or without an order, the one
that arrives later (in a micro-batch: the greater offset). Null is least in ``order_by``, and a key like any other in
``keys``. What a row deletes is remembered with its ``order_by`` in ``<table>__deleted``: an older row that comes later
brings nothing back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.sinks.postgres import copy, ensure_table, identifier, side_table

#: whether a row deletes and where its record stands, beside its columns in what is staged
_BESIDE = {"_deletes": "boolean default false", "_partition": "int", "_offset": "bigint"}
_STAGE, _NEWEST = sql.Identifier("lakehouse_upsert"), sql.Identifier("lakehouse_newest")


@dataclass(frozen=True)
class Upsert:
    """``columns``: name and PostgreSQL type, without ``updated_at``. ``deletes``: whether rows may."""

    table: str
    columns: Mapping[str, str]
    keys: Sequence[str]
    order_by: Sequence[str]
    updated_at: bool = True
    deletes: bool = False

    @property
    def deleted(self) -> str:
        """Where what was deleted is remembered: the keys, ``order_by`` and ``deleted_at``."""
        return side_table(self.table, "deleted")

    def ensure(self, cursor: Any, where: str) -> None:
        """Raises ``PlanError`` TABLE_DIFFERS."""
        stamp = {"updated_at": "timestamptz"} if self.updated_at else {}
        ensure_table(cursor, self.table, {**self.columns, **stamp}, list(self.keys), where)
        if self.deletes:
            known = {name: self.columns[name] for name in dict.fromkeys([*self.keys, *self.order_by])}
            ensure_table(cursor, self.deleted, {**known, "deleted_at": "timestamptz"}, list(self.keys), where)

    def write(self, cursor: Any, rows: Iterable[Sequence[Any]]) -> int:
        """Merges rows in the caller's transaction; how many rows of the table have changed.

        A row: ``columns``, where rows may delete whether it does, its partition and its offset.
        """
        staged = {**self.columns, **_BESIDE}
        parts = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in staged.items()]
        cursor.execute(sql.SQL("create temp table {} ({}) on commit drop").format(_STAGE, sql.SQL(", ").join(parts)))
        copy(cursor, _STAGE, [name for name in staged if self.deletes or name != "_deletes"], rows)
        cursor.execute(self._newest)
        changed = 0
        if self._remembers(cursor):
            for statement in (self._remember, self._forget):
                cursor.execute(statement)
            cursor.execute(self._delete)
            changed = int(cursor.rowcount)
        cursor.execute(self._put)
        return changed + int(cursor.rowcount)

    def _remembers(self, cursor: Any) -> bool:
        """Also where the pipeline does not delete any more."""
        if not self.deletes:
            cursor.execute("select to_regclass(%s) is not null", (".".join(f'"{n}"' for n in self.deleted.split(".")),))
            return bool(cursor.fetchone()[0])
        return True

    @property
    def _newest(self) -> Composable:
        """One row of each key."""
        by = sql.SQL("").join(sql.SQL("{} desc nulls last, ").format(sql.Identifier(name)) for name in self.order_by)
        return sql.SQL(
            "create temp table {newest} on commit drop as select distinct on ({keys}) * from {stage}"
            " order by {keys}, {by}_offset desc, _partition desc"
        ).format(newest=_NEWEST, keys=_list(self.keys), stage=_STAGE, by=by)

    @property
    def _remember(self) -> Composable:
        """What the rows delete, in order of the keys: of two deletions of a key the later one counts."""
        known = list(dict.fromkeys([*self.keys, *self.order_by]))
        moved = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in [*self.order_by, "deleted_at"]
        )
        return sql.SQL(
            "insert into {deleted} as t ({known}, deleted_at) select {known}, now() from {newest} where _deletes"
            " order by {keys} on conflict ({keys}) do update set {moved} where {wins}"
        ).format(deleted=identifier(self.deleted), known=_list(known), newest=_NEWEST, keys=_list(self.keys),
                 moved=moved, wins=_not_less(self.order_by, "excluded"))  # fmt: skip

    @property
    def _forget(self) -> Composable:
        """Rows that are older than a deletion of their key change nothing."""
        return sql.SQL("delete from {newest} n using {deleted} t where {same} and not {wins}").format(
            newest=_NEWEST, deleted=identifier(self.deleted), same=_same(self.keys),
            wins=_not_less(self.order_by, "n"))  # fmt: skip

    @property
    def _delete(self) -> Composable:
        return sql.SQL("delete from {table} t using {newest} n where n._deletes and {same} and {wins}").format(
            table=identifier(self.table), newest=_NEWEST, same=_same(self.keys),
            wins=_not_less(self.order_by, "n"))  # fmt: skip

    @property
    def _put(self) -> Composable:
        """Adds and updates; a row that stays what it is keeps its ``updated_at``."""
        replaced = [name for name in self.columns if name not in self.keys] or list(self.keys)
        stamp = ["updated_at"] if self.updated_at else []
        updates = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in [*replaced, *stamp]]
        return sql.SQL(
            "insert into {table} as t ({names}{stamp}) select {names}{now} from {newest} where not _deletes"
            " order by {keys} on conflict ({keys}) do update set {updates} where {wins} and ({old}) is distinct from"
            " ({new})"
        ).format(
            table=identifier(self.table), names=_list(self.columns), keys=_list(self.keys), newest=_NEWEST,
            stamp=sql.SQL(", updated_at" if self.updated_at else ""), now=sql.SQL(", now()" if self.updated_at else ""),
            updates=sql.SQL(", ").join(updates), wins=_not_less(self.order_by, "excluded"), old=_list(replaced, "t"),
            new=_list(replaced, "excluded"))  # fmt: skip


def _list(names: Iterable[str], alias: str = "") -> Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, name) if alias else sql.Identifier(name) for name in names)


def _same(keys: Sequence[str]) -> Composable:
    return sql.SQL(" and ").join(sql.SQL("t.{0} is not distinct from n.{0}").format(sql.Identifier(k)) for k in keys)


def _not_less(order_by: Sequence[str], new: str) -> Composable:
    """SQL: ``new`` is not below ``t`` in ``order_by``, null being least."""
    if not order_by:
        return sql.SQL("true")
    one, other = sql.Identifier(new, order_by[0]), sql.Identifier("t", order_by[0])
    greater = sql.SQL("{0} is not null and ({1} is null or {0} > {1})").format(one, other)
    equal = sql.SQL("{0} is not distinct from {1} and {2}").format(one, other, _not_less(order_by[1:], new))
    return sql.SQL("({} or ({}))").format(greater, equal)
