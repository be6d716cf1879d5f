"""The names of the steps: functions of the engine, each the place of what runs between two crashes."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from typing import Any

ACQUIRE = "locks:acquire"
CLAIM_WINDOWS = "streams:_Windows.__init__"
CLAIM_ROWS = "inserts:Inserts.__init__"
LANDING = "landing:Landing.__init__"
STREAM = "sources.reading:OfTopic.stream"
BATCH = "streamrun:StreamRun._batch"
READ = "streams:ScanRun._write"
WRITE_MEMBER = "streams:_Windows._write_member"
COMMIT = "progress:commit"
#: PostgreSQL's COMMIT, where ``_Windows._commit`` and ``Inserts._put`` leave their transaction
END = "streams:_Windows._commit"
#: the transaction is there, and the process has not heard of it yet
COMMITTED = "journal:seen"
INSERTS = "inserts:Inserts.write"
ASIDE = "aside:Aside.keep"
STORE = "landing:Landing._store"
RECOUNT = "recount:_Recount._claim"
PAST = "past:reading"
DAYS = "recount:_Recount._days"
DAY = "recount:_Recount._day"
COMPARE = "recount:_Recount._compare"
HELD = "endings:IntoPostgres.held"
OPEN = "checkpoints:Checkpoint.open"
CLAIM_QUERY = "endings:IntoPostgres.claim"
CLAIM_POSITIONS = "endings:IntoPostgres.positions"
STATE_COMMIT = "staterun:StateRun._commit"
MOVE = "endings:IntoPostgres._move"
#: as they may stand in a schedule
STEPS = (ACQUIRE, CLAIM_WINDOWS, CLAIM_ROWS, LANDING, STREAM, BATCH, READ, WRITE_MEMBER, COMMIT, END, COMMITTED,
         INSERTS, ASIDE, STORE, RECOUNT, PAST, DAYS, DAY, COMPARE, HELD, OPEN,
         CLAIM_QUERY, CLAIM_POSITIONS, STATE_COMMIT, MOVE)  # fmt: skip


def function(step: str) -> Any:
    """The engine's function of that name."""
    module, _, name = step.partition(":")
    return reduce(getattr, name.split("."), import_module(f"lakehouse_engine.{module}"))
