"""``delta``: the Delta table of a pipeline.

Columns: those of the table.

**Delivery guarantees**: a job reads one version of the table, named in its commit. What changed since the version of
the last commit is taken from the table's own log.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, ClassVar

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Component, Table, Whole


def _as_of(value: int | str | None) -> int | str | None:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            raise PydanticCustomError("BAD_TIME", "{value} is neither a version nor a time; write e.g. 12 or"
                                      " 2026-01-01T00:00:00Z", {"value": repr(value)}) from None  # fmt: skip
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).isoformat()
    if value is not None and value < 0:
        raise PydanticCustomError("BAD_TIME", "a version is 0 or more")
    return value


class Delta(Component):
    """The Delta table of a pipeline, for jobs. ``bronze.user_events`` is short for ``{delta: {table: ...}}``."""

    later: ClassVar[frozenset[str]] = frozenset({"changes", "start", "rewrites"})

    #: the pipeline that writes it
    table: Table
    #: a version, or a moment: the newest version that was there then
    as_of: Annotated[Whole | str | None, AfterValidator(_as_of)] = None
