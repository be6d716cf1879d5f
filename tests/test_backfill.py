"""Slices are recomputed one by one, a commit each; interrupted, the same command goes on."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.backfill import Span, backfill
from lakehouse_engine.errors import LakehouseError, UsageError
from tests.lab import Lab
from tests.test_incremental import Killed, killed_at

DAYS = [f"2026-01-0{n}" for n in range(1, 6)]


@pytest.fixture
def lab(spark: SparkSession, tmp_path: Path) -> Lab:
    """Five days; gold is up to date, and then somebody wrote nonsense into it by hand."""
    made = Lab(spark, tmp_path)
    made.append(*[(i, day, i, 1) for i, day in enumerate(DAYS)])
    made.run()
    return made


def fill(lab: Lab, span: Span, name: str = "gold.events") -> list[str]:
    said: list[str] = []
    backfill(lab.spark, lab.job(name), span, lab.storage, None, said.append)
    return said


def slices(lab: Lab, since: int, name: str = "gold.events") -> list[list[str | None]]:
    log = lab.log(name)
    return [(log.record_of(v) or {})["slices"] for v in log.versions() if v > since]


def test_each_slice_of_the_range_is_a_commit_and_progress_is_said(lab: Lab) -> None:
    said = fill(lab, Span(DAYS[1], DAYS[3]))
    assert slices(lab, 0) == [[day] for day in DAYS[1:4]]
    assert [line.partition(" rows")[0] for line in said] == [
        f"gold.events: {n} of 3: day {day}: 1" for n, day in enumerate(DAYS[1:4], start=1)
    ]


def test_a_range_may_be_open_and_what_has_vanished_from_the_source_vanishes(lab: Lab) -> None:
    lab.run("gold.events")
    lab.sql("insert into {} values (date'2026-02-01', 7, 7, current_timestamp())", "gold.events")
    fill(lab, Span(first=DAYS[4]))
    assert slices(lab, 1) == [[DAYS[4]], ["2026-02-01"]]
    assert [row[0] for row in lab.rows("gold.events")] == [date.fromisoformat(day) for day in DAYS]


@pytest.mark.parametrize("after", [False, True], ids=["before a commit", "after a commit"])
def test_interrupted_it_goes_on_after_the_last_slice_done(lab: Lab, after: bool) -> None:
    with pytest.raises(Killed), killed_at(3, after):
        fill(lab, Span(full=True))
    done = 3 if after else 2
    assert slices(lab, 0) == [[day] for day in DAYS[:done]]
    assert fill(lab, Span(full=True))[0] == f"gold.events: going on after {done} of 5 slices"
    assert slices(lab, 0) == [[day] for day in DAYS]
    assert lab.decide("gold.events").kind == "nothing"
    assert len(fill(lab, Span(full=True))) == 5, "a finished one begins anew"


def test_what_changes_while_it_is_interrupted_is_not_lost(lab: Lab) -> None:
    with pytest.raises(Killed), killed_at(3, after=True):
        fill(lab, Span(full=True))
    lab.append((77, DAYS[0], 77, 5), (78, DAYS[4], 78, 5))
    lab.run("silver.events")
    fill(lab, Span(full=True))
    lab.run("gold.events")
    assert [row[1] for row in lab.rows("gold.events")] == [2, 1, 1, 1, 2]


def test_a_run_in_the_middle_of_one_is_right_too(lab: Lab) -> None:
    with pytest.raises(Killed), killed_at(2, after=True):
        fill(lab, Span(DAYS[0], DAYS[3]))
    lab.append((77, DAYS[0], 77, 5))
    lab.run()
    assert lab.rows("gold.events")[0][1] == 2
    assert lab.decide("gold.events").kind == "nothing"


def test_after_a_changed_file_a_full_one_leaves_nothing_to_do_and_a_part_leaves_the_rest_to_the_next_run(
    lab: Lab,
) -> None:
    file = lab.folder / "pipelines/gold/events.yaml"
    file.write_text(file.read_text().replace("max(n)", "max(n) + 1"))
    fill(lab, Span(DAYS[0], DAYS[0]))
    assert [row[2] for row in lab.rows("gold.events")] == [2, 1, 1, 1, 1]
    assert (lab.decide("gold.events").kind, lab.decide("gold.events").reason) == ("full", "the pipeline has changed")
    fill(lab, Span(full=True))
    assert [row[2] for row in lab.rows("gold.events")] == [2] * 5
    assert lab.decide("gold.events").kind == "nothing"


def test_the_first_run_may_be_one(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path)
    lab.append((1, DAYS[0], 1, 1), (2, None, 1, 1))
    fill(lab, Span(full=True), "silver.events")
    assert slices(lab, -1, "silver.events") == [[None], [DAYS[0]]]
    assert lab.decide("silver.events").kind == "nothing"


def test_a_wrong_range_is_refused_before_anything_is_written(lab: Lab) -> None:
    for make, code in [
        (lambda: Span(), "BAD_RANGE"),
        (lambda: Span("2026-01-02", "2026-01-01"), "BAD_RANGE"),
        (lambda: Span("2026-01-02", full=True), "BAD_RANGE"),
    ]:
        with pytest.raises(UsageError) as refused:
            make()
        assert refused.value.code == code
    with pytest.raises(LakehouseError) as error:
        fill(lab, Span("some day"))
    assert error.value.code == "BAD_RANGE"
    file = lab.folder / "pipelines/gold/events.yaml"
    file.write_text(
        file.read_text().replace("by: [day]", "by: [user]").replace("users: count(distinct user)", "day: max(day)")
    )
    with pytest.raises(LakehouseError) as error:
        fill(lab, Span(DAYS[0]))
    assert error.value.code == "NOT_LOCAL"
    assert lab.log("gold.events").version() == 0
