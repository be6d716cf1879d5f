"""``delta``: the Delta table of a pipeline.

Columns: those of the table. With ``changes: true`` also ``_op string`` (insert, update, delete), ``_version bigint``
and ``_time timestamp``, the commit that made the change.

**Delivery guarantees**: a job reads one version of the table, named in its commit. What changed since the version of
the last commit is taken from the table's own log. A stream reads the table as it is, then the rows that its commits
add, or what they change; which version comes next is written with the rows, so each is in the result once. It stops
rather than skip or guess: where rows were changed under it (``rewrites``), where a version is no longer there, and
where the table was made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Component, Flag, Table, Whole, utc
from lakehouse_engine.deltalog import DeltaLog

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def _as_of(value: int | str | None) -> int | str | None:
    if isinstance(value, str):
        try:
            return utc(value)
        except ValueError:
            raise PydanticCustomError("BAD_TIME", "{value} is neither a version nor a time; write e.g. 12 or"
                                      " 2026-01-01T00:00:00Z", {"value": repr(value)}) from None  # fmt: skip
    if value is not None and value < 0:
        raise PydanticCustomError("BAD_TIME", "a version is 0 or more")
    return value


class Delta(Component):
    """The Delta table of a pipeline. ``bronze.user_events`` is short for ``{delta: {table: ...}}``."""

    #: the pipeline that writes it
    table: Table
    #: for jobs: a version, or a moment: the newest version that was there then
    as_of: Annotated[Whole | str | None, AfterValidator(_as_of)] = None
    #: what changed, row by row, instead of what is there; a job takes it with ``mode: upsert`` or ``scd2``. The first
    #: run takes the table as it is, each row an insert; later ones what their commits changed. The pipeline that writes
    #: the table keeps its changes where both are run, or planned, together
    changes: Flag = False
    #: for streams: where the first start begins, with the rows that are there (``earliest``) or after them; later ones
    #: go on where the sink's ledger says
    start: Literal["earliest", "latest"] = "earliest"
    #: for streams: what a commit is that changes or deletes rows which are there already: an error, or passed over with
    #: all the rows that it adds (``ignore``)
    rewrites: Literal["fail", "ignore"] = "fail"

    @property
    def origin(self) -> str:
        """What people call it."""
        return self.table


#: the columns of a change, by Spark type
CHANGE = {"_op": "string", "_version": "bigint", "_time": "timestamp"}


def read_changes(spark: SparkSession, log: DeltaLog, since: int, until: int) -> DataFrame:
    """What the commits after version ``since``, to ``until``, changed: the table's columns and those of ``CHANGE``."""
    reader = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", since + 1)
    frame = as_changes(reader.option("endingVersion", until).load(str(log.path)))
    return without_rewritten(frame, [v for v in range(since + 1, until + 1) if log.overwrites(v)])


def read_all(frame: DataFrame, version: int, at: datetime) -> DataFrame:
    """The table as it is, ``frame``, as changes: each row an insert of its ``version``."""
    from pyspark.sql import functions as F

    made = {"_op": F.lit("insert"), "_version": F.lit(version).cast("bigint"), "_time": F.lit(at)}
    return frame.withColumns(made)


def as_changes(frame: DataFrame) -> DataFrame:
    """Delta's change data feed with our names; what a row was before an update is left out."""
    after = frame.filter("_change_type <> 'update_preimage'")
    columns = [f"`{n}`" for n in frame.columns if n != "updated_at" and not n.startswith(("_change_type", "_commit_"))]
    op = "if(_change_type = 'update_postimage', 'update', _change_type) as _op"
    return after.selectExpr(*columns, op, "_commit_version as _version", "_commit_timestamp as _time")


def without_rewritten(frame: DataFrame, versions: Sequence[int]) -> DataFrame:
    """Without the rows that these versions deleted and inserted as they were."""
    if not versions:
        return frame
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    row = F.to_json(F.struct(*[F.col(f"`{name}`") for name in frame.columns if name not in CHANGE]))
    alike = Window.partitionBy("_version", "_row")
    count = {op: F.count_if(F.col("_op") == op).over(alike) for op in ("insert", "delete")}
    placed = frame.withColumn("_row", F.when(F.col("_version").isin(*versions), row)).withColumns(
        {"_both": F.least(count["insert"], count["delete"]),
         "_place": F.row_number().over(Window.partitionBy("_version", "_row", "_op").orderBy("_op"))})  # fmt: skip
    kept = placed.filter("_row is null or _op = 'update' or _place > _both")
    return kept.drop("_row", "_both", "_place")
