"""A Delta log is read as it lies there; what it no longer tells is answered with None, never guessed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lakehouse_engine.deltalog import DeltaLog

SCHEMA = {"type": "struct", "fields": [
    {"name": "id", "type": "string", "nullable": True, "metadata": {}},
    {"name": "n", "type": "long", "nullable": True, "metadata": {}},
    {"name": "at", "type": "timestamp", "nullable": True, "metadata": {}},
    {"name": "price", "type": "decimal(18,2)", "nullable": True, "metadata": {}},
    {"name": "tags", "type": {"type": "array", "elementType": "string", "containsNull": True}, "nullable": True,
     "metadata": {}}]}  # fmt: skip
METADATA = {"metaData": {"id": "first", "partitionColumns": ["day"], "schemaString": json.dumps(SCHEMA)}}
PROTOCOL = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}


def commit(table: Path, version: int, *actions: dict[str, Any]) -> None:
    folder = table / "_delta_log"
    folder.mkdir(exist_ok=True)
    (folder / f"{version:020d}.json").write_text("".join(json.dumps(action) + "\n" for action in actions))


def add(day: str | None, **more: Any) -> dict[str, Any]:
    return {"add": {"path": "x.parquet", "size": 9, "partitionValues": {"day": day}, "dataChange": True,
                    **more}}  # fmt: skip


def remove(day: str | None, **more: Any) -> dict[str, Any]:
    return {"remove": {"path": "x.parquet", "partitionValues": {"day": day}, "dataChange": True, **more}}


def note(text: str) -> dict[str, Any]:
    return {"commitInfo": {"operation": "WRITE", "userMetadata": text}}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Versions 0 to 3: created, two days added, one removed."""
    commit(tmp_path, 0, PROTOCOL, METADATA)
    commit(tmp_path, 1, note('{"pipeline": "bronze.x", "batch_id": 1}'), add("2026-01-01"))
    commit(tmp_path, 2, add("2026-01-02"), add(None))
    commit(tmp_path, 3, remove("2026-01-01"))
    return tmp_path


def test_there_is_no_version_where_there_is_no_table(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path / "missing")
    assert (log.versions(), log.version(), log.record(), log.table_id(), log.columns()) == ([], None, None, None, None)


def record(number: int) -> dict[str, Any]:
    return note(json.dumps({"pipeline": "bronze.x", "batch_id": number}))


def test_after_a_restore_the_record_is_that_of_the_version_which_it_went_back_to(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path)
    for version in range(4):
        commit(tmp_path, version, record(version), add(None))
        os.utime(tmp_path / "_delta_log" / f"{version:020d}.json", (1000 + version, 1000 + version))

    def restored(number: int, **to: Any) -> Any:
        commit(tmp_path, number, {"commitInfo": {"operation": "RESTORE", "operationParameters": to}}, remove(None))
        return log.record()

    assert restored(4, version=2, timestamp=None) == {"pipeline": "bronze.x", "batch_id": 2, "version": 2}
    assert restored(5, version=0, timestamp=None)["batch_id"] == 0
    assert restored(6, version="4")["batch_id"] == 2  # a RESTORE to what another one had made
    assert restored(7, version=None, timestamp="1970-01-01 00:16:41.5")["batch_id"] == 1
    assert restored(8, version="") is None  # nobody knows
    commit(tmp_path, 9, record(9))
    assert log.record() == {"pipeline": "bronze.x", "batch_id": 9, "version": 9}


def test_versions_are_the_json_commits_in_order_and_nothing_else(table: Path) -> None:
    for other in ("00000000000000000002.checkpoint.parquet", "_last_checkpoint", "00000000000000000009.json.tmp",
                  ".00000000000000000009.json.crc", "9.json", "00000000000000000004.crc"):  # fmt: skip
        (table / "_delta_log" / other).write_text("{}")
    assert DeltaLog(table).versions() == [0, 1, 2, 3]
    assert DeltaLog(table).version() == 3


