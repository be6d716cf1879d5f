"""The generated dashboards, and what their panels show: ``lakehouse grafana``'s own JSON, from the specs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
from psycopg2 import errors

from lakehouse_engine import grafana
from lakehouse_engine.dashboard import frames
from lakehouse_engine.dashboard.macros import Range, expand, filling, step_for
from lakehouse_engine.database import Database, plain
from lakehouse_engine.errors import UsageError
from lakehouse_engine.spec.pipeline import Panel, PipelineSpec

#: rows of one panel
ROWS = 10_000
_UNITS = {"m": 60, "h": 3600, "d": 86400}
#: points of a tile's small curve; of days it shows so many
_POINTS, _DAYS = 60, 30
#: the shortest step (seconds) of a panel that does not say its own: ``timeInterval`` of Grafana's data source
LEAST = 10


@dataclass(frozen=True)
class Board:
    """One dashboard as Grafana's JSON, and what is known of its panels beside that, by their ids."""

    uid: str
    content: dict[str, Any]
    panels: dict[int, dict[str, Any]]
    behind: Mapping[int, tuple[PipelineSpec, Panel]] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Grafana's JSON without the queries: a browser names a panel and never sends one."""
        panels = []
        for number, panel in self.panels.items():
            kept = {name: value for name, value in panel.items() if name not in ("targets", "datasource")}
            found = self.behind.get(number)
            panels.append({**kept, "pipeline": found[0].name if found else None})
        return {**self.content, "panels": panels}

    def hint(self, number: int) -> str:
        """What to do where there is nothing to show."""
        found = self.behind.get(number)
        return hint(found[0]) if found else "no data yet: lakehouse run"

    def nothing(self, number: int) -> str:
        """What to say where the tables are there, and hold nothing of this time."""
        found = self.behind.get(number)
        return f"nothing in this time: {_commands(found[0])}" if found else "nothing in this time"


def boards(specs: Sequence[PipelineSpec]) -> dict[str, Board]:
    """Overview and operators' dashboard, by uid."""
    files = grafana.rendered(specs)
    behind = dict(enumerate(grafana.ordered(specs), 1))
    found = {}
    for name, known in ((grafana.OVERVIEW, behind), (grafana.PIPELINES, {})):
        content = json.loads(files[name])
        found[content["uid"]] = Board(content["uid"], content, {p["id"]: p for p in content["panels"]}, known)
    return found


def hint(spec: PipelineSpec) -> str:
    """The commands that bring the first rows of this pipeline."""
    return f"no data yet: {_commands(spec)}"


def _commands(spec: PipelineSpec) -> str:
    if spec.serve:
        return "lakehouse run --available-now pipelines, then lakehouse serve"
    return f"lakehouse run {spec.file}"


def parse_range(shown: str | None, start: str | None, end: str | None, now: datetime | None = None) -> Range:
    """``1h`` (minutes, hours or days up to now), or two ISO times. Raises ``UsageError`` BAD_RANGE."""
    if start or end:
        try:
            first, last = (_moment(text) for text in (start, end))
        except ValueError:
            raise UsageError("BAD_RANGE", "from and to are ISO times, e.g. 2026-01-01T00:00:00Z") from None
    else:
        match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", shown or "1h")
        if match is None:
            raise UsageError("BAD_RANGE", f"range is a number of m, h or d, e.g. 6h, and not {shown!r}")
        last = (now or datetime.now(timezone.utc)).replace(microsecond=0)
        first = last - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    if not timedelta(seconds=1) <= last - first <= timedelta(days=3660):
        raise UsageError("BAD_RANGE", "from lies before to, by ten years at most")
    return Range(first, last, step_for((last - first).total_seconds(), LEAST))


def aligned(shown: Range) -> Range:
    """From the beginning of a step: a series does not begin with a part of one."""
    start = shown.start.timestamp() // shown.step * shown.step
    return Range(datetime.fromtimestamp(start, timezone.utc), shown.end, shown.step)


def _moment(text: str | None) -> datetime:
    found = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def answer(board: Board, number: int, shown: Range, database: Database) -> dict[str, Any]:
    """What a panel shows: ``time`` and ``series``, or ``columns`` and ``rows``; ``state`` ok, empty, missing or error.

    Raises ``RunError`` where PostgreSQL cannot be asked at all.
    """
    panel = board.panels[number]
    text, least = panel["targets"][0]["rawSql"], int(str(panel.get("interval", LEAST)).rstrip("s"))
    seconds = (shown.end - shown.start).total_seconds()
    shown = Range(shown.start, shown.end, step_for(seconds, least))
    if panel["type"] == "timeseries":
        shown = aligned(shown)
    known: dict[str, Any] = {"id": number, "from": plain(shown.start), "to": plain(shown.end),
                             "step": shown.step, "state": "ok"}  # fmt: skip
    try:
        found = database.ask(expand(text, shown), limit=ROWS)
        if panel["type"] == "timeseries":
            known |= frames.series(found.columns, found.rows, shown, filling(text))
            nothing = not known["series"]
        else:
            known |= {"columns": found.columns, "rows": plain(found.rows)}
            nothing = all(value is None for row in found.rows for value in row)
        known["more"] = found.more
        if panel["type"] == "stat" and not nothing:
            known["spark"] = _spark(board, number, shown, database)
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
        return {**known, "state": "missing", "message": board.hint(number)}
    except psycopg2.Error as error:
        return {**known, "state": "error", "message": str(error).strip().splitlines()[0]}
    return {**known, "state": "empty", "message": board.nothing(number)} if nothing else known


def _spark(board: Board, number: int, shown: Range, database: Database) -> dict[str, Any] | None:
    """The tile's value over its time: the query that its pipeline's panel would have as a series."""
    found = board.behind.get(number)
    if found is None or found[0].time_column is None:
        return None
    spec, panel = found
    one = grafana.view(spec, panel.model_copy(update={"type": "timeseries", "by": None}))
    if one.every is None:  # of days
        over = Range(shown.end - timedelta(days=_DAYS), shown.end, 86400)
    else:
        seconds = (shown.end - shown.start).total_seconds()
        over = aligned(Range(shown.start, shown.end, step_for(seconds, int(one.every.rstrip("s")), _POINTS)))
    told = database.ask(expand(one.sql, over), limit=ROWS)
    drawn = frames.series(told.columns, told.rows, over, filling(one.sql))
    return {"time": drawn["time"], "values": drawn["series"][0]["values"]} if drawn["series"] else None
