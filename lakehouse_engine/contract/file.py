"""From a contract's file, a JSON Schema, to a ``Contract``: what cannot be read is said, all of it, at its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from lakehouse_engine.contract import COLUMN, KEYWORDS, Contract, Field, Kind
from lakehouse_engine.errors import Problem, SpecError

SILENT = frozenset({"description", "title", "$schema", "$id", "$comment", "examples", "default", "deprecated"})
_JSON_SCHEMA = {"$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "prefixItems", "contains", "minContains",
                "maxContains", "patternProperties", "propertyNames", "minProperties", "maxProperties",
                "dependentRequired", "dependentSchemas", "multipleOf", "unevaluatedItems", "unevaluatedProperties",
                "contentEncoding", "contentMediaType", "contentSchema", "readOnly", "writeOnly", "$ref", "items",
                "uniqueItems", "minItems", "maxItems"}  # fmt: skip
_NEVER = {"oneOf", "anyOf", "allOf", "not", "if", "then", "else"}
_KNOWN = SILENT | {"type", "properties", "required", "additionalProperties", "$defs"}
_OF_FIELD = SILENT | KEYWORDS.keys() | {"type", "format", "enum", "const", "properties", "required", "items",
                                        "additionalProperties", "uniqueItems", "$ref"}  # fmt: skip
#: what a value of a type says; what it does not say is the matter of another type, and JSON Schema passes over it
_NESTED = {"object": {"properties", "required", "additionalProperties"},
           "array": {"items", "minItems", "maxItems", "uniqueItems"}}  # fmt: skip
_KINDS: dict[tuple[str, str | None], Kind] = {
    ("string", None): "string", ("string", "date-time"): "timestamp", ("string", "date"): "date",
    ("integer", None): "integer", ("number", None): "number", ("boolean", None): "boolean", ("object", None): "object",
    ("array", None): "array"}  # fmt: skip
_WORDS = ("string", "integer", "number", "boolean", "object", "array")
Say = Callable[[str, str, str], None]


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
        words = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"it must be of type {' or '.join(words)}"
    if rule == "enum":
        words = list(map(str, error.validator_value))
        close = get_close_matches(str(error.instance), words, n=1)
        return f"{error.instance} is not one of {', '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")
    if rule == "anyOf":  # of the meta-schema: what type may be
        close = get_close_matches(str(error.instance), _WORDS, n=1)
        return f"{error.instance} is no type" + (f"; did you mean {close[0]}?" if close else "")
    return str(error.message)


def build(name: str, file: str, schema: Any, lines: Mapping[str, int]) -> Contract:
    """A contract from a JSON Schema. Raises ``SpecError`` BAD_CONTRACT, NOT_YET, UNKNOWN_KEY at file:line."""
    problems: list[Problem] = []

    def say(path: str, code: str, message: str) -> None:
        for name, word in (("[]", "an element"), ("{}", "a value")):
            message = message.replace(name, word, 1) if message.startswith(name) else message
        place = path
        while place and place not in lines:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        problem = Problem(file, lines.get(place, 1), code, message, path)
        if problem not in problems:  # of a part that several fields refer to
            problems.append(problem)

    from jsonschema import Draft202012Validator

    if not isinstance(schema, dict):
        say("", "BAD_CONTRACT", "a contract is a JSON Schema: a map of type, properties and more")
        raise SpecError(problems)
    for key, wrong in (("type", schema.get("type") != "object"), ("properties", not schema.get("properties"))):
        if wrong and key not in schema:
            say("", "MISSING_KEY", f"{key} is missing: a contract is of type: object, with properties")
        elif wrong:
            say(key, "BAD_CONTRACT", "a contract is a JSON Schema of type: object with properties")
    said = {problem.path for problem in problems}
    invalid: set[str] = set()
    for error in Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema):
        path = _dotted(error.path)
        if path in said:
            continue
        invalid |= {path, re.sub(r"(\[[0-9]+\])+$", "", path)}  # its list is not read
        key = str(error.path[-1]) if error.path else "it"
        say(path, "BAD_CONTRACT", f"{key} is not JSON Schema: {_plain(error)}")
    reader = _Reader(schema, invalid, say)
    for key in schema:
        if key in _NEVER and key not in invalid:
            say(key, "BAD_CONTRACT", f"{key} is not part of the contract language")
        elif key not in _KNOWN | _NEVER:
            say(key, *_unknown(key, _KNOWN))
    extra = schema.get("additionalProperties")
    if extra not in (None, False, True) and "additionalProperties" not in invalid:
        say("additionalProperties", "BAD_CONTRACT", "additionalProperties beside properties is true or false")
    if not isinstance(schema.get("properties"), dict):
        raise SpecError(problems)
    fields = reader.fields(schema, "", ())
    if problems:
        raise SpecError(problems)
    return Contract(name=name, file=file, fields=fields, closed=extra is False, keeps=extra is True)


class _Reader:
    """``invalid``: paths of what is no JSON Schema, which is said already."""

    def __init__(self, schema: Mapping[str, Any], invalid: set[str], say: Say) -> None:
        self._schema, self._invalid, self._report = schema, invalid, say
        self._told: set[str] = set()

    def _say(self, path: str, code: str, message: str) -> None:
        self._told.add(path)
        self._report(path, code, message)

    def fields(self, rules: Mapping[str, Any], path: str, above: tuple[str, ...]) -> tuple[Field, ...]:
        """Those of an object. ``above``: the references that led here."""
        below = f"{path}." if path else ""
        required = [] if f"{below}required" in self._invalid else rules.get("required", [])
        for missing in sorted(set(required) - rules["properties"].keys()):
            close = get_close_matches(missing, list(rules["properties"]), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self._say(f"{below}required", "BAD_CONTRACT", f"{missing} is required and not among the properties{hint}")
        fields, seen = [], dict[str, str]()
        for name, inner in rules["properties"].items():
            place = f"{below}properties.{name}"
            if not COLUMN.fullmatch(name):
                self._say(place, "BAD_NAME", f"{name!r} is not a column name: a letter, then letters, digits and _")
            elif seen.setdefault(name.lower(), name) != name:
                self._say(place, "SAME_COLUMN", f"{seen[name.lower()]} and {name} are one column to Spark, which does"
                          " not tell cases apart")  # fmt: skip
            if place not in self._invalid:
                made = self.field(name, inner, name in required, place, above)
                fields += [made] if made else []
        return tuple(fields)

    def field(self, name: str, rules: Any, required: bool, path: str, above: tuple[str, ...]) -> Field | None:
        """None with a problem said."""
        found = self._referred(name, rules, path, above)
        if found is None:
            return None
        rules, path, above = found
        if rules is True:
            rules = {}
        if not isinstance(rules, dict):
            self._say(path, "NOT_YET", f"{name} says false to any value; that comes with a later version")
            return None
        said = sorted(rules.keys() - SILENT)
        rules = {key: value for key, value in rules.items() if f"{path}.{key}" not in self._invalid}
        wrong = list(self._wrong(name, rules, path))
        for place, code, message in wrong:
            self._say(f"{path}{place}", code, f"{name}: {message}")
        typed = f"{path}.type" not in self._invalid
        if not said:
            return Field(name=name, kind="any", required=required, nullable=True)
        if "type" not in said:
            self._say(path, "NOT_YET", f"{name} has no type and says {said[0]}; rules of values of any type come with a"
                      " later version")  # fmt: skip
            typed = False
        kind = self._kind(name, rules, path, above) if typed else None
        if kind is None:
            self._inside(rules, path, above)
            return None
        options = {KEYWORDS[key]: value for key, value in rules.items() if key in KEYWORDS and not wrong}
        if ("const" in rules or "enum" in rules) and not wrong:
            listed = [rules["const"]] if "const" in rules else rules["enum"]
            options["enum"] = tuple(value for value in listed if value is not None)
        made: Field | None = Field(name=name, kind=kind, required=required, nullable=_nullable(rules), **options)
        if made is not None and kind in _NESTED:
            made = self._nested(made, rules, path, above)
        return None if wrong else made

    def _referred(self, name: str, rules: Any, path: str, above: tuple[str, ...],
                  ) -> tuple[Any, str, tuple[str, ...]] | None:  # fmt: skip
        """What a reference stands for, with its place."""
        if not isinstance(rules, dict) or "$ref" not in rules or f"{path}.$ref" in self._invalid:
            return rules, path, above
        target, place = rules["$ref"], f"{path}.$ref"
        beside = sorted(rules.keys() - SILENT - {"$ref"})
        if beside:
            self._say(f"{path}.{beside[0]}", "NOT_YET", f"{name}: {beside[0]} beside $ref comes with a later version")
        if not target.startswith("#/"):
            self._say(place, "BAD_CONTRACT", f"{name}: a reference is to a part of this file: #/$defs/<name>")
            return None
        if target in above:
            self._say(place, "BAD_CONTRACT", f"{name}: {target} is made of itself, and no column is that deep")
            return None
        parts = [part.replace("~1", "/").replace("~0", "~") for part in target[2:].split("/")]
        found: Any = self._schema
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            known = [f"#/$defs/{one}" for one in self._schema.get("$defs", {})]
            close = get_close_matches(target, known, n=1)
            self._say(place, "BAD_CONTRACT", f"{name}: there is no {target} in this file"
                      + (f"; did you mean {close[0]}?" if close else ""))  # fmt: skip
            return None
        return self._referred(name, found, ".".join(parts), (*above, target))

    def _wrong(self, name: str, rules: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
        """Place below the path, code, message."""
        for key in rules:
            if key in _NEVER:
                yield f".{key}", "BAD_CONTRACT", f"{key} is not part of the contract language"
            elif key not in _OF_FIELD:
                yield (f".{key}", *_unknown(key, _OF_FIELD))
        try:
            re.compile(rules.get("pattern", ""))
        except re.error as error:
            yield ".pattern", "BAD_CONTRACT", f"pattern is not a regular expression: {error}"
        places = [(f".enum[{i}]", value) for i, value in enumerate(rules.get("enum", ()))]
        places += [(".const", rules["const"])] if "const" in rules else []
        for place, value in places:
            if isinstance(value, dict | list) or (value is None and place == ".const"):
                yield place, "BAD_CONTRACT", "accepted values are strings, numbers or booleans"
        if rules.get("format") not in (None, "date-time", "date"):
            yield ".format", "NOT_YET", "this format comes with a later version"

    def _inside(self, rules: Mapping[str, Any], path: str, above: tuple[str, ...]) -> None:
        """Says what is wrong in the parts of what is wrong itself."""
        if isinstance(rules.get("properties"), dict):
            self.fields(rules, path, above)
        for key, name in (("items", "[]"), ("additionalProperties", "{}")):
            if isinstance(rules.get(key), dict):
                self.field(name, rules[key], True, f"{path}.{key}", above)

    def _kind(self, name: str, rules: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Kind | None:
        types = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
        plain = [one for one in types if one != "null"]
        form = rules.get("format")
        if len(plain) != 1 or (plain[0], None) not in _KINDS:
            self._say(f"{path}.type", "NOT_YET", f"{name}: this type comes with a later version")
            return None
        kind = _KINDS.get((plain[0], form))
        if kind is None and form in ("date-time", "date"):
            self._say(f"{path}.format", "NOT_YET", f"{name}: this format comes with a later version")
        for other, words in _NESTED.items():
            for key in sorted(rules.keys() & words) if other != plain[0] else ():
                kind = None
                self._inside(rules, path, above)
                if not any(place.startswith(f"{path}.{key}.") for place in self._told | self._invalid):
                    self._say(f"{path}.{key}", "BAD_CONTRACT", f"{name}: {key} is said of an {other}, and this is of"
                              f" type {plain[0]}")  # fmt: skip
        return kind

    def _nested(self, field: Field, rules: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Field | None:
        if field.kind == "array":
            place = f"{path}.items"
            element = None if place in self._invalid else self.field("[]", rules.get("items", {}), True, place, above)
            unique = rules.get("uniqueItems", False)
            if unique and element is not None and element.holds("map", "any"):
                self._say(f"{path}.uniqueItems", "BAD_CONTRACT", f"{field.name}: Spark does not tell whether maps, or"
                          " values of any type, are the same")  # fmt: skip
            return element and field.model_copy(update={"element": element, "unique_items": unique})
        extra = rules.get("additionalProperties")
        if f"{path}.properties" in self._invalid:
            return None
        if "properties" not in rules:
            for key in ("required",) if "required" in rules else ():
                self._say(f"{path}.{key}", "BAD_CONTRACT", f"{field.name}: {key} is said of an object with properties")
            if extra is False:
                self._say(f"{path}.additionalProperties", "BAD_CONTRACT", f"{field.name}: an object without properties"
                          " and without others is always empty")  # fmt: skip
                return None
            place = f"{path}.additionalProperties"
            value = None if place in self._invalid else self.field("{}", True if extra is None else extra, True, place,
                                                                   above)  # fmt: skip
            return value and field.model_copy(update={"kind": "map", "element": value})
        if extra is True:
            self._say(f"{path}.additionalProperties", "NOT_YET", f"{field.name}: keeping what an object within an"
                      " event does not list comes with a later version; without it, that is passed over")  # fmt: skip
        elif extra not in (None, False):
            self.field("{}", extra, True, f"{path}.additionalProperties", above)
            self._say(f"{path}.additionalProperties", "BAD_CONTRACT", f"{field.name}: additionalProperties beside"
                      " properties is false, or left out")  # fmt: skip
        if not isinstance(rules["properties"], dict) or not rules["properties"]:
            self._say(f"{path}.properties", "BAD_CONTRACT", f"{field.name}: properties lists none; leave it out")
            return None
        return field.model_copy(update={"fields": self.fields(rules, path, above), "closed": extra is False})


def _nullable(rules: Mapping[str, Any]) -> bool:
    listed = "const" not in rules and None in rules.get("enum", [None])
    return listed and isinstance(rules["type"], list) and "null" in rules["type"]
