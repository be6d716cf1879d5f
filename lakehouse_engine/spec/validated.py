"""From what pydantic finds wrong to what a person can mend: a place in the file, a stable code, one sentence."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lakehouse_engine.component import Model
from lakehouse_engine.spec.reuse import did_you_mean, unknown

M = TypeVar("M", bound=Model)
#: an expression that reads no column, a measure, a duration
_HARMLESS = ("null", "count(*)", "1 minute")
#: place, code, message
Wrong = tuple[str, str, str]
_WHAT = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "string_type": "text", "dict_type": "a map",
}  # fmt: skip


def said(model: type[M], value: Any, path: str, outer: str, lines: Mapping[str, Any]) -> tuple[M | None, list[Wrong]]:
    """The value as a frozen model, and what is wrong with it.

    With something wrong the model is the value without that, so that the rest can be checked; None when that is none.
    ``path`` is where the value stands, ``outer`` where the keys beside it do; ``lines`` holds the paths of the file.
    """
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        found: dict[tuple[str, str], list[str]] = {}
        for one in error.errors(include_url=False):
            place, code, message = _wrong(model, one, path, outer, lines)
            found.setdefault((place, code), [])
            if message not in found[place, code]:
                found[place, code].append(message)
        return _mended(model, value, error), list(_without_slips(found))


def _without_slips(found: Mapping[tuple[str, str], list[str]]) -> Iterator[Wrong]:
    """A key is not missing where another one is a slip of it."""
    slips = {(place.rpartition(".")[0], match[1]) for (place, code), messages in found.items() if code == "UNKNOWN_KEY"
             for match in [re.search(r"did you mean (\w+)\?", messages[0])] if match}  # fmt: skip
    for (place, code), messages in found.items():
        for one in _together(place, code, messages):
            if code != "MISSING_KEY" or (place, one[2].removesuffix(" is missing")) not in slips:
                yield one


def _mended(model: type[M], value: Any, error: ValidationError) -> M | None:
    """The value with something harmless, or nothing, in place of what is wrong; None where columns would get lost."""
    if not isinstance(value, dict):
        return None
    value, tried = deepcopy(value), Counter[tuple[Any, ...]]()
    for _ in range(len(_HARMLESS) + 3):
        for one in error.errors(include_url=False, include_context=False):
            holder, key = _holder(value, one["loc"])
            if not isinstance(holder, dict) or (key not in holder and one["type"] != "missing"):
                return None
            attempt = tried[one["loc"]]
            tried[one["loc"]] += 1
            if one["type"] == "extra_forbidden" or attempt >= len(_HARMLESS):
                holder.pop(key, None)
            else:
                holder[key] = _HARMLESS[attempt]
        try:
            return model.model_validate(value)
        except ValidationError as again:
            error = again
    return None


def _holder(value: dict[str, Any], location: Sequence[Any]) -> tuple[Any, Any]:
    """The map, and its key, that a location lies in; no map when it is the name of a key, or an item of a list."""
    holder: Any = value
    for index, part in enumerate(location):
        inner = holder.get(part) if isinstance(holder, dict) else None
        following = location[index + 1] if index + 1 < len(location) else None
        if following == "[key]" or isinstance(following, int):
            return None, None
        if not isinstance(inner, dict) or (following not in inner and location[index + 2 :]):
            return holder, part  # what follows are the names of a union's types
        if following is None:
            return None, None  # the map as a whole
        holder = inner
    return None, None


def _together(place: str, code: str, messages: list[str]) -> Iterator[Wrong]:
    """What a union says of each of its types is one sentence."""
    either = [re.fullmatch(r"(.* must be )(.*?)(, not .*)", message) for message in messages]
    heads = {(match[1], match[3]) for match in either if match}
    if len(messages) > 1 and len(heads) == 1 and all(either):
        head, tail = heads.pop()
        yield place, code, f"{head}{' or '.join(match[2] for match in either if match)}{tail}"
        return
    for message in messages:
        yield place, code, message


def _wrong(model: type[BaseModel], one: Any, path: str, outer: str, lines: Mapping[str, Any]) -> Wrong:
    inner = ""
    for part in one["loc"]:
        inner += f"[{part}]" if isinstance(part, int) else f".{part}" if part != "[key]" else ""
    place = _place(path, outer, inner, lines)
    kind = one["type"]
    leaf = str(one["loc"][-1]) if one["loc"] else path
    if kind == "extra_forbidden":
        owner = owner_of(model, one["loc"][:-1])
        if leaf in owner.later:
            return place, "NOT_YET", f"{leaf} comes with a later version"
        return place, "UNKNOWN_KEY", unknown(leaf, keys_of(owner))
    if kind == "missing":
        return place, "MISSING_KEY", f"{leaf} is missing"
    if kind.isupper():
        return place, kind, one["msg"]
    shown = json.dumps(one["input"], default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    name = place[len(path) :].lstrip(".") if place != path and place.startswith(path) else ""
    name = name or (place or path).rpartition(".")[2]
    if kind in ("model_type", "model_attributes_type"):
        owner = owner_of(model, one["loc"])
        return place, "BAD_VALUE", f"{name} must be a map of {', '.join(keys_of(owner))}, not {shown}"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", one["ctx"]["expected"])
        hint = did_you_mean(str(one["input"]), words)
        hint = f"; {hint}" if hint.startswith("did") else ""
        choice = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
        return place, "BAD_VALUE", f"{name} must be {choice}, not {shown}{hint}"
    if kind in _WHAT:
        return place, "BAD_VALUE", f"{name} must be {_WHAT[kind]}, not {shown}"
    return place, "BAD_VALUE", f"{name} {re.sub('^(Input|String) should', 'must', one['msg'])}, not {shown}"


def _place(path: str, outer: str, inner: str, lines: Mapping[str, Any]) -> str:
    """Where in the file a model's field stands: as a key, in a short form, or beside its component."""
    short = re.sub(r"^\.[a-z_]+", "", inner)
    while inner or short:
        for candidate in (path + inner, outer + inner if outer and inner else "", path + short):
            if candidate.lstrip(".") != path and candidate and candidate.lstrip(".") in lines:
                return candidate.lstrip(".")
        # a union names its types at the end of the location
        inner, short = (re.sub(r"(\.[^.\[\]]*|\[[^\]]*\])$", "", text) for text in (inner, short))
    return path


def keys_of(model: type[BaseModel]) -> list[str]:
    """The options of a model as files write them."""
    return [info.alias or name for name, info in model.model_fields.items()]


def owner_of(model: type[BaseModel], location: Sequence[Any]) -> type[Model]:
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
