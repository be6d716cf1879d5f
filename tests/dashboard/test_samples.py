"""What a Delta table kept aside, read from its files without Spark."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
from pyspark.sql import SparkSession

from lakehouse_engine.dashboard import samples
from tests.dashboard.conftest import serving

NOW = datetime(2026, 1, 1, 10, tzinfo=timezone.utc)
SCHEMA = "quarantined_at timestamp, batch_id bigint, step string, reasons array<string>, value binary, partition int"


def kept_aside(spark: SparkSession, path: Path, batch: int, rows: int) -> None:
    made = [
        (NOW + timedelta(minutes=batch), batch, "transforms[0].parse", ["json: not valid"], b"\xffraw", n)
        for n in range(rows)
    ]
    spark.createDataFrame(made, SCHEMA).coalesce(1).write.format("delta").mode("append").save(str(path))


def test_the_newest_come_first_and_what_is_compacted_is_not_shown_twice(
    spark: SparkSession, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "bronze" / "user_events__quarantine"
    for batch, rows in ((1, 50), (2, 3), (3, 9)):
        kept_aside(spark, path, batch, rows)
    expected = [3] * 9 + [2] * 3 + [1] * 8
    found = samples.of_delta(tmp_path, "bronze.user_events")
    assert [row["batch_id"] for row in found] == expected
    assert found[0] == {"quarantined_at": "2026-01-01T10:03:00Z", "batch_id": 3, "step": "transforms[0].parse",
                        "reasons": ["json: not valid"], "value": "\\xff726177", "partition": 0}  # fmt: skip
    spark.sql(f"optimize delta.`{path}`")
    assert [row["batch_id"] for row in samples.of_delta(tmp_path, "bronze.user_events")] == expected
    with serving(database, tmp_path) as made:
        shown = httpx.get(f"{made.url}/api/pipelines/bronze.user_events").json()
    assert [row["batch_id"] for row in shown["quarantined"]] == expected


def test_there_may_be_none(tmp_path: Path) -> None:
    assert samples.of_delta(tmp_path, "bronze.user_events") == []
