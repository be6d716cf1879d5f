"""Files read as a stream: a list says which came together, and the position is the entry that comes next.

Nothing about files orders them for good: times of change go back when a file is moved or comes by a slow upload. So the
stream numbers them itself. What a micro-batch is to read is one entry of a list in the storage,
``<storage>/_files/<pipeline>/<id of the path>.jsonl``: one line each, ``{"entry": 0, "files": {path: [bytes, time of
change in ns]}}``, with paths below the fixed part of the source's. It is on the disk before a file is read. The sink's
commit carries the number of the entry that comes next and what tells the last one from another of its number, as with a
table's versions. What the list holds beyond that was not committed, and is thrown away at a start: the next listing
gives those files again. docs/adr/0021 says why it is so.

Rows are read as a job reads them. Spark's part in the stream is its clock alone: its own source of files keeps in a
checkpoint what it has seen, and forgets it after a week.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lakehouse_engine.contract import Contract
from lakehouse_engine.errors import RunError
from lakehouse_engine.folders import File
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.files import COLUMNS, Files, looked_at
from lakehouse_engine.sources.rate import Never
from lakehouse_engine.sources.reading import Behind, Held, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FOLDER = "_files"
#: bytes and time of change (ns) of files, by path
State = dict[str, tuple[int, int]]


def folder(storage: Path, pipeline: str) -> Path:
    """Where the lists of a pipeline, or of a further sink of one, lie."""
    return storage / FOLDER / quote(pipeline, safe="")


class Entries:
    """The list itself. Raises ``RunError`` LIST_LOST where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        #: what was read, and in which entry
        self.seen: State = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # a process ended while it wrote this: nothing of it was read
            self._take(line)

    def __len__(self) -> int:
        return len(self._lines)

    def _take(self, line: str) -> None:
        try:
            found = json.loads(line)
            files = {path: (int(size), int(at)) for path, (size, at) in found["files"].items()}
            fits = found["entry"] == len(self._lines)
        except (ValueError, KeyError, TypeError, AttributeError):
            fits, files = False, {}
        if not fits:
            raise lost(self.path, f"has no entry {len(self._lines)} in its line {len(self._lines) + 1}")
        self._lines.append(line)
        self.seen |= files

    def add(self, files: State) -> None:
        """One entry more; it is on the disk when this returns."""
        line = json.dumps({"entry": len(self._lines), "files": files}, ensure_ascii=False) + "\n"
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync(self.path.parent)
        self._take(line)

    def keep(self, entries: int) -> None:
        """Throws away what comes after so many."""
        lines, self._lines, self.seen = self._lines[:entries], [], {}
        for line in lines:
            self._take(line)
        if not self.path.exists() or self.path.read_text(encoding="utf-8") == "".join(lines):
            return
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        _sync(self.path.parent)

    def files(self, entry: int) -> State:
        found = json.loads(self._lines[entry])["files"]
        return {path: (size, at) for path, (size, at) in found.items()}

    def digest(self, entry: int) -> str | None:
        """What tells an entry from another one of its number."""
        return hashlib.sha256(self._lines[entry].encode()).hexdigest()[:16] if entry < len(self._lines) else None


