"""Jobs over several inputs: what lookup, join, union and sql do to rows, and that incremental equals full with them."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from lakehouse_engine.backfill import backfill
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.explain import explain
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.request import Span
from lakehouse_engine.spec.loader import load
from tests.lab import Lab

MON, TUE, WED = "2026-01-05", "2026-01-06", "2026-01-07"
DAY = {MON: date(2026, 1, 5), TUE: date(2026, 1, 6), WED: date(2026, 1, 7)}


def made(spark: SparkSession, folder: Path, steps: str, **more: str) -> Lab:
    """Bronze events and people (id, day, user, n), and one silver pipeline over both."""
    text = f"source: bronze.events\n{steps}\nsink: {{delta: {{replace_by: day}}}}\nschedule: manual\n"
    return Lab(spark, folder, silver=text, **more)


def people(lab: Lab, *rows: Any) -> None:
    lab.append(*rows, table="bronze.people")


def result(lab: Lab, *names: str) -> list[Any]:
    frame = lab.spark.read.format("delta").load(str(lab.path("silver.events")))
    return sorted((tuple(row) for row in frame.select(*names).collect()), key=str)


def test_a_lookup_adds_columns_to_each_row_once_and_null_is_a_key(spark: SparkSession, tmp_path: Path) -> None:
    lab = made(spark, tmp_path, """
inputs:
  people:
    source: bronze.people
    transforms:
      - filter: n > 0
      - rename: {age: n}
transforms:
  - filter: id < 9
  - lookup: {from: people, keys: {user: id}, take: {age: age, since: day}}
  - derive: {old: age >= 18}
""")  # fmt: skip
    lab.append((1, MON, 1, 1), (1, MON, 1, 2), (2, MON, 2, 1), (3, TUE, None, 1), (4, TUE, 7, 1), (9, TUE, 1, 1))
    people(lab, (1, MON, 0, 20), (2, MON, 0, -1), (2, TUE, 0, 9), (None, WED, 0, 50))
    (outcome,) = lab.run("silver.events")
    assert result(lab, "id", "n", "age", "since", "old") == [
        (1, 1, 20, DAY[MON], True), (1, 2, 20, DAY[MON], True), (2, 1, 9, DAY[TUE], False),
        (3, 1, 50, DAY[WED], True), (4, 1, None, None, None)]  # fmt: skip
    assert outcome.counters == {"counted": 5, "filtered": 1}


def test_a_row_that_the_table_does_not_have_is_kept_aside_as_it_came(spark: SparkSession, tmp_path: Path) -> None:
    steps = """
transforms:
  - lookup: {from: bronze.people, keys: {user: id, day: day}, take: {age: n}, missing: quarantine}
checks:
  - not_null: [age]
