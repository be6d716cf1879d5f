"""The rows of a job's result: its steps, and those of its inputs, as DataFrames. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lakehouse_engine import checks, combine, rows, sql, steps
from lakehouse_engine import plan as plans
from lakehouse_engine.errors import PlanError, RunError
from lakehouse_engine.locality import slices_of
from lakehouse_engine.plan import Job
from lakehouse_engine.rows import Rows
from lakehouse_engine.segments import Segment, judges, layered, named, texts_read
from lakehouse_engine.transforms import Aggregate, Combining, Dedupe, Join, Lookup, Union, Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from lakehouse_engine.spec.pipeline import PipelineSpec

#: what a dedupe leaves of new rows where old ones are there: of its own result, given what came into it
Unseen = Callable[["DataFrame", "Rows | None", Dedupe], "DataFrame"]


@dataclass(frozen=True)
class Reads:
    """How a run gets at tables: ``source()`` is what the run reads of the job's own, ``other(name)`` another whole.

    ``slices``: the values of the slice column that are computed, None for all. ``unseen``: where only new rows are.
    """

    source: Callable[[], DataFrame]
    other: Callable[[str], DataFrame]
    slices: Sequence[str | None] | None = None
    unseen: Unseen | None = None


class Computed:
    """``segments``: of the pipeline's own rows, in order; ``inputs``: of its inputs' rows."""

    def __init__(self, job: Job, reads: Reads) -> None:
        self.job, self.reads = job, reads
        self.segments: list[Segment] = []
        self.inputs: list[Segment] = []
        self._persisted: list[DataFrame] = []
        self._others: dict[str, DataFrame] = {}
        self._lookups: list[tuple[str, Lookup, DataFrame]] = []

    def result(self) -> DataFrame:
        """The rows that will be written, persisted or made from what is.

        Raises ``PlanError``, ``StepError``, and what Spark says of an expression.
        """
        spec = self.job.spec
        own = _Rows(self, spec, self.reads.source(), self.segments, self.job.source, self.job.slice_by)
        own.current = steps.as_read(spec, own.symbolic)
        own.take_steps()
        own.current = steps.with_checks(_with_related(own.symbolic, spec), spec)
        return own.end(last=True).passed

    def rows(self) -> DataFrame:
        """The rows after the last step, all their columns, for a table that is looked up and never written."""
        own = _Rows(self, self.job.spec, self.reads.source(), self.segments, self.job.source, None)
        own.take_steps()
        return own.end().passed

    def check_lookups(self, known: Collection[str]) -> None:
        """Raises ``RunError`` DUPLICATE_KEY where a table has two rows for a key; ``known`` ones were checked."""
        for place, step, frame in self._lookups:
            if step.from_ in known:
                continue
            found = combine.twice(frame.selectExpr(*step.asked()), step).limit(1).collect()
            if found:
                raise RunError("DUPLICATE_KEY", combine.told_twice(step, found[0]) + "; nothing was written",
                               where=self.job.spec.where(place))  # fmt: skip

    def keep(self, frame: DataFrame) -> DataFrame:
        """Persisted until the run ends."""
        self._persisted.append(frame.persist())
        return frame

    def release(self) -> None:
        for frame in self._persisted:
            frame.unpersist()

    def combined(self, ours: DataFrame, step: Combining, place: str) -> tuple[DataFrame, Rows | None]:
        """The rows after a step that reads other inputs; symbolic ones where it refuses some."""
        others, where = {name: self._other(name, step) for name in step.others}, self.job.spec.where(place)
        if isinstance(step, Lookup):
            self._lookups.append((place, step, others[step.from_]))
            return combine.lookup(ours, others[step.from_], step, place, where)
        if isinstance(step, Join):
            return combine.join(ours, others[step.with_], step, where), None
        if isinstance(step, Union):
            return combine.union(ours, others, step, where), None
        return combine.query(ours, others, step, where), None

    def _other(self, name: str, step: Combining) -> DataFrame:
        """An input after its own steps; of those slices that are computed where it has the slice column."""
        if name not in self._others:
            part = self.job.spec.part(name)
            other = next(one for one in self.job.others if one.name == name)
            rows_of = _Rows(self, part, self.reads.other(name), self.inputs, other.table, other.slice_by, name)
            rows_of.take_steps()
            self._others[name] = rows_of.end().passed
        frame = self._others[name]
        column = slices_of(step, self.job.slice_by) if self.job.slice_by else None
        if column is None or self.reads.slices is None:
            return frame
        kinds = {one.lower(): kind for one, kind in frame.dtypes}
        return frame.filter(sql.among(column, kinds.get(column.lower(), "string"), self.reads.slices))

    def related(self, frame: DataFrame, current: Rows) -> DataFrame:
        """With a column for each value that must be in another table: whether it is."""
        from pyspark.sql import functions as F

        for ours, table, column in relationships(self.job.spec):
            name = checks.related(table, column, ours)
            if name not in current.columns:
                continue  # before a step that looks at many rows: checks come at the end
            keys = self.reads.other(table).select(F.col(sql.name(column)).alias("_theirs"))
            keys = keys.filter("_theirs is not null").distinct()
            value = F.expr(current.resolve(ours))
            self._comparable(frame.select(value.alias("x")), keys, ours, f"{table}.{column}")
            joined = frame.join(keys, value == F.col("_theirs"), "left")
            frame = joined.withColumn(name, F.expr("_theirs is not null")).drop("_theirs")
        return frame

    def _comparable(self, ours: DataFrame, theirs: DataFrame, one: str, other: str) -> None:
        kinds = [frame.dtypes[0][1] for frame in (ours, theirs)]
        if not sql.comparable(*kinds):
            raise PlanError("COLUMN_TYPE", f"{one} is {kinds[0]} and {other} is {kinds[1]}; cast one of them",
                            where=self.job.spec.where("checks"))  # fmt: skip


class _Rows:
    """The rows of one input, or of the pipeline, on their way through its steps."""

    def __init__(self, computed: Computed, spec: PipelineSpec, frame: DataFrame, segments: list[Segment], origin: str,
                 unit: str | None, name: str = "") -> None:  # fmt: skip
        self._computed, self._spec, self._segments = computed, spec, segments
        self._origin, self._unit, self._name = origin, unit, name
        self._frame, self._as_many = frame, False
        self.current: Rows | None = None

    @property
    def symbolic(self) -> Rows:
        return self.current or Rows.identity(dict(self._frame.dtypes))

    def take_steps(self) -> None:
        for index, step in enumerate(self._spec.transforms):
            place = f"transforms[{index}].{step.key}"
            if isinstance(step, Window) and step.column is not None:
                self.current = step.row(self.symbolic, f"{self._spec.below}{place}")
            if isinstance(step, Aggregate | Dedupe | Window):
                passed, before = self.end().passed, self.current
                self._begin(step.apply(passed), None)
                if isinstance(step, Dedupe) and self._computed.reads.unseen and not self._spec.below:
                    self._frame = self._computed.reads.unseen(self._frame, before, step)
            elif isinstance(step, Combining):
                self._begin(*self._computed.combined(self.end().passed, step, place))
                self._as_many = isinstance(step, Lookup)
            else:
                self.current = steps.row_step(self._spec, self.symbolic, index)

    def _begin(self, frame: DataFrame, current: Rows | None) -> None:
        self._frame, self.current, self._as_many = frame, current, False

    def end(self, *, last: bool = False) -> Segment:
        """The rows up to a step that looks at many of them, or to the end. They are judged once where a step asks."""
        frame, current = self._frame, self.current
        judged = None
        if current is None or not judges(current, last):
            passed = projected(frame, current)
            if last:
                assert current is not None
                written = plans.merged(self._spec, current)
                passed = self._computed.keep(layered(frame, current).selectExpr(*named(written)))
        else:
            judged = self._judge(frame, current)
            columns = plans.merged(self._spec, current) if last else current.columns
            passed = judged.filter(f"_outcome = '{rows.COUNTED}'").selectExpr(*named(columns))
        self._segments.append(Segment(frame, current, judged, passed, self._as_many, self._origin, self._unit,
                                      self._name))  # fmt: skip
        return self._segments[-1]

    def _judge(self, frame: DataFrame, current: Rows) -> DataFrame:
        """Kept for several readings: what the expressions read, not what they give; reasons are for few rows."""
        frame = self._computed.related(layered(frame, current), current)
        inputs = [sql.name(name) for name in frame.columns]
        if not current.layers:
            read = {column for text in texts_read(current) for column in sql.columns(text)}
            inputs = [sql.name(name) for name in frame.columns if name.lower() in read]
        return self._computed.keep(frame.selectExpr(*inputs, f"{rows.outcome(current.verdicts)} as _outcome"))


def projected(frame: DataFrame, current: Rows | None) -> DataFrame:
    """The rows that pass, with all their columns."""
    if current is None:
        return frame
    frame = layered(frame, current)
    kept = frame.filter(rows.passing(current.verdicts)) if current.verdicts else frame
    return kept.selectExpr(*named(current.columns))


def relationships(spec: PipelineSpec) -> list[tuple[str, str, str]]:
    return [other for check in spec.checks if isinstance(check, checks.Relationship) for other in check.others()]


def _with_related(current: Rows, spec: PipelineSpec) -> Rows:
    """Columns that say whether a value is in another table; ``Computed.related`` joins them."""
    names = [checks.related(table, column, ours) for ours, table, column in relationships(spec)]
    return replace(current, columns={**current.columns, **{name: name for name in names}})
