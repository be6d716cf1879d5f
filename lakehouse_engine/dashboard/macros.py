"""The macros of Grafana's PostgreSQL data source, expanded as its documentation says.

``$__timeFilter(column)``, ``$__timeFrom()``, ``$__timeTo()``, ``$__timeGroupAlias(column, interval[, fill])``,
``$__interval``, ``$__interval_ms``. As in Grafana, ``fill`` does not change the query: it says what stands where a step
has no row, and ``frames.py`` puts it there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone

#: what a step without a row shows: a number, nothing, or what the step before it shows
Fill = float | None | str
#: steps of a series, in seconds
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_CALL = re.compile(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)")


@dataclass(frozen=True)
class Range:
    """What a dashboard shows, and the step (seconds) of its series."""

    start: datetime
    end: datetime
    step: int = 60


def step_for(seconds: float, at_least: int = 1, points: int = 240) -> int:
    """The step of a series over so many seconds: round, a multiple of ``at_least``, for ``points`` points or fewer.

    Where no round one is a multiple (windows of seven minutes), the smallest multiple.
    """
    wanted = max(seconds / points, at_least)
    smallest = math.ceil(wanted / at_least) * at_least
    return next((step for step in _STEPS if step >= wanted and step % at_least == 0), smallest)


def expand(text: str, shown: Range) -> str:
    """The query as PostgreSQL gets it. Raises ``ValueError`` for a macro that there is not, or a wrong argument."""
    expanded = _CALL.sub(lambda m: _macro(m[1], m[2], shown), _intervals(text, shown))
    if "$" in expanded:
        raise ValueError(f"something is not expanded: {expanded}")
    return expanded


def filling(text: str) -> tuple[bool, Fill]:
    """Whether steps without a row are filled, and with what: the third argument of ``$__timeGroupAlias``."""
    for name, arguments in _CALL.findall(text):
        if name == "__timeGroupAlias":
            _, _, *fill = _arguments(arguments)
            if fill:
                return True, None if fill[0] == "NULL" else "previous" if fill[0] == "previous" else float(fill[0])
    return False, None


def _intervals(text: str, shown: Range) -> str:
    return text.replace("$__interval_ms", str(shown.step * 1000)).replace("$__interval", f"{shown.step}s")


def _arguments(text: str) -> list[str]:
    return [argument.strip(" ") for argument in text.split(",")]


def _macro(name: str, arguments: str, shown: Range) -> str:
    given = _arguments(arguments)
    start, end = (moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
                  for moment in (shown.start, shown.end))  # fmt: skip
    if name == "__timeFrom":
        return f"'{start}'"
    if name == "__timeTo":
        return f"'{end}'"
    if name == "__timeFilter":
        return f"{given[0]} BETWEEN '{start}' AND '{end}'"
    if name == "__timeGroupAlias":
        column, interval, *fill = given
        step = re.fullmatch(r"(\d+)s", interval.strip("'"))
        if step is None or len(fill) > 1 or (fill and fill[0] not in ("NULL", "previous") and not float(fill[0]) >= 0):
            raise ValueError(f"{name}({arguments})")
        return f'floor(extract(epoch from {column})/{step[1]})*{step[1]} AS "time"'
    raise ValueError(f"there is no macro {name}")
