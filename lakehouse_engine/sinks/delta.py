"""``delta``: a Delta table at ``<storage>/<layer>/<name>``.

**Delivery guarantees**: exactly-once effect. A commit carries how far its source was read, in ``userMetadata`` of the
same Delta commit; rows below that position are filtered when they come again. One writer per table: the JVM that writes
holds a lock on it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from lakehouse_engine.component import Column, Columns, Component


class Delta(Component):
    """``append`` adds each row once (streams); ``replace`` writes the result, or its ``replace_by`` part (jobs)."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"order_by", "delete_when", "valid_from", "cluster_by", "vacuum_after", "table"}
    )

    mode: Literal["append", "replace"] | None = None
    partition_by: Columns = ()
    replace_by: Column | None = None
    updated_at: bool = True
