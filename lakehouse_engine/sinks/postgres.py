"""``postgres``: a table in PostgreSQL 15 or newer.

**Delivery guarantees**: exactly-once effect. The rows, the late rows, the position and the counters of a micro-batch
are one transaction; comparing and setting the position fences off a second writer.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from lakehouse_engine.component import Component
from lakehouse_engine.sources.kafka import Table


class Postgres(Component):
    """``upsert`` (windows): merges a micro-batch's base aggregates into one row per window and key."""

    later: ClassVar[frozenset[str]] = frozenset({"order_by", "delete_when", "connection"})

    table: Table | None = None
    mode: Literal["upsert", "replace"] | None = None
    updated_at: bool = True
