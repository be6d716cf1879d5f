"""Streams over files: each file is read once, whatever ends in between; what cannot be told is refused."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pyspark.sql import DataFrame, SparkSession

from lakehouse_engine import inserts, jobs, noted
from lakehouse_engine.connections import Connections
from lakehouse_engine.errors import RunError
from lakehouse_engine.landing import Landing
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.rename import Renamed
from lakehouse_engine.sinks import Files as Sink
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sources import listed
from lakehouse_engine.spec.loader import load
from lakehouse_engine.streams import ScanRun
from tests.lab import to_its_end

CONTRACT = "type: object\nrequired: [id]\nproperties:\n  id: {type: integer}\n"
PIPELINE = """
source: {files: {path: %s, format: json, contract: number%s}}
sink: %s
trigger: {every: 1 second}
"""


class Killed(Exception):
    """What stands for the end of the process."""


def kill(*_: Any, **__: Any) -> None:
    raise Killed


class Came:
    """A folder that files come into, and a stream over it; each ``step`` is a new start."""

    def __init__(self, spark: SparkSession, folder: Path, dsn: str | None = None, *, sink: str = "delta",
                 more: str = "", place: str = "") -> None:  # fmt: skip
        self.spark, self.path, self.dsn = spark, folder / "in", dsn
        self.path.mkdir(exist_ok=True)
        (folder / "pipelines" / "contracts").mkdir(parents=True, exist_ok=True)
        (folder / "pipelines" / "bronze").mkdir(exist_ok=True)
        (folder / "pipelines" / "contracts" / "number.yaml").write_text(CONTRACT)
        self.file = folder / "pipelines" / "bronze" / "numbers.yaml"
        self.file.write_text(PIPELINE % (json.dumps(place or str(self.path)), more, sink))
        self.storage = folder / "storage"

    def put(self, name: str, *ids: object, at: int | None = None) -> None:
        """A file of these numbers, or texts; ``at``: its time of change, in seconds."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps({'id': one}) if isinstance(one, int) else one}\n" for one in ids))
        if at is not None:
            os.utime(path, (at, at))

    def step(self) -> None:
        (scan,) = compile_plan(load([self.file])).scans
        run = ScanRun(self.spark, scan, Connections("", self.dsn, self.storage, "test"), lambda _: None)
        try:
            to_its_end(run)
        except RunError:
            raise
        except Exception:
            raise (run.error or RuntimeError("it stopped")) from None

    def landed(self, table: str = "bronze/numbers", column: str = "id") -> list[Any]:
        frame = self.spark.read.format("delta").load(str(self.storage / table))
        return sorted(row[column] for row in frame.select(column).collect())

    def written(self, folder: Path) -> list[Any]:
        return sorted(row["id"] for row in self.spark.read.format("avro").load(str(folder)).collect())

    def stored(self) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("select id from realtime.numbers order by 1")
            return cursor.fetchall()


