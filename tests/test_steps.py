"""Steps and checks on real Spark: what fits, what is kept aside, and where every row of the source went."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import jobs, rows
from lakehouse_engine.checks import NotNull, Range, judge
from lakehouse_engine.errors import PlanError, RunError, SpecError
from lakehouse_engine.progress import Position
from lakehouse_engine.rows import Rows, Stop, Tally, Watched, concluded
from lakehouse_engine.scan import ScanQuery, WindowMember, scan_floors
from lakehouse_engine.sources import broker
from lakehouse_engine.transforms import Cast, Explode, Filter, Watermark, Window
from tests.lab import Lab

MON, TUE, WED = "2026-01-05", "2026-01-06", "2026-01-07"

# ---------------------------------------------------------------- one row at a time

CASTS = [
    # value, type, what it becomes (None: it does not fit)
    ("'12'", "int", "12"),
    ("' 12 '", "int", "12"),
    ("'12.5'", "bigint", None),
    ("''", "int", None),
    ("'much'", "double", None),
    ("12.5D", "bigint", "12"),
    ("1e20D", "int", None),
    ("3000000000L", "int", None),
    ("0.125BD", "decimal(18,2)", "0.13"),
    ("123.45BD", "decimal(4,2)", None),
    ("'2026-02-28'", "date", "2026-02-28"),
    ("'2026-02-30'", "date", None),
    ("'yes'", "boolean", "true"),
    ("'maybe'", "boolean", None),
    ("cast('nan' as double)", "int", None),
    ("true", "string", "true"),
]


def test_a_value_that_does_not_fit_is_refused_with_itself_as_the_reason_and_null_stays_null(
    spark: SparkSession,
) -> None:
    columns = ", ".join(f"{value} as c{i}, if(false, {value}, null) as n{i}" for i, (value, _, _) in enumerate(CASTS))
    kinds = dict(spark.sql(f"select {columns}").dtypes)
    before = Rows.identity(kinds)
    chosen = []
    for index, (_, kind, _) in enumerate(CASTS):
        for name in (f"c{index}", f"n{index}"):
            after = Cast(columns={name: kind}).row(before, "transforms[0].cast")
            _, reasons = rows.first_reasons(after.verdicts)
            chosen += [f"{rows.outcome(after.verdicts)} as {name}_o", f"{reasons} as {name}_r",
                       f"cast({after.columns[name]} as string) as {name}_v"]  # fmt: skip
            assert (after.types[name], list(after.columns)) == (kind, list(kinds))
    (found,) = spark.sql(f"select {', '.join(chosen)} from (select {columns})").collect()
    for index, (value, kind, wanted) in enumerate(CASTS):
        outcome, value_of = found[f"c{index}_o"], found[f"c{index}_v"]
        assert (outcome, value_of) == ("counted" if wanted else "quarantined", wanted), value
        assert (found[f"n{index}_o"], found[f"n{index}_v"]) == ("counted", None), value
        if not wanted:
            assert found[f"c{index}_r"][0].endswith(f" does not fit {kind}"), value
    assert found["c4_r"] == ["cast(c4): much does not fit double"]


def test_what_is_refused_before_an_explode_stays_one_row_and_what_comes_after_judges_each_element(
    spark: SparkSession,
) -> None:
    start = Rows.identity({"id": "int", "a": "array<int>"})
    steps = judge(start, [("checks[0]", NotNull(columns=("id",)))], "first")
    steps = Explode.model_validate({"column": "a", "as": "x", "position": "p", "empty": "drop"}).row(steps, "second")
    steps = Filter(condition="x <> 3").row(steps, "third")
    steps = Explode.model_validate({"column": "twice", "as": "y"}).row(
        steps.with_columns({"twice": "array(x, -x)"}), "fourth"
    )
    chosen = [f"{text} as {name}" for name, text in steps.columns.items()]
    view = "(values (1, array(1, 2, 3)), (2, array()), (3, null), (null, array(1, 2)), (4, array(null)) as t(id, a))"
    text = f"select {', '.join(chosen)}, {rows.outcome(steps.verdicts)} as o from ({rows.layered(view, steps.layers)})"
    found = sorted(((r["id"], r["x"], r["p"], r["y"], r["o"]) for r in spark.sql(text).collect()), key=str)
    assert found == sorted([
        (1, 1, 0, 1, "counted"), (1, 1, 0, -1, "counted"), (1, 2, 1, 2, "counted"), (1, 2, 1, -2, "counted"),
        (1, 3, 2, None, "filtered"), (2, None, None, None, "filtered"), (3, None, None, None, "filtered"),
        (None, None, None, None, "quarantined"), (4, None, 0, None, "filtered"),
    ], key=str)  # fmt: skip


# ---------------------------------------------------------------- tolerances

TOLERATED = [
    # on_fail, tolerance, reached, failed, written, least, warnings, stops
    ("warn", None, 0, 0, 7, 1, {"x": 7}, False),
    ("warn", 0.01, 1000, 10, 10, 1, {"x": 10}, False),
    ("warn", 0.01, 1000, 11, 11, 1, {"x": 11}, True),
    ("quarantine", 0.01, 999, 999, 0, 1000, {}, False),
    ("quarantine", 0.01, 1000, 11, 0, 1000, {}, True),
    ("quarantine", 0.0, 1, 1, 0, 1, {}, True),
    ("quarantine", 0.5, 0, 0, 0, 1, {}, False),
    ("fail", None, 0, 1, 0, 1000, {}, True),
    ("fail", None, 0, 0, 0, 1, {}, False),
]


@pytest.mark.parametrize(
    ("on_fail", "tolerance", "reached", "failed", "written", "least", "warnings", "stops"), TOLERATED
)
def test_a_run_stops_above_what_is_tolerated(
    on_fail: Any, tolerance: float | None, reached: int, failed: int, written: int, least: int,
    warnings: dict[str, int], stops: bool,
) -> None:  # fmt: skip
    watched = Watched("x", "true", on_fail, "checks[0]", 0, tolerance)
    numbers = {"reached": reached, "failed": failed, "written": written}
    asked = rows.tallies(Rows({"a": "a"}, watched=(watched,)), "true")
    found, stop = concluded([(tally, numbers[tally.what]) for tally in asked], least)
    assert (found, stop is not None) == (warnings, stops)
    if stop and tolerance is not None:
        assert stop == Stop("checks[0]", f"{failed:,} of {reached:,} rows fail x, more than the {tolerance:.6g} that is"
                            " tolerated")  # fmt: skip


def test_warnings_of_one_name_add_up() -> None:
    both = [Watched("x", text, "warn", "checks[0]", 0) for text in ("a", "b")]
    assert concluded([(Tally(one, "written", "true"), 2) for one in both]) == ({"x": 4}, None)


@pytest.mark.parametrize("sliding", [False, True])
def test_a_scan_counts_what_its_members_watch_of_the_rows_that_they_did_not_have(
    spark: SparkSession, sliding: bool
) -> None:
    kind = {"sliding": {"size": "2 minutes", "every": "1 minute"}} if sliding else {"tumbling": "1 minute"}
    window = Window.model_validate({**kind, "measures": {"n": "count(*)"}})
    start = Rows.identity({"at": "timestamp", "a": "int", "_partition": "int", "_offset": "bigint"})
    checks = [("checks[0]", Range.model_validate({"bounds": {"a": {"min": 0}}, "tolerance": "10%"})),
              ("checks[1]", NotNull.model_validate({"columns": "a", "on_fail": "warn"}))]  # fmt: skip
    judged = judge(Filter(condition="coalesce(a, 0) < 100").row(start, "first"), checks, "second")
    timed = Watermark.model_validate({"column": "at", "delay": "1 minute"}).row(judged, "third")
    last = judge(timed, [("checks[2]", Range.model_validate({"bounds": {"a": {"max": 5}}, "on_fail": "warn"}))], "last")
    query = ScanQuery([WindowMember("x", last, window), WindowMember("y", timed, window)])
    values = [(0, 1), (1, -1), (2, 7), (3, 100), (4, None), (5, 2)]
    frame = spark.createDataFrame([(0, offset, a) for offset, a in values], "_partition int, _offset bigint, a int")
    frame.selectExpr("*", "timestamp'2026-01-01T10:00:00Z' as at", "binary('') as _key",
                     "binary('') as _value").createOrReplaceTempView("watched")  # fmt: skip
    floors: list[dict[int, int] | None] = [{0: 1}, None]
    _, _, (one, other) = query.read(spark.sql(query.text("watched", [None, None], floors)).collect(), floors)
    # x has the first row already: -1, 7, null and 2 reach the range, of which -1 and null fail it
    assert [(t.watched.place, t.what, n) for t, n in one.tallied] == [
        ("checks[0]", "failed", 2), ("checks[0]", "reached", 4), ("checks[1]", "written", 0),
        ("checks[2]", "written", 1)]  # fmt: skip
    assert [n for _, n in other.tallied] == [2, 5, 0]
    assert sum(one.counters.values()) == 5
    assert sum(other.counters.values()) == 6


def test_rows_that_a_member_had_already_do_not_make_their_partition_a_busy_one(spark: SparkSession) -> None:
    """It would be held to have given a row when the batch came again, and hold the watermark back."""
    window = Window.model_validate({"tumbling": "1 minute", "measures": {"n": "count(*)"}})
    start = Rows.identity({"at": "timestamp", "_partition": "int", "_offset": "bigint"})
    timed = Watermark.model_validate({"column": "at", "delay": "1 minute"}).row(
        Filter(condition="true").row(start, "first"), "second")  # fmt: skip
    query = ScanQuery([WindowMember(name, timed, window) for name in "xyz"])
    frame = spark.sql("select * from values (0, 4L, 40L), (0, 5L, 30L), (0, 6L, null), (1, 0L, 20L)"
                      " as t (_partition, _offset, seconds)")  # fmt: skip
    frame.selectExpr("*", "timestamp_seconds(seconds) as at", "binary('') as _key",
                     "binary('') as _value").createOrReplaceTempView("busy")  # fmt: skip
    floors: list[dict[int, int] | None] = [None, {0: 6}, {0: 5}]
    ends, greatest, _ = query.read(spark.sql(query.text("busy", [None] * 3, floors)).collect(), floors)
    assert ends == {0: 7, 1: 1}
    assert greatest == [{0: 40_000_000, 1: 20_000_000}, {1: 20_000_000}, {0: 30_000_000, 1: 20_000_000}]


def test_who_is_ahead_of_the_least_of_a_scan_has_a_floor_whether_windows_or_others_are_behind() -> None:
    two, five = {0: Position(2), 1: Position(7)}, {0: Position(5), 1: Position(7)}
    assert scan_floors([five, five]) == [None, None]
    assert scan_floors([two, five]) == [None, {0: 5}]
    assert scan_floors([five, five], [two]) == [{0: 5}, {0: 5}]
    assert scan_floors([two], [five]) == [None]
    assert scan_floors([five, {}]) == [{0: 5, 1: 7}, None]  # who has seen nothing of a partition
    assert scan_floors([five], [{}]) == [{0: 5, 1: 7}]


def test_a_scan_begins_a_partition_that_one_of_its_members_has_not_seen_at_its_first_record() -> None:
    topic = broker.TopicState("events", "id", {0: (0, 9), 1: (0, 9)})
    assert json.loads(broker.starting_offsets(topic, [{0: 3, 1: 5}, {0: 4}])) == {"events": {"0": 3, "1": 0}}
    broker.check_held(topic, {0: 3}, "live.n")
    with pytest.raises(RunError, match="partition 1 no longer holds offsets 0 to 1") as lost:
        broker.check_held(replace(topic, offsets={0: (0, 9), 1: (2, 9)}), {0: 3}, "live.n")
    assert lost.value.code == "DATA_LOST"


# ---------------------------------------------------------------- jobs

STEPS = """
source: bronze.events
transforms:
  - check:
      - not_null: [user]
      - range: {n: {max: 9}}
        on_fail: warn
  - derive: {parts: "if(n > 0, sequence(1, n), array())"}
  - explode: {column: parts, as: part, position: place, empty: drop}
  - filter: part <> 3
  - dedupe: {keys: [day, id, part], order_by: [n]}
  - rename: {who: user}
  - filter: part <> 2
