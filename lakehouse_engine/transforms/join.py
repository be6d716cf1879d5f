"""``join``: rows of two inputs that have the same keys, each pair a row.

``join: {with: clicks, keys: [impression_id], how: left, within: {before: 0 minutes, after: 10 minutes}}``. A row may
match several and is then in the result as often. Null is a key like any other, and matches null. The result has our
columns, then those that are taken of theirs; a key has our name, and in a ``right`` or ``full`` join their value where
there is no row of ours.

In a stream rows wait for each other, so ``within`` says for how long: the other row's event time lies from ``before``
earlier to ``after`` later than ours. In a job all rows are there, and there is no ``within``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lakehouse_engine.component import Component, Duration, Model, Other, Pairs


class Within(Model):
    """How far apart the event times of two rows may lie that match."""

    #: theirs may be so much earlier than ours
    before: Duration = 0
    #: theirs may be so much later than ours
    after: Duration = 0


class Join(Component):
    """What ``keys`` of the steps before say is void: a row of the result is a pair."""

    #: the other side: one of ``inputs``, or a pipeline's name for its Delta table
    with_: Other = Field(alias="with")
    #: what both rows must have: a list, or ours to theirs
    keys: Pairs
    #: rows that match none: neither side's, ours, theirs, or both sides' are kept, with nulls
    how: Literal["inner", "left", "right", "full"] = "inner"
    #: streams only, and required there
    within: Within | None = None
    #: their columns: a list, or the new name to theirs; default: all that are no keys and do not begin with ``_``
    take: Pairs | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """The other inputs that it reads: names of ``inputs`` and of pipelines."""
        return (self.with_,)

    def expressions(self) -> list[str]:
        return list(self.keys)
