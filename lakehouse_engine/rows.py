"""Row-wise steps as one symbolic row: what each column is in SQL over the source, and which rows are refused.

Steps that look at one row at a time (parse, derive, select, filter, watermark, row checks) do not touch a DataFrame.
Each returns a new ``Rows``; Spark sees the finished product as one projection. That is what lets all members of a scan
share one query, and what lets the validator follow columns without Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from lakehouse_engine import sql

#: what became of a row, in the order of the ledger's counters
QUARANTINED, FILTERED, DUPLICATE, LATE, COUNTED = "quarantined", "filtered", "duplicate", "late", "counted"


class ColumnError(ValueError):
    """A step does not fit the columns of its rows. ``code``: UNKNOWN_COLUMN, SAME_COLUMN, NO_COLUMNS."""

    def __init__(self, message: str, code: str = "UNKNOWN_COLUMN") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Layer:
    """Something computed once per row and read by many: ``alias`` is its column below the projection.

    ``expands``: the SQL is a generator that makes one row or more of each, never none. ``joins``: a relation (SQL) of
    which at most one row matches; the SQL is the condition, and the relation has a column called ``alias``.
    """

    alias: str
    sql: str
    expands: bool = False
    joins: str = ""


def levels(layers: Iterable[Layer]) -> list[list[str]]:
    """The layers as select items, in as few nested queries as their order allows.

    Spark resolves every column anew in each nested query: with twelve members, one a layer cost 45 ms more a batch.
    """
    found: list[list[Layer]] = []
    for layer in layers:
        alone = layer.expands or (found and found[-1][-1].expands)  # Spark takes one generator a query
        if not found or alone or any(below.alias in layer.sql for below in found[-1]):
            found.append([])
        found[-1].append(layer)
    return [[f"{layer.sql} as {layer.alias}" for layer in level] for level in found]


def layered(source: str, layers: Iterable[Layer]) -> str:
    """SQL of ``source`` with the layers as columns."""
    text = f"select * from {source}"
    for joins, found in groupby(layers, key=lambda layer: layer.joins):
        if not joins:
            for level in levels(found):
                text = f"select *, {', '.join(level)} from ({text})"
        for layer in found if joins else ():
            table = f"{layer.alias}_of"
            text = f"select /*+ broadcast({table}) */ * from ({text}) left join {joins} {table} on {layer.sql}"
    return text


@dataclass(frozen=True)
class Verdict:
    """Rows for which ``refused`` (SQL boolean, never null) is true end here, as ``outcome``.

    ``reasons`` is SQL of type array<string>; only quarantine verdicts have it. ``row``: a struct of what would have
    been stored of the row, as it came into the step; ``Rows.refuse`` fills it in.
    """

    step: str
    outcome: str
    refused: str
    reasons: str = ""
    row: str = ""


@dataclass(frozen=True)
class Watched:
    """A condition whose failing rows (``failed``: SQL boolean, never null) are counted; it may stop the run.

    ``on_fail``: ``warn`` counts, under ``name``, the failing rows that are written; ``fail`` stops at the first failing
    row; ``quarantine`` (a verdict refuses them) has a ``tolerance``. That is the share of the rows that reach the
    condition, those that the first ``after`` verdicts let through, above which failing ones stop the run. ``place``: in
    the file. ``explodes``: how many steps had made rows of others before; where more do so later, rows count once.
    """

    name: str
    failed: str
    on_fail: Literal["warn", "fail", "quarantine"]
    place: str
    after: int
    tolerance: float | None = None
    explodes: int = 0


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
    watched: tuple[Watched, ...] = ()
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
        row = struct(self.stored) if verdict.outcome == QUARANTINED else ""
        return replace(self, verdicts=(*self.verdicts, replace(verdict, row=row)))

    def watch(self, watched: Iterable[Watched]) -> Rows:
        now = len(self.expanding)
        return replace(self, watched=(*self.watched, *(replace(one, explodes=now) for one in watched)))

    @property
    def expanding(self) -> list[str]:
        """The layers that make several rows of one: structs with the element's place ``p``, from 0."""
        return [layer.alias for layer in self.layers if layer.expands]

    @property
    def expanded(self) -> bool:
        """Whether there may be several rows for one of the source."""
        return bool(self.expanding)

    @property
    def stored(self) -> dict[str, str]:
        """The columns that may be stored: those that do not begin with ``_``, and ``_extra``."""
        return {n: text for n, text in self.columns.items() if not n.startswith("_") or n == "_extra"}


