"""One file as a frozen spec. What cannot be read is said, and stands as ``Unread`` so that the rest is checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lakehouse_engine import checks, sinks, sources, transforms
from lakehouse_engine.component import TABLE, Component, Model, Unread, is_name
from lakehouse_engine.contract import Contract
from lakehouse_engine.contract import file as contract_file
from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.queries import INPUT
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.further import Beside, Further, with_first
from lakehouse_engine.spec.pipeline import (
    INPUT_NAME,
    Airflow,
    AvailableNow,
    Head,
    Input,
    Maintain,
    Panel,
    PipelineSpec,
    Trigger,
)
from lakehouse_engine.spec.reuse import Content, assemble, did_you_mean, display, named_folder, unknown
from lakehouse_engine.spec.schedule import SCHEDULES, is_schedule
from lakehouse_engine.spec.validated import said
from lakehouse_engine.transforms import parse

KEYS = ("description", "use", "params", "source", "inputs", "transforms", "checks", "keys", "sink", "serve",
        "trigger", "schedule", "airflow", "maintain", "panel")  # fmt: skip


class Reader:
    """One file."""

    def __init__(self, file: Path, environment: Environment | None, params: Mapping[str, Any] | None = None) -> None:
        self.file, self.shown = file, str(file)
        variables: Mapping[str, str] = environment.variables if environment else os.environ
        self.content: Content = assemble(file, self.shown, variables, environment.vars if environment else None,
                                         params=params or {})  # fmt: skip
        self.problems = self.content.problems

    def spec(self) -> PipelineSpec | None:
        """None when nothing can be told of the pipeline; else what can, with ``complete`` False if that is not all."""
        if self.content.value is None:
            return None
        name = self._name()
        content = self.content.value
        slips = self._unknown(content)
        for key in ("source", "sink"):
            if key not in content and key not in slips:
                self._problem("", "MISSING_KEY", f"{key} is missing")
        source, (sink, *further) = self._source(content), self._sinks(content)
        inputs = self._inputs(content)
        steps = self._list(content, "transforms", transforms.TRANSFORMS, transforms.LATER)
        judged = self._list(content, "checks", checks.CHECKS, checks.LATER, checks.COMMON)
        data = {
            "name": name or f"{self.file.parent.name}.{self.file.stem}", "file": self.shown, "source": source,
            "inputs": inputs, "transforms": steps, "checks": judged, "sink": sink.sink, "further": tuple(further),
            **self._clock(content, source, slips),
            "airflow": self._model(Airflow, self._map(content, "airflow"), "airflow") or Airflow(),
            "maintain": self._model(Maintain, self._map(content, "maintain"), "maintain") or Maintain(),
            "panel": self._panels(content.get("panel")),
            "contracts": self._contracts(source, steps, inputs), "lines": with_first(self.content.origins),
        }  # fmt: skip
        head = {key: content[key] for key in Head.model_fields if content.get(key) is not None}
        made = self._model(Head, head, "")
        data |= made.model_dump(exclude_unset=True) if made else {}
        if self.problems:
            return PipelineSpec.model_construct(**data, complete=False) if name else None
        return PipelineSpec(**data)

    def _problem(self, path: str, code: str, message: str) -> None:
        self.content.problem(path, code, message)

    def _unknown(self, content: Mapping[str, Any]) -> set[str]:
        """Says which keys are not known; gives the keys that they are most likely meant to be."""
        slips = set()
        for key in content:
            if key not in KEYS:
                self._problem(key, "UNKNOWN_KEY", unknown(key, KEYS))
                slips.add(_meant(key, KEYS))
        return slips - content.keys()

    def _name(self) -> str | None:
        layer, stem = self.file.resolve().parent.name, self.file.stem
        for part in (layer, stem):
            if not is_name(part):
                self._problem("", "BAD_NAME", f"{part!r} is not a name: a-z, 0-9 and _, no __, at most 48 characters;"
                              " a pipeline is <layer>/<name>.yaml")  # fmt: skip
                return None
        return f"{layer}.{stem}"

    def _map(self, content: Mapping[str, Any], key: str) -> Any:
        value = content.get(key)
        return {} if value is None else value

    def _list(self, content: Mapping[str, Any], key: str, known: Mapping[str, Any], later: set[str],
              common: Iterable[str] = (), below: str = "") -> tuple[Component | Unread, ...]:  # fmt: skip
        value, path = content.get(key), f"{below}{key}"
        if isinstance(value, list):
            return tuple(self._component(v, f"{path}[{i}]", known, later, common) for i, v in enumerate(value))
        if value is None and path not in self.content.broken:
            return ()
        self._problem(path, "BAD_VALUE", f"{key} is a list; begin each item with a dash")
        return (Unread(""),)

    def _source(self, content: Mapping[str, Any], below: str = "") -> Component | Unread:
        if "source" not in content:
            return Unread("")
        value = content["source"]
        if isinstance(value, str) and "." in value:
            value = {"delta": {"table": value}}
        return self._component(value, f"{below}source", sources.SOURCES, sources.LATER)

    def _inputs(self, content: Mapping[str, Any]) -> dict[str, Input]:
        value = content.get("inputs")
        if value is None and "inputs" not in self.content.broken:
            return {}
        if not isinstance(value, dict):
            self._problem("inputs", "BAD_VALUE", "inputs is a map: each a name, and where its rows come from")
            return {}
        return {str(name): self._input(str(name), one) for name, one in value.items() if self._input_name(str(name))}

    def _input_name(self, name: str) -> bool:
        path = f"inputs.{name}"
        good = re.fullmatch(INPUT_NAME, name) is not None
        if name == INPUT:
            self._problem(path, "BAD_NAME", f"{INPUT} is what sql calls the rows of the steps before it")
        elif not good:
            self._problem(path, "BAD_NAME", f"{name!r} is not a name: a-z, 0-9 and _, no __, at most 48 characters")
        return good

    def _input(self, name: str, value: Any) -> Input:
        path, below = f"inputs.{name}", f"inputs.{name}."
        if isinstance(value, str):
            if TABLE.fullmatch(value):
                return Input(source=sources.Delta(table=value))
            self._problem(path, "BAD_NAME", f"{value!r} is not <layer>.<name>, a pipeline's name")
            return Input.model_construct(source=Unread(""), transforms=())
        if not isinstance(value, dict):
            self._problem(path, "BAD_VALUE", f"{name} must be a pipeline's name, or a map of source and transforms")
            return Input.model_construct(source=Unread(""), transforms=(Unread(""),))
        known = tuple(Input.model_fields)
        slips = {_meant(key, known) for key in value if key not in known}
        for key in value:
            if key not in known:
                self._problem(f"{below}{key}", "UNKNOWN_KEY", unknown(key, known))
        if "source" not in value and "source" not in slips:
            self._problem(path, "MISSING_KEY", f"{name} needs a source")
        steps = self._list(value, "transforms", transforms.TRANSFORMS, transforms.LATER, below=below)
        return Input.model_construct(source=self._source(value, below), transforms=steps)

    def _sinks(self, content: Mapping[str, Any]) -> list[Further]:
        """The first one first; ``where`` is not one of its keys."""
        value = content.get("sink")
        if "sink" not in content:
            return [Further.model_construct(sink=Unread(""))]
        if not isinstance(value, list):
            return [self._sink(value, "sink", first=True)]
        if not value:
            self._problem("sink", "BAD_VALUE", "sink is a component, or a list of them")
            return [Further.model_construct(sink=Unread(""))]
        return [self._sink(one, f"sink[{index}]", first=not index) for index, one in enumerate(value)]

    def _sink(self, value: Any, path: str, *, first: bool) -> Further:
        known = tuple(Beside.model_fields)
        beside = {key: value[key] for key in known if key in value} if isinstance(value, dict) else {}
        alone = {key: inner for key, inner in value.items() if key not in beside} if beside else value
        for key in beside if first else ():
            self._problem(f"{path}.{key}", "ILLEGAL_SINK", f"{key} is for sinks after the first, which is the"
                          " pipeline's table and holds all of its result")  # fmt: skip
        if first and beside and not alone:
            return Further.model_construct(sink=Unread(""))
        made = self._model(Beside, {} if first else beside, path) or Beside()
        sink = self._component(alone, path, sinks.SINKS, sinks.LATER, () if first else known)
        return Further.model_construct(sink=sink, where=made.where)  # type: ignore[attr-defined]

    def _component(self, value: Any, path: str, known: Mapping[str, Any], later: set[str],
                   common: Iterable[str] = ()) -> Component | Unread:  # fmt: skip
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, dict) or not value:
            self._problem(path, "BAD_VALUE", f"{path} must be one of {', '.join(known)}")
            return Unread("")
        beside = {key: inner for key, inner in value.items() if key in common}
        keys = [key for key in value if key not in beside]
        components = [key for key in keys if key in known]
        for key in keys:
            if key not in known:
                self._no_component(path, key, components, known, later, sorted(common))
        if not keys:
            self._problem(path, "UNKNOWN_KEY", "the component itself is missing")
        if len(components) > 1:
            self._problem(path, "TWO_COMPONENTS", f"{' and '.join(components)} stand in one item; each component begins"
                          " with a dash")  # fmt: skip
        made = [self._made(known[key], value[key], beside, path) for key in components]
        if len(keys) == 1:
            return made[0] if made else Unread(keys[0] if keys[0] in later else _meant(keys[0], known))
        return made[0] if len(made) == 1 else Unread("")

    def _made(self, kind: type[Component], value: Any, beside: dict[str, Any], outer: str) -> Component | Unread:
        path = f"{outer}.{kind.key}"
        if "checks" in kind.model_fields and isinstance(value, list):
            return self._holding(kind, value, path)
        options = kind.short(value)
        if not isinstance(options, dict):
            self._problem(path if path in self.content.origins else outer, "BAD_VALUE",
                          f"{kind.key} takes options, or nothing")  # fmt: skip
            return Unread(kind.key)
        made = self._model(kind, {**options, **beside}, path, outer)
        return made if isinstance(made, Component) else Unread(kind.key, _columns(options))

    def _no_component(self, path: str, key: str, components: list[str], known: Mapping[str, Any], later: set[str],
                      common: list[str]) -> None:  # fmt: skip
        place = f"{path}.{key}" if f"{path}.{key}" in self.content.origins else path
        if key in later:
            self._problem(place, "NOT_YET", f"{key} comes with a later version")
        elif components:
            beside = f"beside it stand {', '.join(common)} only" if common else "its options stand below it, indented"
            self._problem(place, "UNKNOWN_KEY", f"{key} beside {components[0]}: {beside}")
        else:
            self._problem(place, "UNKNOWN_COMPONENT", unknown(key, known))

    def _holding(self, model: type[Component], value: list[Any], path: str) -> Component | Unread:
        """A step that is made of checks."""
        held = [self._component(one, f"{path}[{i}]", checks.CHECKS, checks.LATER, checks.COMMON)
                for i, one in enumerate(value)]  # fmt: skip
        good = tuple(one for one in held if not isinstance(one, Unread))
        if len(good) < len(held):  # each of them keeps its place
            return model.model_construct(checks=held)
        made = self._model(model, {"checks": good}, path)
        return made if isinstance(made, Component) else Unread(model.key)

    def _clock(self, content: Mapping[str, Any], source: Component | Unread, slips: set[str]) -> dict[str, Any]:
        """``trigger`` and ``schedule``; where the file does not say, what its source is for."""
        trigger, schedule = content.get("trigger"), content.get("schedule")
        stream = trigger is not None if (trigger is None) != (schedule is None) else source.key == "kafka"
        guess: dict[str, Any] = {"trigger": Trigger(every="1 second") if stream else None,  # type: ignore[arg-type]
                                 "schedule": None if stream else "manual"}  # fmt: skip
        if trigger == "available_now":
            guess["trigger"] = AvailableNow()
            if schedule is None:
                self._problem("trigger", "MISSING_TRIGGER", "when does a stream begin that ends? say it in schedule")
        elif trigger is not None and schedule is not None:
            self._problem("schedule", "TRIGGER_AND_SCHEDULE", "an endless stream has no schedule; keep one of the two")
            self._model(Trigger, trigger, "trigger")
        elif trigger is not None:
            guess["trigger"] = self._model(Trigger, trigger, "trigger") or guess["trigger"]
        elif schedule is None and slips & {"trigger", "schedule"}:
            pass
        elif schedule is None:
            self._problem("", "MISSING_TRIGGER", "a stream needs a trigger, a job needs a schedule")
        if schedule is not None and trigger in (None, "available_now"):
            if is_schedule(schedule):
                guess["schedule"] = schedule
            else:
                self._bad_schedule(schedule)
        return guess

    def _bad_schedule(self, schedule: object) -> None:
        hint = did_you_mean(str(schedule), SCHEDULES)
        hint = f"; {hint}" if hint.startswith("did") else ""
        self._problem("schedule", "BAD_SCHEDULE", f"{schedule} is not {', '.join(SCHEDULES)} or a cron line of five"
                      f" fields{hint}")  # fmt: skip

    def _panels(self, value: Any) -> tuple[Model | Unread, ...]:
        """One panel, or a list of them."""
        if isinstance(value, list):
            return tuple(self._model(Panel, one, f"panel[{i}]") or Unread("") for i, one in enumerate(value))
        return () if value is None else (self._model(Panel, value, "panel") or Unread(""),)

    def _contracts(self, source: Component | Unread, steps: Sequence[Component | Unread],
                   inputs: Mapping[str, Input]) -> dict[str, Contract]:  # fmt: skip
        """Those of its source, of its own steps and of its inputs'."""
        found: dict[str, Contract] = {}
        if isinstance(source, sources.Judged):
            self._contract(source.contract, f"source.{source.key}", found)
        for below, some in [("", steps), *((f"inputs.{name}.", one.transforms) for name, one in inputs.items())]:
            for index, step in enumerate(some):
                if isinstance(step, transforms.Parse) and step.ddl is not None:
                    found[step.reads_by] = parse.of_columns(step.ddl)
                elif isinstance(step, transforms.Parse) and step.contract is not None:
                    self._contract(step.contract, f"{below}transforms[{index}].parse", found)
        return found

    def _contract(self, name: str, path: str, found: dict[str, Contract]) -> None:
        folder = named_folder(self.file, "contracts")
        there = {file.stem: file for file in folder.glob("*.yaml")} if folder else {}
        if name not in there:
            path += ".contract" if f"{path}.contract" in self.content.origins else ""
            self._problem(path, "MISSING_CONTRACT", f"there is no contract {name} in contracts/;"
                          f" {did_you_mean(name, there)}")  # fmt: skip
            return
        if name not in found:
            made = read_contract(there[name], display(there[name], self.shown), self.problems)
            if made is not None:
                found[name] = made

    def _model(self, model: type[Model], value: Any, path: str, outer: str = "") -> Model | None:
        """The value as a frozen model; what is wrong with it becomes problems at their lines."""
        made, wrong = said(model, value, path, outer, self.content.origins)
        for place, code, message in wrong:
            self._problem(place, code, message)
        # what was put in place of a wrong value is not the user's
        leaf = path in self.content.origins and self.content.origins[path].value is not None
        self.content.broken |= {place for place, code, _ in wrong if (leaf or place != path) and code != "MISSING_KEY"}
        return made


def _columns(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The columns that a step makes, as far as its options are maps of columns."""
    by, maps = options.get("by", ()), [options.get(key) for key in ("measures", "columns")]
    found = [str(name) for one in maps if isinstance(one, dict) for name in one]
    if not found or not isinstance(by, list | str | tuple):
        return None
    return (*([by] if isinstance(by, str) else map(str, by)), *found)


def read_contract(file: Path, shown: str, problems: list[Problem]) -> Contract | None:
    """A contract's file; what is wrong with it is added to ``problems``."""
    document = yaml.read(file, shown)
    problems += document.problems
    if document.problems:
        return None
    try:
        return contract_file.build(file.stem, shown, document.value, document.lines)
    except SpecError as error:
        problems += error.problems
        return None


def _meant(word: str, known: Iterable[str]) -> str:
    hint = did_you_mean(word, known)
    return hint[len("did you mean ") : -1] if hint.startswith("did") else word
