"""How far a pipeline has read, and what that says of the watermark: it never goes back, whatever arrives."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse_engine.progress import (
    IDLE_AFTER,
    Position,
    Record,
    advance,
    from_micros,
    from_user_metadata,
    going_on,
    next_watermark,
    to_micros,
)

SECOND = 1_000_000


def test_a_batch_with_rows_moves_the_offset_and_the_greatest_event_time() -> None:
    assert advance(Position(5, 100), 9, 200, started_at=7) == Position(9, 200, False, 7)


def test_an_older_event_time_does_not_move_the_greatest_one_back() -> None:
    assert advance(Position(5, 100), 9, 50, started_at=7) == Position(9, 100, False, 7)


def test_an_event_before_1970_counts_as_any_other() -> None:
    assert advance(Position(0), 1, -5, started_at=7) == Position(1, -5, False, 7)
    assert advance(Position(0, -9), 1, -5, started_at=7) == Position(1, -5, False, 7)


def test_a_batch_whose_rows_were_all_refused_moves_the_offset_alone() -> None:
    assert advance(Position(5, 100, False, 3), 9, None, started_at=7) == Position(9, 100, False, 3)


@pytest.mark.parametrize(("silence", "idle"), [(0, False), (IDLE_AFTER - 1, False), (IDLE_AFTER, True)])
def test_a_partition_is_idle_after_thirty_seconds_without_a_row(silence: int, idle: bool) -> None:
    assert advance(Position(5, 100, False, 1000), 5, None, started_at=1000 + silence).idle is idle


def test_an_idle_partition_stays_idle_until_a_row_comes() -> None:
    idle = Position(5, 100, True, 1000)
    assert advance(idle, 5, None, started_at=1001).idle
    assert not advance(idle, 6, 50, started_at=1001).idle


def test_a_partition_that_never_gave_a_row_is_not_idle_and_holds_nothing_back() -> None:
    silent = advance(Position(0), 0, None, started_at=10 * IDLE_AFTER)
    assert silent == Position(0)
    assert next_watermark([silent, Position(1, 100)], 10, None) == 90


def test_the_watermark_is_that_of_the_slowest_partition_less_the_delay() -> None:
    assert next_watermark([Position(1, 100), Position(1, 70), Position(1, 300)], 10, None) == 60


def test_an_idle_partition_does_not_hold_the_watermark_back() -> None:
    assert next_watermark([Position(1, 100), Position(1, 70, idle=True)], 10, None) == 90


def test_the_watermark_does_not_go_back_when_a_slow_partition_returns() -> None:
    assert next_watermark([Position(1, 100), Position(1, 70)], 10, previous=90) == 90


@pytest.mark.parametrize("positions", [[], [Position(0)], [Position(1, 500, idle=True)]])
@pytest.mark.parametrize("previous", [None, 0, 90])
def test_the_watermark_stays_when_no_partition_takes_part(positions: list[Position], previous: int | None) -> None:
    assert next_watermark(positions, 10, previous) == previous


def test_a_watermark_at_the_epoch_is_one() -> None:
    assert next_watermark([Position(1, 5)], 10, previous=0) == 0


#: what one batch brings: per partition the greatest event time, or nothing; and the seconds since the batch before
BATCHES = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 3), st.none() | st.integers(-(10**12), 10**16), max_size=4), st.integers(0, 60)
    ),
    max_size=30,
)


@given(BATCHES, st.integers(0, 3600 * SECOND))
def test_the_watermark_never_goes_back_and_never_passes_what_was_seen(
    batches: list[tuple[dict[int, int | None], int]], delay: int
) -> None:
    positions = {partition: Position(0) for partition in range(4)}
    clock, watermark = 0, None
    greatest = None
    for times, seconds in batches:
        clock += seconds * SECOND
        for partition, before in positions.items():
            time = times.get(partition)
            after = advance(before, before.next_offset + (partition in times), time, clock)
            assert after.next_offset >= before.next_offset
            if before.max_event_time is not None:
                assert after.max_event_time is not None
                assert after.max_event_time >= before.max_event_time
            assert not (time is not None and after.idle)
            positions[partition] = after
            if time is not None:
                greatest = time if greatest is None else max(greatest, time)
        moved = next_watermark(positions.values(), delay, watermark)
        if watermark is not None:
            assert moved is not None
            assert moved >= watermark
        if moved is not None:
            assert greatest is not None
            assert moved <= greatest - delay
        watermark = moved


@given(BATCHES, st.permutations(range(4)))
def test_the_watermark_does_not_depend_on_the_order_of_partitions(
    batches: list[tuple[dict[int, int | None], int]], order: list[int]
) -> None:
    positions = [Position(0) for _ in range(4)]
    for times, seconds in batches:
        positions = [advance(p, p.next_offset, times.get(i), seconds * SECOND) for i, p in enumerate(positions)]
    assert next_watermark(positions, 5, None) == next_watermark([positions[i] for i in order], 5, None)


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(timezone.utc)))
def test_a_time_survives_its_microseconds(time: datetime) -> None:
    micros = to_micros(time)
    assert from_micros(micros) == time
    assert to_micros(from_micros(micros)) == micros


def test_no_time_is_no_microseconds() -> None:
    assert to_micros(None) is None
    assert from_micros(None) is None


def test_microseconds_count_from_1970_in_utc_whatever_the_zone() -> None:
    assert to_micros(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0
    assert to_micros(datetime(2026, 1, 1, 10, 0, 5, 1, tzinfo=timezone.utc)) == 1_767_261_605_000_001


def record(before: dict[int, Position], after: dict[int, Position]) -> Record:
    return Record("bronze.x", 1, 7, 0, "id", "t", before, after, None, {"counted": 3}, {"not_null(a)": 1})


def test_a_records_ranges_run_from_the_position_before_to_the_one_after() -> None:
    found = record({0: Position(3)}, {1: Position(4, idle=True), 0: Position(8, 5 * SECOND)}).ranges()
    assert found == {
        "0": {"from": 3, "to": 8, "idle": False, "max_event_time": "1970-01-01T00:00:05+00:00"},
        "1": {"from": 0, "to": 4, "idle": True, "max_event_time": None},
    }


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 2**63 - 1), min_size=1))
def test_a_commits_metadata_gives_the_batch_and_the_offsets_back(offsets: dict[int, int]) -> None:
    after = {partition: Position(offset) for partition, offset in offsets.items()}
    stored = json.loads(record({}, after).user_metadata())
    assert from_user_metadata(stored) == (7, after)
    assert stored["counters"] == {"counted": 3}
    assert stored["warnings"] == {"not_null(a)": 1}


def test_a_partition_that_is_new_to_a_pipeline_begins_at_its_first_record() -> None:
    assert going_on({0: Position(7)}, {0: Position(9), 1: Position(4)}) == {0: Position(7), 1: Position(0)}


def test_a_greatest_event_time_at_the_epoch_is_one() -> None:
    assert advance(Position(0, 0), 1, -5, started_at=7).max_event_time == 0