class OfFiles:
    """The files of a source that a stream reads, each once. ``pipeline``: whose list it is.

    Raises ``RunError`` LIST_LOST; MISSING_FILES, FILE_CHANGED when the stream begins or goes on.
    """

    placed = False

    def __init__(self, source: Files, contract: Contract, storage: Path, pipeline: str, where: str) -> None:
        self._source, self._contract, self._where, self._pipeline = source, contract, where, pipeline
        key = hashlib.sha256(source.path.encode()).hexdigest()[:16]
        self._list = Entries(folder(storage, pipeline) / f"{key}.jsonl")
        self.topic = TopicState(source.path, f"files-{key}", {0: (0, len(self._list))})
        self.ends: Behind = Never()
        #: what the next batch is to read, by path below the source's
        self._new: dict[str, File] = {}

    def starts(self) -> dict[int, int]:
        return {0: 0}

    def commit(self, positions: Mapping[int, int]) -> str | None:
        """Asked when the batch was read and before it is committed: by then its files have to be as they were."""
        entry = positions.get(0, 0) - 1
        if self._new and entry == len(self._list) - 1:
            self._check_as_listed()
        return self._list.digest(entry) if entry >= 0 else None

    def check_same(self, record: Mapping[str, Any], pipeline: str, where: str) -> None:
        if record["topic_id"] == self.topic.id:
            at = record["positions"]["0"]
            self._check_list(at["to"], at.get("commit"))

    def _check_list(self, position: int, then: str | None = None) -> None:
        if position > len(self._list):
            raise lost(self._list.path, f"has {len(self._list)} entries, and {self._pipeline} has read {position}")
        if position and then is not None and self._list.digest(position - 1) != then:
            raise lost(self._list.path, f"has another entry {position - 1} than {self._pipeline} has read")

    def check(self, positions: Mapping[int, int], pipeline: str) -> None:
        self._check_list(positions.get(0, 0))

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        for name, positions in held:
            self.check(positions, name)
        self._list.keep(min((positions.get(0, 0) for _, positions in held), default=0))
        if not (self._source.elsewhere or self._source.root.exists()):
            raise RunError("MISSING_FILES", f"there is no {self._source.root}, where files would come",
                           where=self._where)  # fmt: skip
        self._look()
        return spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 1).load()

    def begin(self, spark: SparkSession) -> DataFrame:
        raise AssertionError("the loader refuses files in a stream on Spark's state")

    def still(self) -> None:
        """Rows say by themselves what they are of."""

    def idle(self) -> bool:
        self._look()
        return not self._new

    def _look(self) -> None:
        """What is there that was not read. Raises ``RunError`` FILE_CHANGED, UNSAFE_PATH."""
        new = {}
        for path, file in self._source.found(self._where).items():
            before = self._list.seen.get(path)
            if before is None:
                new[path] = file
            elif before != file.state and self._source.rewrites == "fail":
                raise self._changed(path, "was read")
        self._new = new

    def _check_as_listed(self) -> None:
        for path, before in self._new.items():
            if looked_at(before.place, self._where) != before:
                raise self._changed(path, "was being read")

    def _changed(self, path: str, when: str) -> RunError:
        again = ": it is read once it stays as it is" if when == "was being read" else (
            ", and which of its rows are new cannot be told: give what is new in a file of its own (written beside it,"
            " then renamed), or say rewrites: ignore to leave such files as they were read")  # fmt: skip
        return RunError("FILE_CHANGED", f"{path} of {self._source.path} changed after it {when}{again}",
                        where=self._where)  # fmt: skip

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        from pyspark.sql import functions as F

        entry = len(self._list)
        self._list.add({path: file.state for path, file in self._new.items()})
        found = self._source.rows(frame.sparkSession, self._contract, [file.place for file in self._new.values()])
        return found.select("_value", "_path", F.col("_path").alias("_topic"), F.lit(0).alias("_partition"),
                            F.lit(entry).cast("bigint").alias("_offset"), F.lit(None).cast("binary").alias("_key"),
                            F.lit(None).cast("timestamp").alias("_timestamp"))  # fmt: skip

    def reached(self, checkpoint: Path, number: int) -> dict[int, int] | None:
        return {0: len(self._list)}

    def nothing(self, spark: SparkSession) -> str:
        kinds = {name: kind for name, kind in COLUMNS.items() if name != "_value"}
        return f"({placed({**kinds, '_timestamp': 'timestamp'})})"

    def explained(self, positions: Mapping[int, int], pipeline: str) -> RunError | None:
        return None


def lost(path: Path, why: str) -> RunError:
    return RunError("LIST_LOST", f"{path}, the list of the files that were read, {why}: what the table holds cannot be"
                    " told from it; put the list back, or begin anew with lakehouse reset",
                    where=path.parent.name)  # fmt: skip


def _sync(folder: Path) -> None:
    at = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
