"""What all checks of single rows have in common, and what becomes of the rows that fail them.

``on_fail``: ``quarantine`` (default) keeps the row aside, ``warn`` writes and counts it, ``fail`` stops before anything
is written. Null fails every row check; ``where`` exempts it. ``tolerance: 1%`` turns ``quarantine`` and ``warn`` into
``fail`` above that share of the rows that reach the check: in a job's run, and in a stream's micro-batch of at least
1,000 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Component, Expression
from lakehouse_engine.rows import QUARANTINED, Rows, Verdict, Watched

Value = str | int | float | bool


def literal(value: Value) -> str:
    """A value of YAML as a Spark SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return sql.string(value) if isinstance(value, str) else str(value)


_SHARE = r"([0-9]{1,2}(?:\.[0-9]{1,6})?) ?%"


def _share(value: object) -> object:
    match = re.fullmatch(_SHARE, value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("BAD_SHARE", "{value} is not a share of rows below 100%; write e.g. 1%",
                                  {"value": repr(value)})  # fmt: skip
    return float(match[1]) / 100


#: ``1%``, as a number from 0 to 1. Error: ``BAD_SHARE``
Share = Annotated[float, BeforeValidator(_share), WithJsonSchema(
    {"type": "string", "title": "share", "pattern": f"^{_SHARE}$"})]  # fmt: skip


class RowCheck(Component):
    """``conditions`` gives (name, SQL over the row's columns that is true for a good row)."""

    #: what the check is called in reasons and warnings
    name: str | None = None
    #: only rows for which this is true are judged
    where: Expression | None = None
    #: what becomes of a failing row
    on_fail: Literal["warn", "quarantine", "fail"] = "quarantine"
    #: the share of failing rows, e.g. 1%, above which a run fails
    tolerance: Share | None = None

    @model_validator(mode="after")
    def _tolerates_what_goes_on(self) -> RowCheck:
        if self.tolerance is not None and self.on_fail == "fail":
            raise PydanticCustomError("BAD_CHECK", "on_fail: fail stops at the first row; a tolerance goes with"
                                      " quarantine or warn")  # fmt: skip
        return self

    def rules(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def conditions(self) -> list[tuple[str, str]]:
        exempt = f"not coalesce({self.where}, false) or " if self.where else ""
        named = self.rules()
        return [(self.name or name, f"{exempt}coalesce({rule}, false)") for name, rule in named]

    def expressions(self) -> list[str]:
        return [rule for _, rule in self.conditions()]


def judge(rows: Rows, checks: Iterable[tuple[str, RowCheck]], step: str) -> Rows:
    """The checks (each with its place in the file) as one step: a refused row carries the names of all that it failed.

    Raises ``ColumnError``.
    """
    refusing: list[tuple[str, str]] = []
    watched: list[Watched] = []
    for place, check in checks:
        conditions = [(name, rows.resolve(text)) for name, text in check.conditions()]
        if check.on_fail == "quarantine":
            refusing += conditions
        if check.on_fail != "quarantine" or check.tolerance is not None:
            watched += [Watched(name, f"not ({text})", check.on_fail, place, len(rows.verdicts), check.tolerance)
                        for name, text in conditions]  # fmt: skip
    rows = rows.watch(watched)
    if not refusing:
        return rows
    failed = ", ".join(f"if({text}, null, {sql.string(name)})" for name, text in refusing)
    refused = " or ".join(f"not ({text})" for _, text in refusing)
    return rows.refuse(Verdict(step, QUARANTINED, f"({refused})",
                               f"filter(array({failed}), name -> name is not null)"))  # fmt: skip
