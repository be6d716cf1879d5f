"""Rows that another pipeline asks to be deleted: by the table's owner, between its batches, once."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from confluent_kafka import Producer
from pyspark.sql import SparkSession

from lakehouse_engine import deletions, jobs
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.sinks import delta
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import Connections, ScanRun
from tests.lab import Lab, to_its_end

CONTRACT = """
type: object
required: [user]
properties: {user: {type: integer}, page: {type: string}}
"""
CLICKS = """
source: {{kafka: {{topic: {topic}}}}}
transforms: [parse: click]
sink: delta
trigger: {{every: 0 s}}
"""
FORGET = """
source: {{kafka: {{topic: {topic}}}}}
transforms: [parse: click]
keys: [user]
sink: {{delta: {{mode: delete, table: bronze.clicks}}}}
trigger: {{every: 0 s}}
"""
JOB_FORGET = """
source: {delta: {table: bronze.requests, changes: true}}
transforms:
  - filter: _op <> 'delete'
keys: [user]
sink: {delta: {mode: delete, table: silver.events}}
schedule: manual
"""
MON, TUE = "2026-01-05", "2026-01-06"


class Streams:
    """A landing and a pipeline that deletes from it, each with a topic of its own."""

    def __init__(self, spark: SparkSession, stack: Services, folder: Path) -> None:
        self.spark, self.stack, self.storage, self._folder = spark, stack, folder / "storage", folder / "pipelines"
        self.topics = {name: f"{name}-{uuid.uuid4().hex[:12]}" for name in ("clicks", "forget")}
        files = {"contracts/click.yaml": CONTRACT, "bronze/clicks.yaml": CLICKS.format(topic=self.topics["clicks"]),
                 "bronze/forget.yaml": FORGET.format(topic=self.topics["forget"])}  # fmt: skip
        for name, text in files.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text)
        for topic in self.topics.values():
            ensure_topic(stack.bootstrap_servers, topic, partitions=1)

    def send(self, name: str, *rows: dict[str, Any]) -> None:
        producer = Producer({"bootstrap.servers": self.stack.bootstrap_servers})
        for row in rows:
            producer.produce(self.topics[name], value=json.dumps(row))
        assert producer.flush(10) == 0

    def made(self, name: str) -> ScanRun:
        scan = compile_plan(load([self._folder / f"bronze/{name}.yaml"])).scans[0]
        to = Connections(self.stack.bootstrap_servers, None, self.storage, "test")
        return ScanRun(self.spark, scan, to, lambda _: None)

    def run(self, name: str, *rows: dict[str, Any]) -> None:
        self.send(name, *rows)
        to_its_end(self.made(name))

    def rows(self, table: str, column: str = "user") -> list[Any]:
        found = self.spark.read.format("delta").load(str(self.storage / "bronze" / table)).select(column).collect()
        return sorted(row[0] for row in found)


def test_a_streams_owner_deletes_between_its_batches_once_and_beside_it_too(
    spark: SparkSession, stack: Services, tmp_path: Path
) -> None:
    streams = Streams(spark, stack, tmp_path)
    streams.run("clicks", *({"user": n, "page": "/"} for n in (1, 2, 2, 3)), {"user": 2, "page": 7},
                {"user": 3, "page": 7})  # fmt: skip
    streams.run("forget", {"user": 2}, {"user": 2}, {"user": 9})
    assert streams.rows("clicks") == [1, 2, 2, 3], "who asks does not write the table"
    assert streams.rows("forget") == [2, 9]
    assert len(streams.rows("clicks__quarantine", "offset")) == 2

    streams.send("clicks", {"user": 2, "page": "/again"}, {"user": 4, "page": "/"})
    merge, done = delta.merge, []

    def dies_before_the_table(rows: Any, path: Path, *rest: Any, **more: Any) -> None:
        if path.name == "clicks":
            raise KeyboardInterrupt
        done.append(path.name)
        merge(rows, path, *rest, **more)

    with mock.patch.object(delta, "merge", dies_before_the_table), pytest.raises(KeyboardInterrupt):
        streams.made("clicks").start(available_now=True)
    assert (done, streams.rows("clicks")) == (["clicks__quarantine"], [1, 2, 2, 3])
    streams.run("clicks")
    assert streams.rows("clicks") == [1, 2, 3, 4], "what comes after the request stays"
    refused = spark.read.format("delta").load(str(streams.storage / "bronze" / "clicks__quarantine"))
    values = [json.loads(row[0]) for row in refused.selectExpr("cast(value as string)").collect()]
    assert [value["user"] for value in values] == [3]
    log = DeltaLog(streams.storage / "bronze" / "clicks")
    assert deletions.done(log)["bronze.forget"]["request"] == 1

    run = streams.made("clicks")
    run.start(available_now=False)  # its topic is silent
    try:
        streams.run("forget", {"user": 2})
        deadline = time.monotonic() + 60
        while 2 in streams.rows("clicks") and time.monotonic() < deadline:
            run.rest()
        assert streams.rows("clicks") == [1, 3, 4]
        assert run.error is None
    finally:
        run.stop()
        run.release()
    streams.run("clicks", {"user": 2, "page": "/"})
    assert streams.rows("clicks") == [1, 2, 3, 4]
    assert deletions.done(log)["bronze.forget"]["request"] == 2, "a batch carries on what has been done"


def test_in_a_jobs_table_a_request_holds_for_good(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.write("silver/forget.yaml", JOB_FORGET)
    lab.append((1, MON, 1, 1), (2, MON, 2, 1), (3, TUE, 2, 1), (4, TUE, None, 1))
    lab.run("silver.events")
    assert len(lab.rows("silver.events")) == 3
    requests = spark.createDataFrame([(2,)], "user int").coalesce(1)
    delta.append(requests, lab.path("bronze.requests"), "{}", properties=delta.FED)
    lab.run("silver.forget")
    assert not jobs.asked(lab.job("silver.forget"), lab.storage)
    assert jobs.asked(lab.job("silver.events"), lab.storage), "also where its source has nothing new"

    def users(table: str) -> Sequence[Any]:
        return [row[2] for row in lab.rows(table)]

    assert lab.run("silver.events")[0].decision.kind == "nothing"
    assert users("silver.events") == [1]
    assert not jobs.asked(lab.job("silver.events"), lab.storage)
    gold = lab.run("gold.events")[0]
    assert [row[1] for row in lab.rows("gold.events")] == [1], gold.decision.reason
    lab.append((5, TUE, 2, 1), (6, TUE, 6, 1))  # bronze still has its rows, and gets more of them
    lab.run("silver.events")
    assert users("silver.events") == [1, 6]
    lab.run("silver.events", full=True)
    assert users("silver.events") == [1, 6]
    lab.run("silver.forget")
    assert lab.log("silver.forget").version() == 0, "each request comes once"
