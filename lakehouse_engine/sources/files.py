"""``files``: JSON lines, CSV, Parquet or Avro from outside the project.

Columns: those of the contract, and ``_path string``, the file that a row came from. Each line is judged as ``parse``
judges a record: one that does not keep the contract is quarantined with its text and every reason, never a null. In
CSV the first line names the columns; an empty field is none, and numbers and booleans are read as such where the
contract has them so. A row of Parquet or Avro is judged as the JSON that it would be.

**Delivery guarantees**: a job's run reads the files that are there, and its commit names them by path, size and time of
change. While these are as they were there is nothing to do. Where files were only added, and each row of the result is
made of one row of a file, their rows are added; else the job runs in full. So each row of each file is in the table
once. A file that changes while it is read is taken in by the next run. A stream reads each file that comes once: its
commit says how far in the list of files it is, which lies in the storage and is written before a file is read. Files
must appear whole: written beside, or under a name that begins with ``.`` or ``_``, and then renamed. One that changes
after it was read stops the stream, for nobody can tell which of its rows are new; one that is taken away then is not
missed. Change is seen by size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lakehouse_engine import remote, sql
from lakehouse_engine.component import Component
from lakehouse_engine.contract import Contract, ContractName
from lakehouse_engine.errors import RunError
from lakehouse_engine.folders import AnyPath, File, fixed, is_remote, missing_avro, real, shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession

#: the columns of what is read, before the contract
COLUMNS = {"_value": "binary", "_path": "string"}
#: files that a commit names one by one
MOST_NAMED = 1_000
#: what Spark takes for a pattern
_PATTERN, _ESCAPED = r"([\\{}\[\]*?])", r"\\\1"
_WRITTEN_BARE = {"integer": r"^-?[0-9]+$", "number": r"^-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$",
                 "boolean": "^(true|false)$"}  # fmt: skip


class Files(Component):
    """Files of rows: for jobs all that are there, for streams those that come."""

    later: ClassVar[frozenset[str]] = frozenset({"connection"})

    #: a file, a folder, or a pattern with ``*``; relative to the folder that the command runs in, or in an object store
    #: (``s3a://bucket/in/*.csv``)
    path: AnyPath
    #: how rows are written
    format: Literal["json", "csv", "parquet", "avro"]
    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName
    #: of a stream, when a file that it has read has changed: ``fail`` stops it; ``ignore`` leaves it as it was read
    rewrites: Literal["fail", "ignore"] = "fail"

    @property
    def origin(self) -> str:
        """What people call it."""
        return self.path

    @property
    def root(self) -> Path:
        """The folder in which, or below which, its files are."""
        path = Path(self.path)
        return path if path.is_dir() else Path(fixed(str(path)) or path.anchor)

    @property
    def elsewhere(self) -> bool:
        """Whether they lie in an object store: who lists them needs Spark's JVM."""
        return is_remote(self.path)

    def found(self, where: str) -> dict[str, File]:
        """The files that are there, sorted, by their paths below the part of the path that is no pattern.

        Raises ``RunError`` UNSAFE_PATH; MISSING_JAR, FILES_UNREACHABLE.
        """
        if self.elsewhere:
            return remote.listed(self.path, where)
        path, root = Path(self.path), self.root
        names = path.rglob("*") if path.is_dir() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        found: dict[str, File] = {}
        for one in sorted(names):
            if shown(one.relative_to(root).as_posix()) and one.is_file():
                file = looked_at(str(real(one, self.path, where)), where)
                found |= {} if file is None else {one.relative_to(root).as_posix(): file}
        return found

    def there(self, where: str) -> list[File]:
        """The files, sorted. Raises as ``found`` does; ``RunError`` MISSING_FILES where there is none."""
        kept = sorted(self.found(where).values(), key=lambda file: file.place)
        if not kept:
            raise RunError("MISSING_FILES", f"there is no file at {self.path}", where=where)
        return kept

    def listing(self, where: str) -> dict[str, Any]:
        """What a commit says of the files: how many, a hash of their paths, sizes and times of change, and up to
        ``MOST_NAMED`` each of them."""
        told = [(one.place, one.size, one.at) for one in self.there(where)]
        named = {"named": {path: [size, at] for path, size, at in told}} if len(told) <= MOST_NAMED else {}
        return {"files": len(told), "listing": hashlib.sha256(repr(told).encode()).hexdigest()[:32], **named}

    def read(self, spark: SparkSession, contract: Contract, where: str,
             only: Collection[str] | None = None) -> DataFrame:  # fmt: skip
        """``rows`` of all that are there, or ``only`` of these. Raises ``RunError`` MISSING_FILES, MISSING_JAR."""
        places = [file.place for file in self.there(where)]
        return self.rows(spark, contract, [place for place in places if only is None or place in only])

    def rows(self, spark: SparkSession, contract: Contract, files: Sequence[str]) -> DataFrame:
        """``_value binary`` (JSON) and ``_path string``: a row for each line. Raises ``RunError`` MISSING_JAR."""
        paths = [_literal(file) for file in files]
        if self.format in ("parquet", "avro"):
            row = f"to_json(struct(*), {sql.AS_JSON})"
            typed = loaded(spark.read.option("mergeSchema", True), self.format, paths)
            return typed.selectExpr(f"cast({row} as binary) as _value", "_metadata.file_path as _path")
        if self.format == "json":
            lines = spark.read.text(paths)
            return lines.filter("length(trim(value)) > 0").selectExpr(
                "cast(value as binary) as _value", "_metadata.file_path as _path"
            )
        # RFC 4180: a quote is written twice
        rows = spark.read.option("header", True).option("enforceSchema", False).option("escape", '"').csv(paths)
        text = f"concat('{{', array_join(array({', '.join(_members(rows.columns, contract))}), ','), '}}')"
        return rows.selectExpr(f"cast({text} as binary) as _value", "_metadata.file_path as _path")


