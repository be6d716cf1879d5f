"""A contract over a column of text, as SQL: the strict JSON that ``from_json`` alone is not.

Spark's ``from_json`` takes trailing garbage, a number where a string is due, and unpaired surrogates. So the text is
wrapped into an object that ends with a value nobody else knows (trailing garbage breaks or hides it). What only few
records need is looked up in a second, strict parse into VARIANT, which costs as much as the first: a text with a
backslash (surrogates come escaped only), a string that looks like another type, a field that is null or missing, and
the reasons of a refused record.

A value is judged by what was read of it (``raw``) and by its place in that VARIANT. Elements of arrays and maps are
first judged by what was read alone (``surely``): where that is enough, the second parse is not made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from lakehouse_engine import sql
from lakehouse_engine.contract import EXTRA, NOUNS, Contract, Field
from lakehouse_engine.rows import Layer

_END = secrets.token_hex(8)
_OPTIONS = ("map('mode','PERMISSIVE','columnNameOfCorruptRecord','_corrupt','allowSingleQuotes','false',"
            "'allowNonNumericNumbers','false')")  # fmt: skip
#: what Spark makes a text of that is none in the JSON; of a number too large for a double, the second
_LOOKS_OTHER = r"^((-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|\"-?Infinity\"|true|false)\z|[\{\[])"
_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})\z"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
#: of a NUL character in JSON: a backslash that no other one takes for itself, and then
_NUL = r"(?<!\\)(\\\\)*\\u0000"
_JSON_TYPE = {"string": "string", "timestamp": "string", "date": "string", "integer": "bigint", "number": "double",
              "boolean": "boolean", "any": "variant"}  # fmt: skip
_IS = {"object": "OBJECT", "map": "OBJECT", "array": "ARRAY"}
_INNER = {"array": "an element is of another type", "map": "a value is of another type"}


@dataclass(frozen=True)
class Variant:
    """SQL of a value in the strict parse: ``path`` below ``root``."""

    root: str
    path: str = "$"

    def field(self, name: str) -> Variant:
        return Variant(self.root, f"{self.path}.{name}")

    def get(self, kind: str = "variant") -> str:
        if (self.path, kind) == ("$", "variant"):
            return self.root
        return f"try_variant_get({self.root}, {sql.string(self.path)}, '{kind}')"


@dataclass(frozen=True)
class Rule:
    """``good``: SQL that is true for a value that keeps it; null is not. ``wrong``: it has another type."""

    path: str
    field: Field
    reason: str
    good: str
    wrong: bool = False


class Json:
    """The SQL of one contract over one column."""

    def __init__(self, contract: Contract, text: str, alias: str) -> None:
        self.contract, self.text, self.alias = contract, text, alias

    def struct(self) -> str:
        fields = ", ".join(f"{sql.name(f.name)} {_json_type(f)}" for f in self.contract.fields)
        schema = f"v struct<{fields}>, end string, _corrupt string"
        wrapped = f"""concat('{{"v":', {self.text}, ',"end":"{_END}"}}')"""
        return f"from_json({wrapped}, {sql.string(schema)}, {_OPTIONS})"

    def raw(self, field: Field) -> str:
        return f"{self.alias}.v.{sql.name(field.name)}"

    def column(self, field: Field) -> str:
        return f"{self.alias}_{field.name}" if field.holds("timestamp", "date") else self.raw(field)

    def columns(self) -> dict[str, str]:
        extra = {EXTRA: f"{self.alias}_extra"} if self.contract.keeps else {}
        return {**{field.name: self.column(field) for field in self.contract.fields}, **extra}

    def made(self) -> Iterator[Layer]:
        """What is computed of what was read: texts to times, and what the contract does not list."""
        for field in self.contract.fields:
            if field.holds("timestamp", "date"):
                yield Layer(f"{self.alias}_{field.name}", _typed(field, self.raw(field)))
        if self.contract.keeps:
            rest = f"map_filter({Variant(self.json).get('map<string,variant>')}, (k, v) -> not k in ({self._names}))"
            yield Layer(f"{self.alias}_extra", f"if({self._unknown}, to_variant_object({rest}), null)")

    @property
    def json(self) -> str:
        return f"try_parse_json({self.text})"

    def well_formed(self) -> str:
        strict = f"(not contains({self.text}, {sql.string(chr(92))}) or {self.json} is not null)"
        return (f"({self.alias}.v is not null and {self.alias}._corrupt is null and {self.alias}.end = '{_END}'"
                f" and is_valid_utf8({self.text}) and {strict})")  # fmt: skip

    def accepted(self) -> str:
        """SQL boolean, never null: the record keeps the contract."""
        whole = Variant(self.json)
        rules: list[str] = []
        for field in self.contract.fields:
            rules += _accepted(field, self.raw(field), whole.field(field.name), column=self.column(field))
        rules += [rule.good for rule in self._others()]
        return f"coalesce({' and '.join([self.well_formed(), *rules])}, false)"

    def reasons(self, value: str) -> str:
        """SQL array<string>; evaluated for refused records only."""
        no_json = f"{self.json} is null or not is_valid_utf8({self.text}) or not ({self.alias}.end <=> '{_END}')"
        whole = Variant(self.json)
        found = []
        for field in self.contract.fields:
            place = (self.raw(field), whole.field(field.name))
            found += [_reason(rule, *place) for rule in _rules(field, *place, column=self.column(field))]
        found += [f"if(not coalesce({rule.good}, false), {sql.string(rule.reason)}, null)" for rule in self._others()]
        each = f"array_distinct(filter(array({', '.join(found)}), reason -> reason is not null))"
        each = f"if(size({each}) > 0, {each}, array('json: not valid'))"  # a value that a later one of its key replaced
        return (f"case when {value} is null then array('tombstone') when {no_json} then array('json: not valid')"
                f" when not ({_is(whole, 'object')}) then array('json: not an object')"
                f" else {each} end")  # fmt: skip

    @property
    def _names(self) -> str:
        return ", ".join(sql.string(field.name) for field in self.contract.fields)

    @property
    def _unknown(self) -> str:
        return f"size(array_except(json_object_keys({self.text}), array({self._names}))) > 0"

    def _others(self) -> Iterator[Rule]:
        """Of the record as a whole."""
        whole = Field(name="", kind="object", required=True)
        if self.contract.closed:
            yield Rule("", whole, "unknown field", f"not {self._unknown}")
        if self.contract.keeps:
            extra = f"{self.alias}_extra"
            yield Rule("", whole, f"{EXTRA}: holds a NUL character", f"({extra} is null or {_without_nul(extra)})")


def _json_type(field: Field) -> str:
    """What ``from_json`` reads; times as texts."""
    if field.kind == "object":
        return f"struct<{', '.join(f'{sql.name(part.name)}: {_json_type(part)}' for part in field.fields)}>"
    if field.element is not None:
        return f"{'array<' if field.kind == 'array' else 'map<string, '}{_json_type(field.element)}>"
    return _JSON_TYPE[field.kind]


def _typed(field: Field, raw: str, depth: int = 0) -> str:
    """SQL of what was read, with times in place of their texts."""
    if not field.holds("timestamp", "date"):
        return raw
    one = f"t{depth}"
    if field.kind == "object":
        parts = ", ".join(f"{sql.string(part.name)}, {_typed(part, f'{raw}.{sql.name(part.name)}', depth)}"
                          for part in field.fields)  # fmt: skip
        return f"if({raw} is null, null, named_struct({parts}))"
    if field.element is not None and field.kind == "array":
        return f"transform({raw}, {one} -> {_typed(field.element, one, depth + 1)})"
    if field.element is not None:
        return f"transform_values({raw}, (k{depth}, {one}) -> {_typed(field.element, one, depth + 1)})"
    return f"try_cast({raw} as {field.kind})"


def _accepted(field: Field, raw: str, variant: Variant | None, *, column: str = "", inside: bool = False,
              depth: int = 0) -> Iterator[str]:  # fmt: skip
    """SQL conditions of a value and all its parts. Without ``variant``: such that surely it is good.

    ``column``: the typed value of a time, where there is one; ``inside``: an element, which is never missing.
    """
    yield from (rule.good for rule in _own_rules(field, raw, variant, "", column, inside))
    parts: list[str] = []
    if field.kind == "object":
        for part in field.fields:
            below = None if variant is None else variant.field(part.name)
            parts += _accepted(part, f"{raw}.{sql.name(part.name)}", below, depth=depth)
        parts += [rule.good for rule in _closed(field, raw, variant, "")]
    elif field.element is not None:
        one = f"r{depth}"
        sure = " and ".join(_accepted(field.element, one, None, inside=True, depth=depth + 1)) or "true"
        values = raw if field.kind == "array" else f"map_values({raw})"
        surely = f"forall({values}, {one} -> coalesce({sure}, false))"
        if variant is None:
            parts.append(surely)
        else:
            each = " and ".join(_accepted(field.element, one, Variant(f"v{depth}"), inside=True, depth=depth + 1))
            parts.append(f"({surely} or {_each(field, raw, variant, each or 'true', depth)})")
    if parts:
        yield f"({raw} is null or ({' and '.join(parts)}))"


def _rules(field: Field, raw: str, variant: Variant, path: str = "", *, column: str = "", inside: bool = False,
           depth: int = 0) -> Iterator[Rule]:  # fmt: skip
    """The same one by one, with their paths."""
    path += field.name if not path or inside else f".{field.name}"
    yield from _own_rules(field, raw, variant, path, column, inside)
    for part in field.fields:
        for rule in _rules(part, f"{raw}.{sql.name(part.name)}", variant.field(part.name), path, depth=depth):
            yield Rule(rule.path, rule.field, rule.reason, f"({raw} is null or {rule.good})", rule.wrong)
    yield from _closed(field, raw, variant, path)
    if field.element is not None:
        inner = _rules(field.element, f"r{depth}", Variant(f"v{depth}"), path, inside=True, depth=depth + 1)
        for rule in inner:
            good = f"({raw} is null or {_each(field, raw, variant, rule.good, depth)})"
            yield Rule(rule.path, rule.field, rule.reason, good, rule.wrong)


def _each(field: Field, raw: str, variant: Variant, good: str, depth: int) -> str:
    """SQL: all elements ``r`` with their places ``v`` in the strict parse are good."""
    key, one, place = f"k{depth}", f"r{depth}", f"v{depth}"
    if field.kind == "array":
        both = f"zip_with({raw}, {variant.get('array<variant>')}, ({one}, {place}) -> coalesce({good}, false))"
    else:
        theirs = variant.get("map<string,variant>")
        both = f"map_values(map_zip_with({raw}, {theirs}, ({key}, {one}, {place}) -> coalesce({good}, false)))"
    return f"forall({both}, x{depth} -> x{depth})"


def _own_rules(field: Field, raw: str, variant: Variant | None, path: str, column: str, inside: bool) -> Iterator[Rule]:
    """Presence, type, then the schema's own rules, without those of its parts."""
    there, wrong = f"{raw} is not null", f"{path}: not {NOUNS.get(field.kind, '')}"
    if field.required and not inside:
        yield Rule(path, field, f"{path}: missing",
                   f"({there} or {variant.get()} is not null)" if variant else there)  # fmt: skip
    if variant is not None:
        allowed = [there] if inside else [there, f"{variant.get()} is null"]
        allowed += [f"is_variant_null({variant.get()})"] if field.nullable else []
        if field.kind != "any":  # null is a value, too
            yield Rule(path, field, wrong, f"({' or '.join(allowed)})", wrong=True)
    elif not field.nullable:
        yield Rule(path, field, wrong, there, wrong=True)
    for reason, good in _value_rules(field, raw, variant, column):
        text = wrong if reason == "" else f"{path}: {reason}"
        yield Rule(path, field, text, f"({raw} is null or {good})", wrong=reason == "")