checks:
  - accepted_values: {part: [1, 4, 5]}
    name: few
sink: {delta: {partition_by: [day], replace_by: day}}
schedule: manual
"""


@pytest.fixture
def lab(spark: SparkSession, tmp_path: Path) -> Lab:
    return Lab(spark, tmp_path, silver=STEPS)


def law(counters: Any, source: int) -> None:
    ends = sum(counters[name] for name in ("quarantined", "filtered", "duplicate", "counted"))
    assert ends == source + counters["exploded"], counters


def test_every_row_of_a_job_ends_somewhere_before_and_after_a_dedupe(lab: Lab) -> None:
    lab.append((1, MON, 1, 6), (1, MON, 1, 4), (2, MON, None, 5), (3, MON, 1, 0), (4, TUE, 1, 1))
    (outcome,) = lab.run("silver.events")
    # 6 + 4 elements; 3s are filtered twice, 1, 2 and 4 are duplicates, one 2 is filtered, 6 is not accepted
    assert outcome.counters == {
        "counted": 4, "quarantined": 2, "filtered": 4, "duplicate": 3, "exploded": 8}  # fmt: skip
    law(outcome.counters, 5)
    assert [(r[0], r[3], r[4]) for r in lab.rows("silver.events")] == [(1, 4, 1), (1, 4, 4), (1, 6, 5), (4, 1, 1)]
    aside = {(r.step, *r.reasons, r.row, str(r.unit)) for r in lab.sql("select * from {}", "silver.events__quarantine")}
    assert aside == {
        ("transforms[0].check", "not_null(user)", f'{{"id":2,"day":"{MON}","n":5}}', MON),
        ("checks", "few", f'{{"id":1,"day":"{MON}","who":1,"n":6,"part":6,"place":5}}', MON),
    }


def test_new_rows_alone_a_corrected_slice_and_a_full_run_agree(lab: Lab) -> None:
    lab.append((1, MON, 1, 6), (2, TUE, None, 5))
    lab.run("silver.events")
    lab.append((1, MON, 1, 7), (5, MON, None, 1), (6, WED, 2, 12))
    (rowwise,) = lab.run("silver.events")
    assert rowwise.decision.kind == "rows"
    law(rowwise.counters, 3)
    assert rowwise.warnings == {"range(n)": 1}
    lab.correct(TUE, (2, TUE, 3, 2))
    (slices,) = lab.run("silver.events")
    assert (slices.decision.kind, slices.decision.slices) == ("slices", (TUE,))
    tables = ("silver.events", "silver.events__quarantine")
    chosen = "select * except (quarantined_at) from {}"
    held = lab.rows(tables[0]), sorted(map(str, lab.sql(chosen, tables[1])))
    (full,) = lab.run("silver.events", full=True)
    law(full.counters, 5)
    assert (lab.rows(tables[0]), sorted(map(str, lab.sql(chosen, tables[1])))) == held
    assert held[1]


RELATED = """
source: bronze.events
transforms:
  - dedupe: {keys: [day, id], order_by: [n]}
