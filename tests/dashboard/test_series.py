"""From a query with macros to a series: steps, filling, and what cannot be expanded."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse_engine.dashboard.boards import aligned, parse_range
from lakehouse_engine.dashboard.frames import series
from lakehouse_engine.dashboard.macros import Range, expand, filling, step_for
from lakehouse_engine.errors import UsageError

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SHOWN = Range(START, START + timedelta(minutes=4), 60)
ZERO = START.timestamp()


@given(st.integers(1, 10**9), st.integers(1, 10**5), st.integers(1, 500))
def test_a_step_is_a_multiple_and_gives_no_more_points_than_asked_for(seconds: int, least: int, points: int) -> None:
    step = step_for(seconds, least, points)
    assert step % least == 0
    assert seconds / step <= points


def test_steps_are_round() -> None:
    found = [step_for(hours * 3600, 10) for hours in (1 / 12, 1, 6, 24, 168, 720)]
    assert found == [10, 30, 120, 600, 3600, 10800]
    assert step_for(3600, 420) == 420, "windows of seven minutes"
    assert step_for(100 * 365 * 86400) > 86400


@pytest.mark.parametrize(("macro", "filled", "values"), [
    ("$__timeGroupAlias(t, $__interval)", (False, None), [5, 7]),
    ("$__timeGroupAlias(t, $__interval, 0)", (True, 0.0), [0, 5, 0, 7, 0]),
    ("$__timeGroupAlias(t, $__interval, NULL)", (True, None), [None, 5, None, 7, None]),
    ("$__timeGroupAlias(t, $__interval, previous)", (True, "previous"), [None, 5, 5, 7, 7]),
])  # fmt: skip
def test_steps_without_a_row(macro: str, filled: tuple[bool, float | str | None], values: list[float | None]) -> None:
    assert filling(f"select {macro}, n from x") == filled
    found = series(["time", "n"], [(ZERO + 60, 5), (ZERO + 180, 7)], SHOWN, filled)
    assert found["series"] == [{"name": "n", "values": values}]
    assert len(found["time"]) == len(values)


def test_each_name_is_a_series_on_the_same_times() -> None:
    rows = [(ZERO, "b", 1), (ZERO, "a", 2), (ZERO + 60, "b", float("nan"))]
    assert series(["time", "metric", "n"], rows, SHOWN, (False, None)) == {
        "time": [ZERO, ZERO + 60],
        "series": [{"name": "a", "values": [2, None]}, {"name": "b", "values": [1, None]}],
    }
    assert series(["time", "n"], [], SHOWN, (True, 0.0)) == {"time": [], "series": []}


@pytest.mark.parametrize("text", ["$__timeGroup(t, 5m)", "$__unixEpochFilter(t)", "$variable",
                                  "$__timeGroupAlias(t, 5m)", "$__timeGroupAlias(t, $__interval, x)",
                                  "$__timeGroupAlias(t, $__interval, 0, 0)"])  # fmt: skip
def test_what_is_not_known_is_not_sent(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        expand(f"select {text}", SHOWN)


def test_a_range_is_up_to_now_or_between_two_times() -> None:
    now = START + timedelta(seconds=17, microseconds=5)
    assert parse_range("6h", None, None, now) == Range(
        START + timedelta(seconds=17) - timedelta(hours=6), START + timedelta(seconds=17), 120)  # fmt: skip
    found = parse_range(None, "2026-01-01T00:00:00", "2026-01-01T02:00:00+01:00", now)
    assert (found.start, found.end) == (START, START + timedelta(hours=1))
    assert aligned(Range(START + timedelta(seconds=59), now, 60)).start == START
    for wrong in ("", "1w", "1.5h", "h", " 1h", "1h "):
        with pytest.raises(UsageError):
            parse_range(wrong or "x", None, None)
