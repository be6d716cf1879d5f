"""``dedupe``: one row per key. ``dedupe: {keys: [event_id], keep: first, order_by: [timestamp]}``.

In a job ties are broken by all other columns in their order, so that a re-run keeps the same row. A stream keeps the
row that arrives first, and knows its key until the watermark is its ``delay`` past the row; a later row of the key that
is not late counts anew. Null is a key like any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Columns, Component, Expression

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: where a record of a topic stands
_PLACE = ("_topic", "_partition", "_offset")


class Dedupe(Component):
    """``keep: first`` keeps the least ``order_by``, ``last`` the greatest; rows dropped count as ``duplicate``.

    In a stream it stands after a ``watermark``, and ``keep`` and ``order_by`` are for jobs.
    """

    #: one row for each of their values
    keys: Annotated[Columns, Field(json_schema_extra={"minItems": 1})]
    #: the least or the greatest by ``order_by``
    keep: Literal["first", "last"] = "first"
    #: what decides; ties are broken by all other columns
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

        window = Window.partitionBy(*self.partition()).orderBy(*self.order(frame))
        return frame.withColumn("_rank", F.row_number().over(window)).filter("_rank = 1").drop("_rank")

    def partition(self) -> list[Column]:
        """A hash first: Spark sorts by the first column's leading bytes, and those of a date are the same in a day."""
        from pyspark.sql import functions as F

        keys = [F.col(sql.name(key)) for key in self.keys]
        return [F.xxhash64(*keys), *keys]

    def order(self, frame: DataFrame) -> list[Column]:
        """What decides between the rows of a key: ``order_by``, then all columns that can be compared.

        The record's place comes first among those: it is unique in a landing, cheap to compare and depends on no other
        column.
        """
        from pyspark.sql import functions as F

        ties = sorted(_comparable(frame), key=lambda name: (name not in _PLACE, name))
        orders = [F.expr(text) for text in self.order_by] + [F.col(sql.name(name)) for name in ties]
        return [c.asc_nulls_last() if self.keep == "first" else c.desc_nulls_last() for c in orders]

    def deciding(self, frame: DataFrame) -> list[str]:
        """The columns that decide where a record's place is unique; all that can be compared without one."""
        if not all(name in frame.columns for name in _PLACE):
            return _comparable(frame)
        read = {column for text in self.order_by for column in sql.columns(text)}
        read |= {name.lower() for name in (*self.keys, *_PLACE)}
        return [name for name in frame.columns if name.lower() in read]

    def expressions(self) -> list[str]:
        return [*self.keys, *self.order_by]


def _comparable(frame: DataFrame) -> list[str]:
    """All but maps, values of any type, and what holds one."""
    return [f.name for f in frame.schema.fields if not re.search(r"\bmap<|\bvariant\b(?!:)", f.dataType.simpleString())]
