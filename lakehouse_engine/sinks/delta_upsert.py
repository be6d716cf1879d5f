"""Rows that replace those of their keys in a Delta table: ``mode: upsert``.

The greatest ``order_by`` of a key wins, whatever the order of arrival; of equal ones the one that arrives later. Null
is least in ``order_by``, and a key like any other in ``keys``. A row that deletes leaves its keys and its ``order_by``
in the side table ``<name>__deleted``, so that an older row that arrives later brings nothing back. They are added in a
commit of their own before the main one; after a crash between the two they come again, which is nothing new: of a key
the greatest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.sinks import delta

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: the column of what is written that says whether the row deletes; without it none does
DELETES = "_deletes"
#: values of a partition column up to which a merge names them, so that other partitions are not looked at
_MOST_NAMED = 200
#: types that Spark does not compare
_INCOMPARABLE = ("variant", "map<")


@dataclass(frozen=True)
class Upsert:
    """The table at ``path``. ``order_by`` empty: what arrives later wins, and nothing deletes.

    ``run`` names a run of a job: a retry of a commit that landed is skipped by Delta itself.
    """

    path: Path
    keys: Sequence[str]
    order_by: Sequence[str] = ()
    partition_by: Sequence[str] = ()
    cluster_by: Sequence[str] = ()
    updated_at: bool = True
    properties: Mapping[str, str] = field(default_factory=dict)
    run: str | None = None

    @property
    def deleted(self) -> Path:
        """Where what was deleted is remembered: the keys, ``order_by`` and ``deleted_at``."""
        return deleted_path(self.path)

    def write(self, frame: DataFrame, record: str, at: datetime, ties: Sequence[str] = ()) -> None:
        """Merges the rows in one commit that carries ``record`` in ``userMetadata``.

        ``frame``: the columns to store, ``_deletes boolean`` if there is anything that may, and ``ties``, which tell
        rows of equal ``order_by`` apart (the greatest is the newest) and are not stored. ``at``: the commit's time for
        ``updated_at``.
        """
        from pyspark.sql import functions as F

        rows = newest(frame, self.keys, [*self.order_by, *ties]).drop(*ties).persist()
        try:
            if DELETES in frame.columns:
                remember(rows.filter(DELETES).select(*map(sql.name, [*self.keys, *self.order_by])), self.path, record,
                         at, run=self.run)  # fmt: skip
            else:
                rows = rows.withColumn(DELETES, F.lit(False))
            self._merge(self._not_deleted_since(rows), record, at)
        finally:
            rows.unpersist()

    def _not_deleted_since(self, rows: DataFrame) -> DataFrame:
        """Without the rows that are older than a deletion of their key."""
        if not self.order_by or DeltaLog(self.deleted).version() is None:
            return rows
        from pyspark.sql import functions as F

        gone = rows.sparkSession.read.format("delta").load(str(self.deleted))
        gone = newest(gone, self.keys, self.order_by).alias("t")
        return rows.alias("s").join(gone, F.expr(f"{same(self.keys)} and not {not_less(self.order_by)}"), "left_anti")

    def _merge(self, rows: DataFrame, record: str, at: datetime) -> None:
        from pyspark.sql import functions as F

        stored = [name for name in rows.columns if name != DELETES]
        stamp = {"updated_at": F.lit(at)} if self.updated_at else {}
        rows = rows.withColumns(stamp)
        if DeltaLog(self.path).version() is None:
            delta.append(rows.filter(f"not {DELETES}").drop(DELETES), self.path, record,
                         partition_by=self.partition_by, cluster_by=self.cluster_by, properties=self.properties,
                         run=self.run)  # fmt: skip
            return
        kinds = {f.name: f.dataType.simpleString() for f in rows.schema.fields}
        wins = not_less(self.order_by)
        changed = f"not ({same(stored, kinds)})"
        names = [*stored, *stamp]
        updates, inserts = assigned(names)
        found = [same(self.keys), *among_partitions(rows, [c for c in self.partition_by if c in self.keys])]
        delta.merge(rows, self.path, record, " and ".join(found),
                    f"when matched and s.{DELETES} and {wins} then delete"
                    f" when matched and not s.{DELETES} and {wins} and {changed} then update set {updates}"
                    f" when not matched and not s.{DELETES} then insert {inserts}",
                    run=self.run)  # fmt: skip


def deleted_path(path: Path) -> Path:
    return delta.beside(path, "deleted")


def remember(deletes: DataFrame, path: Path, record: str, at: datetime, run: str | None = None) -> None:
    """Adds what was deleted (keys and order) to the side table of the table at ``path``; nothing for no rows."""
    from pyspark.sql import functions as F

    if not deletes.isEmpty():
        run = None if run is None else f"{run}/deleted"
        delta.append(deletes.coalesce(1).withColumn("deleted_at", F.lit(at)), deleted_path(path), record, run=run)


def newest(frame: DataFrame, keys: Sequence[str], order_by: Sequence[str]) -> DataFrame:
    """One row of each key: that with the greatest ``order_by``, null being least."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    by = [F.col(sql.name(name)).desc_nulls_last() for name in order_by] or [F.lit(0)]
    window = Window.partitionBy(*(F.col(sql.name(key)) for key in keys)).orderBy(*by)
    return frame.withColumn("_place", F.row_number().over(window)).filter("_place = 1").drop("_place")


def same(columns: Sequence[str], kinds: Mapping[str, str] | None = None) -> str:
    """SQL: ``s`` and ``t`` agree in all of the columns; null equals null. ``kinds``: their types, if nested."""

    def side(alias: str, name: str) -> str:
        text = f"{alias}.{sql.name(name)}"
        kind = (kinds or {}).get(name, "")
        return f"to_json(struct({text}))" if any(word in kind for word in _INCOMPARABLE) else text

    return " and ".join(f"{side('t', name)} <=> {side('s', name)}" for name in columns) or "true"


def not_less(order_by: Sequence[str], new: str = "s", old: str = "t") -> str:
    """SQL, never null: ``new`` is not below ``old`` in ``order_by``, null being least."""
    if not order_by:
        return "true"
    one, other = f"{new}.{sql.name(order_by[0])}", f"{old}.{sql.name(order_by[0])}"
    return (f"(({one} is not null and ({other} is null or {one} > {other}))"
            f" or ({one} <=> {other} and {not_less(order_by[1:], new, old)}))")  # fmt: skip


def assigned(names: Sequence[str]) -> tuple[str, str]:
    """SQL of a merge: what an update sets, and what follows ``insert``, to give ``t`` the columns of ``s``."""
    updates = ", ".join(f"t.{sql.name(n)} = s.{sql.name(n)}" for n in names)
    return updates, f"({', '.join(map(sql.name, names))}) values ({', '.join(f's.{sql.name(n)}' for n in names)})"


def among_partitions(rows: DataFrame, columns: Sequence[str]) -> list[str]:
    """SQL conditions on ``t``: its partitions are those of the rows, where they are few enough to be named."""
    found = []
    for column in columns:
        text = f"cast({sql.name(column)} as string)"
        values = [row[0] for row in rows.selectExpr(text).distinct().limit(_MOST_NAMED + 1).collect()]
        if len(values) <= _MOST_NAMED:
            kind = rows.schema[column].dataType.simpleString()
            found.append(f"({sql.among(column, kind, sorted(values, key=str), 't')})")
    return found


__all__ = ["DELETES", "Upsert", "among_partitions", "assigned", "deleted_path", "newest", "not_less", "remember",
           "same"]  # fmt: skip