"""
    lab = made(spark, tmp_path, steps)
    lab.append((1, MON, 1, 1), (2, TUE, None, 5))
    people(lab, (1, MON, 0, 20), (1, TUE, 0, 30))
    (outcome,) = lab.run("silver.events")
    assert outcome.counters == {"counted": 1, "filtered": 0, "quarantined": 1}
    (aside,) = lab.spark.read.format("delta").load(str(lab.path("silver.events__quarantine"))).collect()
    assert (aside["step"], aside["unit"], aside["row"]) == (
        "transforms[0].lookup", TUE, '{"id":2,"day":"2026-01-06","n":5}')  # fmt: skip
    assert aside["reasons"] == ["bronze.people has no row for user = null, day = 2026-01-06"]


def test_two_rows_for_one_key_stop_the_run_with_the_key(spark: SparkSession, tmp_path: Path) -> None:
    lab = made(spark, tmp_path, "transforms: [lookup: {from: bronze.people, keys: {user: id}, take: {age: n}}]")
    lab.append((1, MON, 5, 1))
    people(lab, (1, MON, 0, 20), (1, TUE, 0, 30))
    with pytest.raises(RunError, match=r"bronze\.people has 2 rows for id = 1, and a lookup takes one") as error:
        lab.run("silver.events")
    assert error.value.code == "DUPLICATE_KEY"
    assert lab.log("silver.events").version() is None


SCD2 = "id int, valid_from timestamp, valid_to timestamp, plan string"


def history(lab: Lab, *rows: tuple[int, str, str | None, str]) -> None:
    texts = lab.spark.createDataFrame([(*row,) for row in rows], "id int, f string, t string, plan string")
    frame = texts.selectExpr("id", "timestamp(f) as valid_from", "timestamp(t) as valid_to", "plan")
    frame.write.format("delta").mode("overwrite").save(str(lab.path("bronze.plans")))


def test_as_of_takes_the_row_that_was_valid_then(spark: SparkSession, tmp_path: Path) -> None:
    lab = made(spark, tmp_path, "transforms: [lookup: {from: bronze.plans, keys: {user: id}, as_of: day}]")
    lab.append((1, MON, 1, 1), (2, TUE, 1, 1), (3, WED, 1, 1), (4, WED, 2, 1))
    history(lab, (1, TUE, WED, "free"), (1, WED, None, "paid"), (1, WED, WED, "never"), (2, f"{WED} 01:00", None, "x"))
    lab.run("silver.events")
    assert result(lab, "id", "plan") == [(1, None), (2, "free"), (3, "paid"), (4, None)]
    history(lab, (1, MON, WED, "free"), (1, TUE, None, "paid"))
    with pytest.raises(RunError, match=r"bronze\.plans has 2 rows for id = 1 that are valid at one time"):
        lab.run("silver.events")


JOINS = [
    ("inner", [(1, 1, 20), (1, 1, 30), (3, None, 50)]),
    ("left", [(1, 1, 20), (1, 1, 30), (2, 2, None), (3, None, 50)]),
    ("right", [(1, 1, 20), (1, 1, 30), (3, None, 50), (None, 8, 60)]),
    ("full", [(1, 1, 20), (1, 1, 30), (2, 2, None), (3, None, 50), (None, 8, 60)]),
]


def test_a_join_gives_each_pair_and_null_matches_null(spark: SparkSession, tmp_path: Path) -> None:
    steps = "transforms: [join: {with: bronze.people, keys: {user: id, day: day}, how: inner, take: {age: n}}]"
    lab = made(spark, tmp_path, steps)
    lab.append((1, MON, 1, 1), (2, MON, 2, 1), (3, MON, None, 1))
    people(lab, (1, MON, 0, 20), (1, MON, 0, 30), (8, MON, 0, 60), (None, MON, 0, 50))
    text = (lab.folder / "pipelines/silver/events.yaml").read_text()
    for how, expected in JOINS:
        lab.write("silver/events.yaml", text.replace("how: inner", f"how: {how}"))
        (outcome,) = lab.run("silver.events")
        assert result(lab, "id", "user", "age") == sorted(expected, key=str), how
        assert outcome.counters == {"counted": len(expected)}


def test_a_union_takes_columns_by_name_and_refuses_what_differs(spark: SparkSession, tmp_path: Path) -> None:
    steps = """
inputs:
  people: {source: bronze.people, transforms: [{select: ["n as user", "day", "user as n", "id"]}, {dedupe: [id]}]}
transforms:
  - derive: {n: 10 * n}
  - union: [people, bronze.events]
"""
    lab = made(spark, tmp_path, steps)
    lab.append((1, MON, 1, 1))
    people(lab, (1, MON, 2, 20), (1, MON, 2, 20), (2, TUE, 3, 30))
    lab.run("silver.events")
    assert result(lab, "id", "day", "user", "n") == [
        (1, DAY[MON], 1, 1), (1, DAY[MON], 1, 10), (1, DAY[MON], 20, 2), (2, DAY[TUE], 30, 3)]  # fmt: skip
    lab.write("silver/events.yaml", (lab.folder / "pipelines/silver/events.yaml").read_text().replace(
        '"n as user"', '"string(n) as user"'))  # fmt: skip
    with pytest.raises(PlanError, match=r"user is int in the rows so far and string in people") as error:
        lab.run("silver.events")
    assert error.value.code == "COLUMN_TYPE"


def test_a_query_reads_the_rows_so_far_and_other_tables_by_name(spark: SparkSession, tmp_path: Path) -> None:
    steps = """
