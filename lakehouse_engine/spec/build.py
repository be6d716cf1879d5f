"""From plain values to components: one key an item, short forms, common options, and every error at its line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lakehouse_engine import checks, sinks, sources, transforms
from lakehouse_engine.component import TABLE, Columns, Component, Model
from lakehouse_engine.spec.draft import Broken, Draft, meant
from lakehouse_engine.spec.pipeline import Airflow, Trigger

KEYS = ("description", "source", "transforms", "checks", "keys", "sink", "serve", "trigger", "schedule", "airflow")
LATER_KEYS = ("inputs", "use", "params", "maintain", "panel")
SCHEDULES = ("daily", "hourly", "weekly", "manual", "upstream")
MODES = ("append", "upsert", "replace", "scd2", "delete")
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_COLUMNS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Columns)


@dataclass(frozen=True)
class Kind:
    """``common`` options stand beside the component's key."""

    noun: str
    known: Mapping[str, type[Component]]
    later: Collection[str]
    common: Collection[str] = ()


SOURCE = Kind("source", sources.SOURCES, sources.LATER)
TRANSFORM = Kind("transform", transforms.TRANSFORMS, transforms.LATER)
CHECK = Kind("check", checks.CHECKS, checks.LATER, checks.COMMON)
SINK = Kind("sink", sinks.SINKS, sinks.LATER, ("where",))


def not_yet(what: str) -> str:
    return f"{what} comes with a later version"


def fill(draft: Draft, content: Mapping[str, Any]) -> None:
    """Builds every part of the draft that can be built."""
    for key in content:
        if key in LATER_KEYS:
            draft.add(key, "NOT_YET", not_yet(f"`{key}`"))
        elif key not in KEYS:
            draft.add(key, "UNKNOWN_KEY", f"is not a key of a pipeline{meant(key, (*KEYS, *LATER_KEYS))}")
    for key in ("source", "sink"):
        if key not in content and "use" not in content:
            draft.add("", "MISSING_KEY", f"`{key}` is missing")
    if "source" in content:
        draft.source = _source(draft, content["source"])
    if "sink" in content:
        draft.sink = _sink(draft, content["sink"])
    draft.transforms = tuple(_items(draft, TRANSFORM, content.get("transforms"), "transforms"))
    draft.checks = tuple(_items(draft, CHECK, content.get("checks"), "checks"))
    draft.description = _text(draft, content, "description") or ""
    if (serve := _text(draft, content, "serve")) is not None:
        if serve == "postgres":
            draft.serve = serve
        else:
            draft.add("serve", "BAD_VALUE", f"{serve!r} is not postgres{meant(serve, ['postgres'])}")
    if content.get("keys") is not None:
        try:
            draft.keys = _COLUMNS.validate_python(content["keys"])
        except ValidationError as error:
            _report(draft, error, "keys", None, content["keys"])
    if content.get("airflow") is not None:
        draft.airflow = _model(draft, Airflow, content["airflow"], "airflow") or Airflow()
    _clock(draft, content)


def _clock(draft: Draft, content: Mapping[str, Any]) -> None:
    trigger, schedule = content.get("trigger"), content.get("schedule")
    if trigger == "available_now":
        draft.add("trigger", "NOT_YET", not_yet("`trigger: available_now`"))
        return
    if trigger is None and schedule is None:
        if "use" not in content:
            draft.add("", "MISSING_TRIGGER", "say `trigger: {every: ...}` for a stream or `schedule: ...` for a job")
        return
    if trigger is not None and schedule is not None:
        draft.add("schedule", "TRIGGER_AND_SCHEDULE", "a stream has a trigger, a job a schedule; a pipeline is one of both")
        return
    draft.is_stream = trigger is not None
    if trigger is not None:
        if isinstance(trigger, Mapping):
            draft.trigger = _model(draft, Trigger, trigger, "trigger")
        else:
            draft.add("trigger", "BAD_VALUE", "write e.g. `trigger: {every: 10 seconds}`")
    elif isinstance(schedule, str) and (schedule in SCHEDULES or _is_cron(schedule)):
        draft.schedule = schedule
    else:
        hint = meant(schedule, SCHEDULES) if isinstance(schedule, str) else ""
        draft.add("schedule", "BAD_VALUE", f"is one of {', '.join(SCHEDULES)} or a cron text of five fields{hint}")


def _is_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) == 5 and all(_is_cron_field(f, *limits) for f, limits in zip(fields, _CRON, strict=True))


def _is_cron_field(text: str, low: int, high: int) -> bool:
    for part in text.split(","):
        match = re.fullmatch(r"(\*|([0-9]{1,2})(-([0-9]{1,2}))?)(/([1-9][0-9]?))?", part)
        if match is None:
            return False
        numbers = [int(match[i]) for i in (2, 4) if match[i] is not None]
        if any(not low <= n <= high for n in numbers) or numbers != sorted(numbers):
            return False
    return True


