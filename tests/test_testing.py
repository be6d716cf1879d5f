"""YAML tests that are wrong fail in a way that can be read, are put right on request, and are pytest's as well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lakehouse_engine.cli import main
from lakehouse_engine.errors import RunError, SpecError, UsageError
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.testing import reader, suite, update
from lakehouse_engine.testing.bench import Bench
from lakehouse_engine.testing.execute import Finding
from lakehouse_engine.testing.preview import Preview, preview
from lakehouse_engine.testing.rendering import rendered
from lakehouse_engine.testing.values import difference, moment, same

PROJECT = Path(__file__).parent.parent
PIPELINES = PROJECT / "pipelines"

WRONG = """\
- name: wrong rows
  defaults: {user_id: 1, event_type: click, page: /home, source: web}
  batches:
    - [{event_id: a, timestamp: 2026-01-01T10:00:05Z}, "not json"]
  expect:
    quarantined: 1
    rows:
      - {window_start: 2026-01-01T10:00:00Z, event_type: click, event_count: 2}
- name: wrong column
  defaults: {user_id: 1, event_type: click, page: /home, source: web}
  batches:
    - [{event_id: a, timestamp: 2026-01-01T10:00:05Z}]
  expect:
    after:
      1: [{event_cuont: 1}]
- name: wrong code
  batches: []
  expect: {fails: CHECK_FAILED}
"""

SLIDING = """\
source: {kafka: {topic: user-events, history: bronze.user_events}}
transforms:
  - parse: user_event
  - watermark: {column: timestamp, delay: 1 minute}
  - window:
      sliding: {size: 2 minutes, every: 1 minute}
      by: [event_type]
      measures: {n: count(*), mean: avg(user_id), least: min(user_id)}
sink: postgres
trigger: {every: 1 second}
"""

SLIDING_TEST = """\
- name: sliding windows and averages
  defaults: {event_type: click, page: /home, source: web}
  batches:
    - - {event_id: a, user_id: 1, timestamp: 2026-01-01T10:00:30Z}
      - {event_id: b, user_id: 4, timestamp: 2026-01-01T10:01:30Z}
    - [{event_id: c, user_id: 10, timestamp: 2026-01-01T10:03:00Z}]     # watermark 10:02:00
    - [{event_id: d, user_id: 7, timestamp: 2026-01-01T10:01:10Z}]      # late for the window of 10:00 alone
    - [{event_id: e, user_id: 7, timestamp: 2026-01-01T10:00:59.999999Z}]
  expect:
    rows:
      - {window_start: 2026-01-01T09:59:00Z, event_type: click, n: 1, mean: 1.0, least: 1}
      - {window_start: 2026-01-01T10:00:00Z, event_type: click, n: 2, mean: 2.5, least: 1}
      - {window_start: 2026-01-01T10:01:00Z, event_type: click, n: 2, mean: 5.5, least: 4}
      - {window_start: 2026-01-01T10:02:00Z, event_type: click, n: 1, mean: 10.0, least: 10}
      - {window_start: 2026-01-01T10:03:00Z, event_type: click, n: 1, mean: 10.0, least: 10}
    late: 1   # the fifth; the fourth is kept aside for one window and counts in the other
"""

#: what the stream wrote cannot be counted again
CLOCK = SLIDING.replace("parse: user_event\n", "parse: user_event\n  - derive: {taken: now()}\n").replace(
    "n: count(*),", "n: count(*), taken: max(taken),")  # fmt: skip
CLOCK_TEST = SLIDING_TEST.partition("    - [{event_id: d")[0].replace("sliding windows and averages", "a clock") + """\
  expect: {late: 0}
"""

REFUSED = """\
- name: one
  bacthes: []
  expect: {rows: []}
- name: two
  batches:
    - {source: [], other: []}
  tables: []
  now: today
  expect:
    after:
      2: []
    rows: [text]
    quarantined: true
- name: three
  batches: []
  expect: {}
- batches: []
  expect: {fails: oops}
