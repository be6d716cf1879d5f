"""What tests of pipelines share: a small lakehouse, bronze as the test writes it, one silver and one gold pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from pyspark.sql import DataFrame, SparkSession

from lakehouse_engine import jobs
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.incremental import Decision, decide
from lakehouse_engine.plan import Job, compile_plan
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.staterun import StateRun
from lakehouse_engine.streams import ScanRun

SILVER = """
source: bronze.events
transforms:
  - dedupe: {keys: [day, id], order_by: [n]}
checks:
  - not_null: [user]
sink: {delta: {partition_by: [day], replace_by: day}}
schedule: manual
"""
GOLD = """
source: silver.events
transforms:
  - aggregate: {by: [day], measures: {users: count(distinct user), most: max(n)}}
sink: {delta: {replace_by: day}}
serve: postgres
schedule: upstream
"""
#: id, day, user, n
Row = tuple[int, str | None, int | None, int]
KINDS = "id int, day date, user int, n int"


def to_its_end(run: ScanRun | StateRun) -> None:
    """A stream that was made takes what is there, and ends."""
    run.start(available_now=True)
    try:
        assert run.query is not None
        run.query.awaitTermination()
    finally:
        run.stop()
        run.release()


def send(bootstrap_servers: str, topic: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Records with these rows as JSON, which the broker has when this returns."""
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for row in rows:
        producer.produce(topic, value=json.dumps(row))
    assert producer.flush(10) == 0


class Lab:
    def __init__(self, spark: SparkSession, folder: Path, **pipelines: str) -> None:
        self.spark, self.folder = spark, folder
        self.storage = folder / "storage"
        for name, text in {"silver": SILVER, "gold": GOLD, **pipelines}.items():
            self.write(f"{name}/events.yaml", text)

    def write(self, file: str, text: str) -> None:
        path = self.folder / "pipelines" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def job(self, name: str) -> Job:
        file = self.folder / "pipelines" / (name.replace(".", "/") + ".yaml")
        return compile_plan(load([file])).jobs[0]

    def path(self, table: str) -> Path:
        return self.storage / table.replace(".", "/")

    def log(self, table: str) -> DeltaLog:
        return DeltaLog(self.path(table))

    def frame(self, rows: Iterable[Row]) -> DataFrame:
        texts = self.spark.createDataFrame(list(rows), "id int, day string, user int, n int")
        return texts.selectExpr("id", "cast(day as date) as day", "user", "n").coalesce(1)

    def append(self, *rows: Row, table: str = "bronze.events") -> None:
        self.frame(rows).write.format("delta").mode("append").partitionBy("day").save(str(self.path(table)))

    def correct(self, day: str | None, *rows: Row, table: str = "bronze.events") -> None:
        """The day's rows become these."""
        where = "day is null" if day is None else f"day = date'{day}'"
        writer = self.frame(rows).write.format("delta").mode("overwrite").option("replaceWhere", where)
        writer.save(str(self.path(table)))

    def sql(self, text: str, table: str = "bronze.events") -> list[Any]:
        """A statement with the table in place of ``{}``."""
        return self.spark.sql(text.format(f"delta.`{self.path(table)}`")).collect()

    def decide(self, name: str) -> Decision:
        return decide(self.job(name), self.storage)

    def run(self, *names: str, full: bool = False, dsn: str | None = None) -> list[jobs.Outcome]:
        wanted = names or ("silver.events", "gold.events")
        environment = Environment(storage=str(self.storage), embedded={"postgres": dsn} if dsn else {})
        return [jobs.run(self.spark, self.job(name), self.storage, dsn, full=full, environment=environment)
                for name in wanted]  # fmt: skip

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        frame = self.spark.read.format("delta").load(str(self.path(table))).drop("updated_at")
        return sorted((tuple(row) for row in frame.collect()), key=str)
