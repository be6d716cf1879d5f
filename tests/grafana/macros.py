"""The macros of Grafana's PostgreSQL data source that the dashboards use, expanded as its documentation says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone


@dataclass(frozen=True)
class Range:
    """What a dashboard shows, and the step (seconds) that Grafana has chosen for it."""

    start: datetime
    end: datetime
    step: int = 60


def expand(text: str, shown: Range) -> str:
    """The query as PostgreSQL gets it. Raises ``ValueError`` for a macro that there is not, or a wrong argument."""
    text = text.replace("$__interval_ms", str(shown.step * 1000)).replace("$__interval", f"{shown.step}s")
    expanded = re.sub(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)", lambda m: _macro(m[1], m[2], shown), text)
    if "$" in expanded:
        raise ValueError(f"something is not expanded: {expanded}")
    return expanded


def _macro(name: str, arguments: str, shown: Range) -> str:
    given = [argument.strip(" ") for argument in arguments.split(",")]
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
