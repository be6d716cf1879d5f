"""Rows that were only added to a job's source: computed alone, and added to its table.

What came before is not computed again. A dedupe has to choose between the rows of a key, so the new rows are held
against the old ones of their keys: a key that is there already keeps its row, and where a new row comes before it in
the dedupe's order the slice is computed as a whole (``MustRecompute``). So the result is that of a full run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lakehouse_engine import sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.transforms import Dedupe

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: bytes of new files above which a whole slice is computed about as quickly
MOST_BYTES = 64 * 1024 * 1024
#: runs in a row that add files to a slice; the next one computes it as a whole, which puts it in one place again
MOST_APPENDS = 6
#: what Spark takes for a pattern in a path, and Delta's own names of columns in files
_PATTERN = re.compile(r"[*?\[\]{}\\]")
_MAPPED = "delta.columnMapping.mode"


class MustRecompute(Exception):
    """New rows cannot just be added: one comes before, or beside, one of its key, or the old ones cannot be read."""


def readable(log: DeltaLog, added: Mapping[str, int] | None, version: int) -> bool:
    """Whether the files, of the table as of ``version``, can be read as they lie, and are few enough."""
    if added is None or sum(added.values()) > MOST_BYTES or any(map(_PATTERN.search, added)):
        return False
    metadata = log.metadata(until=version) or {}
    return bool(metadata.get("configuration", {}).get(_MAPPED, "none") == "none")


def read(spark: SparkSession, log: DeltaLog, added: Mapping[str, int], version: int) -> DataFrame:
    """The rows of data files, by path below the table, with the columns that it has as of ``version``."""
    from pyspark.sql.types import StructType

    metadata = log.metadata(until=version)
    assert metadata is not None
    schema = StructType.fromJson(json.loads(metadata["schemaString"]))
    files = [str(log.path / path) for path in added]
    frame = spark.read.schema(schema).option("basePath", str(log.path)).parquet(*files)
    return frame.select(*map(sql.name, schema.names))  # a partition's column would stand last


def unseen(once: DataFrame, old: DataFrame, dedupe: Dedupe, keep: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """The rows of ``once`` (one per key, of the new rows) whose key ``old`` does not have.

    Both have the columns that reach the dedupe; ``keep`` persists what is read twice. Raises ``MustRecompute``.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    keys = [F.col(sql.name(key)) for key in dedupe.keys]
    deciding = [sql.name(name) for name in dedupe.deciding(once)]
    ours = once.select(*deciding)
    held = _same_key(old.select(*deciding), once.select(*keys), dedupe, "left_semi")
    both = ours.withColumn("_new", F.lit(True)).unionAll(held.withColumn("_new", F.lit(False)))
    by_key = Window.partitionBy(*dedupe.partition())
    known = F.max(~F.col("_new")).over(by_key).alias("_known")
    rank = F.rank().over(by_key.orderBy(*dedupe.order(ours))).alias("_rank")
    judged = keep(both.select(*keys, "_new", known, rank).filter("_new and _known"))
    (found,) = judged.selectExpr("count(*) as known", "count_if(_rank = 1) as first").collect()
    if found["first"]:
        raise MustRecompute(f"{found['first']:,} of the new rows come before rows of their keys")
    return _same_key(once, judged.select(*keys), dedupe, "left_anti") if found["known"] else once


def _same_key(frame: DataFrame, keys: DataFrame, dedupe: Dedupe, how: str) -> DataFrame:
    from pyspark.sql import functions as F

    theirs = keys.select(*[F.col(sql.name(key)).alias(f"_key{i}") for i, key in enumerate(dedupe.keys)])
    same = [F.col(sql.name(key)).eqNullSafe(F.col(f"_key{i}")) for i, key in enumerate(dedupe.keys)]
    return frame.join(F.broadcast(theirs), same, how)
