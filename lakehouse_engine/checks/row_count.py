"""``row_count``: how many rows a run of a job may write. ``row_count: {min: 1}``."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.table import TableCheck
from lakehouse_engine.component import Whole

Count = Annotated[Whole, Field(ge=0, json_schema_extra={"minimum": 0})]


class RowCount(TableCheck):
    """Of the rows that would be written, those for which ``where`` is true. A run that finds nothing to do is not
    judged. A warning counts 1."""

    model_config = ConfigDict(json_schema_extra={"not": {
        "type": "object", "properties": {"min": {"type": "null"}, "max": {"type": "null"}}}})  # fmt: skip

    #: the least good number of rows
    min: Count | None = None
    #: the greatest good number of rows
    max: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> RowCount:
        if self.min is None and self.max is None:
            raise PydanticCustomError("BAD_CHECK", "a row_count needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("BAD_CHECK", "no number of rows is at least {min} and at most {max}",
                                      {"min": self.min, "max": self.max})  # fmt: skip
        return self

    def accepts(self, count: int) -> bool:
        return (self.min is None or count >= self.min) and (self.max is None or count <= self.max)

    def expressions(self) -> list[str]:
        return [self.where] if self.where else []
