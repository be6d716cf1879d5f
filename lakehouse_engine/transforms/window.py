"""``window``: event-time windows, aligned to UTC.

``window: {tumbling: 1 minute, by: [event_type], measures: {event_count: count(*)}}``.
Result: ``window_start timestamp``, then ``by``, then the measures.

In a stream into PostgreSQL a micro-batch computes base aggregates of its own rows, and the database merges them into
what it holds, in the transaction that moves the position. A row is late if and only if its window's end is at or
before the watermark of its batch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Aggregation, Column, Columns, Component, Duration, Model


class Sliding(Model):
    """Windows of ``size`` that begin every ``every``, which divides ``size``."""

    #: from a window's start to its end
    size: Duration
    #: from one window's start to the next one's
    every: Duration

    @model_validator(mode="after")
    def _divides(self) -> Sliding:
        if self.every <= 0 or self.size % self.every:
            raise PydanticCustomError("BAD_WINDOW", "size must be a multiple of every")
        return self


def _merges(text: str) -> str:
    try:
        sql.measure(text)
    except sql.ExpressionError as error:
        raise PydanticCustomError(error.code, "{message}", {"message": str(error)}) from None
    return text


def _some(measures: dict[str, str]) -> dict[str, str]:
    if not measures:
        raise PydanticCustomError("BAD_WINDOW", "a window needs at least one measure")
    return measures


class Window(Component):
    """Exactly one of ``tumbling`` and ``sliding``. Needs a ``watermark`` before it."""

    later: ClassVar[frozenset[str]] = frozenset({"session", "column"})

    model_config = ConfigDict(json_schema_extra={"oneOf": [
        {"required": [one], "properties": {one: {"not": {"type": "null"}}}}
        for one in ("tumbling", "sliding")]})  # fmt: skip

    #: windows of this size, one after the other
    tumbling: Duration | None = None
    #: windows that overlap
    sliding: Sliding | None = None
    #: columns; derive expressions first
    by: Columns = ()
    #: each the resulting column: one of count, count_if, sum, min, max, avg
    measures: Annotated[dict[Column, Annotated[Aggregation, AfterValidator(_merges)]], AfterValidator(_some), Field(
        json_schema_extra={"minProperties": 1})]  # fmt: skip
    #: ``updates`` sends a window on each change, ``final`` once, when the watermark passes its end
    emit: Literal["updates", "final"] = "updates"

    @model_validator(mode="after")
    def _one_kind(self) -> Window:
        if (self.tumbling is None) == (self.sliding is None):
            raise PydanticCustomError("BAD_WINDOW", "a window is either tumbling or sliding")
        if self.tumbling is not None and self.tumbling <= 0:
            raise PydanticCustomError("BAD_WINDOW", "a window has a size above zero")
        names = ["window_start", *self.by, *self.measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError("BAD_WINDOW", "two columns of the result are named {name}", {"name": twice[0]})
        return self

    @property
    def size(self) -> int:
        """Microseconds from a window's start to its end."""
        return self.sliding.size if self.sliding else self.tumbling or 0

    @property
    def every(self) -> int:
        """Microseconds between the starts of two windows."""
        return self.sliding.every if self.sliding else self.tumbling or 0

    @property
    def keys(self) -> tuple[str, ...]:
        return ("window_start", *self.by)

    def expressions(self) -> list[str]:
        found = [sql.measure(text).argument for text in self.measures.values()]
        return [*self.by, *(argument for argument in found if argument is not None)]
