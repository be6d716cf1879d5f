"""``files``: JSON lines or CSV from outside the project, for jobs.

Columns: those of the contract, and ``_path string``, the file that a row came from. Each line is judged as ``parse``
judges a record: one that does not keep the contract is quarantined with its text and every reason, never a null. In
CSV the first line names the columns; an empty field is none, and numbers and booleans are read as such where the
contract has them so.

**Delivery guarantees**: a run reads the files that are there, and its commit names them by path, size and time of
change. While these are as they were there is nothing to do; else the job runs in full, so that each row of each file is
in the table once. A file that changes while it is read is taken in by the next run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Component
from lakehouse_engine.contract import Contract, ContractName
from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: the columns of what is read, before the contract
COLUMNS = {"_value": "binary", "_path": "string"}
_WRITTEN_BARE = {"integer": r"^-?[0-9]+$", "number": r"^-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$",
                 "boolean": "^(true|false)$"}  # fmt: skip


def _local(path: str) -> str:
    if "://" in path:
        raise PydanticCustomError("NOT_YET", "{path}: files elsewhere than on a disk come with a later version",
                                  {"path": path})  # fmt: skip
    if ".." in Path(path).parts or not path.strip():
        raise PydanticCustomError("BAD_PATH", "{path} leads out of the project; name a path below it, or a whole one",
                                  {"path": repr(path)})  # fmt: skip
    return path


LocalPath = Annotated[str, AfterValidator(_local), WithJsonSchema(
    {"type": "string", "title": "path", "pattern": r"^(?!.*://)(?!(.*/)?\.\.(/|$))(?=.*\S)"})]  # fmt: skip


class Files(Component):
    """Files of JSON lines or CSV, for jobs."""

    later: ClassVar[frozenset[str]] = frozenset({"connection"})

    #: a file, a folder, or a pattern with ``*``; relative to the folder that the command runs in
    path: LocalPath
    #: how rows are written
    format: Literal["json", "csv"]
    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName

    @property
    def origin(self) -> str:
        """What people call it."""
        return self.path

    def there(self) -> list[Path]:
        """The files, sorted. Raises ``RunError`` MISSING_FILES where there is none."""
        path = Path(self.path)
        found = path.rglob("*") if path.is_dir() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        kept = sorted(one.resolve() for one in found if one.is_file() and not one.name.startswith((".", "_")))
        if not kept:
            raise RunError("MISSING_FILES", f"there is no file at {self.path}", where="source.files.path")
        return kept

    def listing(self) -> dict[str, Any]:
        """What a commit says of the files: how many, and a hash of their paths, sizes and times of change."""
        told = [(str(one), found.st_size, found.st_mtime_ns) for one in self.there() for found in [one.stat()]]
        return {"files": len(told), "listing": hashlib.sha256(repr(told).encode()).hexdigest()[:32]}

    def read(self, spark: SparkSession, contract: Contract) -> DataFrame:
        """``_value binary`` (JSON) and ``_path string``: a row for each line."""
        paths = [path.as_uri() for path in self.there()]
        if self.format == "json":
            lines = spark.read.text(paths)
            return lines.filter("length(trim(value)) > 0").selectExpr(
                "cast(value as binary) as _value", "_metadata.file_path as _path"
            )
        # RFC 4180: a quote is written twice
        rows = spark.read.option("header", True).option("enforceSchema", False).option("escape", '"').csv(paths)
        text = f"concat('{{', array_join(array({', '.join(_members(rows.columns, contract))}), ','), '}}')"
        return rows.selectExpr(f"cast({text} as binary) as _value", "_metadata.file_path as _path")


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
