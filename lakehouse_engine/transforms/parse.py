"""``parse``: reads a record's bytes as JSON by a contract. ``parse: user_event``.

Adds the contract's columns. A record that does not keep the contract is quarantined with its raw bytes and every
reason; nothing is coerced. ``Contract.judge`` is the same verdict in Python, by ``jsonschema``; tests hold both to one
another, payload by payload.

Spark's ``from_json`` alone is not JSON: it takes trailing garbage, a number where a string is due, and unpaired
surrogates. So the text is wrapped into an object that ends with a value nobody else knows (trailing garbage breaks or
hides it). What only few records need is looked up in a second, strict parse into VARIANT, which costs as much as the
first: a text with a backslash (surrogates come escaped only), a string that looks like another type, a field that is
null or missing, and the reasons of a refused record.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from lakehouse_engine import sql
from lakehouse_engine.checks import Share
from lakehouse_engine.component import Column, Component
from lakehouse_engine.contract import NOUNS, Contract, ContractName, Field
from lakehouse_engine.rows import FILTERED, QUARANTINED, Layer, Rows, Verdict, Watched

_END = secrets.token_hex(8)
_OPTIONS = ("map('mode','PERMISSIVE','columnNameOfCorruptRecord','_corrupt','allowSingleQuotes','false',"
            "'allowNonNumericNumbers','false')")  # fmt: skip
_LOOKS_OTHER = r"^(-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|[\{\[].*)\z"
_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})\z"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
_JSON_TYPE = {"string": "string", "timestamp": "string", "date": "string", "integer": "bigint", "number": "double",
              "boolean": "boolean"}  # fmt: skip


class Parse(Component):
    """Reads a record's bytes by a contract; what does not keep it is quarantined."""

    later: ClassVar[frozenset[str]] = frozenset({"into", "format", "ddl"})

    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName
    #: the column that holds the bytes
    column: Column = "_value"
    #: the share of refused records, e.g. 1%, above which a run fails
    tolerance: Share | None = None
    #: a record without a value, which compacted topics keep for a key that is gone: quarantined, or dropped and counted
    #: as filtered
    tombstones: Literal["quarantine", "drop"] = "quarantine"

    @classmethod
    def short(cls, value: object) -> object:
        return {"contract": value} if isinstance(value, str) else value

    def expressions(self) -> list[str]:
        return [self.column]

    def row(self, rows: Rows, step: str, contract: Contract) -> Rows:
        """Adds a column per field. Layers are named after contract and column, so members of a scan share them."""
        value = rows.resolve(self.column)
        if self.tombstones == "drop":
            rows = rows.refuse(Verdict(step, FILTERED, f"{value} is null"))
        alias = f"_{contract.name}_of{self.column}"
        json = _Json(contract, f"cast({value} as string)", alias)
        ok = f"{alias}_ok"
        layers = (Layer(alias, json.struct()), *json.times(), Layer(ok, json.accepted()))
        verdict = Verdict(step, QUARANTINED, f"not {ok}", json.reasons(value))
        columns = {**rows.columns, **{field.name: json.column(field) for field in contract.fields}}
        types = {**rows.types, **{field.name: field.spark_type for field in contract.fields}}
        known = {layer.alias for layer in rows.layers}
        added = tuple(layer for layer in layers if layer.alias not in known)
        if self.tolerance is not None:
            name = f"parse({contract.name})"
            rows = rows.watch(
                [Watched(name, f"not {ok}", "quarantine", f"{step}.tolerance", len(rows.verdicts), self.tolerance)]
            )
        return replace(rows.refuse(verdict), columns=columns, types=types, layers=(*rows.layers, *added))