checks:
  - relationship: {user: silver.users.id}
    where: n > 0
sink: {delta: {partition_by: [day], replace_by: day}}
schedule: manual
"""
USERS = """
source: bronze.users
sink: {delta: {replace_by: day}}
schedule: manual
"""


def test_a_value_that_another_table_lacks_is_kept_aside_and_a_change_there_makes_the_run_a_full_one(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path, silver=RELATED)
    lab.append((1, MON, 1, 1), (2, MON, 2, 1), (3, TUE, None, 1), (4, TUE, 9, 0))
    with pytest.raises(RunError, match="MISSING_TABLE") as missing:
        lab.run("silver.events")
    assert missing.value.where.endswith("silver/events.yaml:5")
    lab.append((1, MON, 0, 0), (1, TUE, 0, 0), (5, MON, 0, 0), table="silver.users")
    (first,) = lab.run("silver.events")
    assert (first.counters["counted"], first.counters["quarantined"], first.counters["duplicate"]) == (2, 2, 0)
    assert [row[0] for row in lab.rows("silver.events")] == [1, 4]
    assert lab.decide("silver.events").kind == "nothing"
    lab.sql("optimize {}", "silver.users")
    assert lab.decide("silver.events").kind == "nothing"
    lab.append((6, WED, 5, 1))
    assert lab.decide("silver.events").kind == "rows"
    lab.append((2, MON, 0, 0), table="silver.users")
    decision = lab.decide("silver.events")
    assert (decision.kind, decision.reason) == ("full", "silver.users, which its checks look into, has changed")
    lab.run("silver.events")
    assert [row[0] for row in lab.rows("silver.events")] == [1, 2, 4, 6]
    assert (lab.log("silver.events").record() or {})["sources"].keys() == {"bronze.events", "silver.users"}


def test_a_value_is_not_looked_for_among_values_of_another_type(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path, silver=RELATED.replace("silver.users.id", "silver.users.day"))
    lab.append((1, MON, 1, 1))
    lab.append((1, MON, 0, 0), table="silver.users")
    with pytest.raises(PlanError) as raised:
        lab.run("silver.events")
    assert (raised.value.code, raised.value.message) == ("COLUMN_TYPE", "user is int and silver.users.day is date; cast"
                                                         " one of them")  # fmt: skip


JUDGED = """
source: bronze.events
checks:
  - not_null: [user]
    tolerance: 50%
  - range: {n: {min: 0}}
    on_fail: fail
  - row_count: {min: 2}
    where: n > 1
    on_fail: warn
  - freshness: {column: day, max_age: 2 days}
    on_fail: ON_FAIL
