"""A pipeline file on its way to a ``PipelineSpec``: what could be built, where each value stands, what is wrong.

What could not be built is ``None`` or ``Broken``, so that one error does not hide the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from lakehouse_engine.checks import Check
from lakehouse_engine.contract import Contract
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Delta, Postgres, Sink
from lakehouse_engine.sources import Source
from lakehouse_engine.spec.pipeline import Airflow, PipelineSpec, Trigger
from lakehouse_engine.transforms import Transform, Window


@dataclass(frozen=True)
class Broken:
    """A step with an error of its own; ``key`` is its component, or empty."""

    key: str


@dataclass
class Draft:
    """``inherited`` maps a top-level key that ``defaults.yaml`` gave to that file and its lines."""

    name: str
    file: str
    lines: dict[str, int]
    inherited: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    description: str = ""
    source: Source | None = None
    transforms: tuple[Transform | Broken, ...] = ()
    checks: tuple[Check | Broken, ...] = ()
    keys: tuple[str, ...] | None = None
    sink: Sink | None = None
    serve: str | None = None
    trigger: Trigger | None = None
    schedule: str | None = None
    #: None when the file says neither trigger nor schedule, or both
    is_stream: bool | None = None
    airflow: Airflow = field(default_factory=Airflow)
    contracts: dict[str, Contract] = field(default_factory=dict)

    def problem(self, path: str, code: str, message: str) -> Problem:
        """At the line of the path, or of the nearest one above it."""
        top = path.partition(".")[0].partition("[")[0]
        file, lines = self.inherited.get(top, (self.file, self.lines))
        shown = path
        while path and path not in lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return Problem(file, lines.get(path, 1), code, f"{shown}: {message}" if shown else message)

    def add(self, path: str, code: str, message: str) -> None:
        self.problems.append(self.problem(path, code, message))

    @property
    def window(self) -> Window | None:
        return next((step for step in self.transforms if isinstance(step, Window)), None)

    def step_path(self, index: int) -> str:
        return f"transforms[{index}].{self.transforms[index].key}"

    @property
    def stamps(self) -> bool:
        """Whether the sink adds ``updated_at``."""
        if isinstance(self.sink, Delta):
            return self.is_stream is False and self.sink.updated_at
        return isinstance(self.sink, Postgres) and self.sink.updated_at

    @classmethod
    def of(cls, spec: PipelineSpec) -> Draft:
        return cls(spec.name, spec.file, spec.lines, description=spec.description, source=spec.source,
                   transforms=spec.transforms, checks=spec.checks, keys=spec.keys, sink=spec.sink, serve=spec.serve,
                   trigger=spec.trigger, schedule=spec.schedule, is_stream=spec.is_stream, airflow=spec.airflow,
                   contracts=spec.contracts)  # fmt: skip

    def spec(self) -> PipelineSpec:
        """Only when there is no problem."""
        lines = {path: line for path, line in self.lines.items() if path}
        return PipelineSpec.model_validate({
            "name": self.name, "file": self.file, "lines": lines, "description": self.description,
            "source": self.source, "transforms": self.transforms, "checks": self.checks, "keys": self.keys,
            "sink": self.sink, "serve": self.serve, "trigger": self.trigger, "schedule": self.schedule,
            "airflow": self.airflow, "contracts": self.contracts,
        })  # fmt: skip


def meant(word: str, known: Iterable[str]) -> str:
    """`` ; did you mean ...?``, or nothing."""
    near = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near and near[0] != word else ""
