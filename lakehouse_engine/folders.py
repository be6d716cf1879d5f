"""Paths outside the storage that a file may name; nothing leads out of the project without saying so."""

from __future__ import annotations

import os
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