def _value_rules(field: Field, raw: str, variant: Variant | None, column: str) -> Iterator[tuple[str, str]]:
    """(reason, SQL) of a value that is there; no reason: it has another type."""
    texts = field.kind in ("string", "timestamp", "date")
    if field.kind == "string":
        if field.enum is None or any(re.match(_LOOKS_OTHER.replace(r"\z", r"\Z"), str(v)) for v in field.enum):
            yield "", _is_text(raw, variant)
        yield "holds a NUL character", f"not contains({raw}, chr(0))"
    elif field.kind in ("timestamp", "date"):
        pattern = _TIMESTAMP if field.kind == "timestamp" else _DATE
        typed = column or f"try_cast({raw} as {field.kind})"
        yield "", (f"({raw} rlike {sql.string(pattern)} and left({raw}, 4) between '1900' and '2200'"
                   f" and {typed} is not null)")  # fmt: skip
    elif field.kind == "number":
        yield "", f"abs({raw}) < double('infinity')"
    elif field.kind == "any":
        yield "holds a NUL character", _without_nul(raw)
    elif field.kind == "map":
        yield "a key stands twice", f"size(array_distinct(map_keys({raw}))) = size({raw})"
        yield "holds a NUL character", f"not exists(map_keys({raw}), key -> contains(key, chr(0)))"
    if field.enum is not None:
        values = ", ".join(_literal(v) for v in field.enum if _fits(v, field))
        yield "not one of the accepted values", f"{raw} in ({values})" if values else "false"
    if texts and field.pattern is not None:
        yield "does not match the pattern", f"{raw} rlike {sql.string(field.pattern)}"
    if texts and field.min_length is not None:
        yield "too short", f"length({raw}) >= {field.min_length}"
    if texts and field.max_length is not None:
        yield "too long", f"length({raw}) <= {field.max_length}"
    bounds = ((field.minimum, ">=", "low"), (field.maximum, "<=", "high"),
              (field.exclusive_minimum, ">", "low"), (field.exclusive_maximum, "<", "high"))  # fmt: skip
    for bound, operator, side in bounds:
        if bound is not None and field.kind in ("integer", "number"):
            yield f"too {side}", f"{raw} {operator} {_literal(bound)}"
    if field.min_items is not None:
        yield "too few elements", f"size({raw}) >= {field.min_items}"
    if field.max_items is not None:
        yield "too many elements", f"size({raw}) <= {field.max_items}"
    if field.unique_items:
        yield "an element stands twice", f"size(array_distinct({raw})) = size({raw})"


