"""``delta``: a Delta table at ``<storage>/<layer>/<name>``.

**Delivery guarantees**: exactly-once effect. A commit carries how far its source was read, in ``userMetadata`` of the
same Delta commit; rows below that position are filtered when they come again. One writer per table: the JVM that writes
holds a lock on it. With ``mode: upsert`` or ``scd2`` that commit is one MERGE, and what came again would change
nothing; deletions are remembered in a commit before it. With ``mode: delete`` each request is added once, and applied
once, in one commit of ``table`` that says so. A job's further table is a copy: its commit says which version of the
job's own table it holds, and a copy that another hand has changed is written anew.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Columns, Component, Duration, Expression, Flag, Table, a_week
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameWriter, SparkSession

#: the table property that names columns with statistics; how many there are at most; the types they have
_STATISTICS = "delta.dataSkippingStatsColumns"
_MOST_STATISTICS = 32
_ORDERED = frozenset({"byte", "short", "integer", "long", "float", "double", "decimal", "date", "timestamp",
                      "timestamp_ntz"})  # fmt: skip


#: the properties of a table whose changes another pipeline reads
FED = {"delta.enableChangeDataFeed": "true"}


def _four(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(columns) > 4:
        raise PydanticCustomError("BAD_LAYOUT", "Delta clusters by four columns at most")
    return columns


class Delta(Component):
    """A Delta table in the storage, named as the pipeline; in a list of sinks another one may follow, by its own name.

    ``append`` adds each row once. ``upsert`` keeps one row of the pipeline's ``keys``: that with the greatest
    ``order_by``, whatever the order of arrival; of equal ones the one that arrives later. ``scd2`` keeps one row per
    state of a key, ``valid_from`` to ``valid_to`` (null: valid now): a state that arrives late splits the one it lies
    in, a deletion ends the one before it; of two rows of a key and a ``valid_from`` the greatest ``order_by`` counts.
    States that are equal stay two rows. A row whose ``valid_from`` is null is quarantined. What ``delete_when`` deletes
    is remembered, keys and order, in ``<layer>.<name>__deleted``, for good: an older row that arrives later brings
    nothing back.

    ``delete`` asks for the rows of another pipeline's ``table`` to be deleted that equal an input row in ``keys``, null
    equal to null, in the tables beside it too (where their ``row`` is JSON, its texts are compared). The pipeline's own
    table holds the keys it has asked for; who writes ``table`` deletes between its batches or before its run. Rows of
    these keys that come to a stream's table later stay; in a job's table, computed anew each time, a request holds for
    good. The rows leave the table's present version at once, its files ``vacuum_after`` later (``lakehouse maintain``).
    """

    #: ``append`` adds each row once (streams); ``upsert`` adds or updates by ``keys``; ``scd2`` keeps one row
    #: per state of a key (both: streams, and jobs over changes); ``replace`` writes the result, or its ``replace_by``
    #: part (jobs); ``delete`` deletes rows of another table (streams, and jobs over changes)
    mode: Literal["append", "upsert", "replace", "scd2", "delete"] | None = None
    #: ``delete``: the table whose rows are deleted, another pipeline's; of a sink after the first: its name. No other
    #: pipeline reads such a table, and requests to delete rows do not reach a stream's
    table: Table | None = None
    #: ``upsert`` and ``scd2``: of rows of a key (and a ``valid_from``) the one with the greatest wins; columns of the
    #: result
    order_by: Columns = ()
    #: ``upsert`` and ``scd2``: rows for which it is true delete the row of their keys, or end its state; it may read
    #: columns that are not stored
    delete_when: Expression | None = None
    #: ``scd2``: the timestamp or date from which on a row is valid; becomes the column ``valid_from``
    valid_from: Column | None = None
    #: dead files of the table stay as long; instead of ``maintain.vacuum_after``
    vacuum_after: Annotated[Duration | None, AfterValidator(a_week)] = None
    #: a folder for each value of these columns; readers of few values read few files
    partition_by: Columns = ()
    #: rows that are near in these columns lie near each other (liquid clustering); instead of partition_by
    cluster_by: Annotated[Columns, AfterValidator(_four), Field(json_schema_extra={"maxItems": 4})] = ()
    #: a job computes anew only the values of this column that changed in its source
    replace_by: Column | None = None
    #: adds ``updated_at timestamp``, the commit that last changed the row (all modes but ``append``)
    updated_at: Flag = True

    def target(self, pipeline: str) -> str:
        """The table."""
        return pipeline if self.table is None or self.mode == "delete" else self.table


#: the tables that may stand beside one: what was refused, what came late, what was deleted
SIDES = ("quarantine", "late", "deleted")


def beside(path: Path, side: str) -> Path:
    """Where the table ``<name>__<side>`` of the table at ``path`` lies."""
    return path.with_name(f"{path.name}__{side}")


_JSON = {"ignoreNullFields": "false", "timestampFormat": sql.TIME_FORMAT}


def plain_rows(frame: DataFrame) -> list[Mapping[str, Any]]:
    """The rows as JSON holds them: Python's own times would be in the zone of this machine."""
    from pyspark.sql import functions as F

    return [json.loads(row[0]) for row in frame.select(F.to_json(F.struct("*"), _JSON)).collect()]


