"""A table whose rows replace each other is a function of the rows that came, not of their order or their batches."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.maintenance import Keeper
from lakehouse_engine.sinks import delta
from lakehouse_engine.sinks.delta_scd2 import Scd2
from lakehouse_engine.sinks.delta_upsert import DELETES, Upsert
from lakehouse_engine.spec.pipeline import Compact, Maintain

EXAMPLES = int(os.environ.get("LAKEHOUSE_EXAMPLES", "2"))
#: id, order, value, whether it deletes
Event = tuple[str | None, int | None, str, bool]
Row = tuple[Any, ...]
#: of a key and an order there is one row
EVENTS = st.tuples(st.sampled_from(["a", "b", None]), st.one_of(st.none(), st.integers(0, 6))).map(
    lambda at: (at[0], at[1], f"{at[0]}{at[1]}", (at[1] or 0) % 3 == 2))  # fmt: skip
#: micro-batches; of each whether its writer dies before the main commit, so that it comes again with the next one's
BATCHES = st.lists(st.tuples(st.lists(EVENTS, max_size=6), st.booleans()), min_size=1, max_size=3)


class Killed(Exception):
    pass


class Table:
    """What a stream does to a table, batch after batch."""

    def __init__(self, spark: SparkSession, path: Path, write: Callable[[DataFrame, str, datetime], None]) -> None:
        self.spark, self.path, self._write = spark, path, write
        self.batches = 0

    def frame(self, events: Sequence[Event]) -> DataFrame:
        kinds = f"id string, n int, value string, {DELETES} boolean, _at_offset bigint"
        return self.spark.createDataFrame([(*event, place) for place, event in enumerate(events)], kinds)

    def write(self, events: Sequence[Event]) -> None:
        self.batches += 1
        record = json.dumps({"pipeline": "silver.one", "batch_id": self.batches})
        self._write(self.frame(events), record, datetime(2026, 1, 1, 0, 0, self.batches, tzinfo=timezone.utc))

    def killed(self, events: Sequence[Event]) -> None:
        """Dies after what goes before the main commit."""
        before = DeltaLog(self.path).version()
        merge = mock.patch.object(delta, "merge", side_effect=Killed)
        with merge if before is not None else _no_append(self.path), pytest.raises(Killed):
            self.write(events)
        assert DeltaLog(self.path).version() == before

    def history(self, batches: Sequence[tuple[Sequence[Event], bool]]) -> None:
        again: list[Event] = []
        for events, dies in [*batches, ([], False)]:
            again += events
            if dies:
                self.killed(again)
            else:
                self.write(again)
                again = []

    def rows(self, *columns: str) -> list[Row]:
        found = self.spark.read.format("delta").load(str(self.path)).select(*columns).collect()
        return sorted((tuple(row) for row in found), key=str)


def _no_append(path: Path) -> Any:
    """The commit that makes the table does not happen; those beside it do."""
    append = delta.append

    def refused(frame: DataFrame, to: Path, *values: Any, **named: Any) -> None:
        if to == path:
            raise Killed
        append(frame, to, *values, **named)

    return mock.patch.object(delta, "append", refused)


def upserted(spark: SparkSession, path: Path) -> Table:
    upsert = Upsert(path, ["id"], ["n"])
    return Table(spark, path, lambda frame, record, at: upsert.write(frame, record, at, ["_at_offset"]))


def newest(events: Sequence[Event]) -> list[Row]:
    """The rows of each key with the greatest order, null being least, that do not delete."""
    found: dict[str | None, Event] = {}
    for event in events:
        held = found.get(event[0])
        if held is None or (event[1] is not None, event[1] or 0) >= (held[1] is not None, held[1] or 0):
            found[event[0]] = event
    return sorted((event[:3] for event in found.values() if not event[3]), key=str)


@given(batches=BATCHES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_newest_row_of_a_key_stays_whatever_the_order_the_batches_and_the_kills(
    spark: SparkSession, batches: list[tuple[list[Event], bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = upserted(spark, Path(folder) / "one")
        table.history(batches)
        events = [event for batch, _ in batches for event in batch]
        assert table.rows("id", "n", "value") == newest(events)
        held = {row[:2]: row for row in table.rows("id", "n", "updated_at")}
        table.write(events[::-1])  # all of it once more, the other way round: nothing changes
        assert table.rows("id", "n", "value") == newest(events)
        assert {row[:2]: row for row in table.rows("id", "n", "updated_at")} == held


def test_each_batch_is_one_commit_with_its_record_also_where_nothing_changes(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = upserted(spark, tmp_path / "one")
    for batch in ([("a", 1, "x", False)], [("a", 0, "old", False)], [("b", 1, "gone", True)], []):
        table.write(batch)
        assert DeltaLog(table.path).version() == table.batches - 1
        assert (DeltaLog(table.path).record() or {})["batch_id"] == table.batches
    assert table.rows("id", "value") == [("a", "x")]


def test_of_rows_of_equal_order_the_later_one_counts_in_a_batch_and_between_batches(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = upserted(spark, tmp_path / "one")
    table.write([("a", 1, "first", False), ("a", 1, "second", False), ("b", 1, "first", False)])
    assert table.rows("id", "value") == [("a", "second"), ("b", "first")]
    table.write([("a", 1, "third", False), ("b", 1, "gone", True)])
    assert table.rows("id", "value") == [("a", "third")]


def test_a_merge_looks_into_the_partitions_of_its_rows_alone(spark: SparkSession, tmp_path: Path) -> None:
    upsert = Upsert(tmp_path / "one", ["day", "id"], ["n"], partition_by=["day"])
    for number in range(3):
        days = spark.createDataFrame([(f"2026-01-0{d}", "a", number) for d in (1, 2, 3)[: 3 - number]], "d string, id"
                                     " string, n int")  # fmt: skip
        upsert.write(days.selectExpr("cast(d as date) as day", "id", "n"), "{}", datetime.now(timezone.utc))
    info = DeltaLog(tmp_path / "one").info(2)
    assert info["operationMetrics"]["numTargetFilesRemoved"] == "1"
    assert "2026-01-01" in info["operationParameters"]["predicate"]


def test_compaction_between_the_batches_changes_neither_the_rows_nor_the_record(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = upserted(spark, tmp_path / "one")
    keeper = Keeper(table.path, Maintain(compact=Compact(files=2), zorder_by=("id",)))
    for number in range(3):
        table.write([(f"{number}", 1, "new", False), ("a", number, f"{number}", False), ("0", 2, "gone", number > 0)])
        keeper.after(spark)
    log = DeltaLog(table.path)
    assert "OPTIMIZE" in [log.info(version)["operation"] for version in log.versions()]
    assert (log.record() or {})["batch_id"] == 3
    assert table.rows("id", "value") == [("1", "new"), ("2", "new"), ("a", "2")]


# one row per state of a key

#: id, order, value, whether it deletes, second of the day from which it is valid: of the last two the order tells
State = tuple[str | None, int | None, str, bool, int]
STATES = st.builds(
    lambda id, at, n, value: (id, n, value, (at + (n or 0)) % 3 == 0, at),
    st.sampled_from(["a", "b", None]), st.integers(0, 5), st.sampled_from([None, 0, 1]), st.sampled_from("xy"),
)  # fmt: skip
STATE_BATCHES = st.lists(st.tuples(st.lists(STATES, max_size=6), st.booleans()), min_size=1, max_size=3)


class States(Table):
    def __init__(self, spark: SparkSession, path: Path) -> None:
        scd2 = Scd2(path, ["id"], ["n"])
        super().__init__(spark, path, scd2.write)

    def frame(self, events: Sequence[Any]) -> DataFrame:
        frame = self.spark.createDataFrame(list(events), f"id string, n int, value string, {DELETES} boolean, at int")
        return frame.selectExpr("id", "n", "value", DELETES, "timestamp_seconds(at) as valid_from")

    def states(self) -> list[Row]:
        return self.rows("id", "n", "value", "cast(unix_seconds(valid_from) as int)",
                         "cast(unix_seconds(valid_to) as int)")  # fmt: skip

    def rows(self, *columns: str) -> list[Row]:
        found = self.spark.read.format("delta").load(str(self.path)).selectExpr(*columns).collect()
        return sorted((tuple(row) for row in found), key=str)


def history(states: Sequence[State]) -> list[Row]:
    """The oracle: id, n, value, valid from, valid to."""
    points: dict[tuple[str | None, int], tuple[Any, State]] = {}
    for state in states:
        id, n, value, deletes, at = state
        fields = {"id": id, "n": n, "value": value}
        row = json.dumps({k: v for k, v in fields.items() if v is not None}, separators=(",", ":"))
        rank = (n is not None, n or 0, not deletes, row)
        if (id, at) not in points or rank > points[id, at][0]:
            points[id, at] = (rank, state)
    found = []
    for (id, at), (_, (_, n, value, deletes, _)) in points.items():
        later = [time for other, time in points if other == id and time > at]
        if not deletes:
            found.append((id, n, value, at, min(later, default=None)))
    return sorted(found, key=str)


@given(batches=STATE_BATCHES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_states_of_a_key_follow_from_the_set_of_rows_whatever_their_order_the_batches_and_the_kills(
    spark: SparkSession, batches: list[tuple[list[State], bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = States(spark, Path(folder) / "one")
        table.history(batches)
        events = [event for batch, _ in batches for event in batch]
        assert table.states() == history(events)
        open_rows = [row[0] for row in table.states() if row[-1] is None]
        assert len(open_rows) == len(set(open_rows))
        held = table.rows("id", "valid_from", "valid_to", "updated_at")
        table.write(events[::-1])  # all of it once more, the other way round: nothing changes
        assert table.rows("id", "valid_from", "valid_to", "updated_at") == held


def test_a_state_that_arrives_late_splits_the_one_it_lies_in_and_a_deletion_ends_what_comes_after_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = States(spark, tmp_path / "one")
    table.write([("a", 1, "x", False, 10), ("a", 4, "", True, 40), ("b", 1, "", True, 30)])
    table.write([("a", 2, "x", False, 20), ("b", 1, "z", False, 5)])
    assert table.states() == [("a", 1, "x", 10, 20), ("a", 2, "x", 20, 40), ("b", 1, "z", 5, 30)]
    assert table.rows("id", "second(updated_at)") == [("a", 2), ("a", 2), ("b", 2)]
    table.write([("a", 5, "", True, 20), ("c", 1, "x", False, 5)])
    assert table.states() == [("a", 1, "x", 10, 20), ("b", 1, "z", 5, 30), ("c", 1, "x", 5, None)]
    table.write([("a", 3, "late", False, 20), ("c", 1, "x", False, 5)])  # older than the deletion; there already
    assert table.rows("id", "second(updated_at)") == [("a", 2), ("b", 2), ("c", 3)]