"""


def copied(folder: Path, content: str) -> Path:
    """The reference pipelines with one other test file."""
    shutil.copytree(PIPELINES, folder / "pipelines", ignore=shutil.ignore_patterns("*.test.yaml"))
    file = folder / "pipelines" / "realtime" / "events_per_minute.test.yaml"
    file.write_text(content)
    return file


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, lakehouse_bench: Bench) -> dict[str, suite.Result]:
    """The tests above; pytest itself collects those of the project's own pipelines, of the examples and of cases/."""
    wrong = copied(tmp_path_factory.mktemp("wrong"), WRONG)
    sliding = wrong.with_name("sliding.test.yaml")
    sliding.write_text(SLIDING_TEST)
    sliding.with_name("sliding.yaml").write_text(SLIDING)
    clock = wrong.with_name("clock.test.yaml")
    clock.write_text(CLOCK_TEST)
    clock.with_name("clock.yaml").write_text(CLOCK)
    cases = reader.find([sliding, wrong, clock])
    return {case.name: suite.result(lakehouse_bench, case, print) for case in cases}


def test_tests_of_one_query_on_sparks_state_run_side_by_side(tmp_path: Path, lakehouse_bench: Bench) -> None:
    file = copied(tmp_path, "".join(f"""\
- name: user {user}
  defaults: {{event_type: click, page: /, source: web}}
  batches: [[{{event_id: a, user_id: {user}, timestamp: 2026-01-01T10:00:00Z}}]]
  expect: {{rows: [{{window_start: 2026-01-01T10:00:00Z, users: 1, least: {user}}}]}}
""" for user in (1, 2)))  # fmt: skip
    window = "tumbling: 1 minute\n      measures: {users: approx_count_distinct(user_id), least: min(user_id)}\n"
    head, tail = SLIDING.partition("sliding")[0], SLIDING.partition("sink")
    file.with_name("events_per_minute.yaml").write_text(head + window + tail[1] + tail[2])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: suite.result(lakehouse_bench, case, print), reader.find([file])))
    assert [result.message for result in found if not result.passed] == []


def test_every_reference_pipeline_has_tests() -> None:
    pipelines = {p for p in PIPELINES.glob("*/*.yaml") if p.parent.name != "contracts" and p.name != "defaults.yaml"}
    tested = {case.pipeline for case in reader.find([PIPELINES])}
    assert tested == {p for p in pipelines if not p.name.endswith(".test.yaml")}


def test_sliding_windows_and_averages_merge_over_batches_and_lose_late_rows_window_by_window(
    results: dict[str, suite.Result],
) -> None:
    assert results["sliding windows and averages"].passed, str(results["sliding windows and averages"])


def test_rows_that_differ_are_shown_as_the_test_would_write_them(results: dict[str, suite.Result]) -> None:
    result = results["wrong rows"]
    assert not result.passed
    assert str(result).splitlines()[0].startswith(f"FAILED {result.file}:7: wrong rows (")
    assert result.message.splitlines() == [
        "at the end: 1 row differs",
        "          window_start          event_type  event_count",
        "expected  2026-01-01T10:00:00Z  click       2",
        "found     2026-01-01T10:00:00Z  click       1",
        "                                            ^",
    ]


def test_windows_that_one_backfill_counts_otherwise_are_shown(results: dict[str, suite.Result]) -> None:
    message = results["a clock"].message.splitlines()
    assert message[0] == "counted anew as one backfill, closed windows are others: 2 rows differ"
    assert [line.split()[1] for line in message if line.startswith("expected")] == [
        "2026-01-01T09:59:00Z", "2026-01-01T10:00:00Z"]  # fmt: skip


def test_a_column_that_is_not_there_is_named_at_its_line(results: dict[str, suite.Result]) -> None:
    result = results["wrong column"]
    assert (result.passed, result.line) == (False, 15)
    assert result.message == "there is no column event_cuont; did you mean event_count?"


def test_a_failure_that_does_not_come_fails_the_test(results: dict[str, suite.Result]) -> None:
    result = results["wrong code"]
    assert (result.passed, result.line) == (False, 18)
    assert result.message == "it does not fail with CHECK_FAILED"


def test_every_mistake_of_a_test_file_is_refused_at_its_line_before_anything_starts(tmp_path: Path) -> None:
    file = copied(tmp_path, REFUSED)
    with pytest.raises(SpecError) as raised:
        reader.find([file])
    assert [(problem.line, problem.code) for problem in raised.value.problems] == [
        (2, "UNKNOWN_KEY"), (6, "UNKNOWN_INPUT"), (7, "BAD_VALUE"), (8, "BAD_VALUE"), (11, "BAD_VALUE"),
        (12, "BAD_VALUE"), (13, "BAD_VALUE"), (16, "BAD_VALUE"), (17, "MISSING_KEY"), (18, "BAD_VALUE"),
    ]  # fmt: skip
    assert f"{file}:2: UNKNOWN_KEY: bacthes is unknown; did you mean batches?" in str(raised.value)


