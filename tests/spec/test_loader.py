"""What is wrong in a file is said at its line, with a code that stays, all of it at once, and never by a traceback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakehouse_engine.errors import SpecError
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from tests.spec.project import CONTRACT, JOB, LANDING, STREAM, changed, problems, refused, write

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = {"bronze": LANDING, "realtime": STREAM, "silver": JOB}

# What is wrong; the layer of the file; the line that is replaced; what stands there instead; where that is reported.
WRONG = [
    # the map itself
    ("an unknown key", "bronze", "trigger", "triger: {every: 1 s}", "6 UNKNOWN_KEY"),
    ("a duplicate key", "bronze", "trigger", "trigger: {every: 1 s}\ntrigger: {every: 2 s}", "7 DUPLICATE_KEY"),
    ("a duplicate key far down", "bronze", "- derive", "  - derive: {day: to_date(at), day: a}", "4 DUPLICATE_KEY"),
    ("no source", "bronze", "source", "description: x", "1 MISSING_KEY"),
    ("no sink", "bronze", "sink", "", "1 MISSING_KEY"),
    ("neither trigger nor schedule", "bronze", "trigger", "", "1 MISSING_TRIGGER"),
    ("trigger and schedule", "bronze", "trigger", "trigger: {every: 1 s}\nschedule: daily", "7 TRIGGER_AND_SCHEDULE"),
    ("a list that is none", "bronze", "transforms", "transforms:\n  x:", "2 BAD_VALUE"),
    ("a topic that is no text", "bronze", "source", "source: {kafka: {topic: 5}}", "1 BAD_VALUE"),
    # YAML
    ("a tag", "bronze", "source", "source: !!python/object:os.system {kafka: {}}", "1 YAML_SYNTAX"),
    ("a tag on a scalar", "bronze", "source", "source: {kafka: {topic: !secret x}}", "1 YAML_SYNTAX"),
    ("a merge key", "bronze", "source", "source: {kafka: {<<: {topic: x}}}", "1 YAML_SYNTAX"),
    ("a tab", "bronze", "- parse", "\t- parse: click", "3 YAML_SYNTAX"),
    ("a second document", "bronze", "sink", "---\nsink: postgres", "5 YAML_SYNTAX"),
    ("an unclosed bracket", "bronze", "sink", "sink: {delta: {partition_by: [day}}", "5 YAML_SYNTAX"),
    ("an unknown alias", "bronze", "source", "source: *kafka", "1 YAML_SYNTAX"),
    ("an expression that YAML splits", "silver", "- aggregate",
     "  - aggregate: {measures: {n: approx_count_distinct(id, 0.1)}}",
     "4 UNBALANCED, 4 UNBALANCED, 6 UNKNOWN_COLUMN, 7 UNKNOWN_COLUMN"),
    # components
    ("two components in one item", "bronze", "- derive", "    derive: {day: to_date(at)}", "3 TWO_COMPONENTS"),
    ("an unknown component", "bronze", "- derive", "  - drive: {day: to_date(at)}", "4 UNKNOWN_COMPONENT"),
    ("an unknown source", "bronze", "source", "source: {kafak: {topic: x}}", "1 UNKNOWN_COMPONENT"),
    ("an unknown option", "bronze", "source", "source: {kafka: {topik: x}}", "1 UNKNOWN_KEY"),
    ("an unknown option far down", "realtime", "- window",
     "  - window:\n      tumbling: 1 minute\n      measures: {n: count(*)}\n      emti: updates", "9 UNKNOWN_KEY"),
    ("a wrong check", "silver", "- not_null", "  - not_nul: [day]", "6 UNKNOWN_COMPONENT"),
    ("an option beside nothing", "silver", "- not_null", "  - on_fail: warn", "6 UNKNOWN_KEY"),
    # values
    ("a wrong duration", "bronze", "trigger", "trigger: {every: soon}", "6 BAD_DURATION"),
    ("a wrong duration far down", "realtime", "- watermark",
     "  - watermark:\n      column: at\n      delay: 2 parsecs", "6 BAD_DURATION"),
    ("no event a batch", "bronze", "source", "source: {kafka: {topic: clicks, max_per_trigger: 0}}", "1 BAD_VALUE"),
    ("fewer retries than none", "silver", "schedule", "schedule: daily\nairflow: {retries: -1}", "9 BAD_VALUE"),
    ("a minute that no hour has", "silver", "schedule", 'schedule: "60 0 * * *"', "8 BAD_SCHEDULE"),
    ("a range that runs back", "silver", "schedule", 'schedule: "0 6-3 * * *"', "8 BAD_SCHEDULE"),
    ("a step of nothing", "silver", "schedule", 'schedule: "*/0 * * * *"', "8 BAD_SCHEDULE"),
    ("a list as schedule", "silver", "schedule", "schedule: [daily]", "8 BAD_SCHEDULE"),
    ("a comment in an expression", "realtime", "- filter", "  - filter: amount > 0 -- all", "5 BAD_EXPRESSION"),
    ("a number as duration", "bronze", "trigger", "trigger: {every: 5}", "6 BAD_DURATION"),
    ("a duration beyond all time", "bronze", "trigger", "trigger: {every: 9999999999 days}", "6 BAD_DURATION"),
    ("a wrong schedule", "silver", "schedule", "schedule: dayly", "8 BAD_SCHEDULE"),
    ("a name that is no topic", "bronze", "source", "source: {kafka: {topic: a b}}", "1 BAD_NAME"),
    ("a name that is no table", "realtime", "sink", "sink: {postgres: {table: clicks}}", "7 BAD_NAME"),
    ("a column that is none", "bronze", "- derive", "  - derive: {a-b: to_date(at)}",
     "4 BAD_NAME, 5 UNKNOWN_COLUMN, silver/clicks.yaml:3 UNKNOWN_COLUMN, silver/clicks.yaml:4 UNKNOWN_COLUMN"),
    ("an uneven sliding window", "realtime", "- window",
     "  - window: {sliding: {size: 3 minutes, every: 2 minutes}, measures: {n: count(*)}}", "6 BAD_WINDOW"),
    ("two kinds of window", "realtime", "- window",
     "  - window: {tumbling: 1 s, sliding: {size: 2 s, every: 1 s}, measures: {n: count(*)}}", "6 BAD_WINDOW"),
    ("a window that measures nothing", "realtime", "- window", "  - window: {tumbling: 1 s, measures: {}}",
     "6 BAD_WINDOW"),
    ("a column twice in a result", "silver", "- aggregate", "  - aggregate: {by: [day], measures: {day: count(*)}}",
     "4 BAD_AGGREGATE"),
    ("a range without an end", "silver", "- not_null", "  - range: {n: {}}", "6 BAD_CHECK"),
    ("no accepted value", "silver", "- not_null", "  - accepted_values: {n: []}", "6 BAD_CHECK"),
    ("a dedupe without a key", "silver", "- dedupe", "  - dedupe: []", "3 BAD_DEDUPE"),
    # expressions
    ("no SQL", "realtime", "- filter", "  - filter: amount >", "5 BAD_EXPRESSION"),
    ("two statements", "realtime", "- filter", "  - filter: amount > 0; drop table x", "5 BAD_EXPRESSION"),
    ("a query", "realtime", "- filter", "  - filter: amount > (select 1)", "5 UNSAFE_EXPRESSION"),
    ("a call that runs code", "realtime", "- filter", "  - filter: reflect('java.lang.System', 'exit') = 1",
     "5 UNSAFE_EXPRESSION"),
    ("an unstable expression", "realtime", "- filter", "  - filter: rand() > 0.5", "5 UNSTABLE_EXPRESSION"),
    ("a throwing cast in a stream", "realtime", "- filter", "  - filter: cast(id as int) = 1",
     "5 THROWING_EXPRESSION"),
    ("a throwing division in a stream", "realtime", "- filter", "  - filter: 1 / amount > 2", "5 THROWING_EXPRESSION"),
    ("a throwing date in a stream", "bronze", "- derive", "  - derive: {day: to_date(id)}", "4 THROWING_EXPRESSION"),
    ("a throwing check in a stream", "bronze", "sink",
     "checks:\n  - expression: cast(id as int) = 1\nsink: {delta: {partition_by: [day]}}", "6 THROWING_EXPRESSION"),
    ("a clock in a slice", "silver", "- dedupe", "  - filter: at < now()", "3 UNSTABLE_EXPRESSION"),
    ("a measure that does not merge", "realtime", "- window",
     "  - window: {tumbling: 1 s, measures: {n: count(distinct id)}}", "6 BAD_MEASURE"),
    ("a measure that is none", "silver", "- aggregate", "  - aggregate: {by: [day], measures: {n: id}}",
     "4 BAD_MEASURE"),
    ("a filter that aggregates", "realtime", "- filter", "  - filter: count(*) > 1", "5 BAD_EXPRESSION"),
    ("a filter that looks at other rows", "silver", "- dedupe", "  - filter: row_number() over (order by at) = 1",
     "3 BAD_EXPRESSION"),
    ("a filter with a name", "realtime", "- filter", "  - filter: amount > 0 as positive", "5 BAD_EXPRESSION"),
    ("an order that is no expression", "silver", "- dedupe", "  - dedupe: {keys: [day, id], order_by: [at desc]}",
     "3 BAD_EXPRESSION"),
    ("all columns", "bronze", "- derive", '  - select: ["*"]', "4 BAD_EXPRESSION"),
    ("a measure of two columns", "realtime", "- window",
     "  - window: {tumbling: 1 s, measures: {n: 'min(id, amount)'}}", "6 BAD_MEASURE"),
    ("a measure of nothing", "realtime", "- window", "  - window: {tumbling: 1 s, measures: {n: count()}}",
     "6 BAD_MEASURE"),
    ("a text that stands for a number", "realtime", "- filter", "  - filter: id > 5", "5 THROWING_EXPRESSION"),
    ("a select item without a name", "bronze", "- derive", '  - select: ["to_date(at)"]', "4 BAD_EXPRESSION"),
    # columns
    ("an unknown column", "realtime", "- filter", "  - filter: amout > 0", "5 UNKNOWN_COLUMN"),
    ("an unknown key of a window", "realtime", "- window",
     "  - window: {tumbling: 1 s, by: [idd], measures: {n: count(*)}}", "6 UNKNOWN_COLUMN"),
    ("an unknown column after a job's aggregate", "silver", "- not_null", "  - not_null: [id]", "6 UNKNOWN_COLUMN"),
    ("a column of the source's that is not stored", "silver", "- dedupe", "  - dedupe: [_value]", "3 UNKNOWN_COLUMN"),
    ("an unknown partition", "bronze", "sink", "sink: {delta: {partition_by: [dya]}}", "5 UNKNOWN_COLUMN"),
    ("columns that differ in case alone", "bronze", "- derive", "  - derive: {day: to_date(at), ID: amount}",
     "4 SAME_COLUMN"),
    ("an average beside its own state", "realtime", "- window",
     "  - window: {tumbling: 1 s, measures: {n: avg(amount), n__sum: sum(amount)}}", "6 RESERVED_COLUMN"),
    ("an event time that is a text", "realtime", "- watermark", "  - watermark: {column: id, delay: 1 s}",
     "4 COLUMN_TYPE"),
    ("a job over a table of PostgreSQL", "silver", "source", "source: realtime.clicks", "1 MISSING_TABLE"),
    ("an unknown column of keys", "bronze", "trigger", "trigger: {every: 1 s}\nkeys: [di]", "7 UNKNOWN_COLUMN"),
    ("a reserved column", "silver", "- aggregate",
     "  - aggregate: {by: [day], measures: {updated_at: max(at)}}", "7 RESERVED_COLUMN"),
    # contracts
    ("an unknown contract", "bronze", "- parse", "  - parse: clik", "3 MISSING_CONTRACT"),
    ("a contract's path", "bronze", "- parse", "  - parse: ../click", "3 BAD_NAME"),
    ("a history with another contract", "bronze", "- parse", "  - parse: other", "realtime/clicks.yaml:1 BAD_HISTORY"),
    # streams and jobs
    ("a window without a watermark", "realtime", "- watermark", "", "5 WATERMARK_MISSING"),
    ("two watermarks", "realtime", "- filter", "  - watermark: {column: at, delay: 1 s}", "5 WATERMARK_TWICE"),
    ("a window's changes into delta", "realtime", "sink", "sink: delta", "7 ILLEGAL_MODE"),
    ("a window's changes appended", "realtime", "sink", "sink: {postgres: {mode: append}}", "7 ILLEGAL_MODE"),
    ("a window of a window's changes", "realtime", "sink",
     "  - window: {tumbling: 1 h, measures: {n: sum(n)}}\nsink: postgres", "6 ILLEGAL_CHAIN"),
    ("a dedupe in a stream", "bronze", "- derive", "  - derive: {day: to_date(at)}\n  - dedupe: [id]",
     "5 WATERMARK_MISSING"),
    ("an aggregate in a stream", "realtime", "- window", "  - aggregate: {by: [id], measures: {n: count(*)}}",
     "6 JOB_ONLY"),
    ("rows that replace others of no key, in no order", "bronze", "sink", "sink: {postgres: {mode: upsert}}",
     "5 MISSING_KEY, 5 MISSING_KEY, silver/clicks.yaml:1 MISSING_TABLE, realtime/clicks.yaml:1 BAD_HISTORY"),
    ("an order of windows", "realtime", "sink", "sink: {postgres: {order_by: [n]}}", "7 ILLEGAL_MODE"),
    ("an order by what is not stored", "bronze", "sink",
     "sink: {postgres: {mode: upsert, order_by: [_offset]}}\nkeys: [id]",
     "5 UNKNOWN_COLUMN, silver/clicks.yaml:1 MISSING_TABLE, realtime/clicks.yaml:1 BAD_HISTORY"),
    ("unique in a stream", "bronze", "sink", "checks: [{unique: [id]}]\nsink: {delta: {partition_by: [day]}}",
     "5 JOB_ONLY"),
    ("a window in a job without event time", "silver", "- aggregate",
     "  - window: {tumbling: 1 hour, measures: {n: count(distinct id)}, by: [day]}", "4 WATERMARK_MISSING"),
    ("a job over kafka", "bronze", "trigger", "schedule: daily", "1 MISSING_KEY"),
    ("a stream over a table", "silver", "schedule", "trigger: {every: 1 s}",
     "3 JOB_ONLY, 3 WATERMARK_MISSING, 4 JOB_ONLY, 7 ILLEGAL_MODE"),
    ("a mode that does not fit", "bronze", "sink", "sink: {delta: {mode: replace}}", "5 ILLEGAL_MODE"),
    ("replace_by in a stream", "bronze", "sink", "sink: {delta: {replace_by: day}}", "5 ILLEGAL_MODE"),
    ("serve in a stream", "bronze", "sink", "sink: delta\nserve: postgres", "6 ILLEGAL_SERVE"),
    ("serve of nothing known", "silver", "schedule", "schedule: daily\nserve: excel", "9 BAD_VALUE"),
    ("a job that reads itself", "silver", "source", "source: silver.clicks", "1 CYCLE"),
    ("a size that is none", "bronze", "trigger", "trigger: {every: 1 s}\nmaintain: {compact: {smaller_than: 5}}",
     "7 BAD_SIZE"),
    ("files that a reader may need", "bronze", "trigger", "trigger: {every: 1 s}\nmaintain: {vacuum_after: 1 day}",
     "7 TOO_SHORT"),
    ("two layouts", "silver", "sink", "sink: {delta: {partition_by: [day], cluster_by: [n]}}",
     "7 ILLEGAL_LAYOUT"),
    ("a moment that is none", "silver", "source", "source: {delta: {table: bronze.clicks, as_of: noon}}",
     "1 BAD_TIME"),
    # panels
    ("a panel of a result that is not in PostgreSQL", "silver", "schedule", "schedule: daily\npanel: {title: N}",
     "9 ILLEGAL_PANEL"),
    ("an unknown option of a panel", "realtime", "trigger", "trigger: {every: 1 s}\npanel: {title: N, colour: red}",
     "9 UNKNOWN_KEY"),
    ("a panel without a title", "realtime", "trigger", "trigger: {every: 1 s}\npanel: {type: stat}", "9 MISSING_KEY"),
    ("a panel of another kind", "realtime", "trigger", "trigger: {every: 1 s}\npanel: {title: N, type: pie}",
     "9 BAD_VALUE"),
    ("a panel's column that is not there", "realtime", "trigger",
     "trigger: {every: 1 s}\npanel:\n  - {title: N}\n  - {title: N, by: page}", "11 UNKNOWN_COLUMN"),
    ("bars of nothing", "realtime", "trigger", "trigger: {every: 1 s}\npanel: {title: N, type: bars}",
     "9 MISSING_KEY"),
    ("a stat of many", "realtime", "trigger", "trigger: {every: 1 s}\npanel: {title: N, type: stat, by: id}",
     "9 ILLEGAL_PANEL"),
    ("a panel that cannot tell what to show", "realtime", "- window",
     "  - window: {tumbling: 1 minute, by: [id], measures: {n: count(*), m: sum(amount)}}\npanel: {title: N}",
     "7 MISSING_KEY"),
    ("a sum of greatest values", "realtime", "- window",
     "  - window: {tumbling: 1 minute, by: [id], measures: {n: max(amount)}}\npanel: {title: N}", "7 ILLEGAL_PANEL"),
    ("a sum over windows that overlap", "realtime", "- window",
     "  - window: {sliding: {size: 2 minutes, every: 1 minute}, measures: {n: count(*)}}\npanel: {title: N}",
     "7 ILLEGAL_PANEL"),
    ("distinct values of several days together", "silver", "- aggregate",
     "  - aggregate: {by: [day, id], measures: {n: count(distinct amount)}}\nserve: postgres\n"
     "panel: {title: N, type: stat}", "6 ILLEGAL_PANEL"),
    # what comes later
    ("a stream that ends and nobody starts", "bronze", "trigger", "trigger: available_now", "6 MISSING_TRIGGER"),
    ("a stream that ends, after jobs that are none", "bronze", "trigger",
     "trigger: available_now\nschedule: upstream", "7 BAD_SCHEDULE"),
    ("an input that is not there", "bronze", "- derive", "  - union: [mobile]\n  - derive: {day: to_date(at)}",
     "4 UNKNOWN_INPUT"),
    ("a window over a text", "realtime", "- window",
     "  - window: {tumbling: 1 minute, column: id, measures: {n: count(*)}}", "6 COLUMN_TYPE"),
    ("several sinks", "realtime", "sink", "sink: [postgres, console]", "7 NOT_YET"),
    ("a filtered sink", "realtime", "sink", "sink:\n  postgres:\n  where: n > 1", "9 ILLEGAL_SINK"),
    # variables
    ("an unset variable", "bronze", "source", 'source: {kafka: {topic: "${LAKEHOUSE_TEST_UNSET}"}}',
     "1 UNSET_VARIABLE"),
    ("an unset parameter", "realtime", "- filter", "  - filter: amount > ${least} 0", "5 UNSET_VARIABLE"),
    ("a variable that breaks out of its text", "bronze", "- derive", "  - derive: {day: \"'${QUOTE:-'}'\"}",
     "4 BAD_VARIABLE"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "line", "new", "expected"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_line_is_reported_with_its_code_where_it_is(
    layer: str, line: str, new: str, expected: str, tmp_path: Path
) -> None:
    write(tmp_path, {f"{layer}/clicks.yaml": changed(NAMES[layer], line, new), "contracts/other.yaml": CONTRACT})
    places = [found if "/" in found else f"{layer}/clicks.yaml:{found}" for found in expected.split(", ")]
    assert sorted(problems(tmp_path)) == sorted(place.replace(" ", ": ") for place in places)


# Files that are added to the project, and everything that is then reported.
MORE = [
    ("two files that write one table of PostgreSQL",
     {"realtime/more.yaml": STREAM.replace("sink: postgres", "sink: {postgres: {table: realtime.clicks}}")},
     ["realtime/more.yaml:7: SAME_TABLE"]),
    ("a served table that a stream writes",
     {"silver/clicks.yaml": f"{JOB}serve: postgres\n",
      "realtime/clicks.yaml": STREAM.replace("sink: postgres", "sink: {postgres: {table: silver.clicks}}")},
     ["silver/clicks.yaml:9: SAME_TABLE"]),
    ("a step whose key is a path", {"silver/clicks.yaml": changed(JOB, "- dedupe", '  - "[1].a]": 5')},
     ["silver/clicks.yaml:3: UNKNOWN_COMPONENT"]),
    ("the same pipeline in two folders", {"old/bronze/clicks.yaml": LANDING}, ["old/bronze/clicks.yaml:1: SAME_TABLE"]),
    ("a name with a capital", {"bronze/Clicks.yaml": LANDING}, ["bronze/Clicks.yaml:1: BAD_NAME"]),
    ("a name with two underscores", {"bronze/clicks__late.yaml": LANDING}, ["bronze/clicks__late.yaml:1: BAD_NAME"]),
    ("a long name", {f"bronze/{'a' * 49}.yaml": LANDING}, [f"bronze/{'a' * 49}.yaml:1: BAD_NAME"]),
    ("a layer that is no name", {"Bronze-2/clicks.yaml": LANDING}, ["Bronze-2/clicks.yaml:1: BAD_NAME"]),
    ("an empty file", {"bronze/more.yaml": "# nothing yet\n"}, ["bronze/more.yaml:1: YAML_SYNTAX"]),
    ("a list", {"bronze/more.yaml": "- source\n"}, ["bronze/more.yaml:1: BAD_VALUE"]),
    ("deep nesting", {"bronze/more.yaml": f"keys: {'[' * 50}{']' * 50}\n"}, ["bronze/more.yaml:1: YAML_LIMIT"]),
    ("a flood of aliases",
     {"bronze/more.yaml": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))},
     ["bronze/more.yaml:1: YAML_LIMIT"]),
    ("a huge file", {"bronze/more.yaml": LANDING + "# more\n" * 200_000}, ["bronze/more.yaml:1: YAML_LIMIT"]),
    ("a wrong contract", {"contracts/click.yaml": CONTRACT.replace("date-time", "time")},
     ["contracts/click.yaml:5: NOT_YET"]),
    ("a contract without an object", {"contracts/click.yaml": "type: array\n"},
     ["contracts/click.yaml:1: BAD_CONTRACT", "contracts/click.yaml:1: MISSING_KEY"]),
    ("two jobs that read one another",
     {"silver/a.yaml": JOB.replace("bronze.clicks", "silver.b"),
      "silver/b.yaml": JOB.replace("bronze.clicks", "silver.a")},
     ["silver/a.yaml:1: CYCLE", "silver/a.yaml:3: UNKNOWN_COLUMN", "silver/a.yaml:3: UNKNOWN_COLUMN",
      "silver/b.yaml:1: CYCLE", "silver/b.yaml:3: UNKNOWN_COLUMN", "silver/b.yaml:3: UNKNOWN_COLUMN"]),
    ("unique of nothing",
     {"silver/clicks.yaml": changed(changed(JOB, "- aggregate", "  - select: [day]"), "- not_null", "  - unique")},
     ["silver/clicks.yaml:6: MISSING_KEY"]),
    ("defaults that are no map", {"bronze/defaults.yaml": "- airflow\n"}, ["bronze/defaults.yaml:1: BAD_VALUE"]),
    ("a wrong default", {"bronze/defaults.yaml": "\nairflow: {retires: 1}\n"}, ["bronze/defaults.yaml:2: UNKNOWN_KEY"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), [m[1:] for m in MORE], ids=[m[0] for m in MORE])
def test_a_wrong_file_is_reported_where_it_is(files: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    assert problems(write(tmp_path, files)) == expected


def test_the_project_that_the_tables_make_wrong_is_right(tmp_path: Path) -> None:
    assert problems(write(tmp_path, {})) == []


def test_bytes_that_are_no_text_are_reported(tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "bronze" / "clicks.yaml").write_bytes(b"source: \xff\n")
    assert problems(tmp_path) == ["bronze/clicks.yaml:1: UNREADABLE"]


def test_the_files_of_the_reference_platform_are_right() -> None:
    assert [spec.name for spec in load([PIPELINES])] == [
        "bronze.user_events", "gold.conversion_rate_daily", "gold.daily_active_users", "gold.events_per_source_daily",
        "gold.purchases_per_page_daily", "realtime.events_per_minute", "realtime.logins_per_source",
        "realtime.purchases_per_minute", "silver.user_events"]  # fmt: skip


def test_all_errors_of_all_files_come_at_once_sorted_by_their_place(tmp_path: Path) -> None:
    landing = changed(LANDING, "- derive", "  - drive: {day: to_date(at)}")
    stream = changed(STREAM, "- filter", "  - filter: rand() > 0")
    job = changed(JOB, "- dedupe", "  - dedupe: []")
    write(tmp_path, {"bronze/clicks.yaml": changed(landing, "trigger", "trigger: {every: soon}"),
                     "realtime/clicks.yaml": changed(stream, "trigger", "trigger: 1"),
                     "silver/clicks.yaml": changed(job, "schedule", "schedule: sometimes")})  # fmt: skip
    assert problems(tmp_path) == [
        "bronze/clicks.yaml:4: UNKNOWN_COMPONENT", "bronze/clicks.yaml:6: BAD_DURATION",
        "realtime/clicks.yaml:5: UNSTABLE_EXPRESSION", "realtime/clicks.yaml:8: BAD_VALUE",
        "silver/clicks.yaml:3: BAD_DEDUPE", "silver/clicks.yaml:8: BAD_SCHEDULE",
    ]  # fmt: skip


def test_a_wrong_structure_in_one_file_does_not_hide_a_wrong_column_in_another(tmp_path: Path) -> None:
    write(tmp_path, {"bronze/clicks.yaml": changed(LANDING, "trigger", "trigger: {every: soon}"),
                     "realtime/clicks.yaml": changed(STREAM, "- filter", "  - filter: amout > 0")})  # fmt: skip
    assert problems(tmp_path) == ["bronze/clicks.yaml:6: BAD_DURATION", "realtime/clicks.yaml:5: UNKNOWN_COLUMN"]


SUGGESTED = [
    ("bronze", "trigger", "triger: {every: 1 s}", "did you mean trigger?"),
    ("bronze", "- derive", "  - drive: {day: to_date(at)}", "did you mean derive?"),
    ("bronze", "- parse", "  - parse: clik", "did you mean click?"),
    ("realtime", "- filter", "  - filter: amout > 0", "did you mean amount?"),
    ("realtime", "- watermark", "  - watermark: {column: at, dealy: 1 s}", "did you mean delay?"),
    ("silver", "schedule", "schedule: dayly", "did you mean daily?"),
]


@pytest.mark.parametrize(("layer", "line", "new", "hint"), SUGGESTED)
def test_a_misspelt_word_comes_with_a_suggestion(layer: str, line: str, new: str, hint: str, tmp_path: Path) -> None:
    write(tmp_path, {f"{layer}/clicks.yaml": changed(NAMES[layer], line, new)})
    with pytest.raises(SpecError, match=re.escape(hint)):
        load([tmp_path])


@pytest.mark.parametrize(("path", "code"), [("missing.yaml", "FILE_MISSING"), ("empty", "NO_PIPELINES")])
def test_a_path_without_a_pipeline_is_refused(path: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load([write(tmp_path, {"empty/templates/more.yaml": LANDING}) / path])
    assert [(p.file, p.line, p.code) for p in caught.value.problems] == [(str(tmp_path / path), 0, code)]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert [s.name for s in load([tmp_path / "bronze", tmp_path / "bronze" / "clicks.yaml"])] == ["bronze.clicks"]


def test_a_job_alone_knows_the_columns_of_the_file_that_it_reads(tmp_path: Path) -> None:
    write(tmp_path, {"silver/clicks.yaml": changed(JOB, "- dedupe", "  - dedupe: [idd]")})
    with pytest.raises(SpecError) as caught:
        load([tmp_path / "silver"])
    assert [(p.line, p.code) for p in caught.value.problems] == [(3, "UNKNOWN_COLUMN")]


def test_defaults_fill_what_a_file_lacks_and_airflow_key_by_key(tmp_path: Path) -> None:
    defaults = "schedule: upstream\ndescription: by default\nairflow: {dag: all, retries: 5}\n"
    write(tmp_path, {"silver/defaults.yaml": defaults, "silver/clicks.yaml": f"{JOB}airflow: {{retries: 1}}\n"})
    (spec,) = load([tmp_path / "silver"])
    assert (spec.schedule, spec.description) == ("daily", "by default")
    assert (spec.airflow.dag, spec.airflow.retries) == ("all", 1)


def test_a_trigger_of_the_file_excludes_a_schedule_by_default(tmp_path: Path) -> None:
    (spec,) = load([write(tmp_path, {"bronze/defaults.yaml": "schedule: daily\n"}) / "bronze"])
    assert (spec.is_stream, spec.schedule) == (True, None)


def test_variables_come_from_the_environment_and_keep_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEHOUSE_TEST_TOPIC", "web")
    source = 'source: {kafka: {topic: "${prefix}-${LAKEHOUSE_TEST_TOPIC}${x:-}", max_per_trigger: "${most}"}}'
    description = "description: costs $${5}"
    write(tmp_path, {"bronze/clicks.yaml": changed(LANDING, "source", f"{source}\n{description}")})
    (spec,) = load([tmp_path / "bronze"], environment=Environment(storage="x", vars={"prefix": "eu", "most": 7}))
    assert spec.source.model_dump(exclude_defaults=True) == {"topic": "eu-web", "max_per_trigger": 7}
    assert spec.description == "costs ${5}"


@pytest.mark.parametrize("line", ["0 6 * * *", "*/5 0-23/2 1,15 1-12 7", "59 23 31 12 0"])
def test_a_cron_line_is_a_schedule(line: str, tmp_path: Path) -> None:
    write(tmp_path, {"silver/clicks.yaml": changed(JOB, "schedule", f'schedule: "{line}"')})
    (spec,) = load([tmp_path / "silver"])
    assert spec.schedule == line


def test_a_folder_of_contracts_holds_no_pipelines(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load([write(tmp_path, {}) / "contracts"])
    assert [p.code for p in caught.value.problems] == ["NO_PIPELINES"]


def test_a_date_and_a_word_for_no_are_text(tmp_path: Path) -> None:
    check = "checks:\n  - accepted_values: {id: [2026-01-01, no, on, y, 1_000]}\nsink: delta"
    (spec,) = load([write(tmp_path, {"bronze/clicks.yaml": changed(LANDING, "sink", check)}) / "bronze"])
    assert spec.checks[0].model_dump()["values"] == {"id": ("2026-01-01", "no", "on", "y", "1_000")}


MUTATED = sorted(file.relative_to(PIPELINES).as_posix() for file in PIPELINES.rglob("*.yaml")
                 if not file.name.endswith(".test.yaml"))  # fmt: skip
TOKEN = re.compile(r"[A-Za-z_]+|[0-9]+|[^\sA-Za-z_0-9]")
RANDOM = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["null", "true", "-1", "1e999", "''", "*a", "&a", "!x y", "? a",
                     "${A}", "2026-01-01", "count(*)", "(", "`", "/*", "a.b", "x[0]", "x -> y", "interval", "0"]),
)  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, str]:
    """A file of the reference platform and a text that is a few careless edits away from it."""
    name = draw(st.sampled_from(MUTATED))
    text = (PIPELINES / name).read_text(encoding="utf-8")
    for _ in range(draw(st.integers(1, 3))):
        lines = text.splitlines(keepends=True) or ["\n"]
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["drop", "twice", "indent", "swap", "token"])):
            case "drop":
                lines[at] = ""
            case "twice":
                lines[at] = line * 2
            case "indent":
                lines[at] = " " * draw(st.integers(0, 6)) + line.lstrip(" ")
            case "swap":
                i = draw(st.integers(0, max(0, len(line) - 2)))
                lines[at] = line[:i] + line[i : i + 2][::-1] + line[i + 2 :]
            case "token":
                tokens = list(TOKEN.finditer(line))
                if tokens:
                    token = draw(st.sampled_from(tokens))
                    lines[at] = line[: token.start()] + draw(RANDOM) + line[token.end() :]
        text = "".join(lines)
    return name, text


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "pipelines"
    shutil.copytree(PIPELINES, folder)
    return folder


@settings(max_examples=150, deadline=None)
@given(mutation=mutations())
def test_a_careless_edit_is_loaded_or_refused_at_a_line_that_is_there(copy: Path, mutation: tuple[str, str]) -> None:
    name, text = mutation
    file = copy / name
    file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        for problem in refused(copy):
            assert 1 <= problem.line <= Path(problem.file).read_bytes().count(b"\n") + 1, problem
    finally:
        shutil.copy(PIPELINES / name, file)
