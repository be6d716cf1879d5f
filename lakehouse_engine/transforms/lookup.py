"""``lookup``: columns of the one row of another table that has the row's keys.

``lookup: {from: silver.pages, keys: {page: page}, take: [section]}``. The number of rows stays the same: two rows of
the table for one key stop the run. Null is a key like any other, and matches null. A row whose key the table does not
have gets nulls, or is quarantined (``missing``).

A job reads one version of the table, named in its commit; where that has changed since, the next run is a full one. A
stream reads the table anew when its copy is older than ``refresh``: a row that has been read keeps what the table said
when its micro-batch ran.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

from pydantic import Field

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Component, Duration, Other, Pairs
from lakehouse_engine.rows import QUARANTINED, ColumnError, Layer, Rows, Verdict

#: from when on and up to when a row of a table with ``mode: scd2`` is valid
VALID = ("valid_from", "valid_to")
REFRESH = 5 * 60_000_000


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

    def row(self, rows: Rows, step: str, view: str) -> Rows:
        """In a stream: ``view`` (see ``view``) is joined, and what is taken are fields of its one struct.

        Members of a scan that ask one table for the same keys share the layer.
        """
        assert self.take is not None, "the loader says which columns a stream takes"
        theirs = {name.lower() for name in self.take} & {name.lower() for name in rows.columns}
        if theirs:
            raise ColumnError(f"both sides have a column {min(theirs)}", "SAME_COLUMN")
        keys = [rows.resolve(sql.name(ours)) for ours in self.keys]
        moment = rows.resolve(f"cast({sql.name(self.as_of)} as timestamp)") if self.as_of else ""
        alias = "_looked" + hashlib.sha256("\n".join([view, *keys, moment]).encode()).hexdigest()[:10]
        conditions = [f"{key} <=> {alias}_k{i}" for i, key in enumerate(keys)]
        renamed = [f"_k{i} as {alias}_k{i}" for i in range(len(keys))]
        if moment:
            conditions += [f"{alias}_since <= {moment}", f"({alias}_until is null or {moment} < {alias}_until)"]
            renamed += [f"_since as {alias}_since", f"_until as {alias}_until"]
        relation = f"(select {', '.join(renamed)}, _row as {alias} from {view})"
        if self.missing == "quarantine":
            rows = rows.refuse(self.refusal(rows, step, f"{alias} is null"))
        layers = (*rows.layers, Layer(alias, " and ".join(conditions), joins=relation))
        columns = {name: f"{alias}.{sql.name(theirs)}" for name, theirs in self.take.items()}
        return replace(rows, columns={**rows.columns, **columns}, layers=layers)

    def asked(self) -> list[str]:
        """Select items over the table: ``_k0``, ``_k1``... its keys; with ``as_of`` also ``_since`` and ``_until``."""
        items = [f"{sql.name(theirs)} as _k{i}" for i, theirs in enumerate(self.keys.values())]
        if self.as_of:
            since, until = VALID
            items += [f"cast({since} as timestamp) as _since", f"cast({until} as timestamp) as _until"]
        return items

    def view(self) -> list[str]:
        """What a stream's copy of the table holds, as select items over it: ``asked``, and ``_row`` with all taken."""
        assert self.take is not None
        fields = [f"{sql.string(theirs)}, {sql.name(theirs)}" for theirs in dict.fromkeys(self.take.values())]
        return [*self.asked(), f"named_struct({', '.join(fields)}) as _row"]

    def refusal(self, rows: Rows, step: str, refused: str) -> Verdict:
        """The verdict on rows that the table has no row for; ``refused``: SQL boolean, never null."""
        parts = [sql.string(f"{self.from_} has no row for ")]
        for number, ours in enumerate(self.keys):
            value = f"coalesce(cast({rows.resolve(sql.name(ours))} as string), 'null')"
            parts += [sql.string(f"{', ' if number else ''}{ours} = "), value]
        return Verdict(step, QUARANTINED, refused, f"array(concat({', '.join(parts)}))")

    @property
    def others(self) -> tuple[str, ...]:
        """The other inputs that it reads: names of ``inputs`` and of pipelines."""
        return (self.from_,)

    def expressions(self) -> list[str]:
        return [*self.keys, *([self.as_of] if self.as_of else [])]
