"""Incremental equals full, whatever happens to the source, the target and the run; and each reason to run in full."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from lakehouse_engine import arrivals
from lakehouse_engine.arrivals import MOST_APPENDS
from lakehouse_engine.backfill import backfill
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.request import Span
from lakehouse_engine.sinks import delta as delta_sink
from tests.lab import GOLD, Lab, Row

MON, TUE, WED = "2026-01-05", "2026-01-06", "2026-01-07"


@pytest.fixture
def lab(spark: SparkSession, tmp_path: Path) -> Lab:
    """Two days in bronze, silver and gold up to date."""
    made = Lab(spark, tmp_path)
    made.append((1, MON, 1, 1), (2, MON, 2, 1), (1, MON, 1, 2), (3, TUE, 1, 1), (4, TUE, None, 1))
    made.run()
    return made


def test_a_job_reads_what_changed_replaces_it_and_says_so(lab: Lab) -> None:
    lab.correct(TUE, (3, TUE, 1, 1), (4, TUE, None, 1), (5, TUE, 9, 1))
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.slices, decision.reason) == ("slices", (TUE,), "1 of day changed")
    silver, gold = lab.run()
    assert (silver.rows, gold.decision.slices, gold.rows) == (2, (TUE,), 1)
    assert lab.rows("gold.events") == [(date(2026, 1, 5), 2, 1), (date(2026, 1, 6), 2, 1)]
    assert (lab.log("gold.events").record() or {})["slices"] == [TUE]
    assert [lab.decide(name).kind for name in ("silver.events", "gold.events")] == ["nothing", "nothing"]


def test_a_day_corrected_away_vanishes_everywhere(lab: Lab) -> None:
    lab.correct(TUE)
    lab.run()
    assert lab.rows("gold.events") == [(date(2026, 1, 5), 2, 1)]
    assert lab.rows("silver.events__quarantine") == []


# rows that were only added


def files(lab: Lab, table: str) -> set[str]:
    return set(lab.spark.read.format("delta").load(str(lab.path(table))).inputFiles())


def test_new_rows_alone_are_computed_and_added_and_what_lies_there_is_not_touched(lab: Lab) -> None:
    before = files(lab, "silver.events")
    lab.append((5, TUE, 9, 1), (5, TUE, 9, 2), (6, TUE, None, 1), (3, TUE, 8, 2), (7, WED, 1, 1))
    silver, gold = lab.run()
    assert (silver.decision.kind, silver.decision.slices, silver.rows) == ("rows", (TUE, WED), 2)
    assert silver.counters == {"counted": 2, "quarantined": 1, "duplicate": 2, "filtered": 0}
    assert (gold.decision.kind, gold.decision.slices) == ("slices", (TUE, WED))
    assert before < files(lab, "silver.events")
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))
    kept = sorted(row[9] for row in lab.rows("silver.events__quarantine"))
    assert kept == ['{"id":4,"day":"2026-01-06","n":1}', '{"id":6,"day":"2026-01-06","n":1}']
    assert lab.decide("silver.events").kind == "nothing"


def test_a_new_row_that_comes_before_one_that_is_there_takes_its_place(lab: Lab) -> None:
    lab.append((2, MON, 9, 0), (8, MON, 9, 1))
    (silver,) = lab.run("silver.events")
    reason = "1 of day changed, by new rows, but 1 of the new rows come before rows of their keys"
    assert (silver.decision.kind, silver.decision.reason, silver.rows) == ("slices", reason, 3)
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_a_slice_that_was_added_to_often_is_computed_as_a_whole_again(lab: Lab) -> None:
    kinds = []
    for number in range(MOST_APPENDS + 2):
        lab.append((10 + number, TUE, 1, 1))
        kinds.append(lab.run("silver.events")[0].decision.kind)
    assert kinds == ["rows"] * MOST_APPENDS + ["slices", "rows"]
    assert lab.decide("gold.events").slices == (TUE,)
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_a_slice_filled_back_from_a_later_version_is_not_added_to(lab: Lab) -> None:
    lab.append((5, TUE, 9, 1))
    backfill(lab.spark, lab.job("silver.events"), Span(TUE, TUE, False), lab.storage, None, lambda _: None)
    assert lab.decide("silver.events").kind == "slices"
    lab.run()
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_rows_kept_aside_by_a_run_that_died_are_not_kept_twice(lab: Lab) -> None:
    lab.append((6, TUE, None, 1))
    with pytest.raises(Killed), killed_at(1, after=True):
        lab.run("silver.events")
    assert len(lab.rows("silver.events__quarantine")) == 2
    assert lab.decide("silver.events").kind == "slices"
    lab.run()
    assert len(lab.rows("silver.events__quarantine")) == 2


def test_a_source_whose_former_files_are_gone_is_computed_by_slice(lab: Lab) -> None:
    lab.append((5, TUE, 9, 1))
    lab.sql("optimize {}")
    session = lab.spark.newSession()
    session.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    session.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", "2")
    session.sql(f"vacuum delta.`{lab.path('bronze.events')}` retain 0 hours").collect()
    (silver,) = lab.run("silver.events")
    assert silver.decision.kind == "slices"
    assert silver.decision.reason.startswith("1 of day changed, by new rows, but [")
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_new_files_are_read_as_delta_reads_them(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(1, "007"), (2, None), (3, "a b/c:d%=e"), (4, "\u00fc 100%25")], "id int, s string")
    rows = rows.selectExpr("s", "id", "parse_json('[1]') as v", "timestamp'2026-01-01 10:00:00.5' as t", "array(s) a")
    table = str(tmp_path / "table")
    rows.limit(0).write.format("delta").partitionBy("s", "t").save(table)
    rows.write.format("delta").mode("append").save(table)
    log = DeltaLog(Path(table))
    added = log.changed(0, "s").added
    assert added is not None
    assert arrivals.readable(log, added, 1)
    found, expected = arrivals.read(spark, log, added, 1), spark.read.format("delta").load(table)
    assert found.schema == expected.schema
    assert sorted(map(str, found.collect())) == sorted(map(str, expected.collect()))


def foreign(lab: Lab) -> None:
    lab.sql("delete from {} where id = 1", "silver.events")


def restored_target(lab: Lab) -> None:
    lab.append((7, WED, 1, 1))
    lab.run("silver.events")
    lab.sql("restore {} to version as of 0", "silver.events")


def schema(lab: Lab) -> None:
    lab.sql("alter table {} add column (extra int)")
    lab.append((7, WED, 1, 1))


def cleaned(lab: Lab) -> None:
    for number in range(3):
        lab.append((7 + number, WED, 1, 1))
    (lab.path("bronze.events") / "_delta_log" / f"{2:020d}.json").unlink()


def replaced_source(lab: Lab) -> None:
    shutil.rmtree(lab.path("bronze.events"))
    lab.append((1, MON, 5, 1))
    lab.append((2, MON, 6, 1))


def another_pipeline(lab: Lab) -> None:
    lab.write("silver/events.yaml", (lab.folder / "pipelines/silver/events.yaml").read_text().replace("[n]", "[user]"))


def copied_and_written_on(lab: Lab) -> None:
    """The source is set back to a copy of itself and written on: same id, same version, other commit."""
    copy = lab.folder / "copy"
    shutil.copytree(lab.path("bronze.events"), copy)
    lab.append((7, WED, 1, 1))
    lab.run("silver.events")
    shutil.rmtree(lab.path("bronze.events"))
    shutil.copytree(copy, lab.path("bronze.events"))
    lab.spark.catalog.clearCache()
    lab.spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]
    lab.append((8, MON, 8, 1))
    lab.append((9, MON, 9, 1))


FULL: list[tuple[Callable[[Lab], None], str]] = [
    (foreign, "version 1 of silver.events is not this pipeline's"),
    (restored_target, "version 2 of silver.events is not this pipeline's"),
    (schema, "bronze.events does not tell which day changed: version 1 changes its schema"),
    (cleaned, "bronze.events does not tell which day changed: version 2 is no longer in its log"),
    (replaced_source, "bronze.events is another table than before"),
    (another_pipeline, "the pipeline has changed"),
    (copied_and_written_on, "bronze.events has another version 1 than the one that was read"),
]


@pytest.mark.parametrize(("happens", "reason"), FULL, ids=[h.__name__ for h, _ in FULL])
def test_what_cannot_be_told_is_run_in_full_with_the_reason(
    lab: Lab, happens: Callable[[Lab], None], reason: str
) -> None:
    happens(lab)
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.reason[: len(reason)]) == ("full", reason)
    if happens is not cleaned:  # what lies under a hole in a log cannot be read at all
        lab.run("silver.events")
        assert [row[:4] for row in lab.rows("silver.events")] == oracle_silver(source_rows(lab))


def test_a_source_that_was_restored_names_the_days_that_differ(lab: Lab) -> None:
    lab.append((7, WED, 1, 1))
    lab.run()
    lab.sql("restore {} to version as of 0")
    assert lab.decide("silver.events").slices == (WED,)
    lab.run()
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_compaction_and_properties_change_nothing_whoever_made_them(lab: Lab) -> None:
    lab.append((8, TUE, 3, 1))
    lab.run()
    for table in ("bronze.events", "silver.events"):
        lab.sql("optimize {}", table)
        lab.sql("alter table {} set tblproperties ('delta.logRetentionDuration' = 'interval 40 days')", table)
    assert lab.decide("silver.events").kind == "nothing"
    assert lab.decide("gold.events").kind == "nothing"
    lab.append((9, MON, 4, 1))
    assert (lab.decide("silver.events").kind, lab.decide("silver.events").slices) == ("rows", (MON,))
    lab.run()
    assert lab.rows("silver.events") == oracle_silver(source_rows(lab))


def test_a_job_that_is_not_local_says_which_step_makes_it_so(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path, silver=GOLD.replace("silver", "bronze").replace("serve: postgres\n", "").replace(
        "by: [day]", "by: [user]").replace("users: count(distinct user)", "day: max(day)"))  # fmt: skip
    lab.append((1, MON, 1, 1))
    lab.run("silver.events")
    lab.append((1, TUE, 1, 1))
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.reason) == ("full", "transforms[0].aggregate does not group by day")


def test_a_run_says_which_table_is_missing(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no table bronze\.events yet") as error:
        Lab(spark, tmp_path).run("silver.events")
    assert error.value.code == "MISSING_TABLE"


# the law


def source_rows(lab: Lab) -> list[Row]:
    frame = lab.spark.read.format("delta").load(str(lab.path("bronze.events")))
    return [(r["id"], r["day"], r["user"], r["n"]) for r in frame.collect()]


def oracle_silver(rows: list[Row]) -> list[tuple[Any, ...]]:
    """In plain Python: of each day and id the row with the least n; none without a user."""
    order = sorted(rows, key=lambda r: (r[3], r[0], r[2] is None, r[2] or 0))
    first: dict[tuple[Any, int], Row] = {}
    for row in order:
        first.setdefault((row[1], row[0]), row)
    return sorted((row for row in first.values() if row[2] is not None), key=str)


def oracle_gold(silver: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    days = {row[1] for row in silver}
    of = {day: [row for row in silver if row[1] == day] for day in days}
    return sorted(((d, len({r[2] for r in of[d]}), max(r[3] for r in of[d])) for d in days), key=str)


class Killed(BaseException):
    """As a kill: nothing that catches ``Exception`` sees it."""


@contextmanager
def killed_at(write: int, after: bool) -> Iterator[None]:
    """The process dies at its n-th Delta commit, just before or just after it."""
    calls = [0]

    def dying(original: Callable[..., None]) -> Callable[..., None]:
        def write_it(*args: Any, **options: Any) -> None:
            calls[0] += 1
            if calls[0] == write and not after:
                raise Killed
            original(*args, **options)
            if calls[0] == write:
                raise Killed

        return write_it

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "append"):
            patch.setattr(delta_sink, name, dying(getattr(delta_sink, name)))
        yield


days = st.sampled_from([MON, TUE, WED, None])
rows = st.lists(st.tuples(st.integers(1, 4), days, st.sampled_from([1, 2, None]), st.integers(1, 3)), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), rows),
        st.tuples(st.just("correct"), days, st.lists(st.integers(1, 3), max_size=2)),
        st.tuples(st.just("append"), rows),
        st.tuples(st.just("run"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("run"), st.just(0), st.booleans()),
        st.tuples(st.just("backfill"), st.sampled_from([MON, TUE, WED])),
        st.tuples(st.just("optimize")),
        st.tuples(st.just("restore"), st.integers(1, 3)),
    ),
    min_size=3,
    max_size=7,
)


EXAMPLES = int(os.environ.get("LAKEHOUSE_EXAMPLES", "3"))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_incremental_equals_full_for_any_arrivals_corrections_cuts_and_kills(
    spark: SparkSession, steps: list[tuple[Any, ...]]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lakehouse-law-"))
    try:
        lab = Lab(spark, folder)
        lab.append((1, MON, 1, 1))
        for step in steps:
            take(lab, step)
        lab.run()
        silver, gold = lab.rows("silver.events"), lab.rows("gold.events")
        assert silver == oracle_silver(source_rows(lab))
        assert gold == oracle_gold(silver)
        refused = lab.path("silver.events__quarantine").exists() and lab.rows("silver.events__quarantine")
        lab.run(full=True)
        assert (lab.rows("silver.events"), lab.rows("gold.events")) == (silver, gold)
        if refused:
            again = lab.rows("silver.events__quarantine")
            assert sorted(r[9:] for r in refused) == sorted(r[9:] for r in again)  # whenever they were kept aside
    finally:
        shutil.rmtree(folder)


def take(lab: Lab, step: tuple[Any, ...]) -> None:
    if step[0] == "append" and step[1]:
        lab.append(*step[1])
    elif step[0] == "correct":
        lab.correct(step[1], *[(i, step[1], i, 1) for i in step[2]])
    elif step[0] == "optimize":
        lab.sql("optimize {}")
    elif step[0] == "restore":
        newest = lab.log("bronze.events").version() or 0
        lab.sql(f"restore {{}} to version as of {max(newest - step[1], 0)}")
    elif step[0] == "backfill":
        backfill(lab.spark, lab.job("silver.events"), Span(step[1], step[1], False), lab.storage, None, lambda _: None)
    elif step[0] == "run":
        try:
            with killed_at(step[1], step[2]):
                lab.run()
        except Killed:
            pass
