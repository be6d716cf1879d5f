"""The frame of a query whose state is Spark's: what its steps give, beside a verdict on every record that it read.

A step with state lets nobody see the rows that it was not given, or has dropped. So the query is a union: the rows of
the result, and for each input its records as the row-wise steps before the state judge them. Spark reads a source that
stands twice in a query at the same offsets, so both parts of a micro-batch are of the same records, and what is
refused, late or filtered is counted and kept in the very commit that writes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakehouse_engine import rows, sql
from lakehouse_engine.errors import PlanError, said_by_spark
from lakehouse_engine.judged import Judge
from lakehouse_engine.plan import LANDING_COLUMNS, Member, merged
from lakehouse_engine.rows import QUARANTINED, Rows
from lakehouse_engine.stages import Branch, Query, Stage
from lakehouse_engine.transforms import Dedupe, Join, Union, Window
from lakehouse_engine.transforms.watermark import EVENT_TIME as TIME

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: what Judge needs of a row that was made of many: it has no place
_PLACE = {"_topic": "string", "_partition": "int", "_offset": "bigint", "_key": "binary", "_value": "binary"}
_THEIR_TIME = "_their_event_time"


@dataclass(frozen=True)
class Parts:
    """A micro-batch apart: ``result`` as the last step with state gives it, and each input's judged records."""

    result: DataFrame
    records: tuple[DataFrame, ...]


class Frames:
    """Compiles a query once. ``streams``: the source of each branch, by its name.

    ``kinds``: the Spark types of the columns that the result's good rows have (``judge.columns``).
    """

    def __init__(self, query: Query, streams: Mapping[str, DataFrame]) -> None:
        """Raises ``PlanError`` EXPRESSION_TYPE: Spark does not take an expression or a key."""
        self.query, self._streams = query, streams
        self._view = "of_" + query.name.replace(".", "_")
        self.records = [_before(branch) for branch in query.branches]
        stored = _stored(query)
        self.stored = tuple(stored)
        self.judge = _after(query, stored)
        result = self._through(query.branches[0])
        with _at(query.branches[0], "checks" if query.spec.checks else "transforms"):
            self.kinds = dict(self.judged(result).select(*map(sql.name, stored)).dtypes)
        parts = [result]
        for branch, judge in zip(query.branches, self.records, strict=True):
            view = f"{self._view}_{branch.name}_records"
            with _at(branch, "transforms"):
                parts.append(_without_raw(judge.judge(streams[branch.name], view, {})))
        self.frame = _union(parts)

    def apart(self, batch: DataFrame) -> Parts:
        found = [batch.filter(f"_part = {i}").select(f"_of{i}.*") for i in range(len(self.records) + 1)]
        return Parts(found[0], tuple(found[1:]))

    def judged(self, result: DataFrame) -> DataFrame:
        """The result's rows after the row-wise steps that follow the state, as ``Judge.judge`` gives them."""
        missing = [f"cast(null as {kind}) as {name}" for name, kind in _PLACE.items() if name not in result.columns]
        return self.judge.judge(result.selectExpr("*", *missing), f"{self._view}_result", {})

    def _through(self, branch: Branch) -> DataFrame:
        """The branch's rows after its last step with state; without one, before what comes after it."""
        time = branch.rows.event_time
        known = None if time is None else sql.name(TIME)
        into = branch.stages[0].into if branch.stages else tuple(branch.rows.columns)
        frame = self._segment(branch, 0, self._streams[branch.name], branch.rows, into,
                              None if time is None else time.expression)  # fmt: skip
        if time is not None:
            frame = frame.withWatermark(TIME, f"{time.delay // 1000} milliseconds")
        for index, stage in enumerate(branch.stages):
            if index:
                before = branch.stages[index - 1].rows
                frame = self._segment(branch, index, frame, before, stage.into, known)
            last = index == len(branch.stages) - 1 and not branch.name
            with _at(branch, stage.place):
                frame = self._apply(frame, stage, last=last)
        if branch.stages and branch.name:
            end = branch.stages[-1].rows
            frame = self._segment(branch, len(branch.stages), frame, end, tuple(end.columns), known)
        return frame

    def _segment(self, branch: Branch, index: int, frame: DataFrame, current: Rows, columns: Sequence[str],
                 time: str | None) -> DataFrame:  # fmt: skip
        view = f"{self._view}_{branch.name}_{index}"
        frame.createOrReplaceTempView(view)
        chosen = [f"{current.columns[name]} as {sql.name(name)}" for name in columns if name != TIME]
        inner = rows.layered(view, current.layers)
        where = rows.passing(current.verdicts)
        chosen += [f"{time} as {TIME}"] if time is not None else []
        with _at(branch, "transforms"):
            return frame.sparkSession.sql(f"select {', '.join(chosen)} from ({inner}) where {where}")

    def _apply(self, frame: DataFrame, stage: Stage, *, last: bool) -> DataFrame:
        if isinstance(stage.transform, Dedupe):
            return frame.dropDuplicatesWithinWatermark(list(stage.transform.keys))
        if isinstance(stage.transform, Window):
            return _windows(frame, stage.transform, last=last)
        if isinstance(stage.transform, Union):
            return self._united(frame, stage.transform)
        return self._joined(frame, stage, stage.transform)

    def _united(self, ours: DataFrame, union: Union) -> DataFrame:
        from pyspark.sql import functions as F

        names = ours.columns  # the event time is one of them where they have one
        for name in union.inputs:
            theirs = self._through(next(branch for branch in self.query.branches if branch.name == name))
            ours = ours.unionByName(theirs.select(*[F.col(sql.name(column)).alias(column) for column in names]))
        return ours

    def _joined(self, ours: DataFrame, stage: Stage, join: Join) -> DataFrame:
        from pyspark.sql import functions as F

        assert join.within is not None
        assert stage.taken is not None
        branch = next(b for b in self.query.branches if b.name == join.with_)
        theirs = self._through(branch)
        keys = {f"_their_key{i}": name for i, name in enumerate(join.keys.values())}
        taken = {f"_their{i}": name for i, name in enumerate(stage.taken.values())}
        theirs = theirs.select(*[F.col(sql.name(name)).alias(alias) for alias, name in {**keys, **taken}.items()],
                               F.col(TIME).alias(_THEIR_TIME))  # fmt: skip
        same = [f"{sql.name(our)} <=> {alias}" for our, alias in zip(join.keys, keys, strict=True)]
        between = (f"{_THEIR_TIME} >= {TIME} - {_interval(join.within.before)}"
                   f" and {_THEIR_TIME} <= {TIME} + {_interval(join.within.after)}")  # fmt: skip
        both = ours.join(theirs, F.expr(" and ".join([*same, between])), join.how)
        outer = join.how in ("right", "full")
        by_key = dict(zip(map(str.lower, join.keys), keys, strict=True))
        chosen: list[Column] = []
        for name in stage.into:
            theirs_too = by_key.get(name.lower()) if outer else None
            text = f"coalesce({sql.name(name)}, {theirs_too})" if theirs_too else sql.name(name)
            chosen.append(F.expr(text).alias(name))
        chosen += [F.col(alias).alias(name) for alias, name in zip(taken, stage.taken, strict=True)]
        return both.select(*chosen, F.col(_THEIR_TIME if join.how == "right" else TIME).alias(TIME))


