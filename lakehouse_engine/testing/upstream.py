"""The tables that pipelines read and write, with the columns, types and partitions that the one writing it gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine import analysis, jobs, outside, sql
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.plan import LANDING_COLUMNS, Member, compile_plan
from lakehouse_engine.rows import layered
from lakehouse_engine.sinks import Delta, delta_upsert
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks.delta_upsert import DELETES
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import kafka
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.stateful import Frames
from lakehouse_engine.streamrun import reading
from lakehouse_engine.testing.bench import Bench

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType


#: rows that stand in a query itself
IN_QUERY = 50


class Misfit(Exception):
    """Values that their columns cannot hold: the row's index, the column, and what is wrong."""

    def __init__(self, found: Sequence[tuple[int, str, str]]) -> None:
        super().__init__("; ".join(f"row {index + 1}: {column}: {why}" for index, column, why in found))
        self.found = found


@dataclass(frozen=True)
class Table:
    """A Delta table at ``path`` that a test writes to.

    ``keys``, of a table whose changes are read: a row replaces that of its keys, or deletes it with ``_op: delete``.
    """

    name: str
    path: Path
    schema: StructType
    partition_by: tuple[str, ...]
    keys: tuple[str, ...] | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Name and Spark type of what a test may say."""
        op = {} if self.keys is None else {"_op": "string"}
        return {**{field.name: field.dataType.simpleString() for field in self.schema.fields}, **op}

    def write(self, spark: SparkSession, rows: Sequence[Mapping[str, Any]], *, whole: bool = False) -> None:
        """One commit of rows as YAML has them: times and dates are ISO text. ``whole``: they are all that is left.

        Without ``whole``, no row is no commit, but for the first.
        """
        from pyspark.sql import functions as F

        if not rows and not whole and DeltaLog(self.path).version() is not None:
            return
        texts = _texts(spark, rows)
        # a value that does not fit its column is an error, not a null
        parsed = F.from_json("row", self.schema, {"mode": "FAILFAST"}).alias("row")
        frame = texts.select(parsed).select("row.*")
        if self.keys and not whole and DeltaLog(self.path).version() is not None:
            op = F.get_json_object(F.col("row"), "$._op").alias("_op")
            self._change(texts.select(parsed, op).select("row.*", "_op"))
            return
        properties = {} if self.keys is None else delta_sink.FED
        writer = frame.write.format("delta").mode("overwrite" if whole else "append").options(**properties)
        (writer.partitionBy(*self.partition_by) if self.partition_by else writer).save(str(self.path))

    def check(self, spark: SparkSession, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises ``Misfit`` with every value that its column cannot hold."""
        from pyspark.sql import functions as F

        wrong = "_wrong string"
        texts = _texts(spark, rows)
        asked = [F.from_json("row", f"`{field.name}` {field.dataType.simpleString()}, {wrong}",
                             {"columnNameOfCorruptRecord": "_wrong"})["_wrong"].isNotNull().alias(field.name)
                 for field in self.schema.fields]  # fmt: skip
        found = [(index, column, f"{json.dumps(rows[index].get(column))} is no {self.columns[column]}")
                 for index, row in enumerate(texts.select(*asked).collect())
                 for column, bad in row.asDict().items() if bad]  # fmt: skip
        if found:
            raise Misfit(found)

    def _change(self, rows: DataFrame) -> None:
        same = delta_upsert.same(self.keys or ())
        delta_sink.merge(rows, self.path, "", same, "when matched and s._op = 'delete' then delete when matched then"
                         " update set * when not matched then insert *")  # fmt: skip


