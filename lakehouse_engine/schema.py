"""JSON Schemas (2020-12) of the files that people write, made from the models that read them; editors take them.

What one cannot see: what an expression means, which columns, contracts and pipelines there are, what other files fill
in (``use``, ``defaults.yaml``: so no key is required at the top), and rules between values (a window's ``size`` is a
multiple of ``every``). ``lakehouse validate`` sees all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lakehouse_engine import checks, sinks, sources, transforms
from lakehouse_engine.component import TABLE, Component, Model
from lakehouse_engine.contract import editor
from lakehouse_engine.errors import UsageError
from lakehouse_engine.fields import described, models_of, summary
from lakehouse_engine.spec.environment import NAMED, Environment, JdbcConnection, KafkaConnection
from lakehouse_engine.spec.further import Beside
from lakehouse_engine.spec.pipeline import INPUT_NAME, Airflow, Head, Input, Maintain, Panel, Trigger
from lakehouse_engine.spec.reader import KEYS
from lakehouse_engine.spec.schedule import SCHEDULES, SHAPE
from lakehouse_engine.testing import cases

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = r"\$\{"
_OF_TYPE = {
    "string": {"pattern", "minLength", "maxLength", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "minItems", "maxItems", "prefixItems"},
    "object": {"properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties",
               "oneOf", "not", "dependentSchemas"},
}  # fmt: skip
_OF_TYPE["integer"] = _OF_TYPE["number"]
_ANY = ("string", "number", "boolean", "null", "array", "object")


def schemas() -> dict[str, Schema]:
    """File name to schema."""
    pipeline = _pipeline()
    return {
        "pipeline.json": _whole("A pipeline", pipeline),
        "template.json": _whole("A template of pipelines", _template(pipeline)),
        "defaults.json": _whole("Defaults of a folder's pipelines", _defaults(pipeline)),
        "environment.json": _whole("An environment", _environment()),
        "contract.json": _whole("A contract", editor.file_schema()),
        "test.json": _whole("Tests of a pipeline", cases.file_schema()),
    }


def rendered() -> dict[str, str]:
    return {name: json.dumps(schema, indent=1, ensure_ascii=False) + "\n" for name, schema in schemas().items()}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (folder / name).write_text(text, encoding="utf-8")


def check(folder: Path) -> None:
    """Raises ``UsageError`` STALE with every file that is not as it would be written."""
    stale = [name for name, text in rendered().items()
             if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text]  # fmt: skip
    if stale:
        raise UsageError("STALE", f"{', '.join(stale)}: write them anew with: lakehouse schema --write {folder}",
                         where=str(folder))  # fmt: skip


def component(kind: type[Component]) -> Schema:
    """What may stand under a component's key: its options, and the short forms that ``short`` takes for them."""
    long = model(kind)
    found: list[Schema] = []
    samples: dict[str, Any] = {"string": "?", "array": ["?"], "number": 5, "boolean": True, "object": {"?": 1},
                               "null": None}  # fmt: skip
    for name, sample in samples.items():
        options = kind.short(sample)
        if not isinstance(options, dict):
            continue
        if name == "object" and "?" in options:
            found.append(long)
        elif name == "null" and not options:
            found += [] if long.get("required") or "not" in long else [{"type": "null"}]
        else:
            found += _stands_for(long["properties"], options, sample, name)
    return {**union(found), "description": summary(kind)}


def _stands_for(properties: Mapping[str, Schema], options: Mapping[str, Any], sample: Any, kind: str) -> list[Schema]:
    """The schema, of one JSON type, of the option that a short form is put into."""
    for name, value in options.items():
        if value == sample and name in properties:
            return by_type(properties[name]).get(kind, [])
        if value == [sample] and name in properties:
            return [one for each in by_type(properties[name]).get("array", [])
                    for one in by_type(each.get("items", {})).get(kind, [])]  # fmt: skip
    return []