def struct(columns: Mapping[str, str]) -> str:
    """SQL of a struct with these columns."""
    return f"named_struct({', '.join(f'{sql.string(name)}, {text}' for name, text in columns.items())})"


def outcome(verdicts: Iterable[Verdict]) -> str:
    """SQL string: the outcome of the first verdict that refuses the row, else ``counted``."""
    cases = "".join(f" when {v.refused} then '{v.outcome}'" for v in verdicts)
    return f"case{cases} else '{COUNTED}' end" if cases else f"'{COUNTED}'"


def passing(verdicts: Iterable[Verdict]) -> str:
    """SQL boolean: no verdict refuses the row."""
    return " and ".join(f"not ({v.refused})" for v in verdicts) or "true"


def first_reasons(verdicts: Iterable[Verdict], keeps: Container[str] | None = None) -> tuple[str, str]:
    """SQL of the step (string) and of the reasons (array<string>) of the first quarantine verdict that refuses.

    ``keeps``: steps whose refused rows are kept. Of another step's both are null: what comes after it judges a row that
    is none.
    """
    quarantine = [v for v in verdicts if v.outcome == QUARANTINED]
    if not any(keeps is None or v.step in keeps for v in quarantine):
        return "cast(null as string)", "cast(null as array<string>)"
    kept = [(v, keeps is None or v.step in keeps) for v in quarantine]
    step = "".join(f" when {v.refused} then {sql.string(v.step) if here else 'null'}" for v, here in kept)
    reasons = "".join(f" when {v.refused} then {v.reasons if here else 'null'}" for v, here in kept)
    return f"case{step} end", f"case{reasons} end"


def first_row(verdicts: Iterable[Verdict]) -> str:
    """SQL, JSON: the row as it came to the first quarantine verdict that refuses it."""
    cases = "".join(f" when {v.refused} then to_json({v.row})" for v in verdicts if v.outcome == QUARANTINED)
    return f"case{cases} end"


@dataclass(frozen=True)
class Tally:
    """A number of rows to find: those for which ``condition`` (SQL boolean) is true."""

    watched: Watched
    what: Literal["reached", "failed", "written"]
    condition: str


def tallies(rows: Rows, written: str, refused: Callable[[Verdict], str] = lambda v: v.refused) -> list[Tally]:
    """What has to be counted for ``rows.watched``. ``written``: SQL, a row is written; ``refused``: of a verdict."""
    found = []
    for watched in rows.watched:
        before = [f"not ({refused(verdict)})" for verdict in rows.verdicts[: watched.after]]
        once = [f"coalesce({alias}.p, 0) = 0" for alias in rows.expanding[watched.explodes :]]
        before += once
        if watched.on_fail == "warn":  # of a row that became several nobody can say whether it is written
            counted = [*before, f"({watched.failed})"] if once else [f"({watched.failed})", written]
            found.append(Tally(watched, "written", " and ".join(counted)))
        if watched.on_fail == "fail" or watched.tolerance is not None:
            found.append(Tally(watched, "failed", " and ".join([*before, f"({watched.failed})"])))
        if watched.tolerance is not None:
            found.append(Tally(watched, "reached", " and ".join(before) or "true"))
    return found


@dataclass(frozen=True)
class Stop:
    """Why a run stops: ``message``, and the ``place`` in the file of what it fails."""

    place: str
    message: str


def concluded(found: Iterable[tuple[Tally, int]], least: int = 1) -> tuple[dict[str, int], Stop | None]:
    """Warnings by name, and why the run stops, if it does. A tolerance counts from ``least`` rows on."""
    warnings: dict[str, int] = {}
    numbers: dict[Watched, dict[str, int]] = {}
    for tally, number in found:
        numbers.setdefault(tally.watched, {})[tally.what] = number
    for watched, counted in numbers.items():
        failed, reached = counted.get("failed", 0), counted.get("reached", 0)
        if watched.on_fail == "warn":
            warnings[watched.name] = warnings.get(watched.name, 0) + counted["written"]
        if watched.on_fail == "fail" and failed:
            return warnings, Stop(watched.place, f"{failed:,} rows fail {watched.name}")
        if watched.tolerance is not None and reached >= least and failed > watched.tolerance * reached:
            return warnings, Stop(watched.place, f"{failed:,} of {reached:,} rows fail {watched.name}, more than the"
                                  f" {watched.tolerance:.6g} that is tolerated")  # fmt: skip
    return warnings, None
