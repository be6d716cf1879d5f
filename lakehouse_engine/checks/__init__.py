"""Data-quality rules, in dbt's vocabulary. Null fails every row check; ``where`` exempts it.

Row checks (``not_null``, ``accepted_values``, ``range``, ``expression``) judge one row; table checks (``unique``) judge
the result of a job. ``on_fail``: ``quarantine`` keeps the row aside (row checks, default), ``warn`` writes and counts
it, ``fail`` (table checks, default) stops before anything is written.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Columns, Component, Expression, Model

Value = str | int | float | bool


def literal(value: Value) -> str:
    """A value of YAML as a Spark SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return sql.string(value) if isinstance(value, str) else str(value)


class RowCheck(Component):
    """``conditions`` gives (name, SQL over the row's columns that is true for a good row)."""

    later: ClassVar[frozenset[str]] = frozenset({"tolerance"})

    #: what the check is called in reasons and warnings
    name: str | None = None
    #: only rows for which this is true are judged
    where: Expression | None = None
    #: what becomes of a row that fails
    on_fail: Literal["warn", "quarantine", "fail"] = "quarantine"

    def rules(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def conditions(self) -> list[tuple[str, str]]:
        exempt = f"not coalesce({self.where}, false) or " if self.where else ""
        named = self.rules()
        return [(self.name or name, f"{exempt}coalesce({rule}, false)") for name, rule in named]

    def expressions(self) -> list[str]:
        return [rule for _, rule in self.conditions()]


class NotNull(RowCheck):
    """Each of the columns has a value."""

    #: the columns, one rule each
    columns: Columns

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"not_null({column})", f"{column} is not null") for column in self.columns]


def _some(values: tuple[Value, ...]) -> tuple[Value, ...]:
    if not values:
        raise PydanticCustomError("BAD_CHECK", "there is no value at all that is accepted")
    return values


class AcceptedValues(RowCheck):
    """A column holds one of a list of values."""

    #: the values of each column
    values: dict[Column, Annotated[tuple[Value, ...], AfterValidator(_some), Field(json_schema_extra={"minItems": 1})]]

    @classmethod
    def short(cls, value: object) -> object:
        return {"values": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"accepted_values({column})", f"{column} in ({', '.join(literal(v) for v in values)})")
                for column, values in self.values.items()]  # fmt: skip



class Bounds(Model):
    """Both ends belong to the range."""

    model_config = ConfigDict(json_schema_extra={"not": {
        "type": "object", "properties": {"min": {"type": "null"}, "max": {"type": "null"}}}})  # fmt: skip

    #: the least value that passes
    min: Expression | None = None
    #: the greatest value that passes
    max: Expression | None = None

    @model_validator(mode="after")
    def _one(self) -> Bounds:
        if self.min is None and self.max is None:
            raise PydanticCustomError("BAD_CHECK", "a range needs min, max or both")
        return self


class Range(RowCheck):
    """A column lies between two ends."""

    #: the ends of each column
    bounds: dict[Column, Bounds]

    @classmethod
    def short(cls, value: object) -> object:
        return {"bounds": value}

    def rules(self) -> list[tuple[str, str]]:
        found = []
        for column, bound in self.bounds.items():
            ends = [f"{column} >= {bound.min}"] if bound.min is not None else []
            ends += [f"{column} <= {bound.max}"] if bound.max is not None else []
            found.append((f"range({column})", f"({' and '.join(ends)})"))
        return found


class ExpressionCheck(RowCheck):
    """Any condition over one row."""

    #: rows for which it is true pass
    condition: Expression

    @classmethod
    def short(cls, value: object) -> object:
        return {"condition": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"expression({self.condition})", f"({self.condition})")]


ExpressionCheck.key = "expression"


class Unique(Component):
    """One row for each value of some columns. Jobs only."""

    later: ClassVar[frozenset[str]] = frozenset({"tolerance"})

    #: the columns; default: the pipeline's keys
    columns: Columns | None = None
    #: what the check is called in messages and warnings
    name: str | None = None
    #: only rows for which this is true are judged
    where: Expression | None = None
    #: what becomes of a run that fails
    on_fail: Literal["warn", "fail"] = "fail"

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def expressions(self) -> list[str]:
        return [*(self.columns or ()), *([self.where] if self.where else [])]


Check = NotNull | AcceptedValues | Range | ExpressionCheck | Unique
CHECKS: dict[str, Any] = {c.key: c for c in (NotNull, AcceptedValues, Range, ExpressionCheck, Unique)}
LATER = {"matches", "relationship", "row_count", "freshness"}
COMMON = {"name", "on_fail", "tolerance", "where"}
