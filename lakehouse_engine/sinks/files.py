"""``files``: a folder of JSON lines, CSV, Parquet or Avro.

**Delivery guarantees**: at least once, and after a crash mended. A job writes its rows into a folder beside, which then
takes the place of the one that is there by two renames: who lists the folder sees all of the old files or all of the
new ones, for an instant between the two none. Where the job's table is one of delta with ``replace_by``, and that
column comes first in ``partition_by``, only the folders of the values that changed are put in place, one after the
other. What was written is noted afterwards; after a crash before that it is written again, so nothing is left out or
there twice.

A stream adds the files of each micro-batch, ``batch-<number>-<n>``, and notes how far that was when they are on the
disk. A batch that comes again after a crash takes the place of its files, so the folder holds each row once; who reads
it meanwhile may see a part of the batch, or files that are then replaced by others with the same rows. Files may be
taken away by who has read them. A folder that somebody else has made is neither replaced nor added to.

In an object store (``s3a://``) a job adds its files before it takes the old ones away: who reads between the two sees
both. That somebody has emptied such a folder is not noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import remote, sql
from lakehouse_engine.component import Columns, Component
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.folders import PATTERN, AnyPath, is_remote, missing_avro, real
from lakehouse_engine.sinks import stores
from lakehouse_engine.sinks.stores import BATCH, OWNER

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_NULL = "__HIVE_DEFAULT_PARTITION__"
_OPTIONS: dict[str, dict[str, Any]] = {
    "json": {"ignoreNullFields": False, "timestampFormat": sql.TIME_FORMAT},
    # RFC 4180: a quote is written twice
    "csv": {"header": True, "escape": '"', "timestampFormat": sql.TIME_FORMAT},
    "parquet": {}, "avro": {}}  # fmt: skip




def _one_folder(path: str) -> str:
    if is_remote(path) and PATTERN & set(path):
        raise PydanticCustomError("BAD_PATH", "{path} is a pattern; what is written is one folder",
                                  {"path": repr(path)})  # fmt: skip
    return path.rstrip("/") if is_remote(path) else path


_Folder = Annotated[AnyPath, AfterValidator(_one_folder), WithJsonSchema({"type": "string", "title": "path", "pattern":
    r"^(s3a://(?!(.*/)?\.\.(/|$))[^/*?\[{]+/[^*?\[{]+$|(?!.*://)(?!(.*/)?\.\.(/|$))(?=.*\S))"})]  # fmt: skip


class Files(Component):
    """A folder of files: a job's whole result, or what a stream adds."""

    #: the folder, relative to the one that the command runs in, or in an object store (``s3a://bucket/out``); it is
    #: made, or is one that the pipeline has made
    path: _Folder
    #: how rows are written
    format: Literal["json", "csv", "parquet", "avro"]
    #: a folder for each value of these columns, as Spark and others read it
    partition_by: Columns = ()

    def target(self, pipeline: str) -> str:
        """The folder."""
        return self.path

    @property
    def gone(self) -> bool:
        """Whether the folder is not there; of an object store nobody asks."""
        return not is_remote(self.path) and not Path(self.path).exists()

    def place(self, storage: Path, where: str) -> Path:
        """The folder itself. Raises ``RunError`` UNSAFE_PATH."""
        path = Path(self.path)
        found = real(path, self.path, where)
        if path.is_symlink() or found.is_relative_to(storage.resolve()) or storage.resolve().is_relative_to(found):
            raise RunError("UNSAFE_PATH", f"{self.path} is {'a link' if path.is_symlink() else 'where the tables are'};"
                           " a folder that is written is one of its own", where=where)  # fmt: skip
        return found

    def write(self, frame: DataFrame, pipeline: str, storage: Path, where: str,
              slices: Collection[str | None] | None = None) -> None:  # fmt: skip
        """Puts the rows in place of what is there; with ``slices``, of these values of the first partition column.

        Raises ``RunError`` UNSAFE_PATH, FOLDER_NOT_OURS, MISSING_JAR; ``PlanError`` COLUMN_TYPE.
        """
        if is_remote(self.path):
            _check_owner(self.path, stores.said(self.path, where), pipeline, where)
            stores.say(self.path, {"pipeline": pipeline}, where)
            folders = None if slices is None else _named(self.partition_by[0], slices)
            stores.replace(lambda url: self._save(frame, url, where), self.path, where, folders)
            return
        folder = self.place(storage, where)
        _check_ours(folder, pipeline, where)
        new, old = (folder.with_name(f".{folder.name}.{word}-{uuid.uuid4().hex[:8]}") for word in ("new", "old"))
        try:
            self._save(frame, f"file:{new}", where)
            (new / OWNER).write_text(json.dumps({"pipeline": pipeline}), encoding="utf-8")
            if slices is None or not folder.exists():
                _exchange(folder, new, old)
                return
            for part in {*_of(new, self.partition_by[0], slices), *_of(folder, self.partition_by[0], slices)}:
                _exchange(folder / part, new / part, old / part)
        finally:  # also what runs that were killed have left
            for left in (*folder.parent.glob(f".{folder.name}.new-*"), *folder.parent.glob(f".{folder.name}.old-*")):
                shutil.rmtree(left, ignore_errors=True)

    def begin(self, pipeline: str, storage: Path, where: str, batch: int) -> None:
        """A stream begins, or goes on after ``batch``: the folder is there.

        Raises ``RunError`` UNSAFE_PATH, FOLDER_NOT_OURS; FOLDER_AHEAD where it holds what the note does not know.
        """
        owner = {"pipeline": pipeline, "streamed": True}
        if is_remote(self.path):
            _check_owner(self.path, stores.said(self.path, where), pipeline, where, streamed=True)
            there = stores.batches(self.path, where)
            _check_ahead(self.path, there.values(), pipeline, batch, where)
            stores.say(self.path, owner, where)
            for place in [place for place, number in there.items() if number > batch]:
                remote.delete(place, where)
            return
        folder = self.place(storage, where)
        _check_ours(folder, pipeline, where, streamed=True)
        files = [*_batches(folder)]
        _check_ahead(str(folder), [number for _, number in files], pipeline, batch, where)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
        for file, number in files:
            if number > batch:  # a process ended before it noted this batch, which comes again
                file.unlink()

    def belongs_to(self, old: str, new: str) -> None:
        """The folder of one pipeline is another's from now on; in an object store whoever looks after it says so."""
        owner = Path(self.path) / OWNER
        said = json.loads(owner.read_text(encoding="utf-8")) if owner.exists() else {}
        if said.get("pipeline") == old:
            owner.write_text(json.dumps({**said, "pipeline": new}), encoding="utf-8")

    def add(self, frame: DataFrame, storage: Path, where: str, batch: int) -> None:
        """Adds the rows of a micro-batch; they are on the disk when this returns. Raises as ``write`` does."""
        if is_remote(self.path):
            stores.add(lambda url: self._save(frame, url, where), self.path, where, batch)
            return
        folder = self.place(storage, where)
        new = folder.with_name(f".{folder.name}.new-{uuid.uuid4().hex[:8]}")
        try:
            self._save(frame, f"file:{new}", where)
            for number, file in enumerate(sorted(new.rglob("part-*"))):
                target = folder / file.relative_to(new).with_name(f"batch-{batch:09}-{number}{''.join(file.suffixes)}")
                target.parent.mkdir(parents=True, exist_ok=True)
                _sync(file)
                file.rename(target)
                _sync(target.parent)
        finally:
            for left in folder.parent.glob(f".{folder.name}.new-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _save(self, frame: DataFrame, url: str, where: str) -> None:
        from pyspark.errors import PySparkException

        writer = frame.write.format(self.format).mode("append").options(**_OPTIONS[self.format])
        try:
            (writer.partitionBy(*self.partition_by) if self.partition_by else writer).save(url)
        except PySparkException as error:
            if self.format == "avro" and "avro" in str(error).lower():
                raise missing_avro(where) from None
            if "UNSUPPORTED_DATA_TYPE" in str(error):
                reason = str(error).split("\n")[0].split(" SQLSTATE")[0]
                raise PlanError("COLUMN_TYPE", reason, where=where) from None
            raise


def _sync(path: Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def _batches(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files of a stream, with the numbers of their micro-batches."""
    for file in folder.rglob("batch-*"):
        found = BATCH.match(file.name)
        if found:
            yield file, int(found[1])


def _check_ours(folder: Path, pipeline: str, where: str, *, streamed: bool = False) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        said = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    _check_owner(str(folder), said if isinstance(said, dict) else {}, pipeline, where, streamed=streamed)


def _check_owner(folder: str, said: Mapping[str, Any] | None, pipeline: str, where: str, *,
                 streamed: bool = False) -> None:  # fmt: skip
    """``said``: by the folder; None where it is empty. Raises ``RunError`` FOLDER_NOT_OURS."""
    if said is None:
        return
    owner, added = said.get("pipeline"), bool(said.get("streamed"))
    if owner is not None and added is not streamed:
        raise RunError("FOLDER_NOT_OURS", f"{folder} was written by {owner} as {'a stream' if added else 'a job'}: name"
                       " another folder, or take it away", where=where)  # fmt: skip
    if owner != pipeline:
        made = f"is what {owner} writes" if owner else "was not made by this pipeline"
        raise RunError("FOLDER_NOT_OURS", f"{folder} {made}, and would be replaced; name another folder, or take it"
                       " away", where=where)  # fmt: skip


def _check_ahead(folder: str, there: Collection[int], pipeline: str, batch: int, where: str) -> None:
    ahead = max(there, default=0)
    if ahead > batch + 1:
        raise RunError("FOLDER_AHEAD", f"{folder} holds micro-batch {ahead}, and {pipeline} has noted {batch}: its rows"
                       " would be there twice; put the storage's note back, or take the folder away",
                       where=where)  # fmt: skip


def _named(column: str, slices: Collection[str | None]) -> set[str]:
    """What folders of these values are called, before it is quoted."""
    return {f"{column}={_NULL if value is None else value}" for value in slices}


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """``new``, if it is there, takes the place of ``folder``, which becomes ``old``."""
    if folder.exists():
        old.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(old)
    if new.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.rename(folder)


def _of(folder: Path, column: str, slices: Collection[str | None]) -> set[str]:
    """The folders of these values."""
    wanted = _named(column, slices)
    return {one.name for one in folder.iterdir() if one.is_dir() and unquote(one.name) in wanted}
