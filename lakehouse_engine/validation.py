"""Every file of a project at once, without Spark and without a service: what ``lakehouse validate`` says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.testing import reader
from lakehouse_engine.testing.cases import SUFFIX


@dataclass(frozen=True)
class Verdict:
    """``pipelines`` by name, none when there are problems; ``problems`` sorted by file and line."""

    pipelines: tuple[str, ...]
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        """``valid``, ``pipelines``, and ``problems``: each with file, line, code and message."""
        return {"valid": not self.problems, "pipelines": list(self.pipelines),
                "problems": [asdict(problem) for problem in self.problems]}  # fmt: skip


def validate(
    paths: Sequence[Path], env: str | None, root: Path, variables: Mapping[str, str] = os.environ
) -> Verdict:
    """Pipelines with what they use, their tests, and the environments' files; a wrong one hides no other.

    ``paths``: files and folders, ``pipelines`` without any. Raises ``UsageError`` ENVIRONMENT_MISSING.
    """
    problems: list[Problem] = []
    environment: Environment | None = None
    for name in sorted({env, *(file.stem for file in (root / "environments").glob("*.yaml"))}, key=str):
        try:
            found = load_environment(name, root, variables)
        except SpecError as error:
            problems += error.problems
        else:
            environment = found if name == env else environment
    paths = list(paths) or [Path("pipelines")]
    names: tuple[str, ...] = ()
    try:
        specs = load(paths, environment=environment)
        compile_plan(specs)
        names = tuple(spec.name for spec in specs)
    except SpecError as error:
        problems += error.problems
    try:
        reader.find([path for path in paths if path.is_dir() or path.with_name(f"{path.stem}{SUFFIX}").is_file()])
    except SpecError as error:
        problems += error.problems
    return Verdict(() if problems else names, tuple(sorted(set(problems))))
