"""``accepted_values``: the column is one of a list. ``accepted_values: {event_type: [login, click]}``."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.row import RowCheck, Value, literal
from lakehouse_engine.component import Column


class AcceptedValues(RowCheck):
    """One rule a column."""

    values: dict[Column, tuple[Value, ...]] = Field(description="For each column the values that it may have.")

    @classmethod
    def short(cls, value: object) -> object:
        return {"values": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"accepted_values({column})", f"{column} in ({', '.join(literal(v) for v in values)})")
                for column, values in self.values.items()]  # fmt: skip

    @field_validator("values")
    @classmethod
    def _some(cls, values: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for column, accepted in values.items():
            if not accepted:
                raise PydanticCustomError("BAD_CHECK", "{column} accepts no value at all", {"column": column})
        return values
