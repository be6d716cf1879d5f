"""Rows that the engine makes."""

from __future__ import annotations

import time
from pathlib import Path

from pyspark.sql import SparkSession

from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import ScanRun

MADE = """
source: {rate: {rows_per_second: 20}}
transforms:
  - derive: {even: value % 2 = 0}
sink: delta
trigger: {every: 0 s}
"""


def test_each_value_is_there_once_whatever_starts_anew(spark: SparkSession, tmp_path: Path) -> None:
    file, storage = tmp_path / "pipelines" / "bronze" / "made.yaml", tmp_path / "storage"
    file.parent.mkdir(parents=True)
    file.write_text(MADE)
    table = storage / "bronze" / "made"

    def made() -> int:
        record = DeltaLog(table).record()
        return 0 if record is None else int(record["positions"]["0"]["to"])

    for wanted in (1, 40):
        (scan,) = compile_plan(load([file])).scans
        run = ScanRun(spark, scan, Connections("", None, storage, "test"), lambda _: None)
        run.start(available_now=False)
        try:
            deadline = time.monotonic() + 60
            while made() < wanted and time.monotonic() < deadline and run.why() is None:
                time.sleep(0.05)
        finally:
            run.stop()
            run.release()
        assert (run.error, made() >= wanted) == (None, True)
    values = [row[0] for row in spark.read.format("delta").load(str(table)).select("value").collect()]
    assert sorted(values) == list(range(made()))