def item(known: Mapping[str, type[Component]], common: Iterable[str] = ()) -> Schema:
    """One component: a map with its one key, and the common options beside it; or its name alone."""
    properties: Schema = {}
    beside: Schema = {}
    for key, kind in known.items():
        schema = component(kind)
        if common:
            own = model(kind)["properties"]
            refused: dict[str, Any] = {"not": {}}  # not false: of that Python's validator does not say which key it is
            beside[key] = {"properties": {n: own.get(n, refused) for n in sorted(_common(known) & set(common))}}
            for name in common:
                schema.get("properties", {}).pop(name, None)
        properties[key] = schema
    alone = [key for key, schema in properties.items() if "null" in by_type(schema)]
    made: Schema = {
        "type": ["object", "string"], "pattern": _either(f"^({'|'.join(alone)})$" if alone else None),
        "properties": {**properties, **dict.fromkeys(sorted(_common(known) & set(common)), True)},
        "additionalProperties": False, "oneOf": [{"required": [key]} for key in known],
    }  # fmt: skip
    made |= _of_objects(made)
    return {**made, "dependentSchemas": beside} if common else made


def _common(known: Mapping[str, type[Component]]) -> set[str]:
    return {name for kind in known.values() for name in model(kind)["properties"]}


def model(kind: type[BaseModel], without: Iterable[str] = ()) -> Schema:
    """A model as a closed object; its nested models stand in place, each option with its description."""
    schema = deepcopy(_model(kind))
    for name in without:
        schema["properties"].pop(name, None)
    return schema


