"""``range``: the column lies between two bounds. ``range: {amount: {min: 0, max: 10000}}``; one of them is enough."""

from __future__ import annotations

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import Column, Expression, Model


class Bounds(Model):
    """Both ends belong to the range."""

    model_config = ConfigDict(json_schema_extra={"not": {
        "type": "object", "properties": {"min": {"type": "null"}, "max": {"type": "null"}}}})  # fmt: skip

    #: the least good value
    min: Expression | None = None
    #: the greatest good value
    max: Expression | None = None

    @model_validator(mode="after")
    def _one(self) -> Bounds:
        if self.min is None and self.max is None:
            raise PydanticCustomError("BAD_CHECK", "a range needs min, max or both")
        return self


class Range(RowCheck):
    """One rule a column."""

    #: for each column its bounds
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