def table_path(storage: Path, table: str) -> Path:
    """``<storage>/<layer>/<name>``."""
    layer, _, name = table.partition(".")
    return storage / layer / name


def epoch_of(path: Path) -> int:
    """The epoch of the table at ``path``: 1, and one more with each ``lakehouse reset``, which sets tables aside."""
    record = DeltaLog(path).record()
    if record is not None:
        return int(record.get("epoch", 1))
    before = path.parent.parent.glob(f"{path.parent.name}__epoch[0-9]*/{path.name}")
    return 1 + max((int(one.parent.name.rpartition("__epoch")[2]) for one in before), default=0)


def set_aside(path: Path, epoch: int) -> Path:
    """Where the table of an epoch that has ended lies."""
    return path.parent.with_name(f"{path.parent.name}__epoch{epoch}") / path.name


def _with_statistics(writer: DataFrameWriter, frame: DataFrame, partition_by: Sequence[str],
                     cluster_by: Sequence[str]) -> DataFrameWriter:  # fmt: skip
    """A new table keeps least and greatest values, file by file, of what is ordered by time or made of numbers.

    Those of strings help only where a layout orders by them, and cost a third of the time that writing takes.
    """
    ordered = [f.name for f in frame.schema.fields if f.dataType.typeName() in _ORDERED and f.name not in partition_by]
    names = [*cluster_by, *(name for name in ordered[:_MOST_STATISTICS] if name not in cluster_by)]
    return writer.option(_STATISTICS, ",".join(map(sql.name, names)))


def keep_statistics(spark: SparkSession, path: Path, columns: Sequence[str]) -> None:
    """Adds the columns to those that have statistics: Delta lays a table out by no others."""
    table = f"delta.`{path}`"
    held = {row["key"]: row["value"] for row in spark.sql(f"show tblproperties {table}").collect()}.get(_STATISTICS)
    if held is None:
        return  # Delta's default: the first 32 columns
    names = [name for name in held.split(",") if name]
    missing = [name for name in map(sql.name, columns) if name not in names]
    if missing:
        spark.sql(f"alter table {table} set tblproperties ('{_STATISTICS}' = '{','.join([*names, *missing])}')")


def append(frame: DataFrame, path: Path, record: str, *, partition_by: Sequence[str] = (),
           cluster_by: Sequence[str] = (), run: str | None = None,
           properties: Mapping[str, str] | None = None, widen: bool = False) -> None:  # fmt: skip
    """Adds the rows in one commit that carries ``record`` in ``userMetadata``; ``run`` as for ``replace``.

    ``properties``: of the table, where this makes it. ``widen``: columns that the table lacks are added to it.
    """
    new = DeltaLog(path).version() is None
    writer = frame.write.format("delta").mode("append").option("userMetadata", record)
    if widen:
        writer = writer.option("mergeSchema", "true")
    if run is not None:
        writer = writer.option("txnAppId", run).option("txnVersion", "1")
    if new:
        writer = _with_statistics(writer.options(**(properties or {})), frame, partition_by, cluster_by)
    (writer.partitionBy(*partition_by) if partition_by else writer).save(str(path))
    if new and cluster_by:
        cluster(frame.sparkSession, path, cluster_by)