sink: {delta: {partition_by: [day], replace_by: day}}
schedule: manual
"""


def ran(lab: Lab, now: str = MON) -> jobs.Outcome:
    moment = datetime.fromisoformat(now).replace(tzinfo=timezone.utc)
    return jobs.run(lab.spark, lab.job("silver.events"), lab.storage, None, now=moment)


def refused(lab: Lab, now: str = MON) -> tuple[str, str]:
    """The failure's line and message; nothing was written."""
    before = [lab.log(name).version() for name in ("silver.events", "silver.events__quarantine")]
    with pytest.raises(RunError) as raised:
        ran(lab, now)
    assert raised.value.code == "CHECK_FAILED"
    assert [lab.log(name).version() for name in ("silver.events", "silver.events__quarantine")] == before
    return raised.value.where.rpartition(":")[2], raised.value.message


def test_a_job_is_judged_by_what_it_would_write_and_writes_nothing_that_fails(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path, silver=JUDGED.replace("ON_FAIL", "fail"))
    lab.append((1, MON, 1, 1), (2, MON, None, 1), (3, MON, None, 1))
    message = "2 of 3 rows fail not_null(user), more than the 0.5 that is tolerated; nothing was written"
    assert refused(lab) == ("4", message)
    lab.append((4, MON, 1, -1))
    assert refused(lab) == ("6", "1 rows fail range(n); nothing was written")
    lab.correct(MON, (1, MON, 1, 1), (2, MON, None, 1))
    assert refused(lab, "2026-01-08") == ("11", "freshness(day) fails: the newest row is of 2026-01-05T00:00:00Z, more"
                                          " than 2 days ago; nothing was written")  # fmt: skip
    done = ran(lab)
    assert (done.rows, done.counters["quarantined"], done.warnings) == (1, 1, {"row_count": 1, "freshness(day)": 0})
    # nothing is new, which is what freshness is for
    assert refused(lab, "2026-01-08")[0] == "11"
    assert ran(lab, TUE).decision.kind == "nothing"


