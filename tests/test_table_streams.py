"""Streams over a table: each row once whatever dies between, and what a start refuses. The rest is in ``cases``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Producer
from pyspark.sql import SparkSession

from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.landing import Landing
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.log import Log
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.recount import recount
from lakehouse_engine.request import Span
from lakehouse_engine.runner import Runner
from lakehouse_engine.spec.environment import load_environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import ScanRun
from tests.lab import to_its_end

CONTRACT = """
type: object
required: [id]
properties:
  id: {type: integer}
"""
BRONZE = """
source: {kafka: {topic: things}}
transforms:
  - parse: thing
sink: delta
trigger: {every: 1 second}
"""
SILVER = """
source: SOURCE
transforms:
  - filter: id <> 0
checks:
  - range: {id: {max: 99}}
sink: SINK
trigger: {every: 0 s}
"""


class Things:
    """``bronze.things``, which the test writes, and a stream over it."""

    def __init__(self, spark: SparkSession, folder: Path, sink: str = "delta", source: str = "bronze.things",
                 dsn: str | None = None) -> None:  # fmt: skip
        self._spark, self._dsn, self.files, self.storage = spark, dsn, folder / "pipelines", folder / "storage"
        self.bronze, self.silver = self.storage / "bronze" / "things", self.storage / "silver" / "things"
        silver = SILVER.replace("SOURCE", source).replace("SINK", sink)
        for name, text in {"contracts/thing": CONTRACT, "bronze/things": BRONZE, "silver/things": silver}.items():
            file = self.files / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def add(self, *ids: int) -> None:
        frame = self._spark.createDataFrame([(i,) for i in ids], "id bigint").coalesce(1)
        columns = "id", "'t' as _topic", "0 as _partition", "id as _offset", "current_timestamp() as _timestamp"
        frame.selectExpr(*columns).write.format("delta").mode("append").save(str(self.bronze))

    def made(self) -> ScanRun:
        (scan,) = compile_plan(load([self.files / "silver"])).scans
        return ScanRun(self._spark, scan, Connections("", self._dsn, self.storage, "test"), lambda _: None)

    def run(self) -> None:
        to_its_end(self.made())

    def ids(self, suffix: str = "", column: str = "id") -> list[int]:
        if self._dsn is None:
            frame = self._spark.read.format("delta").load(f"{self.silver}{suffix}")
            return sorted(row[0] for row in frame.selectExpr(f"cast({column} as int)").collect())
        with closing(psycopg2.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(f"select {column} from silver.things{suffix}")
            return sorted(row[0] for row in cursor.fetchall())

    def counts(self) -> dict[int, int]:
        """Of windows, by the second at which they begin."""
        assert self._dsn is not None
        with closing(psycopg2.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("select extract(epoch from window_start)::int, n from silver.things")
            return dict(cursor.fetchall())


def test_a_try_that_dies_between_its_two_commits_is_made_again_with_what_has_come_since(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = Things(spark, tmp_path)
    things.add(1, 100)
    things.run()
    things.add(2, 200)

    def dies(*_: Any, **__: Any) -> None:
        raise OSError("no space is left")

    with monkeypatch.context() as broken:
        broken.setattr(Landing, "_store", dies)
        with pytest.raises(Exception, match="no space is left"):
            things.run()
    assert things.ids("__quarantine", "offset") == [100, 200]  # kept, and its batch is not in the table
    things.add(3, 300)
    things.run()
    things.run()
    assert (things.ids(), things.ids("__quarantine", "offset")) == ([1, 2, 3], [100, 200, 300])
    record = DeltaLog(things.silver).record()
    assert record is not None
    assert (record["topic"], record["positions"]["0"]["to"], record["batch_id"]) == ("bronze.things", 3, 2)


def recreated(things: Things, spark: SparkSession) -> None:
    shutil.rmtree(things.bronze)
    things.add(1, 2, 3)


def restored(things: Things, spark: SparkSession) -> None:
    for file in (things.bronze / "_delta_log").glob("*1.*"):
        file.unlink()


def forgotten(things: Things, spark: SparkSession) -> None:
    things.add(3)
    things.add(4)
    for file in (things.bronze / "_delta_log").glob("*2.*"):
        file.unlink()


def vacuumed(things: Things, spark: SparkSession) -> None:
    things.add(3)
    added = next(action["add"] for action in DeltaLog(things.bronze).actions(2) if "add" in action)
    (things.bronze / added["path"]).unlink()


def rewritten(things: Things, spark: SparkSession) -> None:
    spark.sql(f"delete from delta.`{things.bronze}` where id = 1")


def written_on(things: Things, spark: SparkSession) -> None:
    restored(things, spark)
    things.add(7)


@pytest.fixture(scope="module")
def read(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two commits have been read."""
    folder = tmp_path_factory.mktemp("read")
    things = Things(spark, folder)
    things.add(1)
    things.add(2)
    things.run()
    assert things.ids() == [1, 2]
    return folder


