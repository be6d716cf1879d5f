"""Paths outside the storage that a file may name; nothing leads out of the project without saying so."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.errors import RunError


def _local(path: str) -> str:
    if "://" in path:
        raise PydanticCustomError("NOT_YET", "{path}: files elsewhere than on a disk come with a later version",
                                  {"path": path})  # fmt: skip
    if ".." in Path(path).parts or not path.strip():
        raise PydanticCustomError("BAD_PATH", "{path} leads out of the project; name a path below it, or a whole one",
                                  {"path": repr(path)})  # fmt: skip
    return os.path.normpath(path)  # one folder, one name


LocalPath = Annotated[str, AfterValidator(_local), WithJsonSchema(
    {"type": "string", "title": "path", "pattern": r"^(?!.*://)(?!(.*/)?\.\.(/|$))(?=.*\S)"})]  # fmt: skip


#: characters that make a path a pattern
PATTERN = frozenset("*?[{")


def _anywhere(path: str) -> str:
    if not re.match(r"s3a://[^/]+/.", path):
        return _local(path)
    if set(PATTERN) & set(path.split("/")[2]) or ".." in path.split("/"):
        raise PydanticCustomError("BAD_PATH", "{path} names no bucket and what is in it: s3a://bucket/folder/*.csv",
                                  {"path": repr(path)})  # fmt: skip
    return path


#: of files: on a disk, or in an object store
AnyPath = Annotated[str, AfterValidator(_anywhere), WithJsonSchema({"type": "string", "title": "path", "pattern":
    r"^(s3a://(?!(.*/)?\.\.(/|$))[^/*?\[{]+/.|(?!.*://)(?!(.*/)?\.\.(/|$))(?=.*\S))"})]  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file as it was when somebody looked: ``place`` is its whole path, or its URL; bytes; time of change in ns."""

    place: str
    size: int
    at: int

    @property
    def state(self) -> tuple[int, int]:
        """What shows that it has changed."""
        return self.size, self.at


def shown(path: str) -> bool:
    """Whether a path is of a file that is whole: names that begin with a point or a line are for what is not."""
    return not any(part.startswith((".", "_")) and "=" not in part for part in path.split("/"))


def is_remote(path: str) -> bool:
    return "://" in path


def fixed(path: str) -> str:
    """The folder above what a path, or a pattern, names: the part that is the same for all of it."""
    parts = path.rstrip("/").split("/")
    return "/".join(parts[: next((n for n, part in enumerate(parts) if PATTERN & set(part)), len(parts) - 1)])


def missing_avro(where: str) -> RunError:
    return RunError("MISSING_JAR", "Avro needs the jar spark-avro on Spark's class path, and it is not there; start"
                    ' spark-submit with the engine\'s jars: --jars "$(lakehouse jars --list)"',
                    where=where)  # fmt: skip


def real(path: Path, said: str, where: str) -> Path:
    """The path without links. Raises ``RunError`` UNSAFE_PATH where a link leads a relative one (``said``) out."""
    found = path.resolve()
    if not Path(said).is_absolute() and not found.is_relative_to(Path.cwd().resolve()):
        raise RunError("UNSAFE_PATH", f"{path} is a link that leads out of the project, to {found}; name that path"
                       " itself", where=where)  # fmt: skip
    return found
