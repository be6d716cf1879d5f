"""The states of each key in a Delta table, one row each: ``mode: scd2``.

A state is valid from its ``valid_from`` to that of the next one of its key, or to the deletion that comes first; the
newest has no end. Where two rows of a key say the same ``valid_from``, the greatest ``order_by`` counts, null being
least; of equal ones a state before a deletion, then the one whose JSON is greater. So the table is a function of the
set of rows that came: a state that arrives late splits the one it lies in. Equal states that follow each other stay
two rows, as in dbt's snapshots by timestamp: put together, one that arrives late between them could not be fitted in.
Deletions are remembered in ``<name>__deleted``, as those of ``delta_upsert`` are: one may come before what it ends.
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
from lakehouse_engine.sinks.delta_upsert import DELETES, among_partitions, assigned, deleted_path, remember, same

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

FROM, TO = "valid_from", "valid_to"
#: of a point: whether the table holds it, and until when it does; the JSON of its row
_HELD, _UNTIL, _ROW = "_held", "_until", "_row"


@dataclass(frozen=True)
class Scd2:
    """The table at ``path``; ``run`` as for ``Upsert``."""

    path: Path
    keys: Sequence[str]
    order_by: Sequence[str]
    partition_by: Sequence[str] = ()
    cluster_by: Sequence[str] = ()
    updated_at: bool = True
    properties: Mapping[str, str] = field(default_factory=dict)
    run: str | None = None

    def write(self, frame: DataFrame, record: str, at: datetime) -> None:
        """Fits the rows in, in one commit that carries ``record`` in ``userMetadata``.

        ``frame``: the columns to store, ``valid_from`` (never null), ``_deletes boolean`` if there is anything that
        may. ``at``: the commit's time for ``updated_at``.
        """
        from pyspark.sql import functions as F

        rows = (frame if DELETES in frame.columns else frame.withColumn(DELETES, F.lit(False))).persist()
        try:
            known = list(dict.fromkeys([*self.keys, *self.order_by, FROM]))
            gone = rows.filter(DELETES).select(*map(sql.name, known)).distinct()
            remember(gone, self.path, record, at, run=self.run)
            stamp = {"updated_at": F.lit(at)} if self.updated_at else {}
            changes = self._changes(rows).withColumns(stamp).persist()
            try:
                self._commit(changes, record)
            finally:
                changes.unpersist()
        finally:
            rows.unpersist()

    def _changes(self, rows: DataFrame) -> DataFrame:
        """What the table has to learn: states with their end, and deletions of rows that it holds."""
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        stored = [name for name in rows.columns if name not in (FROM, DELETES)]
        key = [F.col(sql.name(name)) for name in self.keys]
        content = F.to_json(F.struct(*[F.col(sql.name(name)) for name in stored]))
        arrived = rows.withColumns({_HELD: F.lit(False), _UNTIL: F.lit(None).cast(rows.schema[FROM].dataType)})
        points = arrived
        for more in (self._held(rows, stored), self._remembered(rows)):
            points = points if more is None else points.unionByName(more, allowMissingColumns=True)
        points = points.withColumn(_ROW, content)
        order = [F.col(sql.name(name)).desc_nulls_last() for name in self.order_by]
        one = Window.partitionBy(*key, FROM)
        first = one.orderBy(*order, F.col(DELETES).asc(), F.col(_ROW).desc(), F.col(_HELD).desc())
        points = points.withColumns({"_place": F.row_number().over(first), "_there": F.max(_HELD).over(one)})
        points = points.filter("_place = 1").withColumn(TO, F.lead(FROM).over(Window.partitionBy(*key).orderBy(FROM)))
        new = f"if({DELETES}, _there, not ({_HELD} and {_UNTIL} <=> {TO}))"
        return points.filter(new).select(*map(sql.name, stored), FROM, TO, DELETES)

    def _held(self, rows: DataFrame, stored: Sequence[str]) -> DataFrame | None:
        """The states of the rows' keys that are in the table."""
        from pyspark.sql import functions as F

        if DeltaLog(self.path).version() is None:
            return None
        table = rows.sparkSession.read.format("delta").load(str(self.path)).alias("t")
        for condition in among_partitions(rows, [name for name in self.partition_by if name in self.keys]):
            table = table.filter(condition)
        table = self._of_keys(table, rows)
        named = [F.col(sql.name(name)) for name in [*stored, FROM]]
        return table.select(*named, F.lit(False).alias(DELETES), F.lit(True).alias(_HELD), F.col(TO).alias(_UNTIL))

    def _remembered(self, rows: DataFrame) -> DataFrame | None:
        """The deletions of the rows' keys, those of the rows among them."""
        from pyspark.sql import functions as F

        path = deleted_path(self.path)
        if DeltaLog(path).version() is None:
            return None
        gone = self._of_keys(rows.sparkSession.read.format("delta").load(str(path)).alias("t"), rows)
        return gone.drop("deleted_at").distinct().withColumns({DELETES: F.lit(True), _HELD: F.lit(False)})

    def _of_keys(self, table: DataFrame, rows: DataFrame) -> DataFrame:
        from pyspark.sql import functions as F

        keys = rows.select(*map(sql.name, self.keys)).distinct().alias("s")
        return table.join(keys, F.expr(same(self.keys)), "left_semi")

    def _commit(self, changes: DataFrame, record: str) -> None:
        if DeltaLog(self.path).version() is None:
            states = changes.filter(f"not {DELETES}").drop(DELETES)
            delta.append(states, self.path, record, partition_by=self.partition_by, cluster_by=self.cluster_by,
                         properties=self.properties, run=self.run)  # fmt: skip
            return
        names = [name for name in changes.columns if name != DELETES]
        updates, inserts = assigned(names)
        pruned = among_partitions(changes, [name for name in self.partition_by if name in self.keys])
        delta.merge(changes, self.path, record, " and ".join([same([*self.keys, FROM]), *pruned]),
                    f"when matched and s.{DELETES} then delete when matched then update set {updates}"
                    f" when not matched and not s.{DELETES} then insert {inserts}",
                    run=self.run)  # fmt: skip
