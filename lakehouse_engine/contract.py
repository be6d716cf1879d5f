"""The shape of an event: the subset of JSON Schema 2020-12 that pipelines understand."""

from __future__ import annotations

from typing import Literal

from lakehouse_engine.component import Model

Kind = Literal["string", "timestamp", "date", "integer", "number", "boolean"]
SPARK_TYPES: dict[Kind, str] = {"string": "string", "timestamp": "timestamp", "date": "date", "integer": "bigint",
                                "number": "double", "boolean": "boolean"}  # fmt: skip


class Field(Model):
    """One property of an event, with the checks its schema asks for."""

    name: str
    kind: Kind
    required: bool
    nullable: bool = False  # an explicit null is allowed: type: [string, "null"]
    enum: tuple[str | int | float | bool, ...] | None = None
    pattern: str | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None
    exclusive_minimum: float | int | None = None
    exclusive_maximum: float | int | None = None
    min_length: int | None = None
    max_length: int | None = None

    @property
    def spark_type(self) -> str:
        return SPARK_TYPES[self.kind]


class Contract(Model):
    """``closed``: a field that is not listed refuses the row (``additionalProperties: false``)."""

    name: str
    file: str
    fields: tuple[Field, ...]
    closed: bool = False
