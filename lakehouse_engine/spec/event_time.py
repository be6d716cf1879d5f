"""What one file may not say of event time: watermarks, and the windows that need them."""

from __future__ import annotations

from collections.abc import Iterator

from lakehouse_engine import sql
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks.sessions import FIRST, LAST
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at, step_of, unsure
from lakehouse_engine.transforms import Aggregate, Join, Sql, Union, Watermark, Window


def watermark_once_and_before_window(spec: PipelineSpec) -> Iterator[Problem]:
    seen = 0
    for index, transform in enumerate(spec.transforms):
        if transform.key == "watermark":
            seen += 1
            if seen > 1:
                yield at(spec, step_of(spec, index), "WATERMARK_TWICE", "an input has one watermark")
        if transform.key == "window" and not seen and not unsure(spec):
            yield at(spec, step_of(spec, index), "WATERMARK_MISSING", "a window needs a watermark before it, e.g."
                      " - watermark: {column: timestamp, delay: 2 minutes}")  # fmt: skip
        elif isinstance(transform, Window) and not spec.is_stream:
            timeless = next((step for step in reversed(spec.transforms[:index]) if isinstance(step, Watermark)
                             or _new_rows(step)), None)  # fmt: skip
            if isinstance(timeless, Window):
                yield at(spec, step_of(spec, index), "NOT_YET", "a window over a window's result comes with a later"
                         " version")  # fmt: skip
            elif timeless is not None and not isinstance(timeless, Watermark):
                yield at(spec, step_of(spec, index), "WATERMARK_MISSING", f"{timeless.key} makes rows that have no"
                         f" event time yet: move the watermark behind {timeless.key}")  # fmt: skip


def _new_rows(step: object) -> bool:
    """Whether a job's step makes rows of which not each has the event time of one that came in."""
    return isinstance(step, Aggregate | Window | Union | Sql) or (
        isinstance(step, Join) and step.how in ("right", "full"))  # fmt: skip


def measures_of_streams(spec: PipelineSpec) -> Iterator[Problem]:
    """They have names of their own: an average is kept as ``n__sum`` and ``n__count``, a session with its ends."""
    for index, transform in enumerate(spec.transforms if spec.is_stream else ()):
        if not isinstance(transform, Window):
            continue
        kept = {FIRST: "the ends of a session", LAST: "the ends of a session"} if transform.session else {}
        for name, text in transform.measures.items():
            place = f"{step_of(spec, index)}.measures.{name}"
            if sql.is_distinct(text):
                yield at(spec, place, "BAD_MEASURE", f"`{text}`: distinct values are for jobs; a stream has"
                         " approx_count_distinct")  # fmt: skip
            try:
                sql.aggregation(text)
            except sql.ExpressionError as error:
                yield at(spec, place, error.code, str(error))
            if sql.merges(text) and sql.measure(text).function == "avg":
                kept |= {f"{name}__sum": "an average", f"{name}__count": "an average"}
        for name in sorted(kept.keys() & {*transform.by, *transform.measures}):
            place = f"{step_of(spec, index)}.measures.{name}"
            yield at(spec, place, "RESERVED_COLUMN", f"{name} is where the engine keeps {kept[name]}: rename yours")
