"""What Spark refuses is a problem at its own line, before anything is touched, together with all other problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import analysis
from lakehouse_engine.errors import SpecError
from lakehouse_engine.explain import explain
from lakehouse_engine.log import Log
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.runner import Runner
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load, read
from lakehouse_engine.validation import validate
from tests.spec.project import JOB, LANDING, STREAM, changed, write

PIPELINES = Path(__file__).parents[1] / "pipelines"

WRONG = [
    ("a number and a time", "silver", JOB, "- dedupe", "  - derive:\n      ok: id\n      odd: amount + at",
     "5 EXPRESSION_TYPE"),
    ("a function that is not there", "silver", JOB, "- dedupe", "  - derive: {odd: uper(id)}", "3 UNKNOWN_FUNCTION"),
    ("too many arguments", "silver", JOB, "- dedupe", "  - derive: {odd: 'luhn_check(id, id)'}", "3 EXPRESSION_TYPE"),
    ("a filter that is no condition", "silver", JOB, "- dedupe", "  - filter: amount + 1", "3 COLUMN_TYPE"),
    ("a measure of another type", "silver", JOB, "- aggregate",
     "  - aggregate:\n      by: [day]\n      measures:\n        n: count(*)\n        s: sum(day)", "8 EXPRESSION_TYPE"),
    ("a column that is neither grouped nor aggregated", "silver", JOB, "- aggregate",
     "  - aggregate: {by: [day], measures: {n: count(*) + amount}}", "4 EXPRESSION_TYPE"),
    ("a step on what a step before made", "silver", JOB, "- dedupe",
     "  - derive: {later: at + interval 1 day}\n  - filter: later > 5", "4 EXPRESSION_TYPE"),
    ("a check that cannot be compared", "silver", JOB, "- not_null", "  - range: {n: {min: \"date'2026-01-01'\"}}",
     "6 EXPRESSION_TYPE"),
    ("elements of what is no array", "bronze", LANDING, "- derive", "  - derive: {day: to_date(at)}\n  - explode: id",
     "5 COLUMN_TYPE"),
    ("a sum of bytes in a window", "realtime", STREAM, "- window",
     "  - window: {tumbling: 1 minute, measures: {n: sum(_value)}}", "6 EXPRESSION_TYPE"),
    ("a query", "silver", JOB, "- dedupe", "  - sql: {query: 'select day, id + at as x from input', local: true}",
     "3 EXPRESSION_TYPE"),
    ("the condition of a further sink", "bronze", LANDING, "sink",
     "sink:\n  - delta\n  - postgres: {table: realtime.few}\n    where: amount + 1", "8 COLUMN_TYPE"),
    ("what a message says", "bronze", LANDING, "sink",
     "sink:\n  - delta\n  - kafka:\n      topic: few\n      key: id\n      value: to_json(struct(*), at)",
     "10 EXPRESSION_TYPE"),
    ("a column that a further sink cannot hold", "bronze",
     changed(LANDING, "sink", "sink:\n  - delta\n  - postgres: {table: realtime.few}"), "- derive",
     "  - derive: {day: to_date(at), odd: make_ym_interval(1)}", "7 COLUMN_TYPE"),
    ("a window's column that no database merges by", "realtime",
     changed(STREAM, "- filter", "  - derive: {ids: array(id)}"), "- window",
     "  - window: {tumbling: 1 minute, by: [ids], measures: {n: count(*)}}", "7 COLUMN_TYPE"),
]  # fmt: skip


def problems(spark: SparkSession, root: Path) -> list[str]:
    found = analysis.analyse(analysis.of(spark), read([root]))
    return [f"{Path(p.file).relative_to(root).as_posix()}:{p.line} {p.code}" for p in found.problems]


@pytest.mark.parametrize(("layer", "text", "line", "new", "expected"), [w[1:] for w in WRONG],
                         ids=[w[0] for w in WRONG])
def test_what_spark_refuses_stands_at_its_line(
    spark: SparkSession, layer: str, text: str, line: str, new: str, expected: str, tmp_path: Path
) -> None:
    root = write(tmp_path, {f"{layer}/clicks.yaml": changed(text, line, new)})
    load([root])  # nothing of it shows in the files alone
    assert problems(spark, root) == [f"{layer}/clicks.yaml:{expected}"]


def test_a_function_that_is_meant_is_named(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, {"silver/clicks.yaml": changed(JOB, "- dedupe", "  - derive: {odd: uper(id)}")})
    with pytest.raises(SpecError, match=r"`uper\(id\)`: Spark has no function uper; did you mean upper\?"):
        analysis.require(spark, load([tmp_path]), None)


def test_what_is_wrong_in_the_files_hides_nothing_of_the_others(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "pipelines", {
        "bronze/clicks.yaml": changed(LANDING, "trigger", "trigger: {every: soon}"),
        "realtime/clicks.yaml": changed(STREAM, "- filter", "  - filter: amuont > 0"),
        "silver/clicks.yaml": changed(JOB, "- dedupe", "  - derive: {odd: amount + at}"),
    })  # fmt: skip
    verdict = validate([tmp_path / "pipelines"], None, tmp_path, {}, lambda: spark)
    assert [(Path(p.file).parent.name, p.line, p.code) for p in verdict.problems] == [
        ("bronze", 6, "BAD_DURATION"), ("realtime", 5, "UNKNOWN_COLUMN"), ("silver", 3, "EXPRESSION_TYPE")]  # fmt: skip


def test_the_reference_platform_is_right_in_few_queries(spark: SparkSession) -> None:
    asked = analysis.Spark(spark)
    found = analysis.analyse(asked, read([PIPELINES]))
    assert not found.problems
    assert found.results["gold.conversion_rate_daily"] == {
        "event_date": "date", "conversion_rate": "double", "total_purchases": "bigint", "dau_count": "bigint",
        "updated_at": "timestamp"}  # fmt: skip
    assert asked.queries < 40
    before = asked.queries
    analysis.analyse(asked, read([PIPELINES]))
    assert asked.queries == before


def test_a_plan_says_what_each_step_changes(spark: SparkSession, tmp_path: Path) -> None:
    specs = load([write(tmp_path, {})])
    made = explain(compile_plan(specs), analysed=analysis.require(spark, specs, None))
    assert [(step["step"], step["added"], step["removed"]) for step in made["columns"]["silver.clicks"]] == [
        ("transforms[0].dedupe", {}, []), ("transforms[1].aggregate", {"n": "bigint"}, ["id", "at", "amount"])]
    assert made["results"]["silver.clicks"] == {"day": "date", "n": "bigint", "updated_at": "timestamp"}
    lines = made.text().splitlines()
    assert "      derive: + day date" in lines
    assert "      aggregate: + n bigint; - id, at, amount" in lines
    assert any("within one trigger (1 second)" in line for line in lines)


def test_a_run_is_refused_before_anything_is_touched(spark: SparkSession, tmp_path: Path) -> None:
    pipelines = write(tmp_path / "pipelines", {"silver/clicks.yaml": changed(JOB, "- dedupe", "  - filter: uper(id)")})
    storage = tmp_path / "storage"
    clicks = spark.sql("select 'a' as id, timestamp'2026-01-01' as at, 1.5D as amount, date'2026-01-01' as day")
    delta_sink.append(clicks, delta_sink.table_path(storage, "bronze.clicks"), "{}")
    runner = Runner(Environment(storage=str(storage)), tuple, Log(lambda _: None), session=spark)
    with pytest.raises(SpecError, match=r"silver/clicks.yaml:3: UNKNOWN_FUNCTION"):
        runner.run(compile_plan(load([pipelines / "silver"])), available_now=False)
    assert [path.name for path in storage.iterdir() if not path.name.startswith("_")] == ["bronze"]
