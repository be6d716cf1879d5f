"""A Delta table read as a stream: which version comes next is the position, of partition 0.

A micro-batch takes every commit there is, so it ends between two versions and a position is one number: 0 before
anything was read, else the version that comes next. The first batch is the table as it is then; what follows are the
rows that later commits add, or with ``changes`` what they change. Spark's own source does the reading. It begins where
its checkpoint says, and that is written here, in the form in which Spark writes it ("Structured Streaming Programming
Guide", offset log; Delta's ``DeltaSourceOffset``): the sink's position is the one truth.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lakehouse_engine import sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.delta import CHANGE, Delta, as_changes, without_rewritten
from lakehouse_engine.sources.reading import PLACE, Behind, Held, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: files that a batch takes at most: as many as there are, so that it ends between two versions
_ALL = 2**31 - 1
_CDF = "delta.enableChangeDataFeed"


def columns_of(source: Delta, table: Mapping[str, str]) -> dict[str, str]:
    """What a stream over the table has: the table's columns, and those of a change."""
    return {**table, **CHANGE} if source.changes else dict(table)


def own(name: str) -> str:
    """What a batch calls a column of the table: one that is called as a place is has another name."""
    return f"_of_table{name}" if name.lower() in PLACE else name


def place(columns: Mapping[str, str]) -> tuple[str, str]:
    """SQL of where a row came from, partition and offset: the record that was landed, else the batch's version."""
    if not {"_partition", "_offset"} <= columns.keys():
        return "_partition", "_offset"
    partition, offset = sql.name(own("_partition")), sql.name(own("_offset"))
    return f"coalesce(cast({partition} as int), _partition)", f"coalesce(cast({offset} as bigint), _offset)"


class Unread:
    """How many rows were added that have not been read; the log is asked, which costs little."""

    def __init__(self, log: DeltaLog) -> None:
        self._log = log

    def start(self) -> None:
        """Nothing listens."""

    def ask(self) -> None:
        """Nobody is asked."""

    def behind(self, positions: Mapping[int, int]) -> int:
        position = positions.get(0, 0)
        return sum(_rows(self._log, version) for version in self._log.versions() if position and version >= position)

    def close(self) -> None:
        """Nothing listens."""


