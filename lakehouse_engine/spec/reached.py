"""What a file names of the environment: each connection that it reads from or writes to."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from lakehouse_engine.component import Component, Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.spec import further
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at


def reaching(spec: PipelineSpec) -> Iterator[tuple[str, Component]]:
    """Sources and sinks, each with its place in the file."""
    yield "source", spec.source
    for name, one in spec.inputs.items():
        yield f"inputs.{name}.source", one.source
    for number, sink in enumerate(spec.sinks):
        yield further.place(number), sink


def lacking(spec: PipelineSpec, environment: Environment) -> Iterator[Problem]:
    """NO_CONNECTION: the named connections that the environment does not have."""
    for place, part in reaching(spec):
        name = None if isinstance(part, Unread) else getattr(part, "connection", None)
        key, path = f"{part.key}.{name}", f"{place}.{part.key}.connection"
        unread = path in spec.lines and spec.lines[path].value != name  # it is no name, and that is said
        if name is None or unread or key in environment.named:
            continue
        close = get_close_matches(key, environment.named, n=1)
        known = ", ".join(sorted(environment.named)) or "none with a name"
        said = f"did you mean {close[0]}?" if close else f"there are {known}" if environment.name else "say --env"
        yield at(spec, path, "NO_CONNECTION", f"{environment.lacks(key)}; {said}")
