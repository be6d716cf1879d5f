"""``accepted_values``: the column is one of a list. ``accepted_values: {event_type: [login, click]}``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.row import RowCheck, Value, literal
from lakehouse_engine.component import Column


def _some(values: tuple[Value, ...]) -> tuple[Value, ...]:
    if not values:
        raise PydanticCustomError("BAD_CHECK", "there is no value at all that is accepted")
    return values


class AcceptedValues(RowCheck):
    """One rule a column."""

    #: for each column the values that it may have
    values: dict[Column, Annotated[tuple[Value, ...], AfterValidator(_some), Field(json_schema_extra={"minItems": 1})]]

    @classmethod
    def short(cls, value: object) -> object:
        return {"values": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"accepted_values({column})", f"{column} in ({', '.join(literal(v) for v in values)})")
                for column, values in self.values.items()]  # fmt: skip