class OfTable:
    """The table of a pipeline at ``path``. ``columns``: those that the stream reads, as the pipeline's file has them.

    Raises ``RunError`` MISSING_TABLE, CHANGES_OFF.
    """

    placed = False

    def __init__(self, source: Delta, path: Path, columns: Mapping[str, str], where: str) -> None:
        self._source, self._log, self._columns, self._where = source, DeltaLog(path), columns, where
        version, table_id = self._log.version(), self._log.table_id()
        if version is None or table_id is None:
            raise RunError("MISSING_TABLE", f"there is no table {source.table} yet; run the pipeline that writes it"
                           " first", where=where)  # fmt: skip
        if source.changes and not self._keeps_changes():
            raise RunError("CHANGES_OFF", f"{source.table} does not keep what changes: run the pipeline that writes it"
                           " together with this one once (lakehouse run with both files), which makes it",
                           where=where)  # fmt: skip
        self.topic = TopicState(source.table, table_id, {0: (0, version + 1)})
        self.ends: Behind = Unread(self._log)

    def _keeps_changes(self) -> bool:
        return bool((self._log.metadata() or {}).get("configuration", {}).get(_CDF) == "true")

    def starts(self) -> dict[int, int]:
        return {0: 0 if self._source.start == "earliest" else self.topic.offsets[0][1]}

    def commit(self, positions: Mapping[int, int]) -> str | None:
        return self._log.commit_id(positions[0] - 1) if positions.get(0) else None

    def check_same(self, record: Mapping[str, Any], pipeline: str, where: str) -> None:
        if record["topic"] != self.topic.name:
            return
        if record["topic_id"] != self.topic.id:
            raise recreated(self.topic.name, pipeline, where)
        position = record["positions"]["0"]["to"]
        there, then = self.commit({0: position}), record["positions"]["0"].get("commit")
        if there and then and there != then:
            raise RunError("TABLE_RECREATED", f"version {position - 1} of {self.topic.name} is another one than"
                           f" {pipeline} has read: the table was restored from a copy and written on, and rows that are"
                           f" gone there are in {pipeline}: begin anew with lakehouse reset",
                           where=where)  # fmt: skip

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        for name, positions in held:
            self.check(positions, name)
        position = min((positions.get(0, 0) for _, positions in held), default=self.starts()[0])
        if position:
            self._write_checkpoint(checkpoint, position)
        return self._frame(spark)

    def _frame(self, spark: SparkSession, **options: str) -> DataFrame:
        reader = spark.readStream.format("delta").option("maxFilesPerTrigger", _ALL).options(**options)
        if self._source.changes:
            reader = reader.option("readChangeFeed", "true")
        elif self._source.rewrites == "ignore":
            reader = reader.option("skipChangeCommits", "true")
        frame = reader.load(str(self._log.path))
        self._check_columns(frame.columns)
        return frame

    def begin(self, spark: SparkSession) -> DataFrame:
        options = {"startingVersion": "latest"} if self._source.start == "latest" else {}
        return self._placed(self._frame(spark, **options), None)

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        end = self._end(checkpoint, number)
        if self._source.changes:
            begin = self._end(checkpoint, number - 1) if number else end
            versions = range(min(begin, end), end)  # the table as it was at the start is no commit
            frame = without_rewritten(as_changes(frame), [v for v in versions if self._log.overwrites(v)])
        return self._placed(frame, end - 1)

    def at(self, spark: SparkSession, version: int) -> DataFrame:
        """The rows of a version, as a batch that ends with it gives them."""
        frame = spark.read.format("delta").option("versionAsOf", version).load(str(self._log.path))
        self._check_columns(frame.columns)
        return self._placed(frame, version)

    def still(self) -> None:
        """Rows say by themselves what they are of."""

    def idle(self) -> bool:
        return False

    def reached(self, checkpoint: Path, number: int) -> dict[int, int] | None:
        return {0: self._end(checkpoint, number)}

    def nothing(self, spark: SparkSession) -> str:
        frame = spark.read.format("delta").load(str(self._log.path))
        self._check_columns(frame.columns)
        kinds = dict(frame.dtypes)
        table = {name: kinds[name] for name in self._columns if name in kinds}
        return f"({placed({own(name): kind for name, kind in columns_of(self._source, table).items()})})"

    def explained(self, positions: Mapping[int, int], pipeline: str) -> RunError | None:
        try:
            self.check(positions, pipeline)
        except RunError as error:
            return error
        return None

    def _placed(self, frame: DataFrame, version: int | None) -> DataFrame:
        from pyspark.sql import functions as F

        names = columns_of(self._source, self._columns)
        at = {"_topic": F.lit(self.topic.name), "_partition": F.lit(0), "_offset": F.lit(version),
              "_key": F.lit(None), "_value": F.lit(None)}  # fmt: skip
        return frame.select(*[F.col(sql.name(name)).alias(own(name)) for name in names],
                            *[column.cast(PLACE[name]).alias(name) for name, column in at.items()])  # fmt: skip

    def _end(self, checkpoint: Path, number: int) -> int:
        """The version that comes after a batch. Spark writes the offsets of one before it runs it.

        A query that has the table twice has its offset twice.
        """
        lines = (checkpoint / "offsets" / str(number)).read_text(encoding="utf-8").splitlines()[2:]
        offsets = [json.loads(line) for line in lines if line != "-"]
        offset = min((one for one in offsets if one.get("reservoirId") == self.topic.id),
                     key=lambda one: (one["reservoirVersion"], one["index"]))  # fmt: skip
        if offset["index"] < 0 and not offset["isStartingVersion"]:
            return int(offset["reservoirVersion"])
        # of a commit with changes Spark names the last file, which is all of it
        if offset["index"] >= 0 and self._source.changes:
            return int(offset["reservoirVersion"]) + 1
        raise RunError("STREAM_FAILED", f"a batch of {self.topic.name} ends within version"
                       f" {offset['reservoirVersion']}", where=self._where)  # fmt: skip

    def _write_checkpoint(self, folder: Path, position: int) -> None:
        """Two batches that ended at the position. With one alone Spark would ask what came before it."""
        version, index = position, -1
        if self._source.changes and position == self.topic.offsets[0][1]:
            version, index = position - 1, _ALL  # of a version that is not there yet it would ask for the columns
        offset = {"sourceVersion": 1, "reservoirId": self.topic.id, "reservoirVersion": version, "index": index,
                  "isStartingVersion": False}  # fmt: skip
        head = {"batchWatermarkMs": 0, "batchTimestampMs": 0, "conf": {}}
        for kind, text in (("offsets", f"{json.dumps(head)}\n{json.dumps(offset)}"),
                           ("commits", json.dumps({"nextBatchWatermarkMs": 0}))):  # fmt: skip
            (folder / kind).mkdir(parents=True)
            for number in ("0", "1"):
                (folder / kind / number).write_text(f"v1\n{text}", encoding="utf-8")
        (folder / "metadata").write_text(json.dumps({"id": str(uuid.uuid4())}), encoding="utf-8")

    def check(self, positions: Mapping[int, int], pipeline: str) -> None:
        """That what follows a position is there, is of this table, and adds rows alone.

        Raises ``RunError`` TABLE_RECREATED, POSITION_BEYOND_TABLE, DATA_LOST, ROWS_REWRITTEN, CHANGES_GONE.
        """
        position, name, versions = positions.get(0, 0), self.topic.name, self._log.versions()
        if self._log.table_id() != self.topic.id:
            raise recreated(name, pipeline, self._where)
        if not position:
            return
        if position > versions[-1] + 1:
            raise RunError("POSITION_BEYOND_TABLE", f"{pipeline} has read {name} up to version {position - 1}, and it"
                           f" ends at {versions[-1]}: was it restored from a copy?", where=self._where)  # fmt: skip
        missing = sorted(set(range(position, versions[-1] + 1)) - set(versions))
        if missing:
            raise RunError("DATA_LOST", f"version {missing[0]} of {name}, which {pipeline} has not read, is no longer"
                           " in its log", where=self._where)  # fmt: skip
        for version in range(position, versions[-1] + 1):
            self._check_version(version, pipeline)

    def _check_version(self, version: int, pipeline: str) -> None:
        name, changes = self.topic.name, self._source.changes
        if changes and (self._log.metadata(until=version) or {}).get("configuration", {}).get(_CDF) != "true":
            raise RunError("CHANGES_GONE", f"{name} did not keep what version {version} changed, which {pipeline} has"
                           " not read", where=self._where)  # fmt: skip
        if not changes and self._log.rewrites(version):
            if self._source.rewrites == "ignore":
                return  # the whole commit is passed over, its files too
            raise RunError("ROWS_REWRITTEN", f"version {version} of {name} changes or deletes rows that are there: say"
                           " changes: true for what changed, or rewrites: ignore to pass over such commits, with the"
                           " rows that they add", where=self._where)  # fmt: skip
        for file in _files(self._log, version, changes=changes):
            if not (self._log.path / file).exists():
                raise RunError("DATA_LOST", f"{file} of version {version} of {name}, which {pipeline} has not read, is"
                               " gone: it was compacted, and vacuum_after has passed", where=self._where)  # fmt: skip

    def _check_columns(self, there: Sequence[str]) -> None:
        known = {name.lower() for name in there}
        for column in self._columns:
            if column.lower() not in known:
                raise PlanError("TABLE_DIFFERS", f"{self.topic.name} has no column {column}, which its file says: run"
                                " the pipeline that writes it", where=self._where)  # fmt: skip


def recreated(table: str, pipeline: str, where: str) -> RunError:
    return RunError("TABLE_RECREATED", f"{table} was deleted and made anew since {pipeline} has read it: versions of"
                    f" the old one mean nothing there, and its rows are in {pipeline}; to begin anew: lakehouse"
                    " reset", where=where)  # fmt: skip


def _files(log: DeltaLog, version: int, *, changes: bool) -> Iterator[str]:
    """What a stream reads of a commit, by path below the table."""
    found: dict[str, list[str]] = {"add": [], "remove": [], "cdc": []}
    for action in log.actions(version):
        for kind, paths in found.items():
            if kind in action and (kind == "cdc" or action[kind].get("dataChange", True)):
                paths.append(unquote(action[kind]["path"]))
    # what changed lies in files of its own, or is all that files hold which came or went
    yield from (found["cdc"] or [*found["add"], *found["remove"]]) if changes else found["add"]


def _rows(log: DeltaLog, version: int) -> int:
    """The rows that a commit adds, by its files' statistics."""
    found = [action["add"] for action in log.actions(version) if "add" in action]
    stats = [json.loads(add.get("stats") or "{}") for add in found if add.get("dataChange", True)]
    return sum(int(one.get("numRecords", 0)) for one in stats)
