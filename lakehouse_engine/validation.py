"""Every file of a project at once, without Spark and without a service: what ``lakehouse validate`` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.request import Request
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.loader import load, read
from lakehouse_engine.testing import reader
from lakehouse_engine.testing.cases import SUFFIX

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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
    paths: Sequence[Path], env: str | None, root: Path, variables: Mapping[str, str] = os.environ,
    spark: Callable[[], SparkSession] | None = None,
) -> Verdict:
    """Pipelines with what they use, their tests, and the environments' files; a wrong one hides no other.

    ``spark``: a session, on which the types of all columns are found as well; without it the files alone are judged.
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
        files = read(paths, environment=environment)
        problems += files.problems
        if not files.problems:
            compile_plan(files.specs)
        if spark is not None and files.specs:
            from lakehouse_engine import analysis

            problems += analysis.analyse(analysis.of(spark()), files).problems
        names = tuple(spec.name for spec in files.specs)
    except SpecError as error:
        problems += error.problems
    try:
        reader.find([path for path in paths if path.is_dir() or path.with_name(f"{path.stem}{SUFFIX}").is_file()])
    except SpecError as error:
        problems += error.problems
    return Verdict(() if problems else names, tuple(sorted(set(problems))))


def answer(request: Request, root: Path, spark: Callable[[], SparkSession] | None) -> dict[str, Any]:
    """What a command that looks (``validate``, ``plan``) says: ``json``, ``text`` and ``status``, its exit status."""
    if request.command == "validate":
        verdict = validate(request.specs, request.env, root, request.variables, spark)
        valid = f"{len(verdict.pipelines)} pipelines are valid"
        status = SpecError.exit_status if verdict.problems else 0
        said = str(SpecError(verdict.problems)) if verdict.problems else valid
        return {"json": verdict.as_json(), "text": said, "status": status}
    from lakehouse_engine import analysis  # not read where files alone are judged: half a second is all they have
    from lakehouse_engine.explain import explain

    environment = load_environment(request.env, root, request.variables)
    specs = load(list(request.specs) or [Path("pipelines")], environment=environment)
    plan = compile_plan(specs)
    analysed = analysis.require(spark(), specs, environment) if spark is not None else None
    described = explain(plan, origins=request.origins, analysed=analysed)
    return {"json": dict(described), "text": described.text(), "status": 0}
