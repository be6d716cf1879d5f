"""The shape of an event: the subset of JSON Schema 2020-12 that pipelines understand.

Two readers must agree on it, payload by payload: ``Contract.judge`` here, by ``jsonschema``, and the SQL of
``transforms/parse.py``. The subset:

- An object with ``properties`` of type string (``format`` date-time, date), integer, number or boolean, and
  ``[type, "null"]``; ``required``; ``additionalProperties: false``; ``enum``, ``const``, ``pattern``, bounds, lengths.
- The bytes are UTF-8 and strict JSON (RFC 8259): no byte order mark, no NaN, nothing after the object. Of a key that
  stands twice the last value counts; the earlier ones of an integer, a number or a boolean must have its type, too.
- Nothing is coerced. An integer is written without fraction or exponent and fits 64 bits; a number is finite.
- A date-time is ``YYYY-MM-DDTHH:MM:SS[.1 to 9 digits](Z|+hh:mm|-hh:mm)``, a real time in the years 1900 to 2200.
- A string holds no NUL character, which PostgreSQL cannot store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Model
from lakehouse_engine.errors import Problem, SpecError

Kind = Literal["string", "timestamp", "date", "integer", "number", "boolean"]
SPARK_TYPES: dict[Kind, str] = {"string": "string", "timestamp": "timestamp", "date": "date", "integer": "bigint",
                                "number": "double", "boolean": "boolean"}  # fmt: skip


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise PydanticCustomError("BAD_NAME", "{value} is not a contract's name", {"value": repr(value)})
    return value


ContractName = Annotated[str, AfterValidator(_name), WithJsonSchema(
    {"type": "string", "title": "contract", "pattern": "^[a-z][a-z0-9_]*$"})]  # fmt: skip


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

    def as_schema(self) -> dict[str, Any]:
        """The field as JSON Schema."""
        kind = "string" if self.kind in ("timestamp", "date") else self.kind
        form = {"timestamp": {"format": "date-time"}, "date": {"format": "date"}}.get(self.kind, {})
        rules = {key: getattr(self, field) for key, field in _KEYWORDS.items() if getattr(self, field) is not None}
        enum = {} if self.enum is None else {"enum": [*self.enum, *([None] if self.nullable else [])]}
        return {"type": [kind, "null"] if self.nullable else kind, **form, **rules, **enum}


class Contract(Model):
    """``closed``: a field that is not listed refuses the row (``additionalProperties: false``)."""

    name: str
    file: str
    fields: tuple[Field, ...]
    closed: bool = False

    def as_schema(self) -> dict[str, Any]:
        """The contract as JSON Schema again, with what ``judge`` needs."""
        return {"type": "object", "properties": {f.name: f.as_schema() for f in self.fields},
                "required": [f.name for f in self.fields if f.required],
                **({"additionalProperties": False} if self.closed else {})}  # fmt: skip

    @property
    def columns(self) -> dict[str, str]:
        """Column names and Spark types."""
        return {field.name: field.spark_type for field in self.fields}

    def judge(self, payload: bytes | None) -> list[str]:
        """Why a record's bytes are refused, in the order of the fields; empty for a good record. By ``jsonschema``."""
        if payload is None:
            return ["tombstone"]
        try:
            value = _strict_json(payload)
        except ValueError:
            return ["json: not valid"]
        if not isinstance(value, dict):
            return ["json: not an object"]
        found: list[str] = []
        for name, reason in sorted(self._errors(value), key=lambda e: self._order(e[0])):
            text = f"{name}: {reason}" if name else reason
            if text not in found:
                found.append(text)
        if not found and self._overwritten_wrong(value):
            return ["json: not valid"]
        types = {field.name: f"{field.name}: not {NOUNS[field.kind]}" for field in self.fields}
        # a value of another type has that reason alone
        return [text for text in found if text == (wrong := types.get(text.partition(": ")[0])) or wrong not in found]

    def _overwritten_wrong(self, value: Any) -> bool:
        """A value that a later one of the same key replaced is read all the same, strings and times as any text."""
        typed = {f.name: {"type": [f.kind, "null"]} for f in self.fields if f.kind in ("integer", "number", "boolean")}
        old = [(typed[name], item) for name, item in value.overwritten if name in typed]
        return any(not _types().evolve(schema=kind).is_valid(item) for kind, item in old)

    def _order(self, name: str) -> int:
        return next((i for i, field in enumerate(self.fields) if field.name == name), len(self.fields))

    def _errors(self, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for error in _validator(self).iter_errors(value):
            rule = str(error.validator)
            if rule == "required":
                yield from ((f.name, "missing") for f in self.fields if f.required and f.name not in value)
            elif rule == "additionalProperties":
                yield ("", "unknown field")
            else:
                name = str(error.path[0])
                field = next(f for f in self.fields if f.name == name)
                yield (name, _REASONS.get(rule) or f"not {NOUNS[field.kind]}")
        for field in self.fields:
            if field.kind == "string" and isinstance(value.get(field.name), str) and "\0" in value[field.name]:
                yield (field.name, "holds a NUL character")


NOUNS: dict[Kind, str] = {"string": "a string", "timestamp": "a date-time", "date": "a date", "integer": "an integer",
                          "number": "a number", "boolean": "a boolean"}  # fmt: skip
_REASONS = {"enum": "not one of the accepted values", "pattern": "does not match the pattern", "minLength": "too short",
            "maxLength": "too long", "minimum": "too low", "exclusiveMinimum": "too low", "maximum": "too high",
            "exclusiveMaximum": "too high"}  # fmt: skip
_DATE_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?(Z|([+-])(\d\d):(\d\d))", re.ASCII)
_DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
YEARS = range(1900, 2201)


def is_date_time(text: object) -> bool:
    """``YYYY-MM-DDTHH:MM:SS[.fraction](Z|+hh:mm|-hh:mm)`` with a real date from 1900 to 2200, offset up to 18:00."""
    match = _DATE_TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return False
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    offset = 0 if match[8] == "Z" else int(match[10]) * 60 + int(match[11])
    if year not in YEARS or offset > 18 * 60 or (match[11] and int(match[11]) > 59):
        return False
    try:
        datetime(year, month, day, hour, minute, second)
    except ValueError:
        return False
    return True


def is_date(text: object) -> bool:
    """``YYYY-MM-DD``, a real date between 1900 and 2200."""
    match = _DAY.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) not in YEARS:
        return False
    try:
        datetime(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return True


class _Object(dict[str, Any]):
    """A JSON object; ``overwritten`` holds the pairs whose key stands again later."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        last = {name: index for index, (name, _) in enumerate(pairs)}
        self.overwritten = [pair for index, pair in enumerate(pairs) if last[pair[0]] != index]


def _strict_json(payload: bytes) -> Any:
    """RFC 8259 without what readers disagree on: no NaN, no unpaired surrogate, no byte order mark."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    value = json.loads(payload.decode("utf-8"), object_pairs_hook=_Object, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # an unpaired surrogate cannot be encoded
    return value


@lru_cache(maxsize=64)
def _validator(contract: Contract) -> Any:
    """The contract's schema again, for ``jsonschema``, with the engine's idea of an integer and of a time."""
    from jsonschema import FormatChecker

    checker = FormatChecker(formats=())
    checker.checks("date-time")(lambda v: not isinstance(v, str) or is_date_time(v))
    checker.checks("date")(lambda v: not isinstance(v, str) or is_date(v))
    return _types().evolve(schema=contract.as_schema(), format_checker=checker)


@lru_cache(maxsize=1)
def _types() -> Any:
    """A validator with the engine's idea of an integer and of a number."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    def integer(_: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63

    def number(_: object, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", integer).redefine("number", number)
    validator: Any = extend(Draft202012Validator, type_checker=types)  # type: ignore[no-untyped-call]
    return validator({})


_KEYWORDS = {"pattern": "pattern", "minimum": "minimum", "maximum": "maximum", "exclusiveMinimum": "exclusive_minimum",
             "exclusiveMaximum": "exclusive_maximum", "minLength": "min_length", "maxLength": "max_length"}  # fmt: skip
_SILENT = {"description", "title", "$schema", "$id", "$comment", "examples", "default", "deprecated"}
_JSON_SCHEMA = {"$ref", "$defs", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "items", "prefixItems",
                "contains", "minContains", "maxContains", "uniqueItems", "minItems", "maxItems", "patternProperties",
                "propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas",
                "multipleOf", "unevaluatedItems", "unevaluatedProperties", "contentEncoding", "contentMediaType",
                "contentSchema", "readOnly", "writeOnly", "properties", "required", "additionalProperties"}  # fmt: skip
_NEVER = {"oneOf", "anyOf", "allOf", "not", "if", "then", "else"}


_KNOWN = _SILENT | {"type", "properties", "required", "additionalProperties"}
_OF_FIELD = _SILENT | _KEYWORDS.keys() | {"type", "format", "enum", "const"}


def _forms(*kinds: str) -> list[str | list[str]]:
    """How a type may be written: alone, in a list, with null."""
    return [form for kind in kinds for form in (kind, [kind, "null"], ["null", kind], [kind])]


def file_schema() -> dict[str, Any]:
    """What a contract's file may say, as JSON Schema of that JSON Schema."""
    notes: dict[str, Any] = {
        **{key: {"type": "string"} for key in ("description", "title", "$comment")},
        **{key: {"type": "string", "format": "uri-reference"} for key in ("$schema", "$id")},
        "examples": {"type": "array"}, "default": True, "deprecated": {"type": "boolean"}}  # fmt: skip
    number, size = {"type": "number"}, {"type": "integer", "minimum": 0}
    kinds = ["string", "integer", "number", "boolean"]
    scalar = {"type": ["string", "number", "boolean"]}
    one = {
        "type": "object", "required": ["type"], "additionalProperties": False, "properties": {
            "type": {"enum": _forms(*kinds),
                     "description": "string, integer (64 bits), number or boolean; with null in a list also null."},
            "format": {"enum": ["date-time", "date"], "description": "Of a string: a TIMESTAMP, a DATE."},
            "enum": {"type": "array", "items": scalar, "description": "The values that are accepted."},
            "const": {**scalar, "description": "The one value that is accepted."},
            "pattern": {"type": "string", "format": "regex", "description": "Found anywhere in the text."},
            **{key: {**number, "description": text} for key, text in (
                ("minimum", "The least value."), ("maximum", "The greatest value."),
                ("exclusiveMinimum", "Values are above it."), ("exclusiveMaximum", "Values are below it."))},
            **{key: {**size, "description": text} for key, text in (
                ("minLength", "Characters at least."), ("maxLength", "Characters at most."))},
            **notes},
        "if": {"required": ["type"], "properties": {"type": {"enum": _forms(*kinds[1:])}}},
        "then": {"properties": {"format": False}}}  # fmt: skip
    return {
        "type": "object", "required": ["type", "properties"], "additionalProperties": False, "properties": {
            "type": {"const": "object", "description": "An event is an object."},
            "properties": {"type": "object", "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]{0,62}$"},
                           "additionalProperties": one, "description": "Each the column: its JSON Schema."},
            "required": {"type": "array", "items": {"type": "string"}, "uniqueItems": True,
                         "description": "Columns that every event has; the others are null where they are missing."},
            "additionalProperties": {"const": False, "description": "A field that is not listed refuses the event."},
            **notes}}  # fmt: skip