def _texts(spark: SparkSession, rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A column ``row`` of JSON. A few stand in the query itself: Spark needs no job to read them."""
    if 0 < len(rows) <= IN_QUERY:
        values = ", ".join(f"({sql.string(json.dumps(row))})" for row in rows)
        return spark.sql(f"select row from values {values} as rows (row)").coalesce(1)
    return spark.createDataFrame([(json.dumps(row),) for row in rows], "row string").coalesce(1)


def table(bench: Bench, spec: PipelineSpec, name: str, values: Mapping[str, Any], storage: Path) -> Table:
    """A table that a job or a lookup reads, below ``storage``, as the pipeline of its name writes it.

    Raises ``RunError`` MISSING_TABLE when no pipeline does.
    """
    layer, _, stem = name.partition(".")
    file = Path(spec.file).resolve().parent.parent / layer / f"{stem}.yaml"
    where = spec.where(spec.tables.get(name, "source"))
    if not file.is_file():
        raise RunError("MISSING_TABLE", f"no pipeline here writes {name}, so its columns are not known", where=where)
    writer = load([file], environment=Environment(storage=str(storage), vars=dict(values)))[0]
    if not isinstance(writer.sink, Delta):
        raise RunError("MISSING_TABLE", f"{name} does not write a Delta table", where=where)
    fed = spec.reads_changes and isinstance(spec.source, DeltaSource) and spec.source.table == name
    return written(bench, writer, values, storage, keys=writer.key_columns if fed else None)


def written(bench: Bench, spec: PipelineSpec, values: Mapping[str, Any], storage: Path,
            keys: tuple[str, ...] | None = None) -> Table:  # fmt: skip
    """The Delta table of a pipeline below ``storage``."""
    assert isinstance(spec.sink, Delta)
    key = json.dumps([str(Path(spec.file).resolve()), dict(values)], sort_keys=True, default=str)
    schema = bench.schema(key, lambda: (_landed if spec.is_stream else _computed)(bench, spec, values))
    return Table(spec.name, delta_sink.table_path(storage, spec.name), schema, tuple(spec.sink.partition_by), keys)


def _landed(bench: Bench, spec: PipelineSpec, values: Mapping[str, Any]) -> StructType:
    plan = compile_plan([spec])
    if plan.queries:
        (query,) = plan.queries
        to = Connections("", None, _empty(bench, spec, values), "test")
        kinds = Frames(query, {branch.name: _nothing(bench.spark, branch.spec, to) for branch in query.branches}).kinds
        if isinstance(spec.sink, Delta) and spec.sink.valid_from:
            kinds = {**kinds, "valid_to": kinds["valid_from"]}
        chosen = ", ".join(f"cast(null as {kind}) as `{name}`" for name, kind in kinds.items() if name != DELETES)
        return bench.spark.sql(f"select {chosen}").schema
    member: Member = plan.scans[0].members[0]
    scratch = _empty(bench, spec, values)
    to = Connections("", None, scratch, "test")
    nothing = kafka.NO_RECORDS if isinstance(spec.source, kafka.Kafka) else reading(spec, to).nothing(bench.spark)
    lookups = Lookups(bench.spark, [member], scratch, lambda _: None)
    try:
        landed = {n: n for n in LANDING_COLUMNS if n in member.rows.columns and spec.lands}
        columns = {**member.rows.stored, **landed}
        if isinstance(spec.sink, Delta) and spec.sink.valid_from:
            columns |= dict.fromkeys(("valid_from", "valid_to"), member.rows.resolve(spec.sink.valid_from))
        chosen = ", ".join(f"{text} as `{name}`" for name, text in columns.items())
        return bench.spark.sql(f"select {chosen} from ({layered(nothing, member.rows.layers)})").schema
    finally:
        lookups.close()


def _nothing(spark: SparkSession, spec: PipelineSpec, to: Connections) -> DataFrame:
    """A stream without a row of what an input reads."""
    read = kafka.NO_RECORDS if isinstance(spec.source, kafka.Kafka) else reading(spec, to).nothing(spark)
    kinds = spark.sql(f"select * from {read}").dtypes
    rate = spark.readStream.format("rate").load().filter("false")
    return rate.selectExpr(*[f"cast(null as {kind}) as {sql.name(name)}" for name, kind in kinds])


def _empty(bench: Bench, spec: PipelineSpec, values: Mapping[str, Any]) -> Path:
    """A storage in which every table that the pipeline reads is there, without a row."""
    scratch = bench.storage()
    for name in spec.reads:
        table(bench, spec, name, values, scratch).write(bench.spark, [])
    return scratch


def _computed(bench: Bench, spec: PipelineSpec, values: Mapping[str, Any]) -> StructType:
    """Found by running the job over empty tables: no second reading of what its steps mean.

    Of one that reads no table Spark says it, on no rows. Raises ``RunError`` MISSING_TABLE where it cannot.
    """
    if outside.is_outside(spec):
        environment = Environment(storage=str(bench.storage()), vars=dict(values))
        columns = analysis.require(bench.spark, [spec], environment).results[spec.name]
        if columns is None or not all(columns.values()):
            raise RunError("MISSING_TABLE", f"the columns of {spec.name} are not known", where=spec.where("source"))
        chosen = ", ".join(f"cast(null as {kind}) as {sql.name(name)}" for name, kind in columns.items())
        return bench.spark.sql(f"select {chosen}").schema
    scratch = _empty(bench, spec, values)
    jobs.run(bench.spark, compile_plan([spec]).jobs[0], scratch, None)
    return bench.spark.read.format("delta").load(str(delta_sink.table_path(scratch, spec.name))).schema
