"""``aggregate``: one row per group, in jobs. ``aggregate: {by: [event_date], measures: {n: count(*)}}``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Aggregation, Column, Columns, Component

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def _aggregates(text: str) -> str:
    if not sql.is_aggregate(text):
        raise PydanticCustomError("BAD_MEASURE", "{text} does not aggregate", {"text": f"`{text}`"})
    return text


def _some(measures: dict[str, str]) -> dict[str, str]:
    if not measures:
        raise PydanticCustomError("BAD_AGGREGATE", "an aggregate needs at least one measure")
    return measures


class Aggregate(Component):
    """Result: the columns of ``by``, then the measures. Null is a group like any other."""

    #: a group for each of their values; none: one row
    by: Columns = ()
    #: each the resulting column: its aggregate
    measures: Annotated[dict[Column, Annotated[Aggregation, AfterValidator(_aggregates)]], AfterValidator(_some), Field(
        json_schema_extra={"minProperties": 1})]  # fmt: skip

    @model_validator(mode="after")
    def _distinct(self) -> Aggregate:
        names = [*self.by, *self.measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError("BAD_AGGREGATE", "two columns of the result are named {name}", {"name": twice[0]})
        return self

    def apply(self, frame: DataFrame) -> DataFrame:
        from pyspark.sql import functions as F

        measures = [F.expr(text).alias(name) for name, text in self.measures.items()]
        return frame.groupBy(*[F.col(sql.name(column)) for column in self.by]).agg(*measures)

    def expressions(self) -> list[str]:
        return [*self.by, *self.measures.values()]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.by
