"""The pipelines of the model, and what each makes of a record. Windows, lateness and missed windows are the engine's.

Windows are some hours long, so that a few of them make a day: what is counted anew is counted day by day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lakehouse_engine.scan import COUNTED, FILTERED, LATE, QUARANTINED, SEEN
from lakehouse_engine.transforms import Window
from tests.model.topic import Event

HOUR = 3_600_000_000
#: by partition: offset and event
Records = Mapping[int, list[tuple[int, Event]]]
#: window start, key, the records that it counts; of a session's part then the first and the last event time
Partial = list
Into = Literal["windows", "rows", "landing"]
NAMES = {COUNTED: "counted", LATE: "late", FILTERED: "filtered", QUARANTINED: "quarantined"}


@dataclass(frozen=True)
class Pipeline:
    """``into``: what it writes. Into a landing go the rows as they were parsed, with what others filter."""

    name: str
    into: Into
    window: Window | None = None

    def outcome(self, offset: int, event: Event, watermark: int | None, floor: int) -> int:
        """As ``ScanQuery._outcome`` and ``Judge`` say it in SQL."""
        if offset < floor:
            return SEEN
        if event.kind == "bad" or (event.kind == "checked" and self.into != "landing"):
            return QUARANTINED
        if event.kind == "filtered" and self.into != "landing":
            return FILTERED
        if self.window is not None and watermark is not None and self._late(event.at, watermark):
            return LATE
        return COUNTED

    def _late(self, time: int, watermark: int) -> bool:
        """The text that goes into the batch's SQL, which is an expression of Python's, too."""
        assert self.window is not None
        text = _LATE.setdefault(self.name, compile(self.window.late("time", "start", "watermark"), "late", "eval"))
        start = time - time % self.window.every
        return bool(eval(text, {"time": time, "start": start, "watermark": watermark}))

    def windows(self, time: int, watermark: int | None) -> list[int]:
        """The starts of the windows that hold ``time`` and are not closed."""
        assert self.window is not None
        if self.window.session:
            return [time - time % self.window.size]
        closed = [] if watermark is None else self.window.missed(time, watermark)
        return [start for start in self.window.missed(time, 1 << 62) if start not in closed]


_LATE: dict[str, object] = {}


@dataclass
class Judged:
    """What a batch is for one pipeline. ``late`` and ``refused``: partition, offset, event."""

    partials: list[Partial] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    late: list[tuple[int, int, Event]] = field(default_factory=list)
    refused: list[tuple[int, int, Event]] = field(default_factory=list)
    counted: list[tuple[int, int, Event]] = field(default_factory=list)


def judged(pipeline: Pipeline, records: Records, watermark: int | None, floors: Mapping[int, int] | None) -> Judged:
    """The rows of a batch as its one query counts them. ``floors``: offsets below which the pipeline has all."""
    found = Judged()
    for partition, rows in records.items():
        floor = (floors or {}).get(partition, 0)
        for offset, event in rows:
            outcome = pipeline.outcome(offset, event, watermark, floor)
            if outcome == SEEN:
                continue
            found.counters[NAMES[outcome]] += 1
            place = (partition, offset, event)
            if outcome == QUARANTINED:
                found.refused.append(place)
            if outcome == COUNTED:
                found.counted.append(place)
            if pipeline.window is None or outcome not in (COUNTED, LATE):
                continue
            if outcome == LATE or (watermark is not None and pipeline.window.sliding
                                   and pipeline.window.missed(event.at, watermark)):  # fmt: skip
                found.late.append(place)
    if pipeline.window is not None:
        found.partials = partials(pipeline, (event for _, _, event in found.counted), watermark)
    return found


def partials(pipeline: Pipeline, events: Iterable[Event], watermark: int | None) -> list[Partial]:
    """Aggregates by window and key: the aggregate is which records it was made of, and how often."""
    assert pipeline.window is not None
    made: dict[tuple[int, str], Partial] = {}
    for event in events:
        for start in pipeline.windows(event.at, watermark):
            part = made.setdefault((start, event.key), [start, event.key, Counter(), event.at, event.at])
            part[2][event.uid] += 1
            part[3], part[4] = min(part[3], event.at), max(part[4], event.at)
    return [part if pipeline.window.session else part[:3] for part in made.values()]


def _window(emit: str | None = None, **kind: object) -> Window:
    more = {} if emit is None else {"emit": emit}
    return Window.model_validate({**kind, "by": ["k"], "measures": {"n": "count(*)"}, **more})


UPDATES = Pipeline("realtime.updates", "windows", _window("updates", sliding={"size": "12 hours", "every": "6 hours"}))
FINAL = Pipeline("realtime.final", "windows", _window("final", tumbling="6 hours"))
VISITS = Pipeline("realtime.visits", "windows", _window(session={"gap": "3 hours"}))
ROWS = Pipeline("realtime.rows", "rows")
LANDED = Pipeline("bronze.events", "landing")
ALL = (UPDATES, FINAL, VISITS, ROWS, LANDED)
WINDOWS = (UPDATES, FINAL, VISITS)
