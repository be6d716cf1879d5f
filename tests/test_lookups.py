"""A stream that looks up a table: each row once with what the table says, and a table that is wrong stops its own."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.errors import RunError
from lakehouse_engine.explain import explain
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.plan import Scan, compile_plan
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import Connections, ScanRun
from tests.lab import to_its_end
from tests.platform import Platform

CONTRACT = """
type: object
required: [at, status]
properties:
  at: {type: string, format: date-time}
  page: {type: string}
  status: {type: integer}
"""
HEAD = """
source: {{kafka: {{topic: {topic}}}}}
trigger: {{every: 1 second}}
{inputs}
transforms:
  - parse: request
  - watermark: {{column: at, delay: 2 minutes}}
"""
BY_SECTION = """
  - lookup: {from: silver.pages, keys: {page: page}, take: [section]}
  - window:
      sliding: {size: 2 minutes, every: 1 minute}
      by: [section]
      measures: {request_count: count(*), error_rate: "avg(if(status >= 500, 1.0, 0.0))"}
sink: postgres
"""
LANDED = """
  - lookup: {from: pages, keys: {page: page}, missing: quarantine, refresh: 1 minute}
sink: delta
"""
PLAIN = """
  - window: {tumbling: 1 minute, measures: {n: count(*)}}
sink: postgres
"""
INPUTS = """
inputs:
  pages:
    source: silver.pages
    transforms:
      - derive: {upper_section: upper(section)}
      - drop: [section, visits]