def replace(frame: DataFrame, path: Path, record: str, *, partition_by: Sequence[str] = (),
            cluster_by: Sequence[str] = (), where: str | None = None, run: str,
            properties: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Writes the rows in place of the table's (``where``: of those it selects), in one commit with ``record``.

    ``properties``: of the table, where this makes it. ``run`` names this run of the job: a retry of a commit that
    landed is skipped by Delta itself.
    """
    writer = (frame.write.format("delta").mode("overwrite").option("userMetadata", record)
              .option("txnAppId", run).option("txnVersion", "1"))  # fmt: skip
    if where is not None:
        writer.option("replaceWhere", where).save(str(path))
        return
    if DeltaLog(path).version() is None:
        writer = _with_statistics(writer.options(**(properties or {})), frame, partition_by, cluster_by)
    writer = writer.option("overwriteSchema", "true")
    (writer.partitionBy(*partition_by) if partition_by else writer).save(str(path))
    if cluster_by:
        cluster(frame.sparkSession, path, cluster_by)


def keeps_changes(log: DeltaLog, version: int | None = None) -> bool:
    """Whether the table keeps what its commits change, as of ``version`` (newest)."""
    return bool(FED.items() <= (log.metadata(until=version) or {}).get("configuration", {}).items())


def feed(spark: SparkSession, path: Path, record: Mapping[str, Any] | None) -> None:
    """Makes a table that is there keep what its commits change; that commit repeats the newest ``record``."""
    if DeltaLog(path).version() is None or keeps_changes(DeltaLog(path)):
        return
    wanted = ", ".join(f"'{key}' = '{value}'" for key, value in FED.items())
    _repeating(spark, record).sql(f"alter table delta.`{path}` set tblproperties ({wanted})")


def widen(spark: SparkSession, path: Path, columns: Mapping[str, str], where: str) -> list[str]:
    """Adds to a table that is there the columns (name and Spark type) that it lacks; their names.

    The commit repeats the newest record. Raises ``PlanError`` TABLE_DIFFERS for one that is there with another type.
    """
    log = DeltaLog(path)
    there = log.columns()
    if there is None:
        return []
    for name, kind in columns.items():
        if there.get(name) and "<" not in kind and there[name] != kind:
            raise PlanError("TABLE_DIFFERS", f"{name} is {there[name]} in the table and {kind} in the result: give the"
                            " column another name, or begin anew with lakehouse reset", where=where)  # fmt: skip
    known = {name.lower() for name in there}
    missing = {name: kind for name, kind in columns.items() if name.lower() not in known}
    if missing:
        wanted = ", ".join(f"{sql.name(name)} {kind}" for name, kind in missing.items())
        _repeating(spark, log.record()).sql(f"alter table delta.`{path}` add columns ({wanted})")
    return [*missing]


def say_again(spark: SparkSession, path: Path, record: Mapping[str, Any]) -> None:
    """One commit that changes nothing of the table and carries the record."""
    text = sql.string(str(record["pipeline"]))
    _repeating(spark, record).sql(f"alter table delta.`{path}` set tblproperties ('lakehouse.pipeline' = {text})")


def repeated(record: Mapping[str, Any], **more: Any) -> str:
    """What a commit says that moves no position: the newest ``record`` of ours once more, with what differs."""
    return json.dumps({**{name: value for name, value in record.items() if name != "version"}, "repeats": True, **more})


def _repeating(spark: SparkSession, record: Mapping[str, Any] | None) -> SparkSession:
    """A session whose commits say again what the newest ``record`` of ours says."""
    session = spark.newSession()
    if record is not None:
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", repeated(record))
    return session


def merge(rows: DataFrame, path: Path, record: str, on: str, clauses: str, run: str | None = None) -> None:
    """``MERGE INTO`` the table, ``t``, of the rows, ``s``, in one commit with ``record``; ``run`` as for ``replace``.

    No other thread writes with the rows' session meanwhile.
    """
    spark, view = rows.sparkSession, f"merge_{uuid.uuid4().hex}"
    said = {"spark.databricks.delta.commitInfo.userMetadata": record}
    if run is not None:
        said |= {"spark.databricks.delta.write.txnAppId": run, "spark.databricks.delta.write.txnVersion": "1"}
    rows.createOrReplaceTempView(view)
    try:
        for key, value in said.items():
            spark.conf.set(key, value)
        spark.sql(f"merge into delta.`{path}` as t using {view} as s on {on} {clauses}").collect()
    finally:
        for key in said:
            spark.conf.unset(key)
        spark.catalog.dropTempView(view)


def cluster(spark: SparkSession, path: Path, columns: Sequence[str]) -> None:
    """Makes the columns the table's clustering. Delta forgets it when a table is overwritten by path, and takes none
    from a writer; a crash before this leaves a table that is right and is put in order by ``lakehouse maintain``."""
    table = f"delta.`{path}`"
    if list(spark.sql(f"describe detail {table}").collect()[0]["clusteringColumns"]) != list(columns):
        keep_statistics(spark, path, columns)
        spark.sql(f"alter table {table} cluster by ({', '.join(map(sql.name, columns))})")
