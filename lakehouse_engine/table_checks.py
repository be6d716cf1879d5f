"""Judges the whole result of a job: what ``unique``, ``row_count`` and ``freshness`` ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from lakehouse_engine import sql
from lakehouse_engine.checks import Freshness, RowCount, TableCheck, Unique
from lakehouse_engine.component import format_duration
from lakehouse_engine.progress import to_micros

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def judge(check: TableCheck, keys: Sequence[str], result: DataFrame, stays: Callable[[], DataFrame | None],
          now: datetime) -> tuple[str, int, str]:  # fmt: skip
    """The check's name, a number above zero when it fails, and then a message.

    ``result`` will be written; ``stays``: the rows of the table that will stay beside it, None for none.
    """
    if isinstance(check, Unique):
        columns = check.columns or tuple(keys)
        frame = result.filter(check.where) if check.where else result
        twice = frame.groupBy(*[sql.name(c) for c in columns]).count().filter("count > 1").count()
        name = check.name or f"unique({', '.join(columns)})"
        return name, twice, f"{twice:,} values fail {name}"
    if isinstance(check, RowCount):
        name = check.name or "row_count"
        count = (result.filter(check.where) if check.where else result).count()
        wanted = " and ".join(f"{word} {bound:,}" for word, bound in (("at least", check.min), ("at most", check.max))
                              if bound is not None)  # fmt: skip
        return name, int(not check.accepts(count)), f"{count:,} rows fail {name}: it wants {wanted}"
    assert isinstance(check, Freshness)
    name = check.name or f"freshness({check.column})"
    moment = to_micros(now) or 0
    newest = _newest(check, result)
    rest = None if check.accepts(newest, moment) else stays()
    if rest is not None:  # a correction of old rows does not make a table old
        newest = max((time for time in (newest, _newest(check, rest)) if time is not None), default=None)
    return name, int(not check.accepts(newest, moment)), f"{name} fails: {stale(check, newest)}"


def _newest(check: Freshness, frame: DataFrame) -> int | None:
    (row,) = frame.selectExpr(f"max({check.time}) as newest").collect()
    newest: int | None = row["newest"]
    return newest


def stale(check: Freshness, newest: int | None) -> str:
    """What is wrong, in words; ``newest`` in microseconds."""
    if newest is None:
        return "there is no row"
    time = datetime.fromtimestamp(newest / 1e6, timezone.utc)
    return f"the newest row is of {time:%Y-%m-%dT%H:%M:%SZ}, more than {format_duration(check.max_age)} ago"