"""
PAGES = """
source: bronze.pages
transforms: [aggregate: {by: [page, section], measures: {visits: count(*)}}]
sink: delta
schedule: daily
"""


class Streams:
    """Three members of one scan, and the table that two of them look up."""

    def __init__(self, spark: SparkSession, lake: Platform, folder: Path) -> None:
        self.spark, self.lake, self.storage = spark, lake, folder / "storage"
        self.folder = folder / "pipelines"
        for name, text in {"realtime/by_section": BY_SECTION, "bronze/landed": LANDED, "realtime/plain": PLAIN}.items():
            self.write(name, HEAD.format(topic=lake.topic, inputs=INPUTS if "from: pages" in text else "") + text)
        self.write("silver/pages", PAGES)
        self.write("contracts/request", CONTRACT)

    def write(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def scan(self) -> Scan:
        (scan,) = compile_plan(load([self.folder / "bronze", self.folder / "realtime"])).scans
        return scan

    def pages(self, *rows: tuple[str | None, str], mode: str = "overwrite") -> None:
        frame = self.spark.createDataFrame(list(rows), "page string, section string").selectExpr("*", "1L as visits")
        frame.write.format("delta").mode(mode).save(str(self.storage / "silver/pages"))

    def send(self, *requests: tuple[str, str | None, int]) -> None:
        self.lake.send(*[{"at": f"2026-01-01T10:0{minute}:00Z", **({"page": page} if page else {}), "status": status}
                         for minute, page, status in requests])  # fmt: skip

    def run(self) -> ScanRun:
        run = ScanRun(self.spark, self.scan(), Connections(self.lake.bootstrap_servers, self.lake.dsn, self.storage,
                                                           "test"), lambda _: None)  # fmt: skip
        to_its_end(run)
        return run

    def landed(self) -> list[Any]:
        frame = self.spark.read.format("delta").load(str(self.storage / "bronze/landed"))
        return sorted((tuple(row) for row in frame.select("page", "upper_section").collect()), key=str)


def test_rows_get_what_the_table_says_and_a_table_that_is_wrong_stops_those_who_ask_it(
    spark: SparkSession, lake: Platform, tmp_path: Path
) -> None:
    streams = Streams(spark, lake, tmp_path)
    streams.pages(("/a", "docs"), ("/b", "shop"), (None, "none"))
    streams.send((1, "/a", 200), (1, "/b", 500), (1, "/b", 200), (2, None, 200), (2, "/zzz", 200))
    assert streams.run().detached == {}
    windows = "select window_start, section, request_count, error_rate from realtime.by_section order by 1, 2"
    ten = datetime(2026, 1, 1, 10, tzinfo=timezone.utc)
    first = [(ten, "docs", 1, 0.0), (ten, "shop", 2, 0.5), (ten.replace(minute=1), "docs", 1, 0.0),
             (ten.replace(minute=1), "none", 1, 0.0), (ten.replace(minute=1), "shop", 2, 0.5),
             (ten.replace(minute=1), None, 1, 0.0), (ten.replace(minute=2), "none", 1, 0.0),
             (ten.replace(minute=2), None, 1, 0.0)]  # fmt: skip
    assert lake.query(windows) == first
    assert streams.landed() == [("/a", "DOCS"), ("/b", "SHOP"), ("/b", "SHOP"), (None, "NONE")]
    (aside,) = spark.read.format("delta").load(str(streams.storage / "bronze/landed__quarantine")).collect()
    assert (aside["step"], aside["reasons"]) == ("transforms[2].lookup", ["pages has no row for page = /zzz"])
    assert json.loads(aside["value"])["page"] == "/zzz"

    streams.pages(("/b", "sales"), mode="append")
    streams.send((2, "/b", 200))
    assert streams.run().detached == {
        "realtime.by_section": f"realtime.by_section: {streams.folder}/realtime/by_section.yaml:9: DUPLICATE_KEY:"
        " silver.pages has 2 rows for page = /b, and a lookup takes one: dedupe it in an input",
        "bronze.landed": f"bronze.landed: {streams.folder}/bronze/landed.yaml:16: DUPLICATE_KEY:"
        " pages has 2 rows for page = /b, and a lookup takes one: dedupe it in an input"}  # fmt: skip
    assert lake.query("select sum(n) from realtime.plain") == [(6,)]
    assert lake.query(windows) == first
    streams.send((2, "/a", 200))
    assert set(streams.run().detached) == {"realtime.by_section", "bronze.landed"}
    assert lake.query("select sum(n) from realtime.plain") == [(7,)], "what those lack, the others have"

    streams.pages(("/a", "docs"), ("/b", "sales"), (None, "none"))
    assert streams.run().detached == {}
    assert [row[2] for row in lake.query(windows) if row[1] == "sales"] == [1, 1]
    assert streams.landed()[-2:] == [("/b", "SHOP"), (None, "NONE")]
    assert ("/b", "SALES") in streams.landed()


def test_a_copy_is_read_anew_when_it_is_too_old_and_only_if_there_is_a_newer_one(
    spark: SparkSession, lake: Platform, tmp_path: Path
) -> None:
    streams = Streams(spark, lake, tmp_path)
    with pytest.raises(RunError, match=r"there is no table silver\.pages yet"):
        Lookups(spark, streams.scan().members, streams.storage, lambda _: None)
    streams.pages(("/a", "docs"))
    told: list[str] = []
    lookups = Lookups(spark, streams.scan().members, streams.storage, told.append)
    views = [copy.view for member in streams.scan().members for copy in member.copies]

    def sections() -> list[list[Any]]:
        return [[tuple(row["_row"]) for row in spark.table(view).collect()] for view in views]

    minute = 60_000_000
    assert lookups.refresh(spark, 0) == {}
    streams.pages(("/a", "shop"))
    for now, expected in [(1, ["DOCS", "docs"]), (minute, ["SHOP", "docs"]), (5 * minute, ["SHOP", "shop"])]:
        assert lookups.refresh(spark, now) == {}
        assert [rows[0][-1] for rows in sections()] == expected
    lookups.refresh(spark, 60 * minute)
    assert told == ["silver.pages is looked up at version 0"] * 2 + ["silver.pages is looked up at version 1"] * 2
    spark.sql(f"alter table delta.`{streams.storage / 'silver/pages'}` add column (page_id bigint)")
    frame = spark.createDataFrame([(1, "x")], "page bigint, section string").selectExpr("*", "1L as visits")
    frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(
        str(streams.storage / "silver/pages"))  # fmt: skip
    assert {name: error.code for name, error in lookups.refresh(spark, 120 * minute).items()} == {
        "bronze.landed": "SCHEMA_CHANGED", "realtime.by_section": "SCHEMA_CHANGED"}  # fmt: skip
    lookups.close()
    text = explain(compile_plan(load([streams.folder / "realtime" / "by_section.yaml"]))).text()
    assert "looks up silver.pages, at most 5 minutes old" in text
