"""From rows to what travels: series on one time axis, and values that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from lakehouse_engine.dashboard.macros import Fill, Range


def series(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], shown: Range, filled: tuple[bool, Fill]
) -> dict[str, Any]:
    """Rows of (time, metric, value) or (time, value) as ``time`` (seconds since 1970) and ``series`` beside it.

    With ``filled`` every step of the range is there, as Grafana has it; otherwise those alone that have a row.
    """
    at, metric = columns.index("time"), columns.index("metric") if "metric" in columns else None
    value = next(i for i in range(len(columns)) if i not in (at, metric))
    found: dict[str, dict[float, Any]] = {}
    for row in rows:
        name = columns[value] if metric is None else str(row[metric])
        found.setdefault(name, {})[_seconds(row[at])] = _number(row[value])
    times: list[float] = sorted({time for points in found.values() for time in points})
    if filled[0] and found:
        first, last = (int(m.timestamp() // shown.step) * shown.step for m in (shown.start, shown.end))
        times = [float(t) for t in range(min(first, int(times[0])), max(last, int(times[-1])) + 1, shown.step)]
    return {"time": times, "series": [{"name": name, "values": _filled(points, times, filled[1])}
                                      for name, points in sorted(found.items())]}  # fmt: skip


def _filled(points: dict[float, Any], times: Sequence[float], fill: Fill) -> list[Any]:
    values, before = [], None
    for time in times:
        before = points.get(time, before if fill == "previous" else fill)
        values.append(before)
    return values


def _seconds(value: Any) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _number(value: Any) -> float | int | None:
    number = float(value) if isinstance(value, Decimal) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
