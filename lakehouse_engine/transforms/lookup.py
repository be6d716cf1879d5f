"""``lookup``: columns of the one row of another table that has the row's keys.

``lookup: {from: silver.pages, keys: {page: page}, take: [section]}``. The number of rows stays the same: two rows of
the table for one key stop the run. Null is a key like any other, and matches null. A row whose key the table does not
have gets nulls, or is quarantined (``missing``).

A job reads one version of the table, named in its commit; where that has changed since, the next run is a full one. A
stream reads the table anew when its copy is older than ``refresh``: a row that has been read keeps what the table said
when its micro-batch ran.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lakehouse_engine.component import Column, Component, Duration, Other, Pairs

#: from when on and up to when a row of a table with ``mode: scd2`` is valid
VALID = ("valid_from", "valid_to")


class Lookup(Component):
    """``as_of`` picks, of the rows of a key, the one that was valid then: ``valid_from <= as_of < valid_to``."""

    #: the table: one of ``inputs``, or a pipeline's name for its Delta table
    from_: Other = Field(alias="from")
    #: what identifies one of its rows: a list, or ours to theirs
    keys: Pairs
    #: the columns to add: a list, or the new name to theirs; default: all that are no keys and do not begin with ``_``
    take: Pairs | None = None
    #: a row without one in the table: kept with nulls, or quarantined
    missing: Literal["keep", "quarantine"] = "keep"
    #: how old a stream's copy of the table may get; default: 5 minutes
    refresh: Duration | None = None
    #: our column with the moment at which theirs must be valid, for tables that are written with ``mode: scd2``
    as_of: Column | None = None
    #: in a job with ``replace_by``: when the table has changed, compute all anew, or leave what is there as it is
    on_change: Literal["recompute", "ignore"] = "recompute"

    @property
    def others(self) -> tuple[str, ...]:
        """The other inputs that it reads: names of ``inputs`` and of pipelines."""
        return (self.from_,)

    def expressions(self) -> list[str]:
        return [*self.keys, *([self.as_of] if self.as_of else [])]
