"""``dedupe``: one row per key, in jobs. ``dedupe: {keys: [event_id], keep: first, order_by: [timestamp]}``.

Ties are broken by all other columns in their order, so that a re-run keeps the same row. Null is a key like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Columns, Component, Expression

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Dedupe(Component):
    """``keep: first`` keeps the least ``order_by``, ``last`` the greatest; rows dropped count as ``duplicate``."""

    keys: Columns
    keep: Literal["first", "last"] = "first"
    order_by: tuple[Expression, ...] = ()

    @classmethod
    def short(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"keys": value}

    @field_validator("keys")
    @classmethod
    def _some(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not keys:
            raise PydanticCustomError("BAD_DEDUPE", "name at least one key column")
        return keys

    def apply(self, frame: DataFrame) -> DataFrame:
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        orders = [F.expr(text) for text in self.order_by]
        # the record's place first: it is unique in a landing, cheap to compare and does not depend on other columns
        ties = sorted(frame.columns, key=lambda name: (name not in ("_topic", "_partition", "_offset"), name))
        orders += [
            F.col(sql.name(name)) for name in ties if frame.schema[name].dataType.typeName() not in ("map", "variant")
        ]
        direction = [c.asc_nulls_last() if self.keep == "first" else c.desc_nulls_last() for c in orders]
        keys = [F.col(sql.name(key)) for key in self.keys]
        # a hash first: Spark sorts by the first column's leading bytes, and those of a date are all the same in a day
        window = Window.partitionBy(F.xxhash64(*keys), *keys).orderBy(*direction)
        return frame.withColumn("_rank", F.row_number().over(window)).filter("_rank = 1").drop("_rank")

    def expressions(self) -> list[str]:
        return [*self.keys, *self.order_by]
