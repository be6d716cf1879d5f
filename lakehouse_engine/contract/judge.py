"""A contract's verdict in Python, by ``jsonschema``: the other reader that the SQL of ``parse`` is held to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from lakehouse_engine.contract import EXTRA, NOUNS, Contract, Field

_REASONS = {"enum": "not one of the accepted values", "pattern": "does not match the pattern", "minLength": "too short",
            "maxLength": "too long", "minimum": "too low", "exclusiveMinimum": "too low", "maximum": "too high",
            "exclusiveMaximum": "too high", "minItems": "too few elements", "maxItems": "too many elements",
            "uniqueItems": "an element stands twice"}  # fmt: skip
_DATE_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?(Z|([+-])(\d\d):(\d\d))", re.ASCII)
_DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
YEARS = range(1900, 2201)
#: what Jackson, Spark's reader of JSON, takes; of the levels, one is the object that the engine puts around an event
MOST_LEVELS, MOST_DIGITS, LONGEST_KEY = 999, 1_000, 50_000


def judge(contract: Contract, payload: bytes | None) -> list[str]:
    """As ``Contract.judge``."""
    if payload is None:
        return ["tombstone"]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 12 * MOST_LEVELS)  # a level is a few calls
    try:
        return _judge(contract, payload)
    finally:
        sys.setrecursionlimit(limit)


def _judge(contract: Contract, payload: bytes) -> list[str]:
    whole = Field(name="", kind="object", required=True, fields=contract.fields, closed=contract.closed)
    try:
        value = _strict_json(payload)
    except ValueError:
        return ["json: not valid"]
    if not isinstance(value, dict):
        return ["json: not an object"]
    paths = {path: (number, field) for number, (path, field) in enumerate(whole.below())}
    found: list[tuple[int, str]] = []
    for path, reason in _errors(contract, whole, _as_read(whole, value)):
        text = f"{path}: {reason}" if path else reason
        order = paths[path][0] if path else len(paths)  # what is unknown comes last
        if (order, text) not in found:
            found.append((order, text))
    if not found and not _readable(whole, value):
        return ["json: not valid"]
    # a value of another type has that reason alone
    wrong = {at: f"{path}: not {NOUNS[field.kind]}" for path, (at, field) in paths.items() if field.kind in NOUNS}
    texts = [text for _, text in found]
    return [text for at, text in sorted(found, key=lambda one: one[0])
            if text == wrong.get(at) or wrong.get(at) not in texts]  # fmt: skip


def _errors(contract: Contract, whole: Field, value: Any) -> Iterator[tuple[str, str]]:
    for error in _validator(contract).iter_errors(value):
        path, field = _at(whole, error.absolute_path)
        rule = str(error.validator)
        if rule == "required":
            missing = [one.name for one in field.fields if one.required and one.name not in error.instance]
            yield from ((f"{path}.{name}".lstrip("."), "missing") for name in missing)
        elif rule == "additionalProperties":
            yield path, "unknown field"
        else:
            yield path, _REASONS.get(rule) or f"not {NOUNS[field.kind]}"
    yield from _not_stored(whole, value, "")
    if contract.keeps:
        names = {field.name for field in contract.fields}
        if _holds_nul({name: one for name, one in value.items() if name not in names}):
            yield "", f"{EXTRA}: holds a NUL character"


def _at(whole: Field, place: Sequence[str | int]) -> tuple[str, Field]:
    """The path and the field of a place in a value."""
    path, field = "", whole
    for part in place:
        if field.element is not None:
            field = field.element
            path += field.name
        else:
            field = next(one for one in field.fields if one.name == part)
            path = f"{path}.{field.name}".lstrip(".")
    return path, field


def _not_stored(field: Field, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """What ``jsonschema`` takes and no table should hold. Each is said of the innermost value."""
    if (field.kind == "string" and isinstance(value, str) and "\0" in value) or (
        field.kind == "any" and _holds_nul(value)
    ):
        yield path, "holds a NUL character"
    elif field.kind == "object" and isinstance(value, dict):
        for part in field.fields:
            yield from _not_stored(part, value.get(part.name), f"{path}.{part.name}".lstrip("."))
    elif field.element is not None and isinstance(value, dict):
        if value.overwritten:  # type: ignore[attr-defined]
            yield path, "a key stands twice"
        if any("\0" in key for key in value):
            yield path, "holds a NUL character"
        for one in value.values():
            yield from _not_stored(field.element, one, path + field.element.name)
    elif field.kind == "array" and isinstance(value, list) and field.element is not None:
        if field.unique_items:
            stored = [repr(_stored(field.element, one)) for one in value]
            yield from [(path, _REASONS["uniqueItems"])] if len(set(stored)) < len(stored) else []
        for one in value:
            yield from _not_stored(field.element, one, path + field.element.name)


def _stored(field: Field, value: Any) -> Any:
    """What is left of a value in its column: fields that are listed, null for none."""
    if field.kind == "object" and isinstance(value, dict):
        return [_stored(part, value.get(part.name)) for part in field.fields]
    if field.kind == "array" and isinstance(value, list) and field.element is not None:
        return [_stored(field.element, one) for one in value]
    return value + 0.0 if isinstance(value, float) else value  # of two zeros there is one


def _as_read(field: Field, value: Any) -> Any:
    """A number is a double, however it is written; what is too large for one is infinite."""
    if field.kind == "number" and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    if field.kind == "object" and isinstance(value, dict):
        known = {one.name: one for one in field.fields}
        return {name: _as_read(known[name], one) if name in known else one for name, one in value.items()}
    if field.element is not None and isinstance(value, _Object):
        made = _Object([(name, _as_read(field.element, one)) for name, one in value.items()])
        made.overwritten = value.overwritten
        return made
    if field.element is not None and isinstance(value, list):
        return [_as_read(field.element, one) for one in value]
    return value


def _readable(field: Field, value: Any) -> bool:
    """Whether all values of a field have its type, those too that a later one of the same key replaced."""
    if value is None or field.kind in ("string", "timestamp", "date", "any"):  # any value has a text
        return True
    if field.kind in ("object", "map"):
        known = {one.name: one for one in field.fields}
        pairs = [*value.items(), *value.overwritten] if isinstance(value, _Object) else []
        parts = [(known.get(name, field.element), one) for name, one in pairs]
        return isinstance(value, _Object) and all(part is None or _readable(part, one) for part, one in parts)
    if field.kind == "array":
        return isinstance(value, list) and field.element is not None and all(_readable(field.element, v) for v in value)
    if field.kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return bool(_types().evolve(schema={"type": field.kind}).is_valid(value))


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in name or _holds_nul(one) for name, one in value.items())
    return any(map(_holds_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


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
        if any(len(name) > LONGEST_KEY for name in last):
            raise ValueError("a long key")
        _encoded(self.overwritten)


def _strict_json(payload: bytes) -> Any:
    """RFC 8259 without what readers disagree on: no NaN, no unpaired surrogate, no byte order mark."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def whole(text: str) -> int:
        _count(text)
        return int(text)

    def broken(text: str) -> float:
        _count(text)
        return float(text)

    text = payload.decode("utf-8")
    if _levels(text) > MOST_LEVELS:
        raise ValueError("too deep")
    value = json.loads(text, object_pairs_hook=_Object, parse_constant=refuse, parse_int=whole, parse_float=broken)
    _encoded(value)
    return value


def _encoded(value: Any) -> None:
    """Raises ``ValueError`` for an unpaired surrogate."""
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def _count(number: str) -> None:
    if sum(map(str.isdigit, number)) - number.lstrip("-").startswith("0") > MOST_DIGITS:
        raise ValueError("a long number")


def _levels(text: str) -> int:
    level = most = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        level += (bracket in "[{") - (bracket in "]}")
        most = max(most, level)
    return most


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
