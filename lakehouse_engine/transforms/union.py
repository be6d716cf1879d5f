"""``union``: the rows so far and those of other inputs, one after the other. ``union: [web, mobile]``.

All must have the same columns, by name and type, whatever their order. Columns that begin with ``_`` stay where all
have them. Equal rows stay as they are: use ``dedupe`` to drop some. What ``keys`` of the steps before say is void.

In a stream the others are streams as well: topics, or tables of pipelines whose new rows are taken. All of them have a
watermark, before the union, or none has. It makes a query of its own, whose checkpoint says how far each was read.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Component, Other


class Union(Component):
    """A list of ``inputs``, or of pipelines' names for their Delta tables."""

    #: whose rows are added
    inputs: Annotated[tuple[Other, ...], Field(json_schema_extra={"minItems": 1})]

    @classmethod
    def short(cls, value: object) -> object:
        if isinstance(value, str):
            return {"inputs": [value]}
        return {"inputs": value} if isinstance(value, list) else value

    @field_validator("inputs")
    @classmethod
    def _each_once(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if not inputs:
            raise PydanticCustomError("BAD_UNION", "name at least one input")
        twice = sorted({name for name in inputs if inputs.count(name) > 1})
        if twice:
            raise PydanticCustomError("BAD_UNION", "{name} stands there twice: its rows would be there twice",
                                      {"name": twice[0]})  # fmt: skip
        return inputs

    @property
    def others(self) -> tuple[str, ...]:
        """The other inputs that it reads: names of ``inputs`` and of pipelines."""
        return self.inputs

    def expressions(self) -> list[str]:
        return []
