"""The shape of an event: the subset of JSON Schema 2020-12 that pipelines understand.

Two readers must agree on it, payload by payload: ``Contract.judge`` here, by ``jsonschema``, and the SQL of
``transforms/parse.py``. The subset:

- An object with ``properties``. Each is of type string (``format`` date-time, date), integer, number or boolean, of
  type object or array, or ``{}``, any value; ``[type, "null"]`` allows null. ``required``; ``enum``, ``const``,
  ``pattern``, bounds, lengths; of an array ``items``, ``minItems``, ``maxItems``, ``uniqueItems``. ``$ref`` within the
  file, none to itself.
- An object with ``properties`` is a STRUCT, one without is a MAP of its ``additionalProperties``, an array an ARRAY,
  any value a VARIANT.
- Fields that are not listed: ``additionalProperties: false`` refuses the event. ``true`` (of the event itself) keeps
  them in ``_extra``, a VARIANT, and counts the events that have some, as a warning. Without it they are passed over.
- The bytes are UTF-8 and strict JSON (RFC 8259): no byte order mark, no NaN, nothing after the object. Of a key that
  stands twice the last value counts; the earlier ones must have its type, too (to a string, anything has). In a MAP no
  key stands twice. No more than 999 levels, 1,000 digits of a number, 50,000 characters of a key.
- Nothing is coerced. An integer is written without fraction or exponent and fits 64 bits; a number is finite, and
  compared as the double that it is stored as. What ``uniqueItems`` compares is what is stored, too.
- A date-time is ``YYYY-MM-DDTHH:MM:SS[.1 to 9 digits](Z|+hh:mm|-hh:mm)``, a real time in the years 1900 to 2200.
- No text, key of a MAP or part of a VARIANT holds a NUL character, which PostgreSQL cannot store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Model

Kind = Literal["string", "timestamp", "date", "integer", "number", "boolean", "object", "array", "map", "any"]
SPARK_TYPES: dict[Kind, str] = {"string": "string", "timestamp": "timestamp", "date": "date", "integer": "bigint",
                                "number": "double", "boolean": "boolean", "any": "variant"}  # fmt: skip
#: what a value of a kind is called where one is none
NOUNS: dict[Kind, str] = {"string": "a string", "timestamp": "a date-time", "date": "a date", "integer": "an integer",
                          "number": "a number", "boolean": "a boolean", "object": "an object", "array": "an array",
                          "map": "an object"}  # fmt: skip
#: the attributes of a field that are a JSON Schema's keyword with the same meaning
KEYWORDS = {"pattern": "pattern", "minimum": "minimum", "maximum": "maximum", "exclusiveMinimum": "exclusive_minimum",
            "exclusiveMaximum": "exclusive_maximum", "minLength": "min_length", "maxLength": "max_length",
            "minItems": "min_items", "maxItems": "max_items"}  # fmt: skip
#: a column that events may have
COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
#: the column of what a contract does not list
EXTRA = "_extra"


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise PydanticCustomError("BAD_NAME", "{value} is not a contract's name", {"value": repr(value)})
    return value


ContractName = Annotated[str, AfterValidator(_name), WithJsonSchema(
    {"type": "string", "title": "contract", "pattern": "^[a-z][a-z0-9_]*$"})]  # fmt: skip


class Field(Model):
    """A value of an event, with the checks its schema asks for: a property, an array's element or a map's value."""

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
    fields: tuple[Field, ...] = ()  # of an object
    closed: bool = False  # of an object: a field that is not listed refuses the event
    element: Field | None = None  # of an array and of a map; their names are [] and {}
    min_items: int | None = None
    max_items: int | None = None
    unique_items: bool = False

    @property
    def spark_type(self) -> str:
        if self.kind == "object":
            return f"struct<{','.join(f'{field.name}:{field.spark_type}' for field in self.fields)}>"
        if self.element is not None:
            return f"{'array<' if self.kind == 'array' else 'map<string,'}{self.element.spark_type}>"
        return SPARK_TYPES[self.kind]

    @property
    def parts(self) -> tuple[Field, ...]:
        """The fields that it is made of."""
        return self.fields if self.element is None else (self.element,)

    def holds(self, *kinds: Kind) -> bool:
        """Whether it is of one of the kinds, or some part of it is."""
        return self.kind in kinds or any(part.holds(*kinds) for part in self.parts)

    def below(self, path: str = "") -> Iterator[tuple[str, Field]]:
        """It and all its parts, by path: ``items[].sku``, ``labels{}``."""
        joined = self.name if not path or self.name in ("[]", "{}") else f".{self.name}"
        yield path + joined, self
        for part in self.parts:
            yield from part.below(path + joined)

    def as_schema(self) -> dict[str, Any]:
        """The field as JSON Schema."""
        if self.kind == "any":
            return {}
        kind = {"timestamp": "string", "date": "string", "map": "object"}.get(self.kind, self.kind)
        made: dict[str, Any] = {"type": [kind, "null"] if self.nullable else kind}
        made |= {"timestamp": {"format": "date-time"}, "date": {"format": "date"}}.get(self.kind, {})
        made |= {key: getattr(self, name) for key, name in KEYWORDS.items() if getattr(self, name) is not None}
        made |= {} if self.enum is None else {"enum": [*self.enum, *([None] if self.nullable else [])]}
        made |= {"uniqueItems": True} if self.unique_items else {}
        if self.kind == "object":
            made |= _properties(self.fields, self.closed)
        elif self.element is not None:
            made["items" if self.kind == "array" else "additionalProperties"] = self.element.as_schema()
        return made


class Contract(Model):
    """``closed``: a field that is not listed refuses the row (``additionalProperties: false``); ``keeps``: such fields
    are kept in ``_extra`` (``true``)."""

    name: str
    file: str
    fields: tuple[Field, ...]
    closed: bool = False
    keeps: bool = False

    def as_schema(self) -> dict[str, Any]:
        """The contract as JSON Schema again, with what ``judge`` needs."""
        return {"type": "object", **_properties(self.fields, self.closed)}

    @property
    def columns(self) -> dict[str, str]:
        """Column names and Spark types."""
        return {**{field.name: field.spark_type for field in self.fields}, **({EXTRA: "variant"} if self.keeps else {})}

    @property
    def is_flat(self) -> bool:
        """Whether each field is a single value, as a cell of a table that others own is."""
        return not any(field.parts or field.kind == "any" for field in self.fields)

    def judge(self, payload: bytes | None) -> list[str]:
        """Why a record's bytes are refused, in the order of the fields; empty for a good record. By ``jsonschema``."""
        from lakehouse_engine.contract.judge import judge

        return judge(self, payload)


def _properties(fields: tuple[Field, ...], closed: bool) -> dict[str, Any]:
    return {"properties": {field.name: field.as_schema() for field in fields},
            "required": [field.name for field in fields if field.required],
            **({"additionalProperties": False} if closed else {})}  # fmt: skip
