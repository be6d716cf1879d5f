"""What a contract's file may say, as JSON Schema of that JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

#: not false: of that Python's validator does not say which key it is
_REFUSED: dict[str, Any] = {"not": {}}
_FORMS = ("string", "integer", "number", "boolean", "object", "array")


def _forms(*kinds: str) -> list[str | list[str]]:
    """How a type may be written: alone, in a list, with null."""
    return [form for kind in kinds for form in (kind, [kind, "null"], ["null", kind], [kind])]


def _only(kind: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What only a value of that type says."""
    others = [one for one in _FORMS if one != kind]
    return {"if": {"required": ["type"], "properties": {"type": {"enum": _forms(*others)}}},
            "then": {"properties": dict.fromkeys(keys, _REFUSED)}}  # fmt: skip


def file_schema(*, deep: bool = True) -> dict[str, Any]:
    """``deep``: what is said of properties holds of theirs, too."""
    notes: dict[str, Any] = {
        **{key: {"type": "string"} for key in ("description", "title", "$comment")},
        **{key: {"type": "string", "format": "uri-reference"} for key in ("$schema", "$id")},
        "examples": {"type": "array"}, "default": True, "deprecated": {"type": "boolean"}}  # fmt: skip
    number, size = {"type": "number"}, {"type": "integer", "minimum": 0}
    scalar = {"type": ["string", "number", "boolean"]}
    field, names = {"$ref": "#/$defs/field"}, {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    columns = {"type": "object", "minProperties": 1, "additionalProperties": field,
               "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]{0,62}$"}}  # fmt: skip
    of_object = {
        "properties": {**columns, "description": "Of an object, a STRUCT: each its field."},
        "required": {**names, "description": "Fields that the object always has."},
        "additionalProperties": {**field, "description": "Of an object with properties, false: other fields"
                                 " refuse the event. Of one without, a MAP: its values."}}
    of_array = {
        "items": {**field, "description": "Of an array, its elements."},
        "minItems": {**size, "description": "Elements at least."},
        "maxItems": {**size, "description": "Elements at most."},
        "uniqueItems": {"type": "boolean", "description": "No element stands twice, as it is stored."}}  # fmt: skip
    of_string = {"format": {"enum": ["date-time", "date"], "description": "Of a string: a TIMESTAMP, a DATE."}}
    rules = {
        **of_string,
        "enum": {"type": "array", "items": {"type": [*scalar["type"], "null"]},
                 "description": "The values that are accepted."},
        "const": {**scalar, "description": "The one value that is accepted."},
        "pattern": {"type": "string", "format": "regex", "description": "Found anywhere in the text."},
        **{key: {**number, "description": text} for key, text in (
            ("minimum", "The least value."), ("maximum", "The greatest value."),
            ("exclusiveMinimum", "Values are above it."), ("exclusiveMaximum", "Values are below it."))},
        **{key: {**size, "description": text} for key, text in (
            ("minLength", "Characters at least."), ("maxLength", "Characters at most."))},
        **of_object, **of_array}  # fmt: skip
    one = {
        "type": ["object", "boolean"], "additionalProperties": False, "properties": {
            "type": {"enum": _forms(*_FORMS), "description": "string, integer (64 bits), number, boolean, object or"
                     " array; with null in a list also null. Without it: any value, a VARIANT."},
            "$ref": {"type": "string", "pattern": "^#/", "description": "A part of this file: `#/$defs/<name>`."},
            **rules, **notes},
        "if": {"anyOf": [{"required": [key]} for key in sorted(rules)]}, "then": {"required": ["type"]},
        "allOf": [
            _only("string", of_string), _only("object", of_object), _only("array", of_array),
            {"if": {"required": ["type"], "not": {"required": ["items"]}, "properties": {"type": {
                "enum": _forms("array")}}}, "then": {"properties": {"uniqueItems": {"not": {"const": True}}}}},
            {"if": {"required": ["type"], "properties": {"type": {"enum": _forms("object")}}}, "then": {
                "if": {"required": ["properties"]}, "then": {"properties": {"additionalProperties": {"const": False}}},
                "else": {"properties": {"required": _REFUSED, "additionalProperties": {"not": {"const": False}}}}}}],
    }  # fmt: skip
    return {
        "type": "object", "required": ["type", "properties"], "additionalProperties": False, "properties": {
            "type": {"const": "object", "description": "An event is an object."},
            "properties": {**columns, **({} if deep else {"additionalProperties": one}),
                           "description": "Each the column: its JSON Schema."},
            "required": {**names, "description": "Columns that every event has; the others are null where they are"
                         " missing."},
            "additionalProperties": {"type": "boolean", "description": "false: a field that is not listed refuses the"
                                     " event; true: it is kept in `_extra`."},
            "$defs": {"type": "object", "additionalProperties": field, "description": "Parts to refer to."},
            **notes},
        "$defs": {"field": one}}  # fmt: skip