def _text(draft: Draft, content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is None or isinstance(value, str):
        return value
    draft.add(key, "BAD_VALUE", f"must be text, not {_noun(value)}; put it in quotes")
    return None


def _source(draft: Draft, value: Any) -> Any:
    if isinstance(value, str) and ("." in value or TABLE.fullmatch(value)):
        value = {"delta": {"table": value}}
    built = component(draft, SOURCE, value, "source")
    return None if isinstance(built, Broken) else built


def _sink(draft: Draft, value: Any) -> Any:
    if isinstance(value, list):
        draft.add("sink", "NOT_YET", not_yet("a list of sinks"))
        return None
    if isinstance(value, Mapping) and "where" in value and len(value) > 1:
        draft.add("sink.where", "NOT_YET", not_yet("`where` beside a sink"))
        value = {k: v for k, v in value.items() if k != "where"}
    built = component(draft, SINK, value, "sink")
    return None if isinstance(built, Broken) else built


def _items(draft: Draft, kind: Kind, value: Any, path: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        draft.add(path, "BAD_VALUE", f"must be a list, not {_noun(value)}: a dash before each {kind.noun}")
        return []
    return [component(draft, kind, item, f"{path}[{i}]") for i, item in enumerate(value)]


def component(draft: Draft, kind: Kind, value: Any, path: str) -> Component | Broken:
    """The component of one item. Reports its errors and gives ``Broken`` when there are any."""
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or not value:
        draft.add(path, "BAD_VALUE", f"a {kind.noun} is one key with its options, not {_noun(value)}")
        return Broken("")
    every = {*kind.known, *kind.later}
    named = [key for key in value if key in every] or [key for key in value if key not in kind.common][:1]
    if not named:
        draft.add(path, "MISSING_KEY", f"names no {kind.noun}, only {', '.join(value)}")
        return Broken("")
    key = named[0]
    if len(named) > 1:
        draft.add(f"{path}.{named[1]}", "TWO_COMPONENTS", f"{key} and {named[1]} are in one item: a dash is missing"
                  if kind in (TRANSFORM, CHECK) else f"{key} and {named[1]}: there is one {kind.noun}")  # fmt: skip
        return Broken("")
    if key in kind.later:
        draft.add(f"{path}.{key}", "NOT_YET", not_yet(f"the {kind.noun} {key}"))
        return Broken(key)
    if key not in kind.known:
        draft.add(f"{path}.{key}", "UNKNOWN_COMPONENT", f"there is no {kind.noun} {key}{meant(key, every)}")
        return Broken("")
    return _component(draft, kind, kind.known[key], value, path)


def _component(draft: Draft, kind: Kind, cls: type[Component], value: Mapping[str, Any], path: str) -> Component | Broken:
    before, own = len(draft.problems), value[cls.key]
    options = {} if own is None else cls.short(own)
    if not isinstance(options, Mapping):
        draft.add(f"{path}.{cls.key}", "BAD_VALUE", f"must be a map of options, not {_noun(own)}")
        return Broken(cls.key)
    given = dict(options)
    for key in value:
        if key in kind.common:
            given[key] = value[key]
        elif key != cls.key:
            draft.add(f"{path}.{key}", "UNKNOWN_KEY", f"does not stand beside {cls.key}{meant(key, kind.common)}")
    below = f"{path}.{cls.key}"
    for key in sorted(cls.later & given.keys()):
        draft.add(f"{path}.{key}" if key in kind.common else f"{below}.{key}", "NOT_YET", not_yet(f"`{key}`"))
        del given[key]
    if kind is SINK and given.get("mode") in MODES:
        field = cls.model_fields.get("mode")
        if field is not None and given["mode"] not in str(field.annotation):
            draft.add(f"{below}.mode", "NOT_YET", not_yet(f"`mode: {given.pop('mode')}` of {cls.key}"))
    try:
        built = cls.model_validate(given)
    except ValidationError as error:
        _report(draft, error, below, cls, own, path, kind.common)
        return Broken(cls.key)
    return built if len(draft.problems) == before else Broken(cls.key)


def _model(draft: Draft, cls: type[Any], value: Any, path: str) -> Any:
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        _report(draft, error, path, cls, value)
        return None


def _report(draft: Draft, error: ValidationError, path: str, cls: type[Model] | None, own: Any, beside: str = "",
            common: Collection[str] = ()) -> None:  # fmt: skip
    """``own`` is what stands in the file: a short form has no level for the option that it stands for."""
    seen = set()
    for detail in error.errors(include_url=False, include_context=True):
        loc = [part for part in detail["loc"] if part != "[key]"]
        if loc and loc[0] in common:
            at = f"{beside}.{loc[0]}"
        else:
            if loc and detail["type"] != "missing" and not (isinstance(own, Mapping) and loc[0] in own):
                loc = loc[1:] if cls is not None else loc
            at = path
            for part in loc:
                at += f"[{part}]" if isinstance(part, int) else f".{part}"
            at = _nearest(draft, at, path) if detail["type"] != "missing" else at
        code, message = explain(detail, cls)
        if (at, code) not in seen:  # a union gives one error for each of its members
            seen.add((at, code))
            draft.add(at, code, message)


def _nearest(draft: Draft, at: str, path: str) -> str:
    top = path.partition(".")[0].partition("[")[0]
    lines = draft.inherited[top][1] if top in draft.inherited else draft.lines
    while len(at) > len(path) and at not in lines:
        at = at[: max(at.rfind("."), at.rfind("["))]
    return at


def explain(detail: Any, cls: type[Model] | None) -> tuple[str, str]:
    """Code and message of one pydantic error."""
    kind, value, last = detail["type"], detail.get("input"), str(detail["loc"][-1]) if detail["loc"] else ""
    if kind.isupper():
        return kind, detail["msg"]
    if kind == "missing":
        return "MISSING_KEY", "is missing"
    if kind == "extra_forbidden":
        known = [*cls.model_fields, *cls.later] if cls is not None and len(detail["loc"]) == 1 else []
        return "UNKNOWN_KEY", f"is not an option here{meant(last, known)}"
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = meant(value, expected) if isinstance(value, str) else ""
        return "BAD_VALUE", f"{value!r} is not one of {', '.join(expected)}{hint}"
    if kind == "string_type":
        return "BAD_VALUE", f"must be text, not {_noun(value)}"
    return "BAD_VALUE", detail["msg"].replace("Input should be", "must be").replace("a valid dictionary", "a map")


def _noun(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return repr(value)
    return "a list" if isinstance(value, list) else "a map"