def test_a_pipeline_without_tests_says_so_and_a_folder_without_tests_has_none(tmp_path: Path) -> None:
    copied(tmp_path, WRONG)
    with pytest.raises(SpecError) as raised:
        reader.find([tmp_path / "pipelines/silver/user_events.yaml"])
    assert raised.value.code == "NO_TESTS"
    assert reader.find([tmp_path / "pipelines/gold"]) == []


@pytest.mark.parametrize(
    ("expected", "actual", "equal"),
    [
        ("2026-01-01T11:00:00+01:00", datetime(2026, 1, 1, 10, tzinfo=timezone.utc), True),
        ("2026-01-01T10:00:00.5Z", "2026-01-01T10:00:00.500000Z", True),
        ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00.000001Z", False),
        ("2026-01-01", datetime(2026, 1, 1).date(), True),
        ("12.50", Decimal("12.5"), True),
        (0.3333333333, 1 / 3, True),
        (0.33333, 1 / 3, False),
        (2**53, 2**53 + 1, False),
        (1, True, False),
        (None, 0, False),
        ([1, "a"], [1, "a"], True),
        ("1", 1, True),
        ("text", 1, False),
    ],
)
def test_values_are_equal_as_a_reader_sees_them(expected: object, actual: object, equal: bool) -> None:
    assert same(expected, actual) is equal


