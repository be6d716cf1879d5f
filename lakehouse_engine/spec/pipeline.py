"""One pipeline file as a frozen value. Built by ``loader.py``; every field is validated, nothing is left to chance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lakehouse_engine.checks import Check
from lakehouse_engine.component import Columns, Duration, Model
from lakehouse_engine.contract import Contract
from lakehouse_engine.sinks import Sink
from lakehouse_engine.sources import Source
from lakehouse_engine.spec import yaml
from lakehouse_engine.transforms import Aggregate, Dedupe, Select, Transform, Window


class Trigger(Model):
    """A stream takes a micro-batch every ``every`` microseconds; 0 is back to back."""

    every: Duration


class Airflow(Model):
    """How the job stands in Airflow."""

    dag: str = "lakehouse_bronze_to_gold"
    task_id: str | None = None
    retries: Annotated[int, Field(ge=0)] = 2
    owner: str = "lakehouse"
    timeout: Duration | None = None


class PipelineSpec(Model):
    """A validated pipeline. ``name`` is ``<layer>.<name>``; ``lines``: a path's line (``transforms[1].window``)."""

    name: str
    file: str
    lines: dict[str, int]
    description: str = ""
    source: Source
    transforms: tuple[Transform, ...] = ()
    checks: tuple[Check, ...] = ()
    keys: Columns | None = None
    sink: Sink
    serve: Literal["postgres"] | None = None
    trigger: Trigger | None = None
    schedule: str | None = None
    airflow: Airflow = Airflow()
    contracts: dict[str, Contract] = Field(default_factory=dict)

    def where(self, path: str = "") -> str:
        """``file:line`` of a path, or of the nearest one above it that is in the file."""
        return f"{self.file}:{self.lines.get(yaml.nearest(path, self.lines), 1)}"

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_stream(self) -> bool:
        return self.trigger is not None

    @property
    def key_columns(self) -> tuple[str, ...]:
        """What identifies a row of the result: ``keys``, or what the last step that has any says."""
        if self.keys:
            return self.keys
        for transform in reversed(self.transforms):
            if isinstance(transform, Select):
                return ()
            if isinstance(transform, Window | Aggregate | Dedupe):
                return transform.keys
        return ()

    def model_post_init(self, _: Any) -> None:
        """Nothing is computed here: a spec is what the file says."""