def _is_text(raw: str, variant: Variant | None) -> str:
    """SQL: the JSON has a string here, not another type that Spark turned into one."""
    plain = f"not {raw} rlike {sql.string(_LOOKS_OTHER)}"
    return f"({plain})" if variant is None else f"({plain} or schema_of_variant({variant.get()}) = 'STRING')"


def _closed(field: Field, raw: str, variant: Variant | None, path: str) -> Iterator[Rule]:
    """An object that takes no other fields. What was read does not hold them."""
    if field.closed and variant is not None:
        names = ", ".join(sql.string(part.name) for part in field.fields)
        theirs = variant.get("map<string,variant>")
        yield Rule(path, field, f"{path}: unknown field",
                   f"({raw} is null or size(array_except(map_keys({theirs}), array({names}))) = 0)")  # fmt: skip
    elif field.closed:
        yield Rule(path, field, "", "false")


def _without_nul(variant: str) -> str:
    return f"not coalesce(to_json({variant}) rlike {sql.string(_NUL)}, false)"


def _is(variant: Variant, kind: str) -> str:
    return f"coalesce(schema_of_variant({variant.get()}), '') like '{_IS[kind]}%'"


def _reason(rule: Rule, raw: str, variant: Variant) -> str:
    """SQL string: why, null for a value that keeps the rule.

    A value of another type has that reason alone: its other rules say nothing.
    """
    text = sql.string(rule.reason)
    if rule.path == rule.field.name and rule.field.kind == "string" and not rule.reason.endswith(": missing"):
        wrong = sql.string(f"{rule.path}: not {NOUNS['string']}")
        text = f"if({raw} is null or {_is_text(raw, variant)}, {text}, {wrong})"
    elif rule.path == rule.field.name and rule.wrong and rule.field.kind in _INNER:
        inner = sql.string(f"{rule.path}: {_INNER[rule.field.kind]}")  # then Spark has read none of it
        text = f"if({_is(variant, rule.field.kind)}, {inner}, {text})"
    return f"if(not coalesce({rule.good}, false), {text}, null)"


def _fits(value: object, field: Field) -> bool:
    """Whether a value of the kind can be that one."""
    if field.kind == "boolean" or isinstance(value, bool):
        return field.kind == "boolean" and isinstance(value, bool)
    if field.kind in ("integer", "number"):
        return isinstance(value, int | float) and (field.kind == "number" or value == int(value))
    return isinstance(value, str)


def _literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"double('{value!r}')"
    return sql.string(value) if isinstance(value, str) else str(value)
