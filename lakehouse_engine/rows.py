"""Row-wise steps as one symbolic row: what each column is in SQL over the source, and which rows are refused.

Steps that look at one row at a time (parse, derive, select, filter, watermark, row checks) do not touch a DataFrame.
Each returns a new ``Rows``; Spark sees the finished product as one projection. That is what lets all members of a scan
share one query, and what lets the validator follow columns without Spark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lakehouse_engine import sql

#: what became of a row, in the order of the ledger's counters
QUARANTINED, FILTERED, DUPLICATE, LATE, COUNTED = "quarantined", "filtered", "duplicate", "late", "counted"


class ColumnError(ValueError):
    """A step reads a column that its rows do not have. ``code`` is UNKNOWN_COLUMN."""

    code = "UNKNOWN_COLUMN"


@dataclass(frozen=True)
class Layer:
    """Something computed once per row and read by many: ``alias`` is its column below the projection."""

    alias: str
    sql: str


def layered(source: str, layers: Iterable[Layer]) -> str:
    """SQL of ``source`` with the layers as columns, in as few nested queries as their order allows.

    Spark resolves every column anew in each nested query: with twelve members, one a layer cost 45 ms more a batch.
    """
    levels: list[list[Layer]] = []
    for layer in layers:
        if not levels or any(below.alias in layer.sql for below in levels[-1]):
            levels.append([])
        levels[-1].append(layer)
    text = f"select * from {source}"
    for level in levels:
        text = f"select *, {', '.join(f'{layer.sql} as {layer.alias}' for layer in level)} from ({text})"
    return text


@dataclass(frozen=True)
class Verdict:
    """Rows for which ``refused`` (SQL boolean, never null) is true end here, as ``outcome``.

    ``reasons`` is SQL of type array<string>; only quarantine verdicts have it.
    """

    step: str
    outcome: str
    refused: str
    reasons: str = ""


@dataclass(frozen=True)
class Warned:
    """Rows for which ``failed`` is true go on and are counted under ``name``; ``stops``: one such row stops the run."""

    name: str
    failed: str
    stops: bool = False


@dataclass(frozen=True)
class EventTime:
    """The column that carries event time (SQL TIMESTAMP), the delay of its watermark, both in microseconds."""

    column: str
    expression: str
    delay: int
    max_ahead: int
    #: number of verdicts that stand before the watermark: rows they refuse do not move it
    after: int


@dataclass(frozen=True)
class Rows:
    """``columns`` maps a name to SQL over the source; ``types`` holds the Spark type where it is known."""

    columns: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    warnings: tuple[Warned, ...] = ()
    event_time: EventTime | None = None

    @classmethod
    def identity(cls, columns: Mapping[str, str]) -> Rows:
        """Rows as a table stores them; ``columns`` maps a name to its Spark type ('' when unknown)."""
        return cls({name: sql.name(name) for name in columns}, dict(columns))

    def resolve(self, expression: str) -> str:
        """The expression over the source. Raises ``ColumnError`` when it reads a column that is not there."""
        known = {name.lower(): text for name, text in self.columns.items()}
        for missing in sorted(sql.columns(expression) - known.keys()):
            raise ColumnError(f"there is no column {missing} here; there are {', '.join(self.columns)}")
        return sql.rewrite(expression, known)

    def with_columns(self, new: Mapping[str, str], types: Mapping[str, str] | None = None) -> Rows:
        """Adds or replaces columns; every expression sees the row as it came in."""
        resolved = {name: self.resolve(text) for name, text in new.items()}
        kept = {name: text for name, text in self.columns.items() if name not in resolved}
        kept_types = {name: text for name, text in self.types.items() if name not in resolved}
        return replace(self, columns={**kept, **resolved}, types={**kept_types, **(types or {})})

    def refuse(self, verdict: Verdict) -> Rows:
        return replace(self, verdicts=(*self.verdicts, verdict))

    @property
    def stored(self) -> dict[str, str]:
        """The columns that may be stored: those that do not begin with ``_``, and ``_extra``."""
        return {n: text for n, text in self.columns.items() if not n.startswith("_") or n == "_extra"}


def outcome(verdicts: Iterable[Verdict]) -> str:
    """SQL string: the outcome of the first verdict that refuses the row, else ``counted``."""
    cases = "".join(f" when {v.refused} then '{v.outcome}'" for v in verdicts)
    return f"case{cases} else '{COUNTED}' end" if cases else f"'{COUNTED}'"


def passing(verdicts: Iterable[Verdict]) -> str:
    """SQL boolean: no verdict refuses the row."""
    return " and ".join(f"not ({v.refused})" for v in verdicts) or "true"


def first_reasons(verdicts: Iterable[Verdict]) -> tuple[str, str]:
    """SQL of the step (string) and of the reasons (array<string>) of the first quarantine verdict that refuses."""
    quarantine = [v for v in verdicts if v.outcome == QUARANTINED]
    step = "".join(f" when {v.refused} then {sql.string(v.step)}" for v in quarantine)
    reasons = "".join(f" when {v.refused} then {v.reasons}" for v in quarantine)
    return f"case{step} end", f"case{reasons} end"
