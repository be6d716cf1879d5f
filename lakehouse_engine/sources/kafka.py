"""``kafka``: the records of one topic.

Columns: ``_key binary, _value binary, _topic string, _partition int, _offset bigint, _timestamp timestamp``.

**Delivery guarantees**: reads committed records only, from the position that the sink's own ledger holds; ``start``
counts when there is none yet. A record is never skipped: a position that the topic no longer holds stops the run.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import TABLE, Component

COLUMNS = {"_key": "binary", "_value": "binary", "_topic": "string", "_partition": "int", "_offset": "bigint",
           "_timestamp": "timestamp"}  # fmt: skip


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value):
        raise PydanticCustomError("BAD_NAME", "{value} is not a topic's name: letters, digits, . _ - only",
                                  {"value": repr(value)})  # fmt: skip
    return value


def _table(value: str) -> str:
    if not TABLE.fullmatch(value):
        raise PydanticCustomError("BAD_NAME", "{value} is not <layer>.<name>", {"value": repr(value)})
    return value


Topic = Annotated[str, AfterValidator(_topic)]
Table = Annotated[str, AfterValidator(_table)]


class Kafka(Component):
    """``history`` names the pipeline that lands this topic; it keeps the rows that are refused by parse."""

    later: ClassVar[frozenset[str]] = frozenset({"topics", "pattern", "end", "connection"})

    topic: Topic
    history: Table | None = None
    start: Literal["earliest", "latest"] = "earliest"
    max_per_trigger: int = 200_000
