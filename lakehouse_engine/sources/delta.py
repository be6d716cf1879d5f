"""``delta``: the Delta table of a pipeline.

Columns: those of the table.

**Delivery guarantees**: a job reads one version of the table, named in its commit. What changed since the version of
the last commit is taken from the table's own log.
"""

from __future__ import annotations

from typing import ClassVar

from lakehouse_engine.component import Component, Table


class Delta(Component):
    """``bronze.user_events`` is short for ``{delta: {table: bronze.user_events}}``."""

    later: ClassVar[frozenset[str]] = frozenset({"changes", "as_of", "start", "rewrites"})

    table: Table
