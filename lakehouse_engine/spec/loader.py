"""From files to frozen specs: every error of every file at once, each at its line, before anything is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lakehouse_engine import checks, contract, sinks, sources, transforms
from lakehouse_engine.component import NAME, Component, Model
from lakehouse_engine.contract import Contract
from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.check import check_all, check_one
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import Airflow, Maintain, Panel, PipelineSpec, Trigger

_KEYS = (
    "description",
    "source",
    "transforms",
    "checks",
    "keys",
    "sink",
    "serve",
    "trigger",
    "schedule",
    "airflow",
    "maintain",
    "panel",
)
_LATER_KEYS = {"inputs", "use", "params"}
_SCHEDULES = {"daily", "hourly", "weekly", "manual", "upstream"}
#: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday)
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")


def load(paths: Sequence[Path], *, environment: Environment | None = None) -> tuple[PipelineSpec, ...]:
    """The pipelines of files and folders, sorted by name. Raises ``SpecError`` with every problem of every file."""
    problems: list[Problem] = []
    specs: list[PipelineSpec] = []
    seen: dict[Path, None] = {}
    for path in paths:
        for file in files(path, problems):
            seen.setdefault(file, None)
    names: dict[str, str] = {}
    for file in seen:
        reader = _Reader(file, environment)
        spec = reader.spec()
        problems += reader.problems
        if spec is None:
            continue
        if spec.name in names:
            problems.append(Problem(str(file), 1, "SAME_TABLE", f"{names[spec.name]} is {spec.name} as well"))
            continue
        names[spec.name] = str(file)
        specs.append(spec)
    upstream = _Upstream({spec.name: spec for spec in specs}, environment)
    for spec in specs:
        problems += check_one(spec, upstream)
    problems += check_all(specs)
    if problems:
        raise SpecError(problems)
    return tuple(sorted(specs, key=lambda spec: spec.name))


def files(path: Path, problems: list[Problem]) -> Iterable[Path]:
    """The pipeline files of a folder, or the file itself; adds NO_PIPELINES or FILE_MISSING to ``problems``."""
    if path.is_dir():
        found = [
            file for file in sorted(path.rglob("*.yaml"))
            if not file.name.endswith(".test.yaml") and file.name != "defaults.yaml"
            and file.resolve().parent.name not in ("contracts", "templates")
        ]  # fmt: skip
        if not found:
            problems.append(Problem(str(path), 0, "NO_PIPELINES", "there is no pipeline in this folder"))
        return found
    if not path.is_file():
        problems.append(Problem(str(path), 0, "FILE_MISSING", "there is no such file or folder"))
        return []
    return [path]


@dataclass
class _Upstream:
    """Pipelines by name: those of this call, else the file where the name says it is."""

    specs: dict[str, PipelineSpec]
    environment: Environment | None
    _loading: set[str] = field(default_factory=set)

    def find(self, name: str, beside: str) -> PipelineSpec | None:
        if name in self.specs:
            return self.specs[name]
        layer, _, table = name.partition(".")
        file = Path(beside).parent.parent / layer / f"{table}.yaml"
        if name in self._loading or not file.is_file():
            return None
        self._loading.add(name)
        spec = _Reader(file, self.environment).spec()
        if spec is not None:
            self.specs[name] = spec
        return spec


class _Reader:
    """One file."""

    def __init__(self, file: Path, environment: Environment | None) -> None:
        self.file, self.shown = file, str(file)
        self.problems: list[Problem] = []
        self._vars: Mapping[str, Any] = environment.vars if environment else {}
        self._variables: Mapping[str, str] = environment.variables if environment else os.environ
        self._lines: dict[str, tuple[str, int]] = {}

    def spec(self) -> PipelineSpec | None:
        document = yaml.read(self.file, self.shown)
        self.problems += document.problems
        if document.value is None:
            return None
        if not isinstance(document.value, dict):
            self._problem("", "BAD_VALUE", "a pipeline is a map with source, transforms, sink and more")
            return None
        self._lines = {path: (self.shown, line) for path, line in document.lines.items()}
        content = self._with_defaults(dict(document.value))
        content = self._substitute(content, "")
        return self._spec(content)

    def _problem(self, path: str, code: str, message: str) -> None:
        file, line = self._lines.get(yaml.nearest(path, self._lines), (self.shown, 1))
        self.problems.append(Problem(file, line, code, message))

    def _with_defaults(self, content: dict[str, Any]) -> dict[str, Any]:
        file = self.file.parent / "defaults.yaml"
        if not file.is_file():
            return content
        document = yaml.read(file, str(file))
        self.problems += document.problems
        if document.problems:
            return content
        if not isinstance(document.value, dict):
            self.problems.append(Problem(str(file), 1, "BAD_VALUE", "defaults are a map"))
            return content
        clock = {"trigger", "schedule"}
        for key, value in document.value.items():
            if key in clock and clock & content.keys():
                continue
            if key == "airflow" and isinstance(value, dict) and isinstance(content.get(key), dict):
                for inner in value.keys() - content[key].keys():
                    self._lines[f"airflow.{inner}"] = (str(file), document.lines[f"airflow.{inner}"])
                content[key] = {**value, **content[key]}
            elif key not in content:
                content[key] = value
                for path, line in document.lines.items():
                    if path == key or path.startswith((f"{key}.", f"{key}[")):
                        self._lines[path] = (str(file), line)
        return content

    def _substitute(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {k: self._substitute(v, f"{path}.{k}" if path else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self._substitute(v, f"{path}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _VARIABLE.fullmatch(value)
        if whole is not None and whole[1]:
            return self._variable(whole, path)
        return _VARIABLE.sub(lambda m: "${" if m[1] is None else self._in_text(m, path), value)

    def _in_text(self, match: re.Match[str], path: str) -> str:
        text = str(self._variable(match, path))
        if re.search(r"['\";`\\]", text):
            self._problem(path, "BAD_VARIABLE", f"the value of {match[1]} holds a quote, a backslash or ;")
        return text

    def _variable(self, match: re.Match[str], path: str) -> Any:
        name, default = match[1], match[3]
        values: Mapping[str, Any] = self._variables if name.isupper() else self._vars
        if name in values:
            return values[name]
        if match[2] is not None:
            return default
        kind = "environment variable" if name.isupper() else "entry of the environment's vars"
        self._problem(
            path, "UNSET_VARIABLE", f"there is no {kind} {name}; give it a value or write ${{{name}:-default}}"
        )
        return ""

    def _spec(self, content: dict[str, Any]) -> PipelineSpec | None:
        before = len(self.problems)
        for key in content:
            if key in _LATER_KEYS:
                self._problem(key, "NOT_YET", f"{key} comes with a later version")
            elif key not in _KEYS:
                self._unknown(key, key, _KEYS)
        for key in ("source", "sink"):
            if key not in content:
                self._problem("", "MISSING_KEY", f"{key} is missing")
        name = self._name()
        source = self._source(content.get("source")) if "source" in content else None
        steps = self._list(content.get("transforms", []), "transforms")
        found = [self._transform(v, f"transforms[{i}]") for i, v in enumerate(steps)]
        conditions = self._list(content.get("checks", []), "checks")
        judged = [self._component(v, f"checks[{i}]", checks.CHECKS, checks.LATER, checks.COMMON)
                  for i, v in enumerate(conditions)]  # fmt: skip
        sink = self._sink(content["sink"]) if "sink" in content else None
        trigger, schedule = self._clock(content)
        airflow = self._model(Airflow, content.get("airflow", {}), "airflow")
        maintain = self._model(Maintain, content.get("maintain", {}), "maintain")
        panels = self._panels(content.get("panel"))
        contracts = self._contracts([t for t in found if isinstance(t, transforms.Parse)])
        if len(self.problems) > before or None in (source, sink, name, airflow, maintain):
            return None
        data = {
            "name": name, "file": self.shown, "source": source, "transforms": tuple(found), "checks": tuple(judged),
            "sink": sink, "trigger": trigger, "schedule": schedule, "airflow": airflow, "maintain": maintain,
            "panel": tuple(panels), "contracts": contracts,
            "lines": {path: line for path, (file, line) in self._lines.items() if file == self.shown},
            **{key: content[key] for key in ("description", "keys", "serve") if content.get(key) is not None},
        }  # fmt: skip
        made = self._model(PipelineSpec, data, "")
        return made if isinstance(made, PipelineSpec) else None

    def _name(self) -> str | None:
        layer, stem = self.file.resolve().parent.name, self.file.stem
        for part in (layer, stem):
            if not NAME.fullmatch(part) or "__" in part or len(part) > 48:
                self._problem("", "BAD_NAME", f"{part!r} is not a name: a-z, 0-9 and _, no __, at most 48 characters;"
                              " a pipeline is <layer>/<name>.yaml")  # fmt: skip
                return None
        return f"{layer}.{stem}"

    def _list(self, value: Any, path: str) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self._problem(path, "BAD_VALUE", f"{path} is a list; begin each item with a dash")
        return []

    def _source(self, value: Any) -> Component | None:
        if isinstance(value, str) and "." in value:
            value = {"delta": {"table": value}}
        return self._component(value, "source", sources.SOURCES, sources.LATER)

    def _transform(self, value: Any, path: str) -> Component | Model | None:
        if not isinstance(value, dict) or value.keys() != {transforms.Check.key}:
            return self._component(value, path, transforms.TRANSFORMS, transforms.LATER)
        place = f"{path}.{transforms.Check.key}"
        conditions = self._list(value[transforms.Check.key], place)
        found = [self._component(v, f"{place}[{i}]", checks.CHECKS, checks.LATER, checks.COMMON)
                 for i, v in enumerate(conditions)]  # fmt: skip
        return None if None in found else self._model(transforms.Check, {"checks": tuple(found)}, place)

    def _sink(self, value: Any) -> Component | None:
        if isinstance(value, list):
            self._problem("sink", "NOT_YET", "several sinks come with a later version")
            return None
        if isinstance(value, dict) and "where" in value:
            self._problem("sink.where", "NOT_YET", "where beside a sink comes with a later version")
            value = {key: inner for key, inner in value.items() if key != "where"}
        return self._component(value, "sink", sinks.SINKS, sinks.LATER)

    def _component(self, value: Any, path: str, known: Mapping[str, Any], later: set[str],
                   common: Iterable[str] = ()) -> Component | None:  # fmt: skip
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, dict) or not value:
            self._problem(path, "BAD_VALUE", f"{path} is a component: one of {', '.join(known)}")
            return None
        beside = {key: inner for key, inner in value.items() if key in common}
        keys = [key for key in value if key not in beside]
        if len(keys) != 1:
            also = [key for key in keys if key in known or key in later]
            code = "TWO_COMPONENTS" if len(also) > 1 else "UNKNOWN_KEY"
            self._problem(path, code, f"{' and '.join(keys)} stand in one item; each component begins with a dash"
                          if keys else "the component itself is missing")  # fmt: skip
            return None
        key = keys[0]
        if key in later:
            self._problem(f"{path}.{key}", "NOT_YET", f"{key} comes with a later version")
            return None
        if key not in known:
            self._unknown(f"{path}.{key}", key, known, "UNKNOWN_COMPONENT")
            return None
        options = known[key].short(value[key])
        if not isinstance(options, dict):
            self._problem(f"{path}.{key}", "BAD_VALUE", f"{key} takes options, or nothing")
            return None
        made = self._model(known[key], {**options, **beside}, f"{path}.{key}", path)
        return made if isinstance(made, Component) else None

    def _unknown(self, path: str, key: str, known: Iterable[str], code: str = "UNKNOWN_KEY") -> None:
        close = get_close_matches(key, list(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        self._problem(path, code, f"{key} is unknown{hint}")

    def _clock(self, content: Mapping[str, Any]) -> tuple[Trigger | None, str | None]:
        trigger, schedule = content.get("trigger"), content.get("schedule")
        if trigger is not None and schedule is not None:
            if trigger == "available_now":
                self._problem("trigger", "NOT_YET", "trigger: available_now comes with a later version")
            else:
                self._problem(
                    "schedule", "TRIGGER_AND_SCHEDULE", "an endless stream has no schedule; keep one of the two"
                )
            return None, None
        if trigger is None and schedule is None:
            self._problem("", "MISSING_TRIGGER", "a stream needs a trigger, a job needs a schedule")
            return None, None
        if trigger is not None:
            if trigger == "available_now":
                self._problem("trigger", "NOT_YET", "trigger: available_now comes with a later version")
                return None, None
            made = self._model(Trigger, trigger, "trigger")
            return (made if isinstance(made, Trigger) else None), None
        if not is_schedule(schedule):
            close = get_close_matches(str(schedule), _SCHEDULES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self._problem("schedule", "BAD_SCHEDULE", f"{schedule} is not daily, hourly, weekly, manual, upstream or a"
                          f" cron line of five fields{hint}")  # fmt: skip
        return None, str(schedule)

    def _panels(self, value: Any) -> list[Model | None]:
        """One panel, or a list of them."""
        if isinstance(value, list):
            return [self._model(Panel, one, f"panel[{i}]") for i, one in enumerate(value)]
        return [] if value is None else [self._model(Panel, value, "panel")]

    def _contracts(self, parses: Sequence[transforms.Parse]) -> dict[str, Contract]:
        found = {}
        for parse in parses:
            file = next((folder / "contracts" / f"{parse.contract}.yaml" for folder in self.file.resolve().parents
                         if (folder / "contracts").is_dir()), None)  # fmt: skip
            path = next((p for p in self._lines if p.endswith(".parse")), "transforms")
            if file is None or not file.is_file():
                there = sorted(f.stem for f in file.parent.glob("*.yaml")) if file else []
                close = get_close_matches(parse.contract, there, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self._problem(path, "MISSING_CONTRACT", f"there is no contract {parse.contract} in contracts/{hint}")
                continue
            shown = os.path.relpath(file) if not self.file.is_absolute() else str(file)
            document = yaml.read(file, shown)
            self.problems += document.problems
            if document.problems:
                continue
            try:
                found[parse.contract] = contract.build(parse.contract, shown, document.value, document.lines)
            except SpecError as error:
                self.problems += error.problems
        return found

    def _model(self, model: type[Model], value: Any, path: str, outer: str = "") -> Model | None:
        """The value as a frozen model; what pydantic finds wrong becomes problems at their lines."""
        if isinstance(value, dict) and any(not isinstance(key, str) for key in value):
            self._problem(path, "BAD_VALUE", "a key is not text")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                self._pydantic(model, one, path, outer)
            return None

    def _pydantic(self, model: type[BaseModel], one: Any, path: str, outer: str) -> None:
        inner = ""
        for part in one["loc"]:
            inner += f"[{part}]" if isinstance(part, int) else f".{part}" if part != "[key]" else ""
        place = self._place(path, outer, inner)
        kind, leaf = one["type"], str(one["loc"][-1]) if one["loc"] else ""
        if kind == "extra_forbidden":
            owner = _owner(model, one["loc"][:-1])
            if leaf in owner.later:
                self._problem(place, "NOT_YET", f"{leaf} comes with a later version")
            else:
                self._unknown(place, leaf, [field.alias or name for name, field in owner.model_fields.items()])
        elif kind == "missing":
            self._problem(place, "MISSING_KEY", f"{leaf} is missing")
        elif kind.isupper():
            self._problem(place, kind, one["msg"])
        else:
            self._problem(place, "BAD_VALUE", f"{inner.lstrip('.')}: {one['msg']}; it is {one['input']!r:.60}")

    def _place(self, path: str, outer: str, inner: str) -> str:
        """Where in the file a model's field stands: as a key, in a short form, or beside its component."""
        for candidate in (path + inner, outer + inner if outer else "", path + re.sub(r"^\.[a-z_]+", "", inner)):
            if candidate and candidate.lstrip(".") in self._lines:
                return candidate.lstrip(".")
        return path


def is_schedule(value: object) -> bool:
    return isinstance(value, str) and (value in _SCHEDULES or _is_cron(value))


def _is_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) == len(_CRON) and all(map(_is_cron_field, fields, _CRON))


def _is_cron_field(text: str, bounds: tuple[int, int]) -> bool:
    """``*``, a number, a range or a list of those, each with ``/step`` or without."""
    for part in text.split(","):
        match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?", part)
        if match is None:
            return False
        ends = [int(end) for end in match.group(1, 2) if end is not None]
        if ends != sorted(ends) or any(not bounds[0] <= end <= bounds[1] for end in ends):
            return False
    return True


def _owner(model: type[BaseModel], location: Sequence[Any]) -> type[Model]:
    """The model that a location lies in."""
    for part in location:
        info = model.model_fields.get(part) if isinstance(part, str) else None
        inner = [t for t in _types(info.annotation) if isinstance(t, type) and issubclass(t, Model)] if info else []
        if inner:
            model = inner[0]
    assert issubclass(model, Model)
    return model


def _types(annotation: Any) -> list[Any]:
    return [annotation, *[t for inner in getattr(annotation, "__args__", ()) for t in _types(inner)]]
