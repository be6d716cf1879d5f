"""Rows of two inputs put together: what ``lookup``, ``join``, ``union`` and ``sql`` do to a job's DataFrames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lakehouse_engine import queries, sql
from lakehouse_engine.errors import PlanError, said_by_spark
from lakehouse_engine.rows import Rows
from lakehouse_engine.transforms import Join, Lookup, Sql, Union
from lakehouse_engine.transforms.lookup import VALID
from lakehouse_engine.transforms.taken import taken

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def lookup(ours: DataFrame, theirs: DataFrame, step: Lookup, place: str, where: str) -> tuple[DataFrame, Rows]:
    """``ours`` with a column for each that is taken, as many rows as before; the symbolic row refuses what is missing.

    ``place``: the step's name among verdicts, ``where``: file and line. Raises ``PlanError`` COLUMN_TYPE, SAME_COLUMN.
    """
    from pyspark.sql import functions as F

    names = taken(step.take, step.keys, theirs.columns, VALID if step.as_of else ())
    _apart(ours.columns, names, step.from_, where)
    same = _same(ours, theirs, step.keys, step.from_, where)
    chosen = [f"{sql.name(their)} as {sql.name(f'_their_{new}')}" for new, their in names.items()]
    table = theirs.selectExpr(*step.asked(), *chosen, "true as _found")
    if step.as_of:
        moment = F.col(sql.name(step.as_of)).cast("timestamp")
        same = same & (F.col("_since") <= moment) & (F.col("_until").isNull() | (moment < F.col("_until")))
    joined = ours.join(table, same, "left").select(
        *map(sql.name, ours.columns), *[F.col(sql.name(f"_their_{new}")).alias(new) for new in names], "_found")
    made = Rows.identity(dict(ours.dtypes))
    if step.missing == "quarantine":  # its row is kept as it came into the step
        made = made.refuse(step.refusal(made, place, "_found is null"))
    kinds = {new: dict(theirs.dtypes).get(their, "") for new, their in names.items()}
    columns = {**made.columns, **{new: sql.name(new) for new in names}}
    return joined, replace(made, columns=columns, types={**made.types, **kinds})


def twice(theirs: DataFrame, step: Lookup) -> DataFrame:
    """The keys of which a table (as ``step.asked`` selects it) has two rows, or two that are valid at one time.

    A column each, then ``_rows``, how many.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    names = [f"_k{i}" for i in range(len(step.keys))]
    if not step.as_of:
        return theirs.groupBy(*names).agg(F.count(F.lit(1)).alias("_rows")).filter("_rows > 1")
    times = theirs.filter("_until is null or _since < _until")
    following = F.lead("_since").over(Window.partitionBy(*names).orderBy("_since"))
    clash = times.withColumn("_next", following).filter("_next is not null and (_until is null or _next < _until)")
    return clash.select(*names, F.lit(2).alias("_rows"))


def told_twice(step: Lookup, found: Sequence[Any]) -> str:
    """A row of ``twice`` in words."""
    *values, number = found
    key = ", ".join(f"{their} = {value}" for their, value in zip(step.keys.values(), values, strict=True))
    if step.as_of:
        return f"{step.from_} has {number} rows for {key} that are valid at one time"
    return f"{step.from_} has {number} rows for {key}, and a lookup takes one: dedupe it in an input"


def join(ours: DataFrame, theirs: DataFrame, step: Join, where: str) -> DataFrame:
    """Our columns, a key with their value where ours is not there, then those that are taken of theirs.

    Raises ``PlanError`` COLUMN_TYPE, SAME_COLUMN.
    """
    from pyspark.sql import functions as F

    names = taken(step.take, step.keys, theirs.columns)
    _apart(ours.columns, names, step.with_, where)
    same = _same(ours, theirs, step.keys, step.with_, where)
    keys = [F.col(sql.name(their)).alias(f"_k{i}") for i, their in enumerate(step.keys.values())]
    table = theirs.select(*keys, *[F.col(sql.name(their)).alias(f"_their_{new}") for new, their in names.items()])
    joined = ours.join(table, same, step.how)
    by_key = {name.lower(): f"_k{i}" for i, name in enumerate(step.keys)}
    chosen = []
    for name in ours.columns:
        column, key = F.col(sql.name(name)), by_key.get(name.lower())
        either = key is not None and step.how in ("right", "full")
        chosen.append((F.coalesce(column, F.col(key)) if either and key else column).alias(name))
    return joined.select(*chosen, *[F.col(sql.name(f"_their_{new}")).alias(new) for new in names])


