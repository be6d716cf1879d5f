"""From files to frozen specs: every error of every file at once, each at its line, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec.check import check_all, check_one, with_tables, with_taken
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.reached import lacking
from lakehouse_engine.spec.reader import Reader, read_contract
from lakehouse_engine.spec.reuse import masked
from lakehouse_engine.spec.schedule import is_schedule

_BESIDE = ("contracts", "templates")


@dataclass(frozen=True)
class Read:
    """What files say: ``specs`` sorted by name, also those that are wrong in part; ``problems`` with secrets masked."""

    specs: tuple[PipelineSpec, ...]
    problems: tuple[Problem, ...]
    upstream: Upstream


def load(
    paths: Sequence[Path], *, environment: Environment | None = None, params: Mapping[str, Any] | None = None
) -> tuple[PipelineSpec, ...]:
    """The pipelines of files and folders, sorted by name. Raises ``SpecError`` with every problem of every file.

    ``params`` go over those of the files, as a test says.
    """
    found = read(paths, environment=environment, params=params)
    if found.problems:
        raise SpecError(found.problems)
    return found.specs


def read(
    paths: Sequence[Path], *, environment: Environment | None = None, params: Mapping[str, Any] | None = None
) -> Read:
    """As ``load``, with what is wrong beside what is not.

    A file that is wrong in part is checked in all its other parts, as are the files that read its table.
    """
    problems: list[Problem] = []
    specs: list[PipelineSpec] = []
    secrets: set[str] = set()
    seen: dict[Path, None] = {}
    for path in paths:
        for file in files(path, problems):
            seen.setdefault(file, None)
        for contract in sorted(path.rglob("contracts/*.yaml")) if path.is_dir() else ():
            read_contract(contract, str(contract), problems)
    names: dict[str, str] = {}
    for file in seen:
        reader = Reader(file, environment, params)
        spec = reader.spec()
        problems += reader.problems
        secrets |= reader.content.secrets
        if spec is None:
            continue
        if spec.name in names:
            problems.append(Problem(str(file), 1, "SAME_TABLE", f"{names[spec.name]} is {spec.name} as well"))
            continue
        names[spec.name] = str(file)
        specs.append(spec)
    upstream = Upstream({spec.name: spec for spec in specs}, environment)
    for spec in specs:
        problems += check_one(spec, upstream)
        if environment is not None and environment.name:
            problems += lacking(spec, environment)
    problems += check_all(specs)
    if not problems:
        specs = [with_tables(with_taken(spec, upstream), upstream) for spec in specs]
    said = tuple(_masked(problem, secrets) for problem in problems)
    return Read(tuple(sorted(specs, key=lambda spec: spec.name)), said, upstream)


def _masked(problem: Problem, secrets: Iterable[str]) -> Problem:
    return Problem(problem.file, problem.line, problem.code, masked(problem.message, secrets), problem.path)


def files(path: Path, problems: list[Problem]) -> Iterable[Path]:
    """The pipeline files of a folder, or the file itself; adds NO_PIPELINES or FILE_MISSING to ``problems``."""
    if path.is_dir():
        found = [
            file for file in sorted(path.rglob("*.yaml"))
            if not file.name.endswith(".test.yaml") and file.name != "defaults.yaml"
            and file.resolve().parent.name not in _BESIDE
        ]  # fmt: skip
        if not found:
            problems.append(Problem(str(path), 0, "NO_PIPELINES", "there is no pipeline in this folder"))
        return found
    if not path.is_file():
        problems.append(Problem(str(path), 0, "FILE_MISSING", "there is no such file or folder"))
        return []
    return [path]


@dataclass
class Upstream:
    """Pipelines by name: those of this call, else the file where the name says it is."""

    specs: dict[str, PipelineSpec]
    environment: Environment | None
    _loading: set[str] = field(default_factory=set)

    def find(self, name: str, beside: str) -> PipelineSpec | None:
        if name in self.specs:
            return self.specs[name]
        layer, _, table = name.partition(".")
        file = Path(beside).parent.parent / layer / f"{table}.yaml"
        if name in self._loading or not file.is_file():
            return None
        self._loading.add(name)
        spec = Reader(file, self.environment).spec()
        if spec is not None:
            self.specs[name] = spec
        return spec

    def names(self, beside: str) -> set[str]:
        """Every pipeline of the project that a file is in, readable or not."""
        root = Path(beside).parent.parent
        found = {f"{file.parent.name}.{file.stem}" for file in root.glob("*/*.yaml")
                 if file.name != "defaults.yaml" and not file.name.endswith(".test.yaml")
                 and file.parent.name not in _BESIDE}  # fmt: skip
        return found | self.specs.keys()


__all__ = ["Read", "Upstream", "files", "is_schedule", "load", "read"]