def looked_at(place: str, where: str) -> File | None:
    """A file as it is now; None where it is gone. Raises ``RunError`` MISSING_JAR, FILES_UNREACHABLE."""
    if is_remote(place):
        return remote.looked_at(place, where)
    try:
        found = os.stat(place)
    except FileNotFoundError:
        return None
    return File(place, found.st_size, found.st_mtime_ns)


def _literal(place: str) -> str:
    """The path as Spark reads it: not a pattern, and nothing of it decoded."""
    text = re.sub(_PATTERN, _ESCAPED, place)
    return text if is_remote(place) else f"file:{text}"


def added(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, int] | None:
    """The files, with their bytes, by which a listing has grown; None where that is not all, or not told."""
    old, new = before.get("named"), now.get("named")
    if old is None or new is None or any(new.get(path) != at for path, at in old.items()):
        return None
    return {path: at[0] for path, at in new.items() if path not in old}


def loaded(reader: DataFrameReader, form: str, paths: Sequence[str]) -> DataFrame:
    """Raises ``RunError`` MISSING_JAR."""
    from pyspark.errors import PySparkException

    try:
        return reader.format(form).load(list(paths))
    except PySparkException as error:
        if form == "avro" and "avro" in str(error).lower():
            raise missing_avro("source.files.format") from None
        raise


def _members(columns: list[str], contract: Contract) -> Iterator[str]:
    """SQL of each column as a member of a JSON object, null where it is empty: ``array_join`` leaves that out."""
    kinds = {field.name: field.kind for field in contract.fields}
    for name in columns:
        column, bare = sql.name(name), _WRITTEN_BARE.get(kinds.get(name, "string"))
        written = f"to_json(named_struct('v', {column}))"  # {"v":"..."}
        text = f"substring({written}, 6, length({written}) - 6)"
        value = text if bare is None else f"if({column} rlike {sql.string(bare)}, {column}, {text})"
        key = sql.string(f"{json.dumps(name, ensure_ascii=False)}:")
        yield f"if({column} is null, null, concat({key}, {value}))"