inputs:
  people: bronze.people
transforms:
  - filter: id < 9
  - sql: |
      with old as (select * from people where n >= 18)
      select i.id, i.day, old.n as age, '{}' as braces, (select max(n) from bronze.people) as oldest
      from input i left join old on i.user = old.id
      qualify row_number() over (partition by i.day order by i.id) = 1
"""
    lab = made(spark, tmp_path, steps)
    lab.append((1, MON, 1, 1), (2, MON, 2, 1), (9, TUE, 1, 1), (3, TUE, 2, 1))
    people(lab, (1, MON, 0, 20), (2, MON, 0, 9))
    before = lab.spark.catalog.listTables()
    lab.run("silver.events")
    assert result(lab, "id", "age", "braces", "oldest") == [(1, 20, "{}", 20), (3, None, "{}", 20)]
    assert lab.spark.catalog.listTables() == before
    text = (lab.folder / "pipelines/silver/events.yaml").read_text()
    lab.write("silver/events.yaml", text.replace("i.id, i", "i.idd, i"))
    with pytest.raises(PlanError, match=r"silver/events.yaml:7.*EXPRESSION_TYPE.*idd"):
        lab.run("silver.events")


# what changed, and what is computed then

BOTH = """
inputs:
  people: {source: bronze.people, transforms: [{filter: n > 0}, {dedupe: {keys: [day, id], order_by: [n]}}]}
transforms:
  - lookup: {from: bronze.names, keys: {user: id}, take: {name: n}, missing: quarantine}
  - join: {with: people, keys: {day: day, user: id}, how: full, take: {age: n}}
  - sql: {query: "select *, rank() over (partition by day order by user) as place from input", local: true}
  - aggregate: {by: [day, user], measures: {n: count(*), age: max(age), name: max(name), place: max(place)}}
"""


def test_slices_that_changed_on_either_side_of_a_join_are_computed_and_a_lookup_makes_it_all(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = made(spark, tmp_path, BOTH)
    lab.append((1, MON, 1, 1), (2, TUE, 1, 1))
    people(lab, (1, MON, 0, 20), (1, TUE, 0, 30))
    lab.append((1, MON, 0, 7), table="bronze.names")
    lab.run("silver.events")
    (job,) = explain(compile_plan(load([lab.folder / "pipelines" / "silver"])))["jobs"]
    assert job["incremental"] == "recomputes changed day only, all of it when bronze.names changed"
    assert lab.decide("silver.events").reason == "what it reads is as it was"
    people(lab, (5, WED, 0, 40))
    lab.append((3, MON, 1, 1))
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.slices) == ("slices", (MON, WED))
    lab.run("silver.events")
    assert result(lab, "day", "user", "n", "age", "name") == [
        (DAY[MON], 1, 2, 20, 7), (DAY[TUE], 1, 1, 30, 7), (DAY[WED], 5, 1, 40, None)]  # fmt: skip
    assert backfill(lab.spark, lab.job("silver.events"), Span(WED, WED), lab.storage, None, lambda _: None) == 1
    assert len(result(lab, "day")) == 3, "a day that only the other side has is there to be filled"
    assert lab.decide("silver.events").kind == "nothing"
    assert set((lab.log("silver.events").record() or {})["sources"]) == {
        "bronze.events", "bronze.people", "bronze.names"}  # fmt: skip
    lab.append((2, MON, 0, 8), table="bronze.names")
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.reason) == ("full", "bronze.names, which it looks up, has changed")


def test_changes_of_a_lookup_are_let_be_where_it_says_so_and_the_plan_says_what_that_means(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = made(spark, tmp_path, """
inputs: {names: {source: {delta: {table: bronze.names, as_of: 0}}}}
transforms:
  - lookup: {from: bronze.people, keys: {user: id}, take: {age: n}, on_change: ignore}
  - lookup: {from: names, keys: {user: id}, take: {name: n}}
