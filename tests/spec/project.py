"""A small project of three pipelines in which everything is right, to be made wrong one line at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec

CONTRACT = """\
type: object
required: [id, at]
properties:
  id: {type: string}
  at: {type: string, format: date-time}
  amount: {type: number}
"""
LANDING = """\
source: {kafka: {topic: clicks}}
transforms:
  - parse: click
  - derive: {day: to_date(at)}
sink: {delta: {partition_by: [day]}}
trigger: {every: 10 seconds}
"""
STREAM = """\
source: {kafka: {topic: clicks, history: bronze.clicks}}
transforms:
  - parse: click
  - watermark: {column: at, delay: 2 minutes}
  - filter: amount > 0
  - window: {tumbling: 1 minute, by: [id], measures: {n: count(*)}}
sink: postgres
trigger: {every: 1 second}
"""
JOB = """\
source: bronze.clicks
transforms:
  - dedupe: {keys: [day, id], order_by: [at]}
  - aggregate: {by: [day], measures: {n: count(*)}}
checks:
  - not_null: [day]
sink: {delta: {replace_by: day}}
schedule: daily
"""
FILES = {
    "contracts/click.yaml": CONTRACT,
    "bronze/clicks.yaml": LANDING,
    "realtime/clicks.yaml": STREAM,
    "silver/clicks.yaml": JOB,
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    """The project with ``files`` added or in place of its own."""
    for name, text in {**FILES, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def changed(text: str, line: str, new: str) -> str:
    """The text with the one line that begins with ``line`` (spaces aside) replaced; ``new`` may be several or none."""
    lines = text.splitlines()
    (at,) = [i for i, found in enumerate(lines) if found.strip().startswith(line)]
    return "\n".join([*lines[:at], *new.splitlines(), *lines[at + 1 :]]) + "\n"


def refused(root: Path) -> tuple[Problem, ...]:
    """What is wrong with a project; empty when nothing is."""
    try:
        load([root])
    except SpecError as error:
        return error.problems
    return ()


def problems(root: Path) -> list[str]:
    """The same as ``file:line: CODE``."""
    return [f"{Path(p.file).relative_to(root).as_posix()}:{p.line}: {p.code}" for p in refused(root)]


def spec(root: Path, name: str, text: str) -> PipelineSpec:
    """``<layer>.<name>`` with this text, loaded within the project."""
    layer, _, stem = name.partition(".")
    write(root, {f"{layer}/{stem}.yaml": text})
    return next(found for found in load([root]) if found.name == name)
