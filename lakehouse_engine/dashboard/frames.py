"""From rows to what travels: series on one time axis, and values that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

from lakehouse_engine.dashboard.macros import Fill, Range


def plain(value: Any) -> Any:
    """A value of PostgreSQL or Parquet as JSON holds it: times in UTC, exact decimals as text, bytes as text or hex."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, memoryview | bytes | bytearray):
        raw = bytes(value)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "\\x" + raw.hex()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


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
