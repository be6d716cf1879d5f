"""Tables stay fast: few files, in order, a short log; and not one number or position changes by it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import history
from lakehouse_engine.errors import RunError
from lakehouse_engine.locks import acquire
from lakehouse_engine.maintenance import Keeper, layout, maintain, predicate
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import Maintain
from tests.lab import GOLD, SILVER, Lab

MON, TUE = "2026-01-05", "2026-01-06"


def kept(lab: Lab, name: str = "silver.events", *, apply: bool = True) -> list[str]:
    said: list[str] = []
    maintain(lab.spark, lab.job(name).spec, lab.storage, said.append, apply=apply)
    return said


def test_a_streams_table_is_compacted_between_its_batches_and_keeps_its_position(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path)
    keeper = Keeper(lab.path("bronze.events"), Maintain())
    most = 0
    for number in range(20):
        record = json.dumps({"pipeline": "bronze.events", "batch_id": number})
        frame = lab.frame([(number, MON, 1, 1), (number, None, 1, 1)])
        delta_sink.append(frame, lab.path("bronze.events"), record, partition_by=["day"])
        keeper.after(spark)
        most = max(most, *map(len, layout(spark, lab.path("bronze.events")).sizes.values()))
    assert most <= 8
    assert len(lab.rows("bronze.events")) == 40
    operations = [lab.log("bronze.events").info(v)["operation"] for v in lab.log("bronze.events").versions()]
    assert operations.count("OPTIMIZE") == 2
    record_ = lab.log("bronze.events").record() or {}
    assert record_["batch_id"] == 19


def test_an_optimize_repeats_the_record_so_that_the_log_may_forget_the_first(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path, silver=SILVER + "maintain: {zorder_by: [user]}\n")
    lab.append(*[(n, MON, n, 1) for n in range(50)])
    lab.run("silver.events")
    assert any("z-order by user 1 partitions" in line for line in kept(lab))
    record = lab.log("silver.events").record() or {}
    assert (record["repeats"], record["version"] > 0) == (True, True)
    assert lab.decide("silver.events").kind == "nothing"
    assert not any("z-order" in line for line in kept(lab)), "what has not changed is in order"
    lab.append((99, TUE, 1, 1))
    assert lab.decide("silver.events").slices == (TUE,)


def test_without_apply_nothing_is_changed(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1))
    lab.run("silver.events")
    for _ in range(9):
        lab.append((2, MON, 1, 1), table="silver.events")
    before = lab.log("silver.events").versions()
    said = kept(lab, apply=False)
    assert "silver.events: would compact 1 partitions" in said
    assert lab.log("silver.events").versions() == before
    kept(lab)
    assert layout(spark, lab.path("silver.events")).sizes["day=2026-01-05"].__len__() == 1
    assert lab.decide("silver.events").kind == "full", "a compaction does not make another hand's rows ours"


def test_what_a_stream_kept_aside_goes_when_its_time_has_come(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1))
    aside = lab.path("bronze.events__quarantine")
    rows = spark.sql("select now() - make_interval(0, 0, 0, n) as quarantined_at, n from values (89), (91), (200) t(n)")
    delta_sink.append(rows, aside, json.dumps({"pipeline": "bronze.events", "batch_id": 7}))
    lab.write("bronze/events.yaml", "source: {kafka: {topic: events}}\nsink: delta\ntrigger: {every: 1 second}\n")
    (spec,) = load([tmp_path / "pipelines" / "bronze"])
    said: list[str] = []
    for apply in (False, True):
        maintain(spark, spec, lab.storage, said.append, apply=apply)
    deleted = "delete 2 rows, older than 90 days"
    assert [line for line in said if "rows" in line] == [
        f"bronze.events__quarantine: would {deleted}", f"bronze.events__quarantine: {deleted}"]  # fmt: skip
    assert [row["n"] for row in spark.read.format("delta").load(str(aside)).collect()] == [89]
    record = lab.log("bronze.events__quarantine").record() or {}
    assert (record["batch_id"], record["repeats"]) == (7, True)


def test_the_log_is_checkpointed_and_its_retention_set_and_jobs_do_not_mind(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path, silver=SILVER + "maintain: {log_after: 14 days}\n")
    lab.append((1, MON, 1, 1))
    lab.run()
    kept(lab)
    assert list((lab.path("silver.events") / "_delta_log").glob("*.checkpoint*.parquet"))
    (row,) = lab.sql("show tblproperties {} ('delta.logRetentionDuration')", "silver.events")
    assert row["value"] == "interval 14 days"
    assert [lab.decide(name).kind for name in ("silver.events", "gold.events")] == ["nothing", "nothing"]


def test_a_table_that_is_being_written_is_left_to_its_writer(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1))
    lab.run("silver.events")
    lock = acquire(spark, lab.storage, "silver.events", "a stream")
    try:
        assert "left alone" in kept(lab)[0]
    finally:
        lock.close()


def test_a_clustered_table_stays_clustered_through_runs_and_maintenance(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path, silver=SILVER.replace("partition_by: [day]", "cluster_by: [user]"))
    lab.append((1, MON, 1, 1), (2, TUE, 2, 1))
    lab.run("silver.events")
    lab.append((3, TUE, 3, 1))
    (outcome,) = lab.run("silver.events")
    assert outcome.decision.slices == (TUE,)
    assert lab.sql("describe detail {}", "silver.events")[0]["clusteringColumns"] == ["user"]
    lab.run("silver.events", full=True)
    kept(lab)
    assert lab.sql("describe detail {}", "silver.events")[0]["clusteringColumns"] == ["user"]
    assert [row[0] for row in lab.rows("silver.events")] == [1, 2, 3]


@pytest.mark.parametrize(("folders", "expected"), [
    ([""], ""),
    (["day=2026-01-05"], "(`day` in (cast('2026-01-05' as date)))"),
    (["day=__HIVE_DEFAULT_PARTITION__", "day=2026-01-05/kind=a%2Fb"],
     "(`day` is null) or (`day` in (cast('2026-01-05' as date)) and `kind` in (cast('a/b' as string)))"),
])  # fmt: skip
def test_partitions_are_selected_by_their_folders(folders: list[str], expected: str) -> None:
    assert predicate(folders, {"day": "date", "kind": "string"}) == expected


def test_history_shows_what_each_version_read_and_why(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1))
    lab.run("silver.events")
    lab.append((2, TUE, 1, 1))
    lab.run("silver.events")
    newest, first = history.read(lab.storage, "silver.events", 20)
    assert (newest["version"], newest["slices"], newest["rows"]) == (1, [TUE], 1)
    assert (newest["read"], newest["reason"]) == ({"bronze.events": 1}, "1 of day changed, by new rows")
    assert (first["slices"], first["reason"]) == (None, "first run")
    assert "bronze.events@1" in history.table([newest, first])
    with pytest.raises(RunError, match="there is no table") as error:
        history.read(lab.storage, "silver.nothing", 20)
    assert error.value.code == "MISSING_TABLE"


def test_a_source_may_be_read_as_it_was(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1))
    lab.append((2, MON, 2, 1))
    between = datetime.now(timezone.utc).isoformat()
    lab.append((3, MON, 3, 1))
    for as_of, users in (("0", 1), (between, 2)):
        lab.write("gold/then.yaml", GOLD.replace(
            "source: silver.events", f"source: {{delta: {{table: bronze.events, as_of: {as_of!r}}}}}"
            .replace("'0'", "0")))  # fmt: skip
        lab.run("gold.then")
        assert lab.rows("gold.then")[0][1] == users
        assert lab.decide("gold.then").kind == "nothing"
    lab.write(
        "gold/then.yaml", GOLD.replace("source: silver.events", "source: {delta: {table: bronze.events, as_of: 9}}")
    )
    with pytest.raises(RunError) as error:
        lab.decide("gold.then")
    assert error.value.code == "AS_OF_GONE"