def test_versions_are_ordered_as_numbers(tmp_path: Path) -> None:
    for version in (10, 9, 100):
        commit(tmp_path, version)
    assert DeltaLog(tmp_path).versions() == [9, 10, 100]


def test_an_empty_line_is_no_action(tmp_path: Path) -> None:
    commit(tmp_path, 0, METADATA)
    with (tmp_path / "_delta_log" / f"{0:020d}.json").open("a") as file:
        file.write("\n  \n")
    assert list(DeltaLog(tmp_path).actions(0)) == [METADATA]


def test_the_record_is_the_newest_of_ours_with_its_version(table: Path) -> None:
    assert DeltaLog(table).record() == {"pipeline": "bronze.x", "batch_id": 1, "version": 1}
    commit(table, 4, note('{"pipeline": "bronze.x", "batch_id": 2}'))
    commit(table, 5, add("2026-01-05"))
    assert DeltaLog(table).record() == {"pipeline": "bronze.x", "batch_id": 2, "version": 4}


@pytest.mark.parametrize("text", ["", "by hand", "5", "[]", "null", '{"other": 1}'])
def test_somebody_elses_note_is_no_record(table: Path, text: str) -> None:
    commit(table, 4, note(text))
    assert DeltaLog(table).record_of(4) is None
    assert DeltaLog(table).record() == {"pipeline": "bronze.x", "batch_id": 1, "version": 1}


def test_the_columns_are_those_of_the_newest_metadata_by_spark_type(table: Path) -> None:
    columns = {"id": "string", "n": "bigint", "at": "timestamp", "price": "decimal(18,2)", "tags": ""}
    assert DeltaLog(table).columns() == columns
    schema = json.dumps({"type": "struct", "fields": [{"name": "m", "type": "integer"}]})
    commit(table, 4, {"metaData": {"id": "first", "partitionColumns": [], "schemaString": schema}})
    assert DeltaLog(table).columns() == {"m": "int"}


def test_the_tables_id_is_unknown_when_its_commit_is_gone(table: Path) -> None:
    assert DeltaLog(table).table_id() == "first"
    (table / "_delta_log" / f"{0:020d}.json").unlink()
    assert DeltaLog(table).table_id() is None
    assert DeltaLog(table).columns() is None


@pytest.mark.parametrize(("since", "slices"), [
    (0, {"2026-01-01", "2026-01-02", None}), (1, {"2026-01-01", "2026-01-02", None}), (2, {"2026-01-01"}), (3, set()),
])  # fmt: skip
def test_the_slices_that_changed_are_those_of_added_and_removed_files(
    table: Path, since: int, slices: set[str | None]
) -> None:
    assert DeltaLog(table).changed(since, "day").slices == frozenset(slices)


def test_a_compaction_changes_nothing(table: Path) -> None:
    commit(table, 4, remove("2026-01-02", dataChange=False), add("2026-01-02", dataChange=False))
    assert DeltaLog(table).changed(3, "day").slices == frozenset()


def test_a_file_that_does_not_say_whether_it_changes_data_does(table: Path) -> None:
    commit(table, 4, {"add": {"path": "x", "size": 1, "partitionValues": {"day": "2026-01-04"}}})
    assert DeltaLog(table).changed(3, "day").slices == frozenset({"2026-01-04"})


UNKNOWN = [
    (
        "the schema",
        {"metaData": {**METADATA["metaData"], "schemaString": json.dumps({"type": "struct", "fields": []})}},
    ),
    ("the partitions", {"metaData": {**METADATA["metaData"], "partitionColumns": []}}),
    ("the protocol", {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7}}),
    ("a file without the column", {"add": {"path": "x", "size": 1, "partitionValues": {"other": "1"}}}),
    ("a file without values", {"remove": {"path": "x", "dataChange": True}}),
]


