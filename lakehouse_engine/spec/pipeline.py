"""One pipeline file as a frozen value. Built by ``loader.py``; every field is validated, nothing is left to chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from lakehouse_engine.checks import Check, Relationship
from lakehouse_engine.component import Column, Columns, Duration, Model, Size, Whole, a_day, a_week
from lakehouse_engine.contract import Contract
from lakehouse_engine.queries import INPUT
from lakehouse_engine.sinks import Delta, Postgres, Sink
from lakehouse_engine.sources import Delta as DeltaSource
from lakehouse_engine.sources import Files, Kafka, Rate, Source
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.further import Further
from lakehouse_engine.transforms import (
    Aggregate,
    Combining,
    Dedupe,
    Drop,
    Explode,
    Join,
    Parse,
    Rename,
    Select,
    Sql,
    Transform,
    Union,
    Window,
)


class Trigger(Model):
    """Makes the pipeline a stream, which takes one micro-batch after the other.

    ``available_now`` instead of a map, with a ``schedule``: it is started, takes what is there and ends.
    """

    #: whether it ends when it has taken what is there
    ends: ClassVar[bool] = False

    #: from the start of one micro-batch to the next; ``0 s`` is back to back
    every: Duration


class AvailableNow(Trigger):
    """``trigger: available_now``."""

    ends: ClassVar[bool] = True
    every: Duration = 0


#: what stands in Airflow beside the jobs: the task that copies gold into PostgreSQL, its group, the DAG of maintenance
SERVING_TASK, SERVING_LAYER, MAINTENANCE = "gold_to_postgres", "serving", "lakehouse_maintenance"
#: a name as Airflow takes it
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=200)]


class Airflow(Model):
    """How the job stands in Airflow."""

    #: the DAG that holds its task
    dag: TaskName = "lakehouse_bronze_to_gold"
    #: its task; default: the pipeline's name
    task_id: TaskName | None = None
    #: how often a task that failed is tried again
    retries: Annotated[Whole, Field(ge=0, json_schema_extra={"minimum": 0})] = 2
    #: shown with the task
    owner: str = "lakehouse"
    #: after so long a task has failed
    timeout: Duration | None = None


class Compact(Model):
    """When the files of a partition are rewritten as few large ones."""

    #: so many small ones of a partition, or more
    files: Annotated[Whole, Field(ge=2, json_schema_extra={"minimum": 2})] = 8
    #: what counts as small
    smaller_than: Size = 32 * 1024 * 1024


class Maintain(Model):
    """How a pipeline's tables are kept.

    A stream compacts its own Delta tables between batches, and deletes what is old from PostgreSQL every hour; the rest
    is by command.
    """

    #: when small files become large ones
    compact: Compact = Compact()
    #: rows that are near in these columns are put near each other within a partition
    zorder_by: Columns = ()
    #: dead files stay as long, for slow readers and for ``as_of``; null: they stay for good
    vacuum_after: Annotated[Duration | None, AfterValidator(a_week)] = 7 * 86_400_000_000
    #: so long the table's log tells of a version
    log_after: Annotated[Duration, AfterValidator(a_week)] = 30 * 86_400_000_000
    #: so long after it came a row that a stream keeps aside (``__late``, ``__quarantine``) is deleted; null: never
    aside_after: Annotated[Duration | None, AfterValidator(a_week)] = 90 * 86_400_000_000
    #: so far behind the watermark a window in PostgreSQL is deleted; null: never
    rows_after: Annotated[Duration, AfterValidator(a_day)] | None = None


class Panel(Model):
    """A panel of the overview in Grafana, for a result that is in PostgreSQL.

    Rows are put together by ``aggregate``: those of the dashboard's time, and for a ``stat`` over days those of the
    last day up to its end.
    """

    #: what stands above it
    title: Annotated[str, Field(min_length=1, max_length=100)]
    #: one number, a line over time, the ten greatest as bars, or rows
    type: Literal["stat", "timeseries", "bars", "table"] = "timeseries"
    #: the column to show; may be left out where the result has one measure
    value: Column | None = None
    #: a line, or a bar, for each value of this column
    by: Column | None = None
    #: how the rows of one point are put together
    aggregate: Literal["sum", "min", "max", "avg"] = "sum"
    #: how the number is written; ``share`` is a percentage of 1
    unit: Literal["number", "share", "seconds", "bytes"] = "number"
    #: smaller ones stand further left in their row
    position: Whole = 100


#: what an input may be called: not as ``sql`` calls the rows so far
INPUT_NAME = rf"(?!{INPUT}$)(?!.*__)[a-z][a-z0-9_]{{0,47}}"


class Input(Model):
    """Another input of a pipeline, which ``lookup``, ``join``, ``union`` and ``sql`` call by its name.

    Short: a pipeline's name for its Delta table.
    """

    #: where its rows come from
    source: Source
    #: its own steps, in order; a stream's input has its own watermark here
    transforms: tuple[Transform, ...] = ()


class Head(Model):
    """The keys of a pipeline that are neither components nor maps of their own."""

    #: shown in Airflow, in plan and in the reference
    description: str = ""
    #: columns that identify a row of the result; default: those of the last step that has any
    keys: Columns | None = None
    #: a copy of a job's Delta table in PostgreSQL, for readers, in the same schema and with the same name
    serve: Literal["postgres"] | None = None


class PipelineSpec(Head):
    """A validated pipeline. ``name`` is ``<layer>.<name>``; ``lines``: where each path (``keys[0]``) stands.

    ``complete`` is False for one that is wrong in part: it is checked, and never leaves the loader.
    """

    name: str
    file: str
    #: to ``spec.reuse.Origin``
    lines: dict[str, Any] = Field(default_factory=dict, repr=False)
    complete: bool = True
    source: Source
    inputs: Mapping[str, Input] = Field(default_factory=dict)
    transforms: tuple[Transform, ...] = ()
    checks: tuple[Check, ...] = ()
    sink: Sink
    #: sinks after the first
    further: tuple[Further, ...] = ()
    trigger: Trigger | None = None
    schedule: str | None = None
    airflow: Airflow = Airflow()
    maintain: Maintain = Maintain()
    panel: tuple[Panel, ...] = ()
    contracts: dict[str, Contract] = Field(default_factory=dict)
    #: of Delta tables that it reads as streams, the columns that the files of their pipelines give them
    tables_have: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, repr=False)
    #: where its keys stand in the file: ``inputs.<name>.`` for the part that ``part`` gives, else nothing
    below: str = ""

    def where(self, path: str = "") -> str:
        """``file:line`` of a path, or of the nearest one above it that is in the file."""
        origin = self.lines.get(yaml.nearest(path, self.lines))
        return f"{origin.file}:{origin.line}" if origin else f"{self.file}:1"

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """All of them: the pipeline's table first."""
        return (self.sink, *(one.sink for one in self.further))

    @property
    def task_id(self) -> str:
        """The job's name in Airflow."""
        return self.airflow.task_id or self.name

    @property
    def is_stream(self) -> bool:
        return self.trigger is not None

    @property
    def ends(self) -> bool:
        """Whether it is a stream that ends when it has taken what is there."""
        return self.trigger is not None and self.trigger.ends

    @property
    def parsed(self) -> frozenset[str]:
        """The contracts that its own steps parse by; those that could not be read are not among them."""
        return frozenset(t.reads_by for t in self.transforms if isinstance(t, Parse) and t.reads_by in self.contracts)

    @property
    def lands(self) -> bool:
        """Whether it adds the records of a topic to a Delta table, with where and when they came."""
        windowed = any(isinstance(t, Window) for t in self.transforms)
        if windowed or not self.is_stream or isinstance(self.source, DeltaSource | Rate | Files):
            return False
        return isinstance(self.sink, Delta) and self.sink.mode in (None, "append")

    @property
    def deletes_from(self) -> str | None:
        """The table whose rows it deletes."""
        return self.sink.table if isinstance(self.sink, Delta) and self.sink.mode == "delete" else None

    @property
    def reads_changes(self) -> bool:
        """Whether its source is what changes in a table."""
        return isinstance(self.source, DeltaSource) and self.source.changes

    @property
    def raw(self) -> bool:
        """Whether it reads records, or lines, which are kept as they came where they are refused, and not rows."""
        return isinstance(self.source, Kafka) or (self.is_stream and isinstance(self.source, Files))

    @property
    def placed(self) -> bool:
        """Whether its rows say by themselves where they came from; of a stream's tables and files a batch does."""
        return not (self.is_stream and isinstance(self.source, DeltaSource | Files))

    @property
    def follows(self) -> str | None:
        """The table that a stream's own source is."""
        return self.source.table if self.is_stream and isinstance(self.source, DeltaSource) else None

    @property
    def merges(self) -> bool:
        """Whether its rows replace, or end, those of their keys in a Delta table."""
        return isinstance(self.sink, Delta) and self.sink.mode in ("upsert", "scd2")

    @property
    def related(self) -> tuple[str, ...]:
        """The tables, beside the source, that its checks look into."""
        found = [table for check in self.checks if isinstance(check, Relationship) for _, table, _ in check.others()]
        return tuple(dict.fromkeys(found))

    def other(self, name: str) -> Input | None:
        """The input that a step calls so: one of ``inputs``, or a pipeline's table; None where there is none."""
        if "." in name:
            return Input(source=DeltaSource(table=name))
        return self.inputs.get(name)

    def part(self, name: str, *, stream: bool = False) -> PipelineSpec:
        """An input as a pipeline of its own, without checks; a job, unless its rows come as a ``stream``.

        Its sink and head are the pipeline's: nobody asks for them.
        """
        found = self.other(name)
        assert found is not None
        below = f"inputs.{name}."
        lines = {path.removeprefix(below): origin for path, origin in self.lines.items() if path.startswith(below)}
        place = yaml.nearest(f"inputs.{name}" if name in self.inputs else self.tables.get(name, ""), self.lines)
        if place in self.lines:
            lines |= {"": self.lines[place]}
            lines.setdefault("source", lines[""])
        clock = {} if stream else {"trigger": None, "schedule": "manual"}
        update = {"source": found.source, "transforms": found.transforms, "inputs": {}, "checks": (), "keys": None,
                  "serve": None, "panel": (), "lines": lines, "below": below, **clock}  # fmt: skip
        return self.model_copy(update=update)

    def combining(self) -> Iterator[tuple[str, Combining]]:
        """The steps that read other inputs, each with its place in the file."""
        for index, step in enumerate(self.transforms):
            if isinstance(step, Combining):
                yield f"transforms[{index}].{step.key}", step

    def streams(self, name: str) -> bool:
        """Whether an input's rows come as a stream; else it is read as a table."""
        return self.is_stream and any(name in s.others for _, s in self.combining() if isinstance(s, Join | Union))

    @property
    def tables(self) -> dict[str, str]:
        """The tables of other pipelines that it reads, each with the place in the file that names it first."""
        found = {self.source.table: "source"} if isinstance(self.source, DeltaSource) else {}
        for name, one in self.inputs.items():
            if isinstance(one.source, DeltaSource):
                found.setdefault(one.source.table, f"inputs.{name}")
        for place, step in self.combining():
            for name in step.others:
                if "." in name:
                    found.setdefault(name, place)
        return found | {table: "checks" for table in self.related if table not in found}

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables of other pipelines that it reads: its source's first."""
        return tuple(self.tables)

    @property
    def table(self) -> str:
        """Where its own rows are: a table of PostgreSQL may have a name of its own."""
        return self.sink.target(self.name)

    @property
    def postgres_table(self) -> str | None:
        """Where readers find the result in PostgreSQL, if they do."""
        return self.table if isinstance(self.sink, Postgres) or self.serve else None

    @property
    def time_column(self) -> str | None:
        """What a reader asks the result by: the window's start, else the slices of a job (days)."""
        groups = [t for t in self.transforms if isinstance(t, Window | Aggregate)]
        if groups and isinstance(groups[-1], Window):
            return "window_start"
        return self.sink.replace_by if isinstance(self.sink, Delta) else None

    @property
    def measures(self) -> dict[str, str]:
        """The expressions of the last step that aggregates, by column; none where a step after it may change them."""
        last = self.transforms[-1] if self.transforms else None
        return dict(last.measures) if isinstance(last, Window | Aggregate) else {}

    def panel_value(self, panel: Panel) -> str | None:
        """The column that a panel shows, None where it does not say and there is not one measure alone."""
        return panel.value or (next(iter(self.measures)) if len(self.measures) == 1 else None)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """What identifies a row of the result: ``keys``, or what the last step that has any says."""
        if self.keys:
            return self.keys
        keys: tuple[str, ...] = ()
        for transform in self.transforms:
            if isinstance(transform, Window | Aggregate | Dedupe):
                keys = transform.keys
            elif isinstance(transform, Rename):
                keys = transform.renamed(keys)
            elif isinstance(transform, Select | Explode | Join | Union | Sql) or (
                isinstance(transform, Drop) and any(map(transform.drops, keys))
            ):
                keys = ()
        return keys

    def model_post_init(self, _: Any) -> None:
        """Nothing is computed here: a spec is what the file says."""
