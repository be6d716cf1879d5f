"""Several sinks: the first is the pipeline's table, each further one has its own ledger.

Each further one is looked at as a pipeline of its own (``branch``): the same rows, its condition, its sink. So whatever
is known of a sink is known of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakehouse_engine.component import Expression, Model
from lakehouse_engine.sinks import Sink

if TYPE_CHECKING:
    from lakehouse_engine.spec.pipeline import PipelineSpec

#: stands between a pipeline and what it writes in the name of a branch, which its ledger and its metrics have
TO = ">"


class Beside(Model):
    """What may stand beside the key of a sink after the first."""

    #: of a sink after the first: it gets the rows for which this is true; columns of the result
    where: Expression | None = None


class Further(Beside):
    """A sink after the first."""

    sink: Sink


def with_first(lines: dict[str, Any]) -> dict[str, Any]:
    """The places in a file; where it lists its sinks, the first one's are as if it were the only one."""
    if "sink[0]" not in lines:
        return lines
    return _only(lines, 0) | {place: origin for place, origin in lines.items()
                              if place.startswith("sink[") and not _is_of(place, 0)}  # fmt: skip


def place(number: int) -> str:
    """Where a pipeline's sink of this number stands in its file."""
    return f"sink[{number}]" if number else "sink"


def branch(spec: PipelineSpec, number: int) -> PipelineSpec:
    """The pipeline into one of its further sinks, from 0, named as both. Its ``where`` is not in its steps.

    It is not served and has no panel: those are the first sink's.
    """
    sink = spec.further[number].sink
    update = {"sink": sink, "further": (), "serve": None, "panel": (), "lines": _only(spec.lines, number + 1),
              "name": f"{spec.name}{TO}{sink.target(spec.name)}"}  # fmt: skip
    return spec.model_copy(update=update)


def branches(spec: PipelineSpec) -> list[PipelineSpec]:
    return [branch(spec, number) for number in range(len(spec.further))]


def _only(lines: dict[str, Any], number: int) -> dict[str, Any]:
    """The places of a pipeline whose sink is that of this number alone."""
    others = {place: origin for place, origin in lines.items() if place.partition(".")[0].partition("[")[0] != "sink"}
    width = len(f"sink[{number}]")
    return others | {f"sink{place[width:]}": origin for place, origin in lines.items() if _is_of(place, number)}


def _is_of(place: str, number: int) -> bool:
    own = f"sink[{number}]"
    return place == own or place.startswith(f"{own}.")
