"""What pipelines with ``mode: delete`` ask to be deleted, and how the owner of the table does it between its batches.

Such a pipeline adds the keys of its rows to a table of its own: the keys, ``request bigint`` (a number that grows from
commit to commit) and ``requested_at``. The file ``<storage>/_deletes/<table>/<pipeline>`` tells the owner of the table
that there is one: nobody else ever writes it. The owner deletes what equals a row that it has not done yet, first in
the tables beside it, then in the table; that commit carries, under ``deletes``, the request that it has reached of each
pipeline. So a request is applied once, to the rows that are there then: rows of its keys that come later stay.

In a job's table, which is computed anew from rows that are still there, a request holds for good (``without``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine import sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.sinks import delta
from lakehouse_engine.sinks.delta_upsert import deleted_path, same

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: the columns of a table of requests beside the keys
REQUEST, REQUESTED_AT = "request", "requested_at"
#: the tables beside one whose rows are JSON, and the SQL of it
_ASIDE = {"quarantine": "coalesce(t.row, cast(t.value as string))", "late": "t.row"}


@dataclass(frozen=True)
class Requests:
    """Of one pipeline: those after the request ``since``, up to ``until``; ``id`` of the table that holds them."""

    pipeline: str
    path: Path
    id: str | None
    since: int
    until: int

    def rows(self, spark: SparkSession, *, whole: bool = False) -> DataFrame:
        """The keys, each once."""
        frame = spark.read.format("delta").load(str(self.path)).filter(f"{REQUEST} <= {self.until}")
        frame = frame if whole else frame.filter(f"{REQUEST} > {self.since}")
        return frame.drop(REQUEST, REQUESTED_AT).distinct()


def announce(storage: Path, table: str, pipeline: str) -> None:
    """Tells the owner of the table that the pipeline asks it to delete."""
    folder = storage / "_deletes" / table
    folder.mkdir(parents=True, exist_ok=True)
    (folder / pipeline).touch()


def asked(storage: Path, table: str, done: Mapping[str, Any]) -> list[Requests]:
    """Every pipeline's requests of the table; ``done``: how far its newest commit has got. Plain files, no Spark."""
    folder = storage / "_deletes" / table
    found = []
    for pipeline in sorted(file.name for file in folder.iterdir()) if folder.is_dir() else ():
        log = DeltaLog(delta.table_path(storage, pipeline))
        record = log.record()
        if record is None:
            continue
        until, id = int(record.get(REQUEST, record.get("batch_id", 0))), log.table_id()
        reached = done.get(pipeline, {})
        since = int(reached.get(REQUEST, 0)) if reached.get("id") == id else 0
        found.append(Requests(pipeline, log.path, id, since, until))
    return found


def waiting(storage: Path, table: str, done: Mapping[str, Any]) -> list[Requests]:
    """Those that have not been applied."""
    return [one for one in asked(storage, table, done) if one.since < one.until]


def done(log: DeltaLog) -> dict[str, Any]:
    """How far the table's newest commit says that requests have been applied, by pipeline."""
    return dict((log.record() or {}).get("deletes", {}))


def apply(spark: SparkSession, storage: Path, table: str) -> dict[str, Any] | None:
    """Deletes what waits, by the table's owner; how far it is then, None where nothing waited.

    Each pipeline's requests are one commit of the table, after those of the tables beside it: a crash in between does
    these once more, before any row is added to them.
    """
    path = delta.table_path(storage, table)
    log = DeltaLog(path)
    reached = done(log)
    found = waiting(storage, table, reached) if log.record() is not None else []
    for one in found:
        rows = one.rows(spark.newSession()).persist()
        reached = {**reached, one.pipeline: {"id": one.id, REQUEST: one.until}}
        try:
            if not rows.isEmpty():
                _aside(rows, path)
            _delete(rows, path, same(rows.columns), {"deletes": reached})  # says that it is done, without rows too
        finally:
            rows.unpersist()
    return reached if found else None


def without(result: DataFrame, storage: Path, table: str) -> DataFrame:
    """The rows of a job's result that no request, done or not, names."""
    from pyspark.sql import functions as F

    for one in asked(storage, table, {}):
        rows = one.rows(result.sparkSession, whole=True).alias("s")
        result = result.alias("t").join(rows, F.expr(same(rows.columns)), "left_anti")
    return result


def _aside(rows: DataFrame, path: Path) -> None:
    """In the tables beside it: rows kept as JSON compare as text, a null asks for nothing there."""
    deleted = deleted_path(path)
    if set(rows.columns) <= (DeltaLog(deleted).columns() or {}).keys():
        _delete(rows, deleted, same(rows.columns), {})
    for suffix, document in _ASIDE.items():
        side = delta.beside(path, suffix)
        if DeltaLog(side).version() is not None:
            on = [f"get_json_object({document}, {sql.string(f'$.{name}')}) = cast(s.{sql.name(name)} as string)"
                  for name in rows.columns]  # fmt: skip
            texts = rows.selectExpr(*(f"cast({sql.name(name)} as string) as {sql.name(name)}" for name in rows.columns))
            _delete(texts.distinct(), side, " and ".join(on), {})


def _delete(rows: DataFrame, path: Path, on: str, told: Mapping[str, Any]) -> None:
    """One commit that repeats the table's newest record, but for what that says of the rows it wrote itself."""
    own = {"counters": {}, "warnings": {}, "slices": None, "slice_by": None, **told}
    delta.merge(rows, path, delta.repeated(DeltaLog(path).record() or {}, **own), on, "when matched then delete")


def keys_and_request(frame: DataFrame, keys: Sequence[str], request: int, at: object) -> DataFrame:
    """The rows of a table of requests: one commit has one number."""
    from pyspark.sql import functions as F

    kept = frame.select(*map(sql.name, keys))
    return kept.withColumns({REQUEST: F.lit(request).cast("bigint"), REQUESTED_AT: F.lit(at)})


__all__ = ["REQUEST", "REQUESTED_AT", "Requests", "announce", "apply", "asked", "done", "keys_and_request", "waiting",
           "without"]  # fmt: skip