""")  # fmt: skip
    lab.append((1, MON, 1, 1))
    people(lab, (1, MON, 0, 20))
    lab.append((1, MON, 0, 7), table="bronze.names")
    lab.run("silver.events")
    lab.correct(MON, (1, MON, 0, 21), table="bronze.people")
    lab.correct(MON, (1, MON, 0, 8), table="bronze.names")
    assert lab.decide("silver.events").kind == "nothing"
    lab.append((2, TUE, 1, 1))
    assert lab.decide("silver.events").kind == "rows"
    lab.run("silver.events")
    assert result(lab, "id", "age", "name") == [(1, 20, 7), (2, 21, 7)]
    (job,) = explain(compile_plan(load([lab.folder / "pipelines" / "silver"])))["jobs"]
    assert job["incremental"] == ("recomputes changed day only; changes of bronze.people are ignored, so what is there"
                                  " need not be what a full run would give")  # fmt: skip


UNALIGNED = [
    ("a join without the slice column", "transforms: [join: {with: bronze.people, keys: {user: id}, take: {age: n}}]",
     "bronze.people, which it joins, has changed"),
    ("an input that computes it",
     "inputs: {p: {source: bronze.people, transforms: [derive: {day: day + 1}]}}\n"
     "transforms: [join: {with: p, keys: {day: day, user: id}, take: {age: n}}]",
     "bronze.people, which it joins, has changed"),
    ("a query", "transforms: [sql: {query: 'select i.*, p.n as age from input i join bronze.people p on i.user = p.id',"
     " local: true}]", "bronze.people, which its query reads, has changed"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "reason"), [one[1:] for one in UNALIGNED], ids=[one[0] for one in UNALIGNED])
def test_what_does_not_tell_its_slices_makes_a_full_run(
    spark: SparkSession, tmp_path: Path, steps: str, reason: str
) -> None:
    lab = made(spark, tmp_path, steps)
    lab.append((1, MON, 1, 1))
    people(lab, (1, MON, 0, 20))
    lab.run("silver.events")
    people(lab, (5, WED, 0, 40))
    assert (lab.decide("silver.events").kind, lab.decide("silver.events").reason) == ("full", reason)


# the law

EXAMPLES = int(os.environ.get("LAKEHOUSE_EXAMPLES", "4")) - 1
DAYS = st.sampled_from([MON, TUE, None])
SMALL = st.integers(0, 2)
ROWS = st.lists(st.tuples(SMALL, DAYS, st.none() | SMALL, SMALL), max_size=4)
CHANGE = st.tuples(st.sampled_from(["bronze.events", "bronze.people", "bronze.names"]), st.booleans(), DAYS, ROWS)


@pytest.fixture(scope="module")
def law(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return made(spark, tmp_path_factory.mktemp("law"), BOTH)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(CHANGE, min_size=1, max_size=2))
def test_incremental_is_full_with_a_lookup_and_a_join(law: Lab, changes: list[Any]) -> None:
    for table in ("bronze.events", "bronze.people", "bronze.names"):
        if law.log(table).version() is None:
            law.append((1, MON, 1, 1), table=table)
    for table, add, day, given_rows in changes:
        rows = [(one, day, user, n) for one, _, user, n in given_rows]
        if table == "bronze.names":  # one row a key
            law.sql("delete from {}", table)
            rows = list({one[0]: one for one in rows}.values())
        if rows and (add or table == "bronze.names"):
            law.append(*rows, table=table)
        else:
            law.correct(day, *rows, table=table)
        law.run("silver.events")
    after = law.rows("silver.events"), aside(law)
    law.run("silver.events", full=True)
    assert after == (law.rows("silver.events"), aside(law))


def aside(lab: Lab) -> list[Any]:
    if lab.log("silver.events__quarantine").version() is None:
        return []
    frame = lab.spark.read.format("delta").load(str(lab.path("silver.events__quarantine")))
    return sorted((row["step"], row["row"], row["unit"]) for row in frame.collect())