@pytest.mark.parametrize("action", [u[1] for u in UNKNOWN], ids=[u[0] for u in UNKNOWN])
def test_what_changed_cannot_be_told_from(table: Path, action: dict[str, Any]) -> None:
    commit(table, 4, add("2026-01-04"), action)
    assert DeltaLog(table).changed(3, "day").slices is None


def test_files_are_named_when_rows_were_only_added(table: Path) -> None:
    commit(table, 4, add("2026-01-04", path="day=2026-01-04/a%20b.parquet", size=7), METADATA)
    commit(table, 5, remove("2026-01-02", dataChange=False), add("2026-01-02", path="c.parquet", dataChange=False))
    commit(table, 6, add("2026-01-05", path="d.parquet", size=8))
    assert DeltaLog(table).changed(3, "day").added == {"day=2026-01-04/a b.parquet": 7, "d.parquet": 8}
    assert DeltaLog(table).changed(3, "day", until=4).added == {"day=2026-01-04/a b.parquet": 7}
    assert DeltaLog(table).changed(6, "day").added == {}


@pytest.mark.parametrize("actions", [
    [remove("2026-01-01")], [remove("2026-01-01"), add("2026-01-01")],
    [add("2026-01-01", deletionVector={"storageType": "u"})], [add("2026-01-01"), add("2026-01-01")],
], ids=["removed", "replaced", "with a deletion vector", "twice"])  # fmt: skip
def test_no_file_is_named_when_rows_may_have_gone(table: Path, actions: list[dict[str, Any]]) -> None:
    commit(table, 4, add("2026-01-04", path="a.parquet"))
    commit(table, 5, *actions)
    commit(table, 6, add("2026-01-04", path="b.parquet"))
    assert DeltaLog(table).changed(3, "day").added is None


def test_a_file_that_is_added_again_is_not_taken_for_new_rows(table: Path) -> None:
    commit(table, 4, add("2026-01-04"))
    commit(table, 5, add("2026-01-04"))
    assert DeltaLog(table).changed(3, "day").added is None


def test_a_change_of_properties_alone_changes_no_rows(table: Path) -> None:
    commit(
        table,
        4,
        {"metaData": {**METADATA["metaData"], "configuration": {"delta.appendOnly": "true"}}},
        add("2026-01-04"),
    )
    assert DeltaLog(table).changed(3, "day").slices == frozenset({"2026-01-04"})


def test_a_job_names_the_slices_that_it_replaced_in_a_table_without_partitions(table: Path) -> None:
    named = note(json.dumps({"pipeline": "gold.x", "slice_by": "day", "slices": ["2026-01-07", None]}))
    commit(table, 4, named, add("x", partitionValues={}))
    assert DeltaLog(table).changed(3, "day").slices == frozenset({"2026-01-07", None})
    assert DeltaLog(table).changed(3, "hour").slices is None


def test_the_metadata_is_in_the_checksum_file_when_its_commit_is_gone(table: Path) -> None:
    (table / "_delta_log" / f"{3:020d}.crc").write_text(json.dumps({"metadata": METADATA["metaData"]}))
    (table / "_delta_log" / f"{0:020d}.json").unlink()
    assert DeltaLog(table).table_id() == "first"
    (table / "_delta_log" / f"{3:020d}.crc").write_text("{")
    assert DeltaLog(table).table_id() is None


def test_a_change_before_the_versions_asked_for_does_not_matter(table: Path) -> None:
    commit(table, 4, METADATA)
    commit(table, 5, add("2026-01-05"))
    assert DeltaLog(table).changed(4, "day").slices == frozenset({"2026-01-05"})


def test_what_changed_cannot_be_told_when_a_commit_in_between_is_gone(table: Path) -> None:
    (table / "_delta_log" / f"{2:020d}.json").unlink()
    assert DeltaLog(table).changed(1, "day").slices is None
    assert DeltaLog(table).changed(2, "day").slices == frozenset({"2026-01-01"})


def test_what_changed_cannot_be_told_of_a_table_that_has_gone_back(table: Path) -> None:
    assert DeltaLog(table).changed(99, "day").slices is None
