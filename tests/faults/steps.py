"""The steps of a micro-batch and of a job, where each is stopped, and which cells of the matrix cannot exist."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = {
    1: "before the offset log", 2: "offset log's file written, not renamed", 3: "offset log renamed", 4: "in a task",
    5: "before the ledger", 6: "after COPY", 7: "COMMIT sent, answer lost", 8: "before the commit log's file",
    9: "commit log renamed", 10: "during a state upload", 11: "before Delta's json is renamed", 12: "between two sinks",
}  # fmt: skip
FAULTS = {
    "kill": "kill -9",
    "stop": "SIGSTOP for 5 s, a second instance, SIGCONT",
    "full": "disk full",
    "postgres": "PostgreSQL restarts",
    "broker": "the broker restarts",
}


@dataclass(frozen=True)
class At:
    """A place to stop: an act of the JVM's (``holds.py``) or on PostgreSQL's wire (``wire.py``)."""

    act: str
    pattern: str
    within: str = ""

    @property
    def keeps_core(self) -> bool:
        """A task that waits keeps a core, of which there may be two: other streams need the second."""
        return self.act == "task" or self.pattern.endswith("part-")

    @property
    def on_wire(self) -> bool:
        return self.act in ("before", "copied", "answered")


_MOVES = "update lakehouse.positions p"


def _checkpoint(query: str) -> dict[int, At]:
    """``query``: a pattern of its name, and of its folder under ``_checkpoints``."""
    folder = f"/_checkpoints/{query}"
    return {
        1: At("create", rf"{folder}/offsets/\.\d+\..*\.tmp$"), 2: At("rename", rf"{folder}/offsets/\d+$"),
        3: At("renamed", rf"{folder}/offsets/\d+$"), 8: At("create", rf"{folder}/commits/\.\d+\..*\.tmp$"),
        9: At("renamed", rf"{folder}/commits/\d+$"),
    }  # fmt: skip


BRONZE = {
    **_checkpoint(r"[^/]*@bronze\.user_events"),
    4: At("create", r"/bronze/user_events/(event_date=[^/]*/)?part-"),
    11: At("rename", r"/bronze/user_events/_delta_log/\d+\.json$"),
    12: At("renamed", r"/bronze/user_events__quarantine/_delta_log/\d+\.json$"),
}
REALTIME = {
    **_checkpoint(r"[^/]*@realtime\.events_per_minute"),
    4: At("task", r"@realtime\.events_per_minute"),
    5: At("before", _MOVES, r'"events_per_minute"'),
    6: At("copied", r'"events_per_minute"'),
    7: At("answered", "^commit", rf'(?s)"events_per_minute".*{_MOVES}'),
    11: At("rename", r"/realtime/landed/_delta_log/\d+\.json$"),
    12: At("create", r"/realtime/landed/part-"),
}
GOLD = {
    4: At("create", r"/gold/daily_active_users/.*part-"),
    5: At("before", "update lakehouse.served"),
    6: At("copied", ""),
    7: At("answered", "^commit", "update lakehouse.served"),
    11: At("rename", r"/gold/daily_active_users/_delta_log/\d+\.json$"),
    12: At("before", "insert into lakehouse.served"),
}
STATE = {
    **_checkpoint(r"realtime\.once"),
    4: At("task", r"^realtime\.once"),
    5: At("before", _MOVES, '"once"'),
    6: At("copied", "", '"once"'),
    7: At("answered", "^commit", rf'(?s)"once".*{_MOVES}'),
    10: At("create", r"/_checkpoints/realtime\.once/state/\d+/\d+/.*\.(changelog|zip)"),
}
PLACES = {"bronze": BRONZE, "realtime": REALTIME, "gold": GOLD, "state": STATE}
SUBJECTS = {
    "bronze": "a landing in Delta with what it refuses beside it",
    "realtime": "a scan of five windows and rows in PostgreSQL, and a Delta table",
    "gold": "a job on the slices that changed and its copy in PostgreSQL",
    "state": "a stream on Spark's state into PostgreSQL",
}


def lacking(subject: str, step: int, fault: str) -> str | None:
    """Why there is no such cell."""
    if step not in PLACES[subject]:
        return _NO_STEP[subject](step)
    at = PLACES[subject][step]
    if fault == "postgres" and (subject == "bronze" or (subject == "gold" and not at.on_wire)):
        return "nothing is asked of PostgreSQL there"
    if fault == "broker" and subject == "gold":
        return "a job reads no topic"
    if fault == "full" and at.on_wire and at.act == "answered":
        return "what is committed needs no more room"
    return None


def _no_bronze(step: int) -> str:
    return "a landing's position is in its Delta commit" if step != 10 else "a landing has no state of Spark's"


def _no_gold(step: int) -> str:
    return "a job has no checkpoint; its progress is in its Delta commit"


def _no_state(step: int) -> str:
    return "this one writes no Delta table" if step == 11 else "it has one sink, and one transaction"


_NO_STEP = {"bronze": _no_bronze, "realtime": lambda step: "a scan of windows has no state of Spark's",
            "gold": _no_gold, "state": _no_state}  # fmt: skip


@dataclass(frozen=True, order=True)
class Cell:
    subject: str
    step: int
    fault: str

    def __str__(self) -> str:
        return f"{self.subject} {self.step} {self.fault}"

    @property
    def at(self) -> At:
        return PLACES[self.subject][self.step]


def cells() -> list[Cell]:
    """All that exist."""
    every = (Cell(subject, step, fault) for fault in FAULTS for step in STEPS for subject in SUBJECTS)
    return [cell for cell in every if lacking(cell.subject, cell.step, cell.fault) is None]