def _unknown(key: str, known: Iterable[str]) -> tuple[str, str]:
    """JSON Schema's own words come later; others are slips, which JSON Schema itself would pass over."""
    if key in _JSON_SCHEMA or key.startswith("x-"):
        return "NOT_YET", f"{key} comes with a later version"
    close = get_close_matches(key, list(known), n=1)
    return "UNKNOWN_KEY", f"{key} is unknown" + (f"; did you mean {close[0]}?" if close else " to JSON Schema")


def _dotted(path: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _plain(error: Any) -> str:
    rule = str(error.validator)
    if rule == "type":
        return f"it must be of type {error.validator_value}"
    if rule == "enum":
        words = list(map(str, error.validator_value))
        close = get_close_matches(str(error.instance), words, n=1)
        return f"{error.instance} is not one of {', '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")
    if rule == "anyOf":  # of the meta-schema: what type may be
        words = ["string", "integer", "number", "boolean"]
        close = get_close_matches(str(error.instance), words, n=1)
        return f"{error.instance} is no type" + (f"; did you mean {close[0]}?" if close else "")
    return str(error.message)


def build(name: str, file: str, schema: Any, lines: Mapping[str, int]) -> Contract:
    """A contract from a JSON Schema. Raises ``SpecError`` BAD_CONTRACT, NOT_YET, UNKNOWN_KEY at file:line."""
    problems: list[Problem] = []

    def problem(path: str, code: str, message: str) -> None:
        place = path
        while place and place not in lines:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        problems.append(Problem(file, lines.get(place, 1), code, message, path))

    from jsonschema import Draft202012Validator

    if not isinstance(schema, dict):
        problem("", "BAD_CONTRACT", "a contract is a JSON Schema: a map of type, properties and more")
        raise SpecError(problems)
    for key, wrong in (("type", schema.get("type") != "object"), ("properties", not schema.get("properties"))):
        if wrong and key not in schema:
            problem("", "MISSING_KEY", f"{key} is missing: a contract is of type: object, with properties")
        elif wrong and (key == "type" or not isinstance(schema[key], dict)):
            problem(key, "BAD_CONTRACT", "a contract is a JSON Schema of type: object with properties")
    invalid = {problem.path for problem in problems}
    for error in Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema):
        path = list(map(str, error.path))
        if path[:1] in (["type"], ["properties"]) and path[0] in invalid:
            continue
        invalid.add(".".join(path[:3] if path[:1] == ["properties"] else path[:1]))
        name = path[-1] if path else "it"
        problem(_dotted(error.path), "BAD_CONTRACT", f"{name} is not JSON Schema: {_plain(error)}")
    for key in schema:
        if key in _NEVER and key not in invalid:
            problem(key, "BAD_CONTRACT", f"{key} is not part of the contract language")
        elif key not in _KNOWN | _NEVER:
            problem(key, *_unknown(key, _KNOWN))
    extra = schema.get("additionalProperties")
    if extra not in (None, False) and "additionalProperties" not in invalid:
        problem("additionalProperties", "NOT_YET", "additionalProperties: true comes with a later version")
    if not isinstance(schema.get("properties"), dict):
        raise SpecError(problems)
    required = [] if "required" in invalid else schema.get("required", [])
    for missing in sorted(set(required) - schema["properties"].keys()):
        close = get_close_matches(missing, list(schema["properties"]), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problem("required", "BAD_CONTRACT", f"{missing} is required and not among the properties{hint}")
    fields = []
    for field_name, rules in schema["properties"].items():
        if f"properties.{field_name}" in invalid:
            continue
        bad = {key for key in rules if f"properties.{field_name}.{key}" in invalid} if isinstance(rules, dict) else ()
        made = _field(field_name, rules, field_name in required, problem, bad)
        fields += [made] if made else []
    if problems:
        raise SpecError(problems)
    return Contract(name=name, file=file, fields=tuple(fields), closed=extra is False)


def _no_scalar(value: object) -> bool:
    return value is None or isinstance(value, dict | list)


def _field(name: str, rules: Any, required: bool, problem: Callable[[str, str, str], None],
           bad: Collection[str]) -> Field | None:  # fmt: skip
    """None with a problem said. ``bad``: keys that are known to be wrong already."""
    path = f"properties.{name}"
    named = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name) is not None
    if not named:
        problem(path, "BAD_NAME", f"{name!r} is not a column name: a letter, then letters, digits and _")
    if not isinstance(rules, dict):
        problem(path, "NOT_YET", f"{name} says true or false to any value; that comes with a later version")
        return None
    options: dict[str, Any] = {}
    rules = {key: value for key, value in rules.items() if key not in bad}
    for key, value in rules.items():
        if key in _KEYWORDS:
            options[_KEYWORDS[key]] = value
        elif key == "enum":
            options["enum"] = tuple(value)
        elif key == "const":
            options["enum"] = (value,)
        elif key in _NEVER:
            problem(f"{path}.{key}", "BAD_CONTRACT", f"{key} is not part of the contract language")
        elif key not in _OF_FIELD:
            code, message = _unknown(key, _OF_FIELD)
            problem(f"{path}.{key}", code, f"{name}: {message}")
    pattern = True
    try:
        re.compile(rules.get("pattern", ""))
    except re.error as error:
        pattern = False
        problem(f"{path}.pattern", "BAD_CONTRACT", f"{name}: pattern is not a regular expression: {error}")
    wrong = [f"enum[{i}]" for i, value in enumerate(rules.get("enum", ())) if _no_scalar(value)]
    wrong += ["const"] if _no_scalar(rules.get("const", "")) else []
    for place in wrong:
        problem(f"{path}.{place}", "BAD_CONTRACT", f"{name}: accepted values are strings, numbers or booleans")
    known = rules.get("format") in (None, "date-time", "date")
    if not known:
        problem(f"{path}.format", "NOT_YET", f"{name}: this format comes with a later version")
    if "type" in bad:
        return None
    if "type" not in rules:
        problem(path, "NOT_YET", f"{name} has no type; values of any type come with a later version")
        return None
    types = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    plain = [t for t in types if t != "null"]
    kinds: dict[tuple[str, str | None], Kind] = {
        ("string", None): "string", ("string", "date-time"): "timestamp", ("string", "date"): "date",
        ("integer", None): "integer", ("number", None): "number", ("boolean", None): "boolean"}  # fmt: skip
    kind = kinds.get((plain[0], rules.get("format"))) if len(plain) == 1 else None
    if len(plain) != 1 or (plain[0], None) not in kinds:
        problem(f"{path}.type", "NOT_YET", f"{name}: this type comes with a later version")
    elif kind is None and known:
        problem(f"{path}.format", "NOT_YET", f"{name}: this format comes with a later version")
    if kind is None or wrong or not (pattern and named):
        return None
    return Field(name=name, kind=kind, required=required, nullable="null" in types, **options)
