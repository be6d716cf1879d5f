"""What rules about a file share: where something stands in it, and how a problem is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Protocol

from lakehouse_engine.component import Unread
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Delta, Kafka, Postgres
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import (
    LATER,
    TRANSFORMS,
)

Columns = dict[str, str]
LANDED = ("_topic", "_partition", "_offset", "_timestamp")


class Upstream(Protocol):
    def find(self, name: str, beside: str) -> PipelineSpec | None: ...

    def names(self, beside: str) -> set[str]: ...


def at(spec: PipelineSpec, path: str, code: str, message: str) -> Problem:
    file, _, line = spec.where(path).rpartition(":")
    origin = spec.lines.get(path)
    if origin is not None and file != spec.file and origin.through:
        message += f" (in {spec.file})"
    return Problem(file, int(line), code, message, f"{spec.below}{path}")


def known_as(columns: Columns) -> Columns:
    """By name in lower case, as Spark compares them."""
    return {name.lower(): kind for name, kind in columns.items()}


def near(word: str, columns: Columns) -> str:
    """The column that a word is most likely meant to be, else those that there are."""
    by_name = {name.lower(): name for name in columns}
    close = get_close_matches(word.lower(), list(by_name), n=1)
    return f"did you mean {by_name[close[0]]}?" if close else f"there are {', '.join(sorted(columns))}"


def step_of(spec: PipelineSpec, index: int) -> str:
    return f"transforms[{index}].{spec.transforms[index].key}"


def leaf(spec: PipelineSpec, path: str, text: str, word: str = "") -> str:
    """Where below a path a text stands; else where the word does, as a key or in a value; else the path itself."""
    below = {place: str(origin.value) for place, origin in spec.lines.items()
             if place == path or place.startswith((f"{path}.", f"{path}["))}  # fmt: skip
    asked = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)", re.IGNORECASE) if word else re.compile(r"(?!)")
    tests: tuple[Callable[[str, str], object], ...] = (
        lambda place, value: value == text,
        lambda place, value: asked.fullmatch(value) or asked.fullmatch(place.rpartition(".")[2]),
        lambda place, value: asked.search(value),
        lambda place, value: len(value) > 2 and not word and (value in text or text in value),
    )
    return next((place for test in tests for place, value in below.items() if test(place, value)), path)


def unsure(spec: PipelineSpec) -> bool:
    """Whether a step could be anything, a window or a watermark too."""
    known = TRANSFORMS.keys() | LATER
    return any(isinstance(step, Unread) and step.key not in known for step in spec.transforms)


def nobody(spec: PipelineSpec, path: str, name: str, upstream: Upstream) -> Iterator[Problem]:
    """A table that no pipeline writes. A layer that this project does not have may be another project's."""
    known = upstream.names(spec.file)
    layer, close = name.partition(".")[0], get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    if name not in known and (close or any(one.startswith(f"{layer}.") for one in known)):
        others = sorted(one for one in known if one.startswith(f"{layer}."))
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(others)}"
        yield at(spec, path, "MISSING_TABLE", f"no pipeline writes {name}; {hint}")


def some_unread(spec: PipelineSpec) -> bool:
    return isinstance(spec.sink, Unread) or any(isinstance(step, Unread) for step in spec.transforms)


def appends(spec: PipelineSpec) -> bool:
    """Rows are added and never changed, so nothing says when they were."""
    if isinstance(spec.sink, Kafka):
        return True  # a message is never changed
    upserts = isinstance(spec.sink, Delta | Postgres) and spec.sink.mode == "upsert"
    windows = isinstance(spec.sink, Postgres) and any(transform.key == "window" for transform in spec.transforms)
    return spec.is_stream and not upserts and not windows