@contextmanager
def _at(branch: Branch, place: str) -> Iterator[None]:
    """What Spark says of the SQL is said of the place in the file."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        raise PlanError("EXPRESSION_TYPE", said_by_spark(error), where=branch.spec.where(place)) from None


def _interval(micros: int) -> str:
    """A literal: of anything else Spark does not see how long rows wait."""
    return f"interval {micros} microseconds"


def _windows(frame: DataFrame, window: Window, *, last: bool) -> DataFrame:
    from pyspark.sql import functions as F

    size, every = f"{window.size} microseconds", f"{window.every} microseconds"
    of = F.session_window(F.col(TIME), size) if window.session else F.window(F.col(TIME), size, every)
    measures = [F.expr(text).alias(name) for name, text in window.measures.items()]
    grouped = frame.groupBy(of.alias("_window"), *[F.col(sql.name(name)) for name in window.by]).agg(*measures)
    time = [] if last else [F.expr("window_time(_window)").alias(TIME)]
    names = [F.col(sql.name(name)) for name in (*window.by, *window.measures)]
    ends = zip(("start", "end"), window.made, strict=False)
    return grouped.select(*[F.expr(f"_window.{end}").alias(name) for end, name in ends], *names, *time)


def _before(branch: Branch) -> Judge:
    """What the row-wise steps before the state make of each record, with its time and what it is."""
    spec = branch.spec.model_copy(update={"checks": ()})  # those judge the result
    time = branch.rows.event_time
    passes = rows.passing(branch.rows.verdicts)
    micros = "cast(null as bigint)" if time is None else f"unix_micros({time.expression})"
    columns = {"_time": f"if({passes}, {micros}, null)",
               "_row": f"if({passes}, {rows.struct(branch.rows.stored)}, null)"}  # fmt: skip
    return Judge(Member(spec, branch.rows, None, branch.keeps), columns)


def _after(query: Query, stored: Mapping[str, str]) -> Judge:
    verdicts = query.rows.verdicts
    aside = any(verdict.outcome == QUARANTINED for verdict in verdicts)
    row = rows.first_row(verdicts) if aside else "cast(null as string)"
    steps = frozenset(verdict.step for verdict in verdicts)
    return Judge(Member(query.spec, query.rows, None, steps), {**stored, "_refused_row": row}, made=True)


def _stored(query: Query) -> dict[str, str]:
    landed = LANDING_COLUMNS if query.spec.lands else ()
    columns = query.rows.columns
    return {**merged(query.spec, query.rows), **{name: columns[name] for name in landed if name in columns}}


def _without_raw(records: DataFrame) -> DataFrame:
    """Bytes are of use where they are kept aside."""
    kept = f"_outcome = '{QUARANTINED}' and _step is not null"
    others = [sql.name(name) for name in records.columns if name not in ("_key", "_value")]
    return records.selectExpr(*others, *[f"if({kept}, {name}, null) as {name}" for name in ("_key", "_value")])


def _union(parts: Sequence[DataFrame]) -> DataFrame:
    """Each row in a column of its part (``_of0``), the others null; ``_part`` says which."""
    from pyspark.sql import functions as F

    kinds = [part.select(F.struct(*map(F.col, map(sql.name, part.columns))).alias("x")).schema["x"].dataType
             for part in parts]  # fmt: skip
    whole: DataFrame | None = None
    for index, part in enumerate(parts):
        row = F.struct(*map(F.col, map(sql.name, part.columns)))
        columns = [(row if other == index else F.lit(None).cast(kind)).alias(f"_of{other}")
                   for other, kind in enumerate(kinds)]  # fmt: skip
        chosen = part.select(F.lit(index).alias("_part"), *columns)
        whole = chosen if whole is None else whole.unionAll(chosen)
    assert whole is not None
    return whole