@pytest.mark.parametrize(("change", "code"), [
    (recreated, "TABLE_RECREATED"), (written_on, "TABLE_RECREATED"), (restored, "POSITION_BEYOND_TABLE"),
    (forgotten, "DATA_LOST"), (vacuumed, "DATA_LOST"), (rewritten, "ROWS_REWRITTEN")])  # fmt: skip
def test_what_cannot_be_read_on_is_refused_with_a_reason(
    spark: SparkSession, tmp_path: Path, read: Path, change: Callable[[Things, SparkSession], None], code: str
) -> None:
    shutil.copytree(read, tmp_path, dirs_exist_ok=True)
    things = Things(spark, tmp_path)
    change(things, spark)
    with pytest.raises(RunError) as refused:
        things.run()
    assert refused.value.code == code
    assert DeltaLog(things.silver).version() == 0


def test_a_stream_may_begin_after_what_is_there_and_pass_over_commits_that_rewrite_rows(
    spark: SparkSession, database: str, tmp_path: Path
) -> None:
    source = "{delta: {table: bronze.things, start: latest, rewrites: ignore}}"
    things = Things(spark, tmp_path, "{postgres: {mode: append}}", source, database)
    things.add(1, 5)
    things.run()
    things.add(2)
    rewritten(things, spark)
    things.add(3)
    things.run()
    assert things.ids() == [2, 3]


def test_a_stream_that_meets_rewritten_rows_while_it_runs_says_which_version_it_was(
    spark: SparkSession, tmp_path: Path
) -> None:
    things = Things(spark, tmp_path)
    things.add(1)
    run = things.made()
    run.start(available_now=False)
    try:
        assert run.query is not None
        run.query.processAllAvailable()
        rewritten(things, spark)
        with pytest.raises(Exception, match="DELTA_SOURCE"):
            run.query.processAllAvailable()
        assert "ROWS_REWRITTEN: version 1 of bronze.things" in str(run.why())
    finally:
        run.stop()
        run.release()


def test_into_postgres_the_position_is_in_the_transaction(spark: SparkSession, database: str, tmp_path: Path) -> None:
    things = Things(spark, tmp_path, sink="{postgres: {mode: append}}", dsn=database)
    things.add(1, 100)
    things.run()
    things.add(2, 0)
    things.run()
    assert (things.ids(), things.ids("__quarantine", "(\"row\"->>'id')::int")) == ([1, 2], [100])
    for change, said in ((written_on, "version 1 of bronze.things is another one"), (recreated, "made anew")):
        change(things, spark)
        with pytest.raises(RunError, match=f"TABLE_RECREATED.*{said}"):
            things.run()
        assert things.ids() == [1, 2]