def union(ours: DataFrame, others: Mapping[str, DataFrame], step: Union, where: str) -> DataFrame:
    """All rows, in our columns' order. Raises ``PlanError`` COLUMNS_DIFFER, COLUMN_TYPE."""
    made = ours
    for name in step.inputs:
        theirs = others[name]
        here, there = ({n.lower(): kind for n, kind in frame.dtypes} for frame in (made, theirs))
        hidden = {n for n in here.keys() ^ there.keys() if n.startswith("_")}
        apart = sorted((here.keys() ^ there.keys()) - hidden)
        if apart:
            one = f"{name} has no column" if apart[0] in here else "the rows so far have no column"
            raise PlanError("COLUMNS_DIFFER", f"{one} {apart[0]}", where=where)
        for both in sorted(here.keys() & there.keys()):
            if here[both] != there[both]:
                raise PlanError("COLUMN_TYPE", f"{both} is {here[both]} in the rows so far and {there[both]} in {name};"
                                " cast one of them", where=where)  # fmt: skip
        kept = [n for n in made.columns if n.lower() not in hidden]
        made = made.select(*map(sql.name, kept)).unionAll(theirs.select(*map(sql.name, kept)))
    return made


def query(ours: DataFrame, others: Mapping[str, DataFrame], step: Sql, where: str) -> DataFrame:
    """The query's result. Raises ``PlanError`` EXPRESSION_TYPE with what Spark says of it, BAD_NAME, SAME_COLUMN."""
    from pyspark.errors import PySparkException

    frames = {queries.INPUT: ours, **{f"other{i}": frame for i, frame in enumerate(others.values())}}
    names = {queries.INPUT: queries.INPUT, **{name: f"other{i}" for i, name in enumerate(others)}}
    try:
        made = ours.sparkSession.sql(queries.placed(step.query, names), **frames)  # type: ignore[arg-type]
        columns = made.columns
    except PySparkException as error:
        raise PlanError("EXPRESSION_TYPE", said_by_spark(error), where=where) from None
    for name in columns:
        if [one.lower() for one in columns].count(name.lower()) > 1:
            raise PlanError("SAME_COLUMN", f"two columns of the query are called {name}", where=where)
    return made


def _apart(ours: Iterable[str], names: Mapping[str, str], other: str, where: str) -> None:
    known = {name.lower() for name in ours}
    for name, their in names.items():
        if name.lower() in known:
            raise PlanError("SAME_COLUMN", f"both sides have a column {name}: write take: {{another_name: {their}}},"
                            f" or rename ours ({other})", where=where)  # fmt: skip


def _same(ours: DataFrame, theirs: DataFrame, keys: Mapping[str, str], other: str, where: str) -> Column:
    """Null is a key like any other."""
    from pyspark.sql import functions as F

    here, there = ({name.lower(): kind for name, kind in frame.dtypes} for frame in (ours, theirs))
    condition: Column = F.lit(True)
    for i, (our, their) in enumerate(keys.items()):
        if their.lower() not in there:
            raise PlanError("UNKNOWN_COLUMN", f"{other} has no column {their}", where=where)
        if not sql.comparable(here[our.lower()], there[their.lower()]):
            raise PlanError("COLUMN_TYPE", f"{our} is {here[our.lower()]} and {their} of {other} is"
                            f" {there[their.lower()]}; cast one of them", where=where)  # fmt: skip
        same = F.col(sql.name(our)).eqNullSafe(F.col(f"_k{i}"))
        condition = same if i == 0 else condition & same
    return condition