def test_a_row_that_fits_two_leaves_the_other_to_the_row_that_fits_only_one() -> None:
    actual = [{"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert difference([{"a": 1}, {"a": 1, "b": 1}], actual) is None
    different = difference([{"a": 1, "b": 1}, {"a": 1, "b": 1}], actual)
    assert different is not None
    assert different.changed == [({"a": 1, "b": 1}, {"a": 1, "b": 2})]
    assert (different.missing, different.unexpected) == ([], [])


def test_text_that_only_looks_like_a_time_is_none() -> None:
    assert moment("2026-02-30T10:00:00Z") is None
    assert moment("2026-01-01") is None


def test_rows_that_differ_stand_below_one_another_and_their_cells_are_marked() -> None:
    different = difference(
        [{"day": "2026-01-01", "n": 1, "rate": 0.5}, {"day": "2026-01-02", "n": 2, "rate": None}, {"day": "x", "n": 9}],
        [{"day": "2026-01-01", "n": 12, "rate": 0.5}, {"day": "2026-01-02", "n": 2, "rate": 0.25},
         {"day": "2026-01-03", "n": 3, "rate": 0.75}])  # fmt: skip
    assert different is not None
    assert rendered(different).splitlines() == [
        "2 rows differ, 1 row is missing, 1 row is unexpected",
        "            day         n   rate",
        "expected    2026-01-01  1   0.5",
        "found       2026-01-01  12  0.5",
        "                        ^^",
        "expected    2026-01-02  2   null",
        "found       2026-01-02  2   0.25",
        "                            ^^^^",
        "missing     x           9",
        "unexpected  2026-01-03  3   0.75",
    ]
    coloured = rendered(different, colour=True).splitlines()
    assert "^" not in "".join(coloured)
    assert coloured[3] == "found       2026-01-01  \033[31m12\033[0m  0.5"


LAYOUT = """\
# a head
- name: one     # what it is
  batches: [[], []]
  expect:
    # of each window
    rows:
      - {window_start: 2026-01-01T10:00:00Z, event_type: click, n: 2}   # two clicks
      - {window_start: 2026-01-01T10:01:00Z, event_type: "buy", amount: "1.50"}
      # before the last
      - window_start: 2026-01-01T10:02:00Z
        event_type: login
        n: 1
    after: {1: [{n: 1}, {n: 2}, {n: 3}], 2: []}
    late: 1   # the fifth
    quarantined: []   # none
- name: two
  expect:
    rows:
      - {a: 1}   # gone
      - {a: 2}
    silver.x: [{a: 1}]
    fails: CHECK_FAILED
"""


def rewritten(folder: Path, text: str, *wrong: tuple[int, str, object]) -> str:
    """The file after its expectations were put right: of which test, which, and what there is."""
    file = folder / "silver" / "x.test.yaml"
    file.parent.mkdir(exist_ok=True)
    file.with_name("x.yaml").write_text("not: a pipeline")
    file.write_text(text)
    cases = reader.find([file])
    found = []
    for number, name, actual in wrong:
        expect = cases[number].expect
        asked = expect.after[int(name[6:])] if name.startswith("after.") else getattr(
            expect, name, expect.others.get(name))  # fmt: skip
        found.append((cases[number], Finding(f".expect.{name}", "", asked, actual)))  # type: ignore[arg-type]
    assert update.rewrite(file, found) == len(wrong)
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []
    return file.read_text()


def test_an_update_touches_the_cells_that_differ_and_keeps_comments_quotes_and_layout(tmp_path: Path) -> None:
    at = "2026-01-01T10:0{}:00Z".format
    text = rewritten(
        tmp_path, LAYOUT,
        (0, "rows", [{"window_start": at(0), "event_type": "click", "n": 3, "updated_at": at(9)},
                     {"window_start": at(1), "event_type": "buy", "amount": Decimal("2.50"), "n": None},
                     {"window_start": at(2), "event_type": "log out", "n": 1},
                     {"window_start": at(5), "event_type": "new", "n": 5}]),
        (0, "after.1", [{"n": 1}]), (0, "after.2", [{"n": 1, "updated_at": at(1)}]), (0, "late", 3),
        (0, "quarantined", [{"id": "a, b"}, {"id": "null"}]), (1, "rows", [{"a": 2}]), (1, "silver.x", []),
        (1, "fails", "LOCKED"))  # fmt: skip
    was, now = LAYOUT.splitlines(), text.splitlines()
    assert [line for line in was if line not in now] == [
        "      - {window_start: 2026-01-01T10:00:00Z, event_type: click, n: 2}   # two clicks",
        '      - {window_start: 2026-01-01T10:01:00Z, event_type: "buy", amount: "1.50"}',
        "        event_type: login",
        "    after: {1: [{n: 1}, {n: 2}, {n: 3}], 2: []}",
        "    late: 1   # the fifth",
        "    quarantined: []   # none",
        "      - {a: 1}   # gone",
        "    silver.x: [{a: 1}]",
        "    fails: CHECK_FAILED",
    ]
    assert [line for line in now if line not in was] == [
        "      - {window_start: 2026-01-01T10:00:00Z, event_type: click, n: 3}   # two clicks",
        '      - {window_start: 2026-01-01T10:01:00Z, event_type: "buy", amount: "2.50"}',
        '        event_type: "log out"',
        "      - window_start: 2026-01-01T10:05:00Z",
        "        event_type: new",
        "        n: 5",
        "    after: {1: [{n: 1}], 2: [{n: 1}]}",
        "    late: 3   # the fifth",
        "    quarantined:   # none",
        '      - {id: "a, b"}',
        '      - {id: "null"}',
        "    silver.x: []",
        "    fails: LOCKED",
    ]


def test_an_update_that_would_not_be_read_back_leaves_the_file(tmp_path: Path) -> None:
    shared = "- name: one\n  batches: [[], []]\n  expect: {after: {1: &same [{n: 1}], 2: *same}}\n"
    with pytest.raises(RunError, match="change the file by hand") as refused:
        rewritten(tmp_path, shared, (0, "after.1", [{"n": 1}]), (0, "after.2", [{"n": 2}]))
    assert refused.value.code == "NOT_UPDATED"
    assert (tmp_path / "silver" / "x.test.yaml").read_text() == shared


def test_a_failed_test_is_put_right_in_its_file(results: dict[str, suite.Result]) -> None:
    failed = results["wrong rows"]
    text = Path(failed.file).read_text()
    (now,), files = suite.updated([failed])
    assert (now.passed, files) == (True, {Path(failed.file): 1})
    assert Path(failed.file).read_text() == text.replace("event_count: 2}", "event_count: 1}")


BROKEN = """\
- name: what is wrong with a pipeline is what its tests say
  batches: []
  expect: {rows: []}
- name: a failure can be expected
  batches: []
  expect: {fails: UNKNOWN_KEY}
- name: and then nothing else of what never ran
  expect: {fails: UNKNOWN_KEY, rows: []}
"""


def event(name: str, time: str) -> str:
    return json.dumps({"event_id": name, "user_id": 1, "event_type": "click", "page": "/", "source": "web",
                       "timestamp": f"2026-01-01T{time}Z"})  # fmt: skip


EVENTS = [event("a", "10:00:05"), "not json", "", event("b", "10:04:30"), '{"user_id": NaN}', "null",
          event("d", "10:00:30")]  # fmt: skip


def previewed(bench: Bench, folder: Path, pipeline: str, **texts: str) -> Preview:
    files = {name: folder / f"{name}.jsonl" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    return preview(bench, PIPELINES / pipeline, files, Environment(storage=str(folder)), size=5)


def test_a_preview_shows_rows_and_at_which_lines_others_are_kept_aside(lakehouse_bench: Bench, tmp_path: Path) -> None:
    found = previewed(lakehouse_bench, tmp_path, "realtime/events_per_minute.yaml", source="\n".join(EVENTS)).as_json()
    rows = found["tables"]["realtime.events_per_minute"]["rows"]
    assert [(row["window_start"], row["event_count"]) for row in rows] == [
        ("2026-01-01T10:00:00Z", 1), ("2026-01-01T10:04:00Z", 1)]  # fmt: skip
    file = tmp_path / "source.jsonl"
    assert [(row["at"], row["reasons"]) for row in found["quarantined"]] == [
        (f"{file}:{line}", [why]) for line, why in ((2, "json: not valid"), (5, "json: not valid"), (6, "tombstone"))]
    assert [(row["at"], row["missed"]) for row in found["late"]] == [(f"{file}:7", ["2026-01-01T10:00:00Z"])]


def test_a_preview_of_a_job_refuses_rows_at_their_lines(lakehouse_bench: Bench, tmp_path: Path) -> None:
    good = '{"event_date": "2026-01-01", "user_id": 7, "timestamp": "2026-01-01T10:00:00Z"}\n'
    found = previewed(lakehouse_bench, tmp_path, "gold/daily_active_users.yaml", source=good + good)
    assert found.text().splitlines()[2].startswith("2026-01-01" + " " * 3)
    assert found.text().endswith("1 rows of gold.daily_active_users in delta")
    for wrong, code in ({'{"user_id": "x", "event_date": "soon"}': ["BAD_VALUE", "BAD_VALUE"],
                         '{"user": 1}': ["UNKNOWN_COLUMN"], "[1": ["BAD_VALUE"]}).items():  # fmt: skip
        with pytest.raises(SpecError) as refused:
            previewed(lakehouse_bench, tmp_path, "gold/daily_active_users.yaml", source=good + wrong)
        assert [(one.file, one.line, one.code) for one in refused.value.problems] == [
            (str(tmp_path / "source.jsonl"), 2, each) for each in code]  # fmt: skip
    with pytest.raises(UsageError, match="no input users"):
        previewed(lakehouse_bench, tmp_path, "gold/daily_active_users.yaml", users=good)


def test_pytest_and_the_command_report_the_same_tests_at_the_same_lines(tmp_path: Path) -> None:
    """No service: what is wrong shows before one is needed."""
    file = tmp_path / "pipelines" / "silver" / "x.test.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(BROKEN)
    file.with_name("x.yaml").write_text("source: bronze.x\nsnik: delta\nsink: delta\nschedule: daily\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "--junitxml=pytest.xml", "pipelines"]
    ran = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120,
                         env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip
    assert "2 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert f"{file}:1: " in ran.stdout
    assert "x.yaml:2: UNKNOWN_KEY: snik is unknown; did you mean sink?" in ran.stdout
    assert "Traceback" not in ran.stdout

    done = CliRunner().invoke(main, ["test", str(file.parent), "--junit", str(tmp_path / "ours.xml"), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [(one["line"], one["passed"]) for one in told] == [(1, False), (4, True), (8, False)]
    chosen = CliRunner().invoke(main, ["test", str(file.parent), "-k", "CAN be"])
    assert (chosen.exit_code, chosen.stdout.splitlines()[-1][:18]) == (0, "1 passed, 0 failed")
    ours, theirs = (ElementTree.parse(tmp_path / name).getroot() for name in ("ours.xml", "pytest.xml"))
    for path in (".", "testsuite", "testsuite/testcase"):
        assert [one.attrib.keys() for one in ours.findall(path)] == [one.attrib.keys() for one in theirs.findall(path)]
    assert [one.get("name") for one in ours.iter("testcase")] == [one.get("name") for one in theirs.iter("testcase")]
    (error,) = ours.iter("error")
    assert "UNKNOWN_KEY" in (error.get("message") or "")
    assert (error.text or "").startswith(f"{file}:1: ")