def test_windows_over_a_table_are_counted_anew_from_the_version_that_was_read(
    spark: SparkSession, database: str, tmp_path: Path
) -> None:
    things = Things(spark, tmp_path, sink="postgres", dsn=database)
    file = things.files / "silver" / "things.yaml"
    text = file.read_text()
    window = """transforms:
  - derive: {at: timestamp_seconds(id)}
  - watermark: {column: at, delay: 0 s}
  - window: {tumbling: 1 minute, measures: {n: count(*)}}
"""
    file.write_text(f"{text.partition('transforms')[0]}{window}{text[text.index('sink'):]}")
    things.add(1, 2, 130)
    things.run()
    things.add(3, 200)  # the first is late
    things.run()
    things.add(59)  # not read yet
    (member,) = compile_plan(load([file])).scans[0].members

    def counted_anew() -> None:
        to = Connections("", database, things.storage, "recount")
        recount(spark, member, None, Span(full=True), to, lambda _: None)

    counted_anew()
    assert things.counts() == {0: 3, 120: 1, 180: 1}
    things.run()  # by its own claim, from its own position; 59 is late
    assert things.counts() == {0: 3, 120: 1, 180: 1}
    begins_at(database, 1)
    with pytest.raises(RunError, match=r"RANGE_MISSING.* has begun at version 1 of bronze.things"):
        counted_anew()
    begins_at(database, 0)
    compacted(things, spark)
    with pytest.raises(RunError, match=r"RANGE_MISSING.*version 2 of bronze.things.* is no longer there"):
        counted_anew()
    assert things.counts() == {0: 3, 120: 1, 180: 1}


def compacted(things: Things, spark: SparkSession) -> None:
    """As one file, and what was before is gone."""
    spark.sql(f"optimize delta.`{things.bronze}`")
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    try:
        spark.sql(f"vacuum delta.`{things.bronze}` retain 0 hours")
    finally:
        spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")


def begins_at(database: str, version: int) -> None:
    """As if the stream's first batch had begun there."""
    change = f"jsonb_set(ranges, '{{0,from}}', '{version}')"
    with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"update lakehouse.batches set ranges = {change} where batch_id = 1")


def test_rows_that_a_commit_writes_again_as_they_were_are_no_changes(spark: SparkSession, tmp_path: Path) -> None:
    things = Things(spark, tmp_path, source="{delta: {table: bronze.things, changes: true}}")
    file = things.files / "silver" / "things.yaml"
    file.write_text(file.read_text().replace("transforms:", "transforms:\n  - derive: {op: _op, version: _version}"))
    things.add(1, 2)
    spark.sql(f"alter table delta.`{things.bronze}` set tblproperties (delta.enableChangeDataFeed = true)")
    things.run()
    things.add(5)
    place = "'t' as _topic", "0 as _partition"
    kept = spark.read.format("delta").load(str(things.bronze)).selectExpr("if(id = 1, 3L, id) as id", *place,
                                                                          "_offset", "_timestamp")  # fmt: skip
    kept.write.format("delta").mode("overwrite").save(str(things.bronze))
    things.run()
    found = spark.read.format("delta").load(str(things.silver)).select("id", "op", "version").collect()
    assert sorted(map(tuple, found)) == [(1, "delete", 3), (1, "insert", 1), (2, "insert", 1), (3, "insert", 3),
                                         (5, "insert", 2)]  # fmt: skip


def test_a_stream_over_a_table_waits_for_the_one_that_lands_it(
    spark: SparkSession, stack: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"things-{tmp_path.name.lower()}"
    ensure_topic(stack.bootstrap_servers, topic)
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers})
    for i in (1, 2, 100):
        producer.produce(topic, json.dumps({"id": i}), partition=0)
    assert producer.flush(20) == 0
    things = Things(spark, tmp_path)
    text = BRONZE.replace("topic: things", f"topic: {topic}, connection: eu")
    (things.files / "bronze" / "things.yaml").write_text(text)
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "here.yaml").write_text(json.dumps(
        {"storage": str(things.storage), "connections": {"kafka.eu": {"bootstrap_servers": stack.bootstrap_servers}}}))
    environment = load_environment("here", tmp_path)
    runner = Runner(environment, lambda: (), Log(lambda _: None), session=spark)
    assert runner.run(compile_plan(load([things.files], environment=environment)), available_now=True) == 0
    assert (things.ids(), things.ids("__quarantine", "offset")) == ([1, 2], [2])