class _Json:
    """The SQL of one contract over one column."""

    def __init__(self, contract: Contract, text: str, alias: str) -> None:
        self.contract, self.text, self.alias = contract, text, alias

    def struct(self) -> str:
        fields = ", ".join(f"{sql.name(f.name)} {_JSON_TYPE[f.kind]}" for f in self.contract.fields)
        schema = f"v struct<{fields}>, end string, _corrupt string"
        wrapped = f"""concat('{{"v":', {self.text}, ',"end":"{_END}"}}')"""
        return f"from_json({wrapped}, {sql.string(schema)}, {_OPTIONS})"

    def raw(self, field: Field) -> str:
        return f"{self.alias}.v.{sql.name(field.name)}"

    def column(self, field: Field) -> str:
        return f"{self.alias}_{field.name}" if field.kind in ("timestamp", "date") else self.raw(field)

    def times(self) -> Iterator[Layer]:
        for field in self.contract.fields:
            if field.kind in ("timestamp", "date"):
                yield Layer(f"{self.alias}_{field.name}", f"try_cast({self.raw(field)} as {field.kind})")

    @property
    def json(self) -> str:
        return f"try_parse_json({self.text})"

    def variant(self, field: Field) -> str:
        return f"try_variant_get({self.json}, {sql.string('$.' + field.name)}, 'variant')"

    def well_formed(self) -> str:
        strict = f"(not contains({self.text}, {sql.string(chr(92))}) or {self.json} is not null)"
        return (f"({self.alias}.v is not null and {self.alias}._corrupt is null and {self.alias}.end = '{_END}'"
                f" and is_valid_utf8({self.text}) and {strict})")  # fmt: skip

    def accepted(self) -> str:
        """SQL boolean, never null: the record keeps the contract."""
        rules = [good for field in self.contract.fields for _, good in self._rules(field)]
        rules += [good for _, good in self._closed()]
        return f"coalesce({' and '.join([self.well_formed(), *rules])}, false)"

    def reasons(self, value: str) -> str:
        """SQL array<string>; evaluated for refused records only."""
        no_json = f"{self.json} is null or not is_valid_utf8({self.text}) or not ({self.alias}.end <=> '{_END}')"
        rules = [(field, *rule) for field in self.contract.fields for rule in self._rules(field)]
        found = [self._reason(*rule) for rule in rules]
        found += [f"if(not coalesce({good}, false), {sql.string(reason)}, null)" for reason, good in self._closed()]
        each = f"array_distinct(filter(array({', '.join(found)}), reason -> reason is not null))"
        each = f"if(size({each}) > 0, {each}, array('json: not valid'))"  # a value that a later one of its key replaced
        return (f"case when {value} is null then array('tombstone') when {no_json} then array('json: not valid')"
                f" when not ({self.variant_is('OBJECT%')}) then array('json: not an object')"
                f" else {each} end")  # fmt: skip

    def _reason(self, field: Field, reason: str, good: str) -> str:
        """A value of another type has that reason alone: its other rules say nothing."""
        wrong = f"{field.name}: not {NOUNS[field.kind]}"
        text = sql.string(reason)
        if field.kind == "string" and not reason.endswith(": missing"):
            text = f"if({self.raw(field)} is null or {self._is_text(field)}, {text}, {sql.string(wrong)})"
        return f"if(not coalesce({good}, false), {text}, null)"

    def variant_is(self, like: str) -> str:
        return f"coalesce(schema_of_variant({self.json}), '') like '{like}'"

    def _closed(self) -> Iterator[tuple[str, str]]:
        if self.contract.closed:
            names = ", ".join(sql.string(field.name) for field in self.contract.fields)
            yield ("unknown field", f"size(array_except(json_object_keys({self.text}), array({names}))) = 0")

    def _rules(self, field: Field) -> Iterator[tuple[str, str]]:
        """(reason, SQL that is true for a good value): presence, type, then the schema's own rules."""
        raw, variant = self.raw(field), self.variant(field)
        wrong = f"{field.name}: not {NOUNS[field.kind]}"
        if field.required:
            yield (f"{field.name}: missing", f"({raw} is not null or {variant} is not null)")
        allowed = [f"{raw} is not null", f"{variant} is null"]
        allowed += [f"is_variant_null({variant})"] if field.nullable else []
        yield (wrong, f"({' or '.join(allowed)})")
        for reason, good in self._value_rules(field, raw, wrong):
            yield (reason, f"({raw} is null or {good})")

    def _is_text(self, field: Field) -> str:
        """SQL: the JSON has a string here, not another type that Spark turned into one."""
        is_text = f"schema_of_variant({self.variant(field)}) = 'STRING'"
        return f"(not {self.raw(field)} rlike {sql.string(_LOOKS_OTHER)} or {is_text})"

    def _value_rules(self, field: Field, raw: str, wrong: str) -> Iterator[tuple[str, str]]:
        if field.kind == "string":
            if field.enum is None or any(re.match(_LOOKS_OTHER.replace(r"\z", r"\Z"), str(v)) for v in field.enum):
                yield (wrong, self._is_text(field))
            yield (f"{field.name}: holds a NUL character", f"not contains({raw}, chr(0))")
        elif field.kind in ("timestamp", "date"):
            pattern = _TIMESTAMP if field.kind == "timestamp" else _DATE
            yield (wrong, f"({raw} rlike {sql.string(pattern)} and left({raw}, 4) between '1900' and '2200'"
                          f" and {self.column(field)} is not null)")  # fmt: skip
        elif field.kind == "number":
            yield (wrong, f"abs({raw}) < double('infinity')")
        if field.enum is not None:
            values = ", ".join(_literal(v) for v in field.enum)
            yield (f"{field.name}: not one of the accepted values", f"{raw} in ({values})")
        if field.pattern is not None:
            yield (f"{field.name}: does not match the pattern", f"{raw} rlike {sql.string(field.pattern)}")
        if field.min_length is not None:
            yield (f"{field.name}: too short", f"length({raw}) >= {field.min_length}")
        if field.max_length is not None:
            yield (f"{field.name}: too long", f"length({raw}) <= {field.max_length}")
        bounds = ((field.minimum, ">=", "low"), (field.maximum, "<=", "high"),
                  (field.exclusive_minimum, ">", "low"), (field.exclusive_maximum, "<", "high"))  # fmt: skip
        for bound, operator, side in bounds:
            if bound is not None:
                yield (f"{field.name}: too {side}", f"{raw} {operator} {_literal(bound)}")


def _literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"double('{value!r}')"
    return sql.string(value) if isinstance(value, str) else str(value)