@lru_cache(maxsize=256)
def _model(kind: type[BaseModel]) -> Schema:
    made = kind.model_json_schema(schema_generator=_Generator)
    defined = made.pop("$defs", {})
    owners = {one.__name__: one for one in models_of(kind)}

    def inline(schema: Any, owner: type[BaseModel] | None) -> Any:
        if isinstance(schema, list):
            return [inline(one, None) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            own = {key: value for key, value in schema.items() if key != "$ref"}
            return {**inline(defined[name], owners.get(name)), **own}
        texts = described(owner) if owner else {}
        found = {}
        for key, value in schema.items():
            if key == "properties":
                found[key] = {name: _said(inline(one, None), texts.get(name)) for name, one in value.items()}
            elif key != "default":
                found[key] = inline(value, None)
        return found

    schema: Schema = _tidy(inline(made, kind))
    if "checks" in schema["properties"] and issubclass(kind, Component):
        schema["properties"]["checks"]["items"] = item(checks.CHECKS, checks.COMMON)
    return {key: value for key, value in schema.items() if key != "description"}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _said(schema: Schema, text: str | None) -> Schema:
    return {**schema, "description": text} if text else schema


def _tidy(schema: Any) -> Any:
    """No titles of models, and maps that say what their keys are like in the one way that names the key."""
    if isinstance(schema, list):
        return [_tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: {name: _tidy(one) for name, one in value.items()} if key == "properties" else _tidy(value)
              for key, value in schema.items()
              if not (key == "title" and "properties" in schema)}  # fmt: skip
    if "anyOf" in schema:
        whole = {key: value for key, value in schema.items() if key != "anyOf"}
        schema = {**union(by for each in by_type(schema).values() for by in each), **whole}
    if "patternProperties" in schema and len(schema["patternProperties"]) == 1:
        (pattern, inner), = schema.pop("patternProperties").items()  # fmt: skip
        schema |= {"propertyNames": {"pattern": pattern}, "additionalProperties": inner}
    return schema


def by_type(schema: Schema | bool) -> dict[str, list[Schema]]:
    """The schema's alternatives by JSON type."""
    if schema is True or schema == {}:
        return {kind: [{"type": kind}] for kind in _ANY}
    assert isinstance(schema, dict)
    if "anyOf" in schema:
        found: dict[str, list[Schema]] = {}
        for branch in schema["anyOf"]:
            for kind, inner in by_type(branch).items():
                found.setdefault(kind, []).extend(one for one in inner if one not in found.get(kind, []))
        if isinstance(schema.get("maxItems"), int):  # said of the option as a whole
            found["array"] = [{**one, "maxItems": schema["maxItems"]} for one in found.get("array", [])]
        return found
    if "type" not in schema and not schema.keys() & {"enum", "const"}:
        return {kind: [{"type": kind}] for kind in _ANY}
    kinds = schema.get("type", "string")
    others = {word for words in _OF_TYPE.values() for word in words}
    return {kind: [{"type": kind, **{key: value for key, value in schema.items()
                                     if key in _OF_TYPE.get(kind, set()) or key not in others | {"type"}}}]
            for kind in ([kinds] if isinstance(kinds, str) else kinds)}  # fmt: skip


def union(alternatives: Iterable[Schema]) -> Schema:
    """One schema for all; flat where each JSON type has one alternative, so that errors stand at their own paths."""
    found: dict[str, list[Schema]] = {}
    for schema in alternatives:
        for kind, inner in by_type(schema).items():
            found.setdefault(kind, []).extend(one for one in inner if one not in found.get(kind, []))
    branches = [one for each in found.values() for one in each]
    flat = all(len(each) == 1 for each in found.values())
    if len(branches) > 1 and (not flat or any({"enum", "const"} & one.keys() for one in branches)):
        return {"anyOf": branches}
    made: Schema = {}
    for one in branches:
        made |= {key: value for key, value in one.items() if key not in ("type", "title")}
    titles = list(dict.fromkeys(one["title"] for one in branches if "title" in one))
    made = {**({"title": " or ".join(titles)} if titles else {}), **made}
    made = {"type": list(found) if len(found) > 1 else next(iter(found)), **made} if found else {}
    return {**made, **_of_objects(made)}


def _of_objects(schema: Schema) -> Schema:
    """``oneOf`` for a value that may be something else than the object whose rule it is."""
    kinds = schema.get("type")
    if "oneOf" not in schema or not isinstance(kinds, list):
        return {}
    own = [{"type": "object", **one} for one in schema["oneOf"] if "required" in one]
    return {"oneOf": [*own, {"type": [kind for kind in kinds if kind != "object"]}]}


def with_variables(schema: Any) -> Any:
    """Any value may be text that holds a variable: what it becomes is not seen here."""
    if not isinstance(schema, dict) or not schema:
        return schema
    made = _inside(schema)
    if "type" not in made and "anyOf" not in made and not {"enum", "const"} & made.keys():
        return made
    texts = by_type(made).get("string", [])
    if any(not {"pattern", "enum", "const"} & one.keys() for one in texts):
        return made
    notes = {key: made.pop(key) for key in ("description",) if key in made}
    if "anyOf" not in made and not {"enum", "const"} & made.keys():
        kinds = [made["type"]] if isinstance(made["type"], str) else list(made["type"])
        made["type"] = kinds if "string" in kinds else [*kinds, "string"]
        if len(made["type"]) == 1:
            made["type"] = made["type"][0]
        made |= _of_objects(made)
        return {**made, "pattern": _either(made.get("pattern")), **notes}
    branches = [_inside(one) for one in made.get("anyOf", [made])]
    return {"anyOf": [*branches, {"type": "string", "pattern": _VARIABLE}], **notes}


def _inside(schema: Schema) -> Schema:
    """The same below the value itself."""
    made = dict(schema)
    for key in ("additionalProperties", "items"):
        if isinstance(made.get(key), dict):
            made[key] = with_variables(made[key])
    if "properties" in made:
        made["properties"] = {name: with_variables(one) for name, one in made["properties"].items()}
    if "dependentSchemas" in made:
        made["dependentSchemas"] = {name: _inside(one) for name, one in made["dependentSchemas"].items()}
    return made


def _either(pattern: str | None) -> str:
    return f"{pattern}|{_VARIABLE}" if pattern and _VARIABLE not in pattern else pattern or _VARIABLE


def _nullable(schema: Schema) -> Schema:
    if "null" in by_type(schema):
        return schema
    return {**union([schema, {"type": "null"}]), **{k: schema[k] for k in ("description",) if k in schema}}


def _pipeline() -> Schema:
    head = model(Head)["properties"]
    source = item(sources.SOURCES)
    source["pattern"] = f"^{TABLE.pattern}$|{source['pattern']}"
    properties: Schema = {
        "description": head["description"],
        "use": {"type": "string", "description": "The template in pipelines/templates/ that it is made from."},
        "params": {"type": "object", "description": "The values of the template's parameters."},
        "source": _said(source, "The main input: a component, or a pipeline's name for its Delta table."),
        "inputs": {"type": "object", "propertyNames": {"pattern": f"^{INPUT_NAME}$"},
                   "additionalProperties": _input(source), "description": "Other inputs by name, for lookup, join,"
                   " union and sql."},
        "transforms": {"type": "array", "items": item(transforms.TRANSFORMS), "description": "Steps, in order."},
        "checks": {"type": "array", "items": item(checks.CHECKS, checks.COMMON), "description":
                   "Conditions that the result's rows must meet."},
        "keys": head["keys"],
        "sink": _said(_sinks(), "Where the rows land: one component, or a list of them. The first is the pipeline's"
                      " table; each further one has a ledger of its own, and may have a `where`."),
        "serve": head["serve"],
        "trigger": {**model(Trigger), "type": ["object", "string"], "pattern": "^available_now$",
                    "description": summary(Trigger)},
        "schedule": {"type": "string", "pattern": f"^({'|'.join(SCHEDULES)})$|{SHAPE}", "description": "Makes the"
                     " pipeline a job, and says when it runs: a word, or a cron line; upstream is after its inputs."},
        "airflow": {**model(Airflow), "description": summary(Airflow)},
        "maintain": {**model(Maintain), "description": summary(Maintain)},
        "panel": {**union([model(Panel), {"type": "array", "items": model(Panel)}]), "description": summary(Panel)},
    }  # fmt: skip
    assert list(properties) == list(KEYS)
    optional = set(properties) - {"source", "sink", "use"}
    return {
        "type": "object",
        "properties": {name: with_variables(_nullable(one) if name in optional else one)
                       for name, one in properties.items()},
        "additionalProperties": False,
        "allOf": [
            {"if": {"required": ["trigger"], "properties": {"trigger": {"not": {"enum": [None, "available_now"]}}}},
             "then": {"properties": {"schedule": {"type": "null"}}}},
            {"if": {"not": {"required": ["use"]}}, "then": {"properties": {"params": {"type": "null"}}}},
        ],
    }  # fmt: skip


def _sinks() -> Schema:
    """One sink, or a list of them; what may stand beside those after the first."""
    first = item(sinks.SINKS)
    further = {**first, "properties": {**first["properties"], **model(Beside)["properties"]}}
    return union([first, {"type": "array", "minItems": 1, "prefixItems": [first], "items": further}])


def _input(source: Schema) -> Schema:
    texts = described(Input)
    properties = {"source": _said(source, texts["source"]), "transforms": _nullable({
        "type": "array", "items": item(transforms.TRANSFORMS), "description": texts["transforms"]})}  # fmt: skip
    return {"type": ["object", "string"], "pattern": f"^{TABLE.pattern}$", "properties": properties,
            "required": ["source"], "additionalProperties": False}  # fmt: skip


def _template(pipeline: Schema) -> Schema:
    properties = {key: value for key, value in pipeline["properties"].items() if key != "use"}
    properties["params"] = {"type": ["object", "null"], "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
                            "description": "The parameters with their defaults; null: each file gives it."}  # fmt: skip
    return {**pipeline, "properties": properties, "allOf": pipeline["allOf"][:1]}


def _defaults(pipeline: Schema) -> Schema:
    properties = {key: value for key, value in pipeline["properties"].items() if key not in ("use", "params")}
    return {**pipeline, "properties": properties, "allOf": pipeline["allOf"][:1]}


def _environment() -> Schema:
    shape = model(Environment, without=("name", "embedded"))
    connections = shape["properties"]["connections"]["properties"]
    jdbc, kafka = (connections.pop(kind)["additionalProperties"] for kind in ("jdbc", "kafka"))
    connections["kafka"] = _nullable({**kafka, "description": summary(KafkaConnection)})
    made = _inside(shape)
    named = with_variables(jdbc)
    services = [one["properties"]["connections"]["properties"] for one in (shape, made)]
    password = [one["postgres"]["properties"] for one in services]
    password[1]["password"] = password[0]["password"]  # by reference, and no variable
    named["properties"]["password"] = jdbc["properties"]["password"]
    named["description"] = summary(JdbcConnection)
    other = {**with_variables(kafka), "description": "Another cluster, for `connection` of sources and sinks `kafka`."}
    made["properties"]["connections"]["patternProperties"] = {f"^{NAMED['jdbc']}$": named,
                                                              f"^{NAMED['kafka']}$": other}  # fmt: skip
    return made


def _whole(title: str, schema: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, **schema}


def loosely_typed(kind: type[Model]) -> list[str]:
    """Options whose schema says nothing of their values: a type of theirs lacks its shape."""
    return [name for name, one in model(kind)["properties"].items() if one.get("type") is None and "anyOf" not in one
            and "enum" not in one and "const" not in one and not re.search("Any", str(kind.model_fields.get(name)))]
