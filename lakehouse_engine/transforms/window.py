"""``window``: event-time windows, aligned to UTC, and sessions.

``window: {tumbling: 1 minute, by: [event_type], measures: {event_count: count(*)}}``.
Result: ``window_start timestamp``, for sessions also ``window_end timestamp``, then ``by``, then the measures.

In a stream into PostgreSQL whose measures merge (count, count_if, sum, min, max and avg, alone) a micro-batch computes
base aggregates of its own rows, and the database merges them into what it holds, in the transaction that moves the
position. There a row is late if and only if its window's end is at or
before the watermark of its batch; for a session, if and only if it is older than the watermark. Other windows
of streams are Spark's own, in a query beside the scans (``stages.py``).

A session is the rows of one key whose event times are, one after the other, at most ``gap`` apart (Spark's own
``session_window``: two rows exactly ``gap`` apart are of one session). It begins at its first row and ends ``gap``
after its last one, and is sent once, when the watermark has passed its end (see ``sinks/sessions.py``).

In a job windows are the same, of all rows that the source holds: nothing is late there, every aggregate is a measure,
``count(distinct)`` too. With ``replace_by`` its column is among ``by``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Aggregation, Column, Columns, Component, Duration, Model
from lakehouse_engine.rows import QUARANTINED, Rows, Verdict
from lakehouse_engine.transforms.watermark import EVENT_TIME

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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


class Session(Model):
    """Windows that last as long as rows of their key come, at most ``gap`` apart."""

    #: from a session's last row to its end: a later row begins another one
    gap: Duration


def _aggregates(text: str) -> str:
    if not sql.is_aggregate(text):
        raise PydanticCustomError("BAD_MEASURE", "{text} does not aggregate", {"text": f"`{text}`"})
    return text


def _some(measures: dict[str, str]) -> dict[str, str]:
    if not measures:
        raise PydanticCustomError("BAD_WINDOW", "a window needs at least one measure")
    return measures


def _kind(name: str, **others: JsonDict) -> JsonDict:
    """JSON Schema of a window of this kind."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}, **others}}


class Window(Component):
    """Exactly one of ``tumbling``, ``sliding`` and ``session``. Needs a ``watermark`` before it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_kind("tumbling"), _kind("sliding"),
                                                           _kind("session", emit={"const": "final"})]})  # fmt: skip

    #: windows of this size, one after the other
    tumbling: Duration | None = None
    #: windows that overlap
    sliding: Sliding | None = None
    #: windows that last while rows come
    session: Session | None = None
    #: a timestamp, by which rows are put into windows, instead of the watermark's; a row without one is quarantined.
    #: When a window is over, the watermark says all the same
    column: Column | None = None
    #: columns; derive expressions first
    by: Columns = ()
    #: each the resulting column. In a stream count, count_if, sum, min, max and avg, alone, merge in PostgreSQL; with
    #: another one the window is a query of its own, and ``count(distinct)`` is for jobs
    measures: Annotated[dict[Column, Annotated[Aggregation, AfterValidator(_aggregates)]], AfterValidator(_some), Field(
        json_schema_extra={"minProperties": 1})]  # fmt: skip
    #: ``updates`` sends a window on each change, ``final`` once, when the watermark passes its end, as sessions always
    #: are; a job writes whole windows
    emit: Literal["updates", "final"] = "updates"

    @model_validator(mode="after")
    def _one_kind(self) -> Window:
        if [self.tumbling, self.sliding, self.session].count(None) != 2:
            raise PydanticCustomError("BAD_WINDOW", "a window is one of tumbling, sliding and session")
        if self.size <= 0:
            raise PydanticCustomError("BAD_WINDOW", "a window has a size above zero")
        if self.session and self.emit == "updates" and "emit" in self.model_fields_set:
            raise PydanticCustomError("BAD_WINDOW", "a session is sent once, when it is over: emit is final")
        names = [*self.made, *self.by, *self.measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError("BAD_WINDOW", "two columns of the result are named {name}", {"name": twice[0]})
        return self

    @property
    def kind(self) -> str:
        return "tumbling" if self.tumbling is not None else "sliding" if self.sliding else "session"

    @property
    def made(self) -> tuple[str, ...]:
        """The columns, timestamps, that it adds to ``by`` and the measures."""
        return ("window_start", "window_end") if self.session else ("window_start",)

    @property
    def final(self) -> bool:
        """Whether a stream sends it once."""
        return self.session is not None or self.emit == "final"

    @property
    def size(self) -> int:
        """Microseconds from a window's start to its end; of sessions the gap."""
        return self.sliding.size if self.sliding else self.session.gap if self.session else self.tumbling or 0

    @property
    def every(self) -> int:
        """Microseconds between the starts of two windows; of sessions those between two parts (``sinks/sessions``)."""
        return self.sliding.every if self.sliding else self.size

    @property
    def keys(self) -> tuple[str, ...]:
        return ("window_start", *self.by)

    def apply(self, frame: DataFrame) -> DataFrame:
        """In a job. ``frame`` has the event time, never null, in ``watermark.EVENT_TIME``."""
        from pyspark.sql import functions as F

        time = F.col(EVENT_TIME if self.column is None else sql.name(self.column))
        size, every = f"{self.size} microseconds", f"{self.every} microseconds"
        window = F.session_window(time, size) if self.session else F.window(time, size, every)
        measures = [F.expr(text).alias(name) for name, text in self.measures.items()]
        made = [F.col(f"{EVENT_TIME}.{part}").alias(name)
                for part, name in zip(("start", "end"), self.made, strict=False)]  # fmt: skip
        by = [F.col(sql.name(name)) for name in self.by]
        groups = frame.groupBy(window.alias(EVENT_TIME), *by)
        return groups.agg(*measures).select(*made, *by, *(F.col(sql.name(name)) for name in self.measures))

    @property
    def merges(self) -> bool:
        """Whether the measures of two parts of a window give those of the whole."""
        return all(map(sql.merges, self.measures.values()))

    def late(self, time: str, start: str, watermark: str) -> str:
        """SQL: a row is late. ``start``: of the newest window that holds ``time``; all in microseconds."""
        return f"{time} < {watermark}" if self.session else f"{start} + {self.size} <= {watermark}"

    def missed(self, time: int, watermark: int) -> list[int]:
        """Starts of the windows that hold ``time`` and are closed at ``watermark``, oldest first (all in micros).

        For a session: of the one that a late row would be alone.
        """
        if self.session:
            return [time]
        newest = time - time % self.every
        starts = range(newest - self.size + self.every, newest + 1, self.every)
        return [start for start in starts if start + self.size <= watermark]

    def row(self, rows: Rows, step: str) -> Rows:
        """The rows that can be put into a window."""
        if self.column is None:
            return rows
        reason = f"array({sql.string(f'window: {self.column} is null')})"
        return rows.refuse(Verdict(step, QUARANTINED, f"({rows.resolve(sql.name(self.column))}) is null", reason))

    def expressions(self) -> list[str]:
        return [*([self.column] if self.column else []), *self.by, *self.measures.values()]
