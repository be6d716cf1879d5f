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


#: what stands in Airflow beside the jobs: the task that copies gold into PostgreSQL, its group, the DAG of maintenance
SERVING_TASK, SERVING_LAYER, MAINTENANCE = "gold_to_postgres", "serving", "lakehouse_maintenance"
#: a name as Airflow takes it
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=200)]


class Airflow(Model):
    """How the job stands in Airflow."""

    dag: TaskName = "lakehouse_bronze_to_gold"
    task_id: TaskName | None = None
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
    def task_id(self) -> str:
        """The job's name in Airflow."""
        return self.airflow.task_id or self.name

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
