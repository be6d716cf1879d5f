"""The YAML tests of the reference platform pass on real services; wrong ones fail in a way that can be read."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from lakehouse_engine import testing
from lakehouse_engine.errors import SpecError
from lakehouse_engine.local import jars, java, stack
from lakehouse_engine.testing.values import difference, moment, same

PIPELINES = Path(__file__).parent.parent / "pipelines"
#: pipelines of components that the reference platform lacks
CASES = Path(__file__).parent / "cases"
EXAMPLES = Path(__file__).parent.parent / "examples" / "pipelines"

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

REFUSED = """\
- name: one
  bacthes: []
  expect: {rows: []}
- name: two
  batches:
    - {source: [], other: []}
  tables: {gold.x: []}
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
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, testing.Result]:
    """All YAML tests of the project and the wrong ones above, on one stack and one Spark."""
    wrong = copied(tmp_path_factory.mktemp("wrong"), WRONG)
    sliding = wrong.with_name("sliding.test.yaml")
    sliding.write_text(SLIDING_TEST)
    sliding.with_name("sliding.yaml").write_text(SLIDING)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in java.find_java().environment().items():
            patch.setenv(name, value)
        found = testing.run([PIPELINES, CASES, EXAMPLES, sliding, wrong], jars=jars.engine_jars, stack=stack,
                            report=print)  # fmt: skip
    assert [r.name for r in found[-3:]] == ["wrong rows", "wrong column", "wrong code"]
    return {result.name: result for result in found}


def test_every_reference_pipeline_has_tests_and_all_pass(results: dict[str, testing.Result]) -> None:
    ours = [result for result in results.values() if Path(result.file).is_relative_to(PIPELINES)]
    failed = [str(result) for result in ours if not result.passed]
    assert not failed, "\n".join(failed)
    pipelines = {p for p in PIPELINES.glob("*/*.yaml") if p.parent.name != "contracts" and p.name != "defaults.yaml"}
    tested = {Path(result.file).with_name(Path(result.file).name.replace(".test.yaml", ".yaml")) for result in ours}
    assert tested == {p for p in pipelines if not p.name.endswith(".test.yaml")}


def test_every_other_component_does_what_its_tests_say(results: dict[str, testing.Result]) -> None:
    ours = [result for result in results.values() if Path(result.file).is_relative_to(CASES)]
    assert ours
    failed = [str(result) for result in ours if not result.passed]
    assert not failed, "\n".join(failed)


def test_the_examples_of_the_reference_pass(results: dict[str, testing.Result]) -> None:
    ours = [result for result in results.values() if Path(result.file).is_relative_to(EXAMPLES)]
    assert len(ours) >= 2
    assert not [str(result) for result in ours if not result.passed]


def test_sliding_windows_and_averages_merge_over_batches_and_lose_late_rows_window_by_window(
    results: dict[str, testing.Result],
) -> None:
    assert results["sliding windows and averages"].passed, str(results["sliding windows and averages"])


def test_rows_that_differ_are_shown_as_the_test_would_write_them(results: dict[str, testing.Result]) -> None:
    result = results["wrong rows"]
    assert not result.passed
    assert str(result).splitlines()[0].startswith(f"FAILED {result.file}:7: wrong rows (")
    assert result.message.splitlines() == [
        "at the end",
        "missing    {window_start: 2026-01-01T10:00:00Z, event_type: click, event_count: 2}",
        "unexpected {window_start: 2026-01-01T10:00:00Z, event_type: click, event_count: 1}",
    ]


def test_a_column_that_is_not_there_is_named_at_its_line(results: dict[str, testing.Result]) -> None:
    result = results["wrong column"]
    assert (result.passed, result.line) == (False, 15)
    assert result.message == "there is no column event_cuont; did you mean event_count?"


def test_a_failure_that_does_not_come_fails_the_test(results: dict[str, testing.Result]) -> None:
    result = results["wrong code"]
    assert (result.passed, result.line) == (False, 18)
    assert result.message == "it does not fail with CHECK_FAILED"


def test_every_mistake_of_a_test_file_is_refused_at_its_line_before_anything_starts(tmp_path: Path) -> None:
    file = copied(tmp_path, REFUSED)
    with pytest.raises(SpecError) as raised:
        testing.run([file], jars=jars.engine_jars, stack=stack, report=print)
    assert [(problem.line, problem.code) for problem in raised.value.problems] == [
        (2, "UNKNOWN_KEY"), (6, "NOT_YET"), (7, "NOT_YET"), (8, "BAD_VALUE"), (11, "BAD_VALUE"),
        (12, "BAD_VALUE"), (13, "BAD_VALUE"), (16, "BAD_VALUE"), (17, "MISSING_KEY"), (18, "BAD_VALUE"),
    ]  # fmt: skip
    assert f"{file}:2: UNKNOWN_KEY: bacthes is unknown; did you mean batches?" in str(raised.value)


def test_a_pipeline_without_tests_says_so_and_a_folder_without_tests_has_no_results(tmp_path: Path) -> None:
    copied(tmp_path, WRONG)
    with pytest.raises(SpecError) as raised:
        testing.run([tmp_path / "pipelines/silver/user_events.yaml"], jars=jars.engine_jars, stack=stack, report=print)
    assert raised.value.code == "NO_TESTS"
    assert testing.run([tmp_path / "pipelines/gold"], jars=jars.engine_jars, stack=stack, report=print) == []


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
    assert (different.missing, different.unexpected) == ([{"a": 1, "b": 1}], [{"a": 1, "b": 2}])


def test_text_that_only_looks_like_a_time_is_none() -> None:
    assert moment("2026-02-30T10:00:00Z") is None
    assert moment("2026-01-01") is None