def test_files_are_read_once_whatever_they_are_called_and_however_old_they_are(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = Came(spark, tmp_path)
    came.put("new.json", 1, "no json", at=2_000_000_000)
    came.put("a b%20{c,d}[1].json", 2)
    came.put(".hidden", 3)
    came.put("_part", 4)
    came.step()
    assert came.landed() == [1, 2]
    came.put("moved here, and older than what was read.json", 5, at=1_000_000_000)
    came.put("below/old.json", 6, at=2_000_000_000)
    with monkeypatch.context() as patch:  # listed, read, and then the end
        patch.setattr(delta_sink, "append", kill)
        with pytest.raises(Killed):
            came.step()
    came.put("later.json", 7, "nor this")
    with monkeypatch.context() as patch:  # what it refuses is kept aside, and then the end
        patch.setattr(Landing, "_store", kill)
        with pytest.raises(Killed):
            came.step()
    came.put("latest.json", 8)
    came.step()
    came.step()
    assert came.landed() == [1, 2, 5, 6, 7, 8]
    assert [Path(one).name for one in came.landed("bronze/numbers__quarantine", "origin")] == ["later.json", "new.json"]
    (came.path / "new.json").unlink()  # nobody misses it
    came.put("more.json", 9)
    came.step()
    assert came.landed() == [1, 2, 5, 6, 7, 8, 9]
    came.spark.sql(f"restore delta.`{came.storage / 'bronze' / 'numbers'}` to version as of 0")
    came.step()  # what came by versions that are gone is read again; what is gone from the folder cannot be
    assert came.landed() == [1, 2, 5, 6, 7, 8, 9]


def test_in_postgres_a_batch_that_was_not_committed_comes_again(
    spark: SparkSession, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = Came(spark, tmp_path, database, sink="{postgres: {table: realtime.numbers}}")
    came.put("one", 1)
    came.step()
    came.put("two", 2)
    with monkeypatch.context() as patch:
        patch.setattr(inserts.progress, "commit", kill)
        with pytest.raises(Killed):
            came.step()
    came.put("three", 3)
    came.step()
    assert came.stored() == [(1,), (2,), (3,)]
    (old,) = compile_plan(load([came.file])).specs
    Renamed(old, "bronze.numbers", "silver.counts", came.storage).run(database, lambda: spark, lambda _: None)
    came.file = tmp_path / "pipelines" / "silver" / "counts.yaml"
    came.put("four", 4)
    came.step()
    assert came.stored() == [(1,), (2,), (3,), (4,)]
    for path in (came.storage / listed.FOLDER).glob("silver.counts/*.jsonl"):
        path.unlink()
    with pytest.raises(RunError, match=r"has 0 entries, and silver.counts has read 3") as refused:
        came.step()
    assert refused.value.code == "LIST_LOST"


def test_a_file_that_changes_after_it_was_read_stops_the_stream_unless_that_is_meant(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = Came(spark, tmp_path)
    came.put("grows", 1)
    rows = listed.Files.rows

    def grown(*given: Any) -> Any:
        found = rows(*given)
        came.put("grows", 1, 2)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(listed.Files, "rows", grown)
        with pytest.raises(RunError, match="changed after it was being read") as refused:
            came.step()
    assert (refused.value.code, refused.value.where) == ("FILE_CHANGED", f"{came.file}:2")
    came.step()
    assert came.landed() == [1, 2]
    came.put("grows", 1, 2, 3)
    with pytest.raises(RunError, match=r"grows of .* changed after it was read, and which"):
        came.step()
    Came(spark, tmp_path, more=", rewrites: ignore")
    came.put("other", 4)
    came.step()
    assert came.landed() == [1, 2, 4]


def test_a_batch_that_is_not_noted_takes_the_place_of_its_files(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o%20 ut"
    came = Came(spark, tmp_path, sink=f"{{files: {{path: '{out}', format: avro}}}}")
    came.put("one", 1, "no json")
    came.step()
    came.put("two", 2)
    with monkeypatch.context() as patch:
        patch.setattr(noted, "write", kill)
        with pytest.raises(Killed):
            came.step()
    assert came.written(out) == [1, 2]
    came.put("three", 3)
    with monkeypatch.context() as patch:  # while it puts its files there
        patch.setattr("lakehouse_engine.sinks.files._sync", kill)
        with pytest.raises(Killed):
            came.step()
    came.step()
    assert came.written(out) == [1, 2, 3]
    assert sorted(file.name.partition(".")[0] for file in out.iterdir()) == [
        "_lakehouse", "batch-000000001-0", "batch-000000002-0"]  # fmt: skip
    assert came.landed("bronze/numbers__quarantine", "batch_id") == [1]
    noted.place(came.storage, "bronze.numbers").unlink()
    with pytest.raises(RunError, match=r"holds micro-batch 2, and bronze.numbers has noted 0") as refused:
        came.step()
    assert refused.value.code == "FOLDER_AHEAD"


def test_an_object_store_without_its_jars_is_refused_at_its_line_before_anything_is_touched(
    spark: SparkSession, tmp_path: Path
) -> None:
    came = Came(spark, tmp_path, place="s3a://in/numbers/*.json")
    with pytest.raises(RunError, match="S3AFileSystem not found") as refused:
        came.step()
    assert (refused.value.code, refused.value.where) == ("MISSING_JAR", f"{came.file}:2")
    came.file.write_text(came.file.read_text().replace("trigger: {every: 1 second}", "schedule: daily"))
    (job,) = compile_plan(load([came.file])).jobs
    with pytest.raises(RunError) as refused:
        jobs.run(spark, job, came.storage, None)
    assert (refused.value.code, refused.value.where) == ("MISSING_JAR", f"{came.file}:2")
    assert not (came.storage / "bronze").exists()


def test_what_is_done_in_an_object_store_is_done_through_hadoop(spark: SparkSession, tmp_path: Path) -> None:
    """Here with Hadoop's file system of the disk, which has no server to ask."""
    url, where = f"file://{tmp_path}/o ut", "x.yaml:3"
    made = Sink(path="s3a://b/out", format="json", partition_by=("day",)).model_copy(update={"path": url})

    def rows(*found: tuple[int, str]) -> DataFrame:
        return spark.createDataFrame(found, "id int, day string").coalesce(1)

    def written(place: str = url) -> list[int]:
        return sorted(row["id"] for row in spark.read.json(place).collect())

    made.write(rows((1, "a b"), (2, "b"), (3, "c")), "silver.x", tmp_path, where)
    made.write(rows((4, "a b")), "silver.x", tmp_path, where, ["a b", "c"])
    assert written() == [2, 4]
    made.write(rows((5, "b")), "silver.x", tmp_path, where)
    assert written() == [5]
    for pipeline, act in [("silver.y", lambda: made.write(rows((6, "b")), "silver.y", tmp_path, where)),
                          ("silver.x", lambda: made.begin("silver.x", tmp_path, where, 0))]:  # fmt: skip
        with pytest.raises(RunError) as refused:
            act()
        assert (refused.value.code, refused.value.where) == ("FOLDER_NOT_OURS", where), pipeline
    added = made.model_copy(update={"path": f"{url}/of a stream"})
    added.begin("silver.x", tmp_path, where, 0)
    added.add(rows((1, "a b"), (2, "b")), tmp_path, where, 1)
    added.add(rows((3, "b")), tmp_path, where, 2)
    added.begin("silver.x", tmp_path, where, 1)
    added.add(rows((3, "b"), (4, "b")), tmp_path, where, 2)
    assert written(added.path) == [1, 2, 3, 4]
    with pytest.raises(RunError) as refused:
        added.begin("silver.x", tmp_path, where, 0)
    assert refused.value.code == "FOLDER_AHEAD"
    read = listed.Files(path="s3a://b/in", format="json", contract="c")
    below = read.model_copy(update={"path": added.path}).found(where)
    assert [path.partition(".")[0] for path in below] == [
        "day=a b/batch-000000001-0", "day=b/batch-000000001-1", "day=b/batch-000000002-0"]  # fmt: skip
    one = read.model_copy(update={"path": f"{url}/of a stream/day=*/batch-000000002-*"}).found(where)
    assert {path: file.state for path, file in one.items()} == {
        path: file.state for path, file in below.items() if "000000002" in path}  # fmt: skip
    (tmp_path / "o ut" / "of a stream" / "day=b" / "_half").write_text("x")
    assert len(read.model_copy(update={"path": added.path}).found(where)) == 3


def test_a_list_that_a_process_left_half_written_is_as_it_was_and_one_that_was_changed_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    entries = listed.Entries(path)
    entries.add({"a": (1, 10)})
    entries.add({"b": (2, 20)})
    with path.open("a") as file:
        file.write('{"entry": 2, "files": {"c"')
    found = listed.Entries(path)
    assert (len(found), found.seen, found.digest(1)) == (2, {"a": (1, 10), "b": (2, 20)}, entries.digest(1))
    found.keep(1)
    assert listed.Entries(path).seen == {"a": (1, 10)}
    assert found.digest(1) is None
    for wrong in ('{"entry": 5, "files": {}}\n', "[]\n", '{"entry": 1}\n'):
        path.write_text('{"entry": 0, "files": {"a": [1, 10]}}\n' + wrong)
        with pytest.raises(RunError) as refused:
            listed.Entries(path)
        assert refused.value.code == "LIST_LOST"
