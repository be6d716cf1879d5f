"""The JSON Schemas and the models say the same of a file: one verdict, the same paths, for files good and bad.

What a JSON Schema cannot see is left out on both sides: what expressions mean (``UNSEEN``), what stands in other files,
that ``source`` and ``sink`` are there (a template or defaults may hold them), and that a key which is missing is one
that is misspelt beside it. A number in quotes or with a fraction of zero is not tried: JSON has no such difference.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lakehouse_engine import schema
from lakehouse_engine.checks import CHECKS
from lakehouse_engine.component import Model
from lakehouse_engine.contract import file as contract_file
from lakehouse_engine.errors import Problem, SpecError, UsageError
from lakehouse_engine.fields import described, models_of
from lakehouse_engine.sinks import SINKS
from lakehouse_engine.sources import SOURCES
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.pipeline import Airflow, Head, Input, Maintain, Panel, Trigger
from lakehouse_engine.spec.reader import Reader
from lakehouse_engine.spec.schedule import SHAPE
from lakehouse_engine.testing import reader
from lakehouse_engine.transforms import TRANSFORMS
from tests.spec.gallery import FOLDER, read

ROOT = Path(__file__).parents[2]
VALIDATORS = {name: Draft202012Validator(one) for name, one in schema.schemas().items()}
UNSEEN = {"BAD_DDL", "BAD_EXPRESSION", "UNSTABLE_EXPRESSION", "UNSAFE_EXPRESSION", "BAD_MEASURE", "MISSING_CONTRACT",
          "MISSING_TEMPLATE", "MISSING_TRIGGER", "UNSET_VARIABLE", "TOO_SHORT", "BAD_TIME", "BAD_VARIABLE",
          "BAD_PATTERN", "UNKNOWN_INPUT", "UNKNOWN_TARGET"}  # fmt: skip
#: what a rule between values says under a code that other rules have, too
BETWEEN = re.compile(r"a multiple of every|two columns|above zero|(source|sink) is missing|is required and not among"
                     r"|batches are numbered|two tests are called|not a regular expression|now is a time like"
                     r"|goes with quarantine or warn|stands there twice|no number of rows|both called|two names")
COMPONENTS = {**SOURCES, **TRANSFORMS, **CHECKS, **SINKS}


def dotted(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def seen(validator: Draft202012Validator, value: Any) -> set[str]:
    """The paths that the schema refuses."""
    found: set[str] = set()
    slips: set[str] = set()
    required, whole = set(), set()
    for error in leaves(validator.iter_errors(value)):
        path = dotted(error.absolute_path)
        if path.endswith(".now"):  # whether it is a time is not in the schema
            continue
        if error.validator == "additionalProperties":
            patterns = error.schema.get("patternProperties", {})
            extra = [key for key in error.instance if key not in error.schema.get("properties", {})
                     and not any(re.search(pattern, key) for pattern in patterns)]  # fmt: skip
            slips.add(path)
            found |= {f"{path}.{key}".lstrip(".") for key in extra}
        elif "propertyNames" in error.absolute_schema_path:
            found.add(f"{path}.{error.instance}".lstrip("."))
        elif error.validator == "required":
            required.add(path)
        elif error.validator == "oneOf" and not error.context and "properties" not in error.validator_value[0]:
            found.add(path)  # two components in one item
        elif error.validator in ("oneOf", "not", "minProperties"):
            whole.add(path)
        else:
            found.add(path)
    found |= required - slips
    return found | {path for path in whole if not any(below(one, path) for one in found)}


def leaves(errors: Iterator[Any]) -> Iterator[Any]:
    for error in errors:
        if error.validator in ("if", "dependentSchemas", "allOf") and error.context:
            yield from leaves(iter(error.context))
        else:
            yield error


def below(path: str, above: str) -> bool:
    return path != above and (not above or path.startswith((f"{above}.", f"{above}[")))


def told(problems: list[Problem]) -> set[str]:
    """The paths that the models refuse, as far as a schema can see."""
    visible = [one for one in problems if one.code not in UNSEEN and not BETWEEN.search(one.message)
               and not (one.code == "BAD_SCHEDULE" and re.match(SHAPE, one.message.split(" is not ")[0]))]  # fmt: skip
    slips = {re.sub(r"(^|\.)[^.\]\[]*$", "", one.path) for one in visible if one.code == "UNKNOWN_KEY" or
             re.search(rf"(^|: ){re.escape(one.path.rpartition('.')[2])} comes with", one.message)}  # fmt: skip
    return {one.path for one in visible
            if one.path not in slips or not (one.code == "MISSING_KEY" or "has no type" in one.message)}


def pipeline(value: Any, folder: Path) -> list[Problem]:
    file = folder / "bronze" / "one.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    reader = Reader(file, None)
    reader.spec()
    return reader.problems


def environment(value: Any, folder: Path) -> list[Problem]:
    (folder / "environments").mkdir(exist_ok=True)
    (folder / "environments" / "one.yaml").write_text(json.dumps(value), encoding="utf-8")
    return refused(lambda: load_environment("one", folder))


def one_contract(value: Any, folder: Path) -> list[Problem]:
    file = folder / "one.yaml"
    file.write_text(json.dumps(value), encoding="utf-8")
    document = yaml.read(file, "one.yaml")
    return document.problems or refused(lambda: contract_file.build("one", "one.yaml", value, document.lines))


def some_tests(value: Any, folder: Path) -> list[Problem]:
    (folder / "one.yaml").write_text("source: x\n")
    (folder / "one.test.yaml").write_text(json.dumps(value), encoding="utf-8")
    return refused(lambda: reader.find([folder / "one.test.yaml"]))


def refused(call: Callable[[], object]) -> list[Problem]:
    try:
        call()
    except SpecError as error:
        return list(error.problems)
    return []


READ: dict[str, Callable[[Any, Path], list[Problem]]] = {
    "pipeline.json": pipeline, "environment.json": environment, "contract.json": one_contract, "test.json": some_tests}

#: every component and every option once, in files that are good
GOOD: dict[str, list[Any]] = {
    "pipeline.json": [
        {"description": "x", "source": {"kafka": {"topic": "a", "history": "bronze.a", "start": "latest",
                                                  "max_per_trigger": 5}},
         "transforms": [{"parse": {"contract": "a", "column": "_value", "into": "b"}}, {"parse": "a"},
                        {"watermark": {"column": "at", "delay": "2 minutes", "max_ahead": "1 hour"}},
                        {"window": {"sliding": {"size": "2 m", "every": "1 m"}, "by": "id", "emit": "updates",
                                    "measures": {"n": "count(*)"}}},
                        {"window": {"tumbling": "1 minute", "column": "at", "by": ["id"],
                                    "measures": {"n": "count(*)"}}},
                        {"window": {"session": {"gap": "1 minute"}, "emit": "final", "measures": {"n": "sum(a)"}}}],
         "sink": {"postgres": {"table": "realtime.a", "mode": "upsert", "order_by": ["at"], "delete_when": "n = 0",
                               "updated_at": False}},
         "trigger": {"every": "1 second"}, "keys": ["id"],
         "panel": [{"title": "N", "type": "stat", "value": "n", "by": "id", "aggregate": "sum", "unit": "share",
                    "position": 1}]},
        {"source": "bronze.a",
         "transforms": [{"rename": {"b": "a"}}, {"drop": ["a"]}, {"drop": "a"}, {"cast": {"a": "decimal(9,2)"}},
                        {"explode": "a"}, {"explode": {"column": "a", "as": "b", "position": "c", "empty": "drop"}},
                        {"check": [{"not_null": ["a"], "where": "a > 1", "tolerance": "1%"}, {"matches": {"a": "^b"}}]},
                        {"parse": {"contract": "a", "tolerance": "0.5 %", "tombstones": "drop"}},
                        {"parse": {"ddl": "id bigint not null, at timestamp"}},
                        {"filter": "a > 1"}, {"derive": {"b": "a", "c": 1}}, {"select": ["a", "b as c"]},
                        {"dedupe": ["a"]}, {"dedupe": {"keys": ["a"], "keep": "last", "order_by": ["b"]}},
                        {"aggregate": {"by": ["a"], "measures": {"n": "count(*)"}}}],
         "checks": [{"not_null": ["a"], "name": "x", "on_fail": "warn", "where": "a > 1"},
                    {"accepted_values": {"a": [1, "b", True]}}, {"range": {"a": {"min": 0, "max": "b"}}},
                    {"expression": "a > 1"}, "unique", {"unique": ["a"], "on_fail": "warn"},
                    {"matches": {"a": "^b"}, "tolerance": "2%"}, {"relationship": {"a": "b.c.d"}},
                    {"row_count": {"min": 1, "max": 5}, "on_fail": "warn", "where": "a > 1"},
                    {"freshness": {"column": "a", "max_age": "2 hours"}, "name": "x"}],
         "sink": {"delta": {"mode": "replace", "partition_by": ["a"], "cluster_by": ["a"], "replace_by": "a",
                            "updated_at": True}},
         "serve": "postgres", "schedule": "daily", "panel": {"title": "N"},
         "airflow": {"dag": "a", "task_id": "b", "retries": 1, "owner": "c", "timeout": "1 h"},
         "maintain": {"compact": {"files": 3, "smaller_than": "1 MB"}, "zorder_by": ["a"], "vacuum_after": "9 days",
                      "log_after": "9 days"}},
        {"source": {"rate": {"rows_per_second": 5}}, "sink": "console", "trigger": {"every": "1 second"}},
        {"source": "rate", "sink": "console", "trigger": {"every": "1 second"}},
        {"source": {"delta": {"table": "bronze.a", "start": "latest", "rewrites": "ignore"}}, "sink": "delta",
         "trigger": {"every": "1 second"}},
        {"source": "bronze.a",
         "inputs": {"x": "bronze.b", "y": {"source": {"delta": {"table": "bronze.c"}}, "transforms": [{"drop": "a"}]},
                    "z": {"source": "bronze.d"}},
         "transforms": [
             {"lookup": {"from": "x", "keys": {"a": "b"}, "take": ["c"], "missing": "quarantine",
                         "refresh": "5 minutes", "as_of": "d", "on_change": "ignore"}},
             {"lookup": {"from": "bronze.b", "keys": ["a"], "take": {"c": "d"}}},
             {"lookup": {"from": "x", "keys": "a"}},
             {"join": {"with": "y", "keys": ["a"], "how": "left", "within": {"before": "0 minutes", "after": "1 hour"},
                       "take": "b"}}, {"join": {"with": "bronze.b", "keys": {"a": "b"}}},
             {"union": ["z", "bronze.b"]}, {"union": {"inputs": ["x"]}}, {"union": "x"},
             {"sql": "select * from input"}, {"sql": {"query": "select a from input", "local": True}}],
         "sink": "delta", "schedule": "daily"},
        {"source": {"kafka": {"topic": "a"}}, "trigger": {"every": "1s"}, "keys": ["a"],
         "sink": {"delta": {"mode": "scd2", "order_by": ["at"], "delete_when": "n = 0", "valid_from": "at",
                            "vacuum_after": "7 days"}}},
        {"source": {"delta": {"table": "a.b", "changes": True}}, "keys": ["a"], "schedule": "daily",
         "sink": {"delta": {"mode": "upsert", "order_by": ["v"]}}},
        {"source": {"kafka": {"topic": "a"}}, "trigger": {"every": "1s"}, "keys": ["a"],
         "sink": {"delta": {"mode": "delete", "table": "a.b"}}},
        {"source": {"kafka": {"topic": "a"}}, "trigger": "available_now", "schedule": "hourly", "sink": "delta"},
        {"source": {"files": {"path": "data/*.csv", "format": "csv", "contract": "a"}}, "sink": "console",
         "schedule": "daily"},
        {"source": {"files": {"path": "s3a://in/data/*.json", "format": "avro", "contract": "a", "rewrites": "ignore"}},
         "sink": "delta", "trigger": {"every": "10s"}},
        {"source": {"delta": {"table": "a.b", "as_of": 5}}, "sink": "console", "schedule": "0 5 * * *"},
        {"source": "a.b", "sink": ["delta", {"postgres": {"table": "a.c"}, "where": "n > 0"}], "schedule": "daily"},
        {"source": {"kafka": {"topic": "a", "start": {"0": 5}, "end": "2026-01-01", "connection": "eu"}},
         "sink": "delta", "schedule": "daily"},
        {"source": "a.b", "sink": {"files": {"path": "s3a://out/a", "format": "json"}}, "schedule": "daily"},
        {"source": "a.b", "sink": {"files": {"path": "out/a", "format": "csv", "partition_by": ["a"]}},
         "schedule": "daily"},
        {"source": {"kafka": {"topics": ["a", "b"]}}, "sink": "delta", "trigger": {"every": "1s"}},
        {"source": {"kafka": {"pattern": "a[.].*"}}, "sink": "delta", "trigger": {"every": "1s"}},
        {"source": "a.b", "schedule": "daily", "sink": {"kafka": {
            "topic": "b", "connection": "eu", "key": "id", "value": "to_json(struct(*))",
            "headers": {"kind": "n", "of": 1}}}},
        {"source": {"jdbc": {"connection": "crm", "table": "public.a", "contract": "a"}},
         "sink": {"jdbc": {"connection": "dwh", "table": "b"}}, "schedule": "daily"},
        {"source": {"delta": {"table": "a.b", "as_of": "2026-01-01"}}, "sink": {"console": {"rows": 5}},
         "schedule": "manual", "transforms": None, "checks": None, "panel": None, "airflow": None, "keys": None},
    ],
    "environment.json": [
        {"storage": "lake", "connections": {
            "kafka": {"bootstrap_servers": "a:1"}, "kafka.eu": {"bootstrap_servers": "b:1"},
            "postgres": {"host": "a", "port": 5, "database": "b", "user": "c", "password": {"env": "A"},
                         "tls": "require"},
            "jdbc.crm": {"url": "jdbc:postgresql://a/b", "user": "c", "password": {"env": "A"}}},
         "vars": {"a": 1, "b": [1]}, "spark": {"a.b": 1, "c": True, "d": "e"}},
        {"storage": "lake", "connections": {"postgres": {"host": "a", "database": "b", "user": "c",
                                                         "password": {"file": "a"}}}}],
    "contract.json": [
        {"type": "object", "title": "x", "description": "y", "required": ["a"], "additionalProperties": False,
         "properties": {"a": {"type": "string", "format": "date-time", "description": "z"},
                        "b": {"type": ["integer", "null"], "minimum": 1, "exclusiveMaximum": 5},
                        "c": {"type": "string", "pattern": "^a", "minLength": 1, "maxLength": 5},
                        "d": {"type": "string", "enum": ["a", "b"]}, "e": {"type": "boolean", "const": True}}},
        {"type": "object", "additionalProperties": True, "properties": {
            "a": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 5,
                  "uniqueItems": False, "title": "x"},
            "b": {"type": ["object", "null"], "required": ["a"], "additionalProperties": False, "properties": {
                "a": {"type": "array", "items": {"type": "string", "format": "date"}}, "b": {"description": "any"}}},
            "c": {"type": "object", "additionalProperties": {"type": "number"}}, "d": True, "e": {"type": "array"}}}],
    "test.json": [
        [{"name": "x", "defaults": {"a": 1}, "batches": [[{"a": 1}, "text", None], [], {"source": [], "a": [None]}],
          "vars": {"a": 1}, "params": {"a": 1}, "inputs": {"a": [{"a": 1}]}, "tables": {"a.b": [{"a": 1}]},
          "now": "2026-01-01T00:00:00Z",
          "expect": {"rows": [{"a": 1}], "after": {"1": []}, "late": 1, "quarantined": [{"a": 1}],
                     "a.b": [{"a": 1}], "topic": []}},
         {"name": "y", "batches": [], "expect": {"fails": "CHECK_FAILED"}}]],
}  # fmt: skip
VALUES: list[Any] = [None, True, 5, -1, 2.5, "", "soon", "a.b", "a b", "day", "2 minutes", "32 MB", [], {}, ["day"],
                     [5], {"a": 1}, {"day": "day"}, [[]], "daily", "append", "string", [None],
                     {"env": "A", "file": "b"}]  # fmt: skip
NAMES = ["a", "a-b", "colum", "topik", "by", "where", "on_fail", "unique", "filter", "merge", "session", "minimun"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, Any]:
    """A kind of file, and a good one of it after up to three edits of its tree."""
    kind = draw(st.sampled_from(sorted(READ)))
    value = copy.deepcopy(draw(st.sampled_from(GOOD[kind])))
    for _ in range(draw(st.integers(0, 3))):
        paths = [path for path in places(value) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        holder = value
        for part in path[:-1]:
            holder = holder[part]
        action = draw(st.sampled_from(["set", "set", "drop", "rename", "add"]))
        if action == "drop":
            del holder[path[-1]]
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(NAMES))] = holder.pop(path[-1])
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        else:
            holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return kind, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schema")


@settings(max_examples=400, deadline=None)
@given(file=edited())
def test_models_and_schemas_refuse_the_same_paths(folder: Path, file: tuple[str, Any]) -> None:
    kind, value = file
    assert lowest(told(READ[kind](value, folder))) == lowest(seen(VALIDATORS[kind], value)), json.dumps(value)


def lowest(paths: set[str]) -> set[str]:
    """Without those above another one: what lacks a key and has a wrong one is refused as a whole by one of the two."""
    return {path for path in paths if not any(one.startswith((f"{path}.", f"{path}[")) for one in paths)}


@pytest.mark.parametrize("kind", sorted(READ))
def test_the_files_that_are_edited_are_good_to_begin_with(kind: str, folder: Path) -> None:
    for value in GOOD[kind]:
        assert (told(READ[kind](value, folder)), seen(VALIDATORS[kind], value)) == (set(), set())


def test_every_option_of_every_component_is_among_the_files_that_are_edited() -> None:
    text = json.dumps(GOOD["pipeline.json"])
    for key, kind in COMPONENTS.items():
        assert f'"{key}"' in text, f"{key} is not among GOOD"
        long = kind.short({"?": 1}).get("?")
        for option in schema.model(kind)["properties"] if long else ():
            assert f'"{option}"' in text, f"{key}.{option} is not among GOOD"


CASES = [(f"{path.stem}: {case.title}: {name}", text) for path in sorted(FOLDER.glob("*.txt")) for case in read(path)
         for name, text in case.files.items()
         if name.count("/") == 1 and name.split("/")[0] in ("bronze", "silver", "realtime") and "test" not in name
         and "defaults" not in name and "${" not in text]  # fmt: skip


@pytest.mark.parametrize("text", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_models_and_schemas_agree_on_the_gallery(text: str, folder: Path) -> None:
    file = folder / "bronze" / "one.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    document = yaml.read(file, "one.yaml")
    if document.problems or not isinstance(document.value, dict):
        return  # no YAML, no value that a schema could see
    assert told(pipeline(document.value, folder)) == seen(VALIDATORS["pipeline.json"], document.value)


def project_files() -> list[tuple[str, Path]]:
    found = []
    for root in ("pipelines", "examples"):
        for file in sorted((ROOT / root).rglob("*.yaml")):
            folders = {"contracts": "contract.json", "templates": "template.json", "environments": "environment.json"}
            kind = folders.get(file.parent.name, "pipeline.json")
            kind = "defaults.json" if file.name == "defaults.yaml" else kind
            found.append(("test.json" if file.name.endswith(".test.yaml") else kind, file))
    return found


@pytest.mark.parametrize(("kind", "file"), project_files(), ids=lambda one: one if isinstance(one, str) else one.stem)
def test_the_project_s_own_files_are_valid(kind: str, file: Path) -> None:
    assert seen(VALIDATORS[kind], yaml.read(file, str(file)).value) == set()


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(VALIDATORS[name].schema)


def test_the_schemas_in_the_repository_are_as_the_models_say() -> None:
    schema.check(ROOT / "schema")


def test_a_stale_schema_is_named(tmp_path: Path) -> None:
    schema.write(tmp_path)
    schema.check(tmp_path)
    (tmp_path / "test.json").write_text("{}")
    (tmp_path / "contract.json").unlink()
    with pytest.raises(UsageError, match=r"contract\.json, test\.json") as caught:
        schema.check(tmp_path)
    assert caught.value.code == "STALE"


def test_what_comes_later_is_in_no_schema() -> None:
    for key, kind in COMPONENTS.items():
        assert not kind.later & schema.model(kind)["properties"].keys(), key
    top = schema.schemas()["pipeline.json"]["properties"]
    assert "where" not in top


MODELS = [one for kind in (*COMPONENTS.values(), Airflow, Head, Input, Maintain, Panel, Trigger, Environment)
          for one in models_of(kind)]  # fmt: skip


@pytest.mark.parametrize("kind", list(dict.fromkeys(MODELS)), ids=lambda kind: kind.__name__)
def test_every_option_is_described_on_its_field(kind: type[Model]) -> None:
    own = {info.alias or name for name, info in kind.model_fields.items()} - (
        {"name", "embedded"} if kind is Environment else set())
    assert own - described(kind).keys() == set()
    assert kind.__doc__
    assert kind.__doc__ != Model.__doc__


def test_a_number_of_rows_needs_a_bound_in_the_schema_too() -> None:
    for wrong in (None, {}, {"min": None}):
        file = {"source": "a.b", "checks": [{"row_count": wrong}], "sink": "delta", "schedule": "daily"}
        assert seen(VALIDATORS["pipeline.json"], file) == {"checks[0].row_count"}


def test_a_value_that_is_a_variable_is_left_to_the_loader() -> None:
    text = {"source": {"kafka": {"topic": "${a}", "max_per_trigger": "${B}", "start": "${c}"}}, "trigger": "${d}",
            "transforms": [{"parse": "${e}"}, {"filter": "${f}"}, {"dedupe": {"keys": "${g}"}}, "${h}"],
            "sink": {"delta": {"partition_by": ["${i}"], "updated_at": "${j}"}}}  # fmt: skip
    assert seen(VALIDATORS["pipeline.json"], text) == set()