def test_a_table_that_is_not_fresh_may_be_a_warning(spark: SparkSession, tmp_path: Path) -> None:
    lab = Lab(spark, tmp_path, silver=JUDGED.replace("ON_FAIL", "warn"))
    lab.append((1, MON, 1, 5), (2, MON, 2, 5))
    assert ran(lab, "2026-01-09").warnings == {"row_count": 0, "freshness(day)": 1}
    assert ran(lab, "2026-01-09").warnings == {"freshness(day)": 1}
    assert ran(lab, "2026-01-06").warnings == {"freshness(day)": 0}


RENAMED = "transforms:\n  - rename: {day: id}\nchecks:"


def test_a_step_that_does_not_fit_a_table_that_no_file_here_writes_is_said_at_its_line(
    spark: SparkSession, tmp_path: Path
) -> None:
    lab = Lab(spark, tmp_path, silver=JUDGED.replace("ON_FAIL", "warn").replace("checks:", RENAMED))
    lab.append((1, MON, 1, 5))
    with pytest.raises(SpecError) as raised:
        lab.run("silver.events")
    assert [(p.line, p.code) for p in raised.value.problems] == [(4, "SAME_COLUMN")]


CONTRACT = "type: object\nrequired: [a]\nproperties:\n  a: {type: integer}\n"


def test_a_job_parses_text_and_keeps_what_breaks_the_contract(spark: SparkSession, tmp_path: Path) -> None:
    text = """
source: bronze.texts
transforms:
  - parse: {contract: pair, column: text, tolerance: 80%}
sink: {delta: {partition_by: [day], replace_by: day}}
schedule: manual
"""
    lab = Lab(spark, tmp_path, silver=text)
    lab.write("contracts/pair.yaml", CONTRACT)
    values = [(MON, '{"a": 1}'), (MON, "{"), (TUE, '{"a": "x"}')]
    frame = spark.createDataFrame(values, "day string, text string").selectExpr("cast(day as date) as day", "text")
    frame.write.format("delta").save(str(lab.path("bronze.texts")))
    (outcome,) = lab.run("silver.events")
    assert outcome.counters == {"counted": 1, "quarantined": 2, "filtered": 0}
    assert [row[1:] for row in lab.rows("silver.events")] == [('{"a": 1}', 1)]
    kept = lab.sql("select step, reasons, row, unit from {} order by unit", "silver.events__quarantine")
    assert [(r.step, r.reasons, r.row, r.unit) for r in kept] == [
        ("transforms[0].parse", ["json: not valid"], f'{{"day":"{MON}","text":"{{"}}', MON),
        ("transforms[0].parse", ["a: not an integer"], f'{{"day":"{TUE}","text":"{{\\"a\\": \\"x\\"}}"}}', TUE),
    ]
