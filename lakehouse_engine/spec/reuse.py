"""What one pipeline says, put together from its file, its template and the defaults of its folders.

The file's own keys come first, then its template's (``use``), then ``defaults.yaml`` of the nearest folder, then those
of the folders above, up to ``pipelines``. Then ``${x}`` is put into the leaves: ``${UPPER}`` is a variable of the
process, ``${lower}`` a parameter, else an entry of the environment's ``vars``. Every value keeps its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from lakehouse_engine.component import FromText
from lakehouse_engine.errors import Problem
from lakehouse_engine.spec import yaml

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")
SECRET = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|(^|_)KEY($|_)")
_CLOCK = {"trigger", "schedule"}
HIDDEN = "***"


class Origin(NamedTuple):
    """Where a value stands. ``value`` is a leaf's; ``through`` says which variables made it, and where they stand."""

    file: str
    line: int
    value: object = None
    through: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + "".join(f", {one}" for one in self.through)


@dataclass
class Content:
    """``value``: the keys of one pipeline, None when the file is not readable at all.

    ``broken``: paths whose value is wrong already, so that nothing more is said about them; ``holes``: maps of which a
    part was refused. ``secrets``: values that no message may show.
    """

    value: dict[str, Any] | None = None
    origins: dict[str, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    holes: set[str] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)

    def place(self, path: str) -> Origin:
        return self.origins[yaml.nearest(path, self.origins)]

    def problem(self, path: str, code: str, message: str) -> None:
        """Says it, unless the value at this path, or one that it is part of, is known to be wrong already."""
        missing = code.startswith("MISSING_")
        if any(path == one or path.startswith((f"{one}.", f"{one}[")) for one in self.broken):
            return
        if missing and path in self.holes:
            return
        place = self.place(path)
        if path in self.origins and place.through and place.file != self.origins[""].file:
            message += f" (in {self.origins[''].file})"
        self.problems.append(Problem(place.file, place.line, code, message, path))

    def take(self, document: yaml.Document, key: str, place: str | None = None) -> None:
        """Remembers where a key of the document and all below it stand."""
        place = key if place is None else place
        for path, line in document.lines.items():
            if path == key or path.startswith((f"{key}.", f"{key}[")):
                self.origins[place + path[len(key) :]] = Origin(document.file, line)


def masked(message: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message


def unknown(word: str, known: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """``x is unknown; did you mean y?``"""
    return f"{word} is unknown; {did_you_mean(word, known)}"


def did_you_mean(word: str, known: Any) -> str:
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}" if names else "there are none"


def assemble(file: Path, shown: str, variables: Mapping[str, str], values: Mapping[str, Any] | None,
             given: dict[str, Any] | None = None, params: Mapping[str, Any] | None = None) -> Content:  # fmt: skip
    """Everything that the file says and takes over. ``values``: the environment's ``vars``; ``params`` go over its own.

    ``given``: what the file says, where that is known better than YAML can tell.
    """
    content = Content()
    document = yaml.read(file, shown) if given is None else yaml.Document(shown, given)
    content.origins[""] = Origin(shown, 1)
    content.problems += document.problems
    content.broken |= document.broken
    content.holes |= document.holes
    if document.value is None:
        return content
    if not isinstance(document.value, dict):
        content.problem("", "BAD_VALUE", "a pipeline is a map with source, transforms, sink and more")
        return content
    content.value = {key: value for key, value in document.value.items() if key not in ("use", "params")}
    for key in document.value:
        content.take(document, key)
    scope = _Scope(content, variables, values or {})
    _use(file, document.value, params or {}, content, scope)
    for folder in _folders(file):
        _defaults(folder / "defaults.yaml", shown, content)
    content.value = {key: scope.substitute(value, key) for key, value in content.value.items()}
    return content


def display(path: Path, beside: str) -> str:
    """A file as errors show it: like the pipeline's own, relative when that one was given so."""
    if Path(beside).is_absolute():
        return str(path.resolve())
    import os

    return os.path.relpath(path)


def named_folder(file: Path, name: str) -> Path | None:
    """The nearest ``contracts`` or ``templates`` folder above a file."""
    return next((folder / name for folder in file.resolve().parents if (folder / name).is_dir()), None)


def _folders(file: Path) -> Iterator[Path]:
    """The file's folder and those above it up to ``pipelines``; where none is called so, its parent alone."""
    above = list(file.resolve().parent.parents)
    here = file.resolve().parent
    top = next((i for i, folder in enumerate([here, *above]) if folder.name == "pipelines"), 1)
    yield from [here, *above][: top + 1]


def _use(file: Path, own: Mapping[str, Any], params: Mapping[str, Any], content: Content, scope: _Scope) -> None:
    assert content.value is not None
    given = own.get("params")
    if given is not None and not isinstance(given, dict):
        content.problem("params", "BAD_VALUE", "params is a map from a template's parameter to its value")
        given = {}
    if "use" not in own:
        if given is not None:
            content.problem("params", "ILLEGAL_USE", "params without use: name the template that they are for")
        return
    name = own["use"]
    folder = named_folder(file, "templates")
    there = {one.stem: one for one in folder.glob("*.yaml")} if folder else {}
    if not isinstance(name, str) or name not in there:
        content.problem("use", "MISSING_TEMPLATE", f"there is no template {name} in templates/;"
                        f" {did_you_mean(str(name), there)}")  # fmt: skip
        content.holes.add("")
        return
    document = yaml.read(there[name], display(there[name], str(file)))
    content.problems += document.problems
    if not isinstance(document.value, dict):
        if not document.problems:
            content.problems.append(Problem(document.file, 1, "BAD_VALUE", "a template is a pipeline with params"))
        content.holes.add("")
        return
    if "use" in document.value:
        line = document.lines["use"]
        content.problems.append(Problem(document.file, line, "ILLEGAL_USE", "a template does not use another one"))
        content.holes.add("")
    declared = document.value.get("params")
    if declared is not None and not isinstance(declared, dict):
        line = document.lines["params"]
        content.problems.append(Problem(document.file, line, "BAD_VALUE", "params is a map from a parameter to its"
                                        " default; null: each file gives it"))  # fmt: skip
        declared = {}
    scope.parameters(document, declared or {}, {**(given or {}), **params}, name)
    taken = {key: value for key, value in document.value.items() if key not in ("use", "params")}
    taken = {key: value for key, value in taken.items() if key not in _clock(content.value)}
    for key in [key for key in taken if key not in content.value]:
        content.value[key] = taken[key]
        content.take(document, key)
        content.broken |= {one for one in document.broken if one == key or one.startswith((f"{key}.", f"{key}["))}


def _clock(said: Mapping[str, Any]) -> set[str]:
    """The keys that are not taken from elsewhere: a trigger excludes a schedule, but of a stream that ends."""
    if said.get("trigger") == "available_now":
        return {"trigger"}
    return _CLOCK if _CLOCK & said.keys() else set()


def _defaults(file: Path, beside: str, content: Content) -> None:
    if not file.is_file():
        return
    document = yaml.read(file, display(file, beside))
    content.problems += document.problems
    if document.problems or content.value is None:
        content.holes.add("")
        return
    if not isinstance(document.value, dict):
        content.problems.append(Problem(document.file, 1, "BAD_VALUE", "defaults are a map"))
        return
    clock = _clock(content.value)
    for key, value in document.value.items():
        if key in ("use", "params"):
            content.problems.append(Problem(document.file, document.lines[key], "ILLEGAL_USE",
                                            f"{key} stands in a pipeline's own file"))  # fmt: skip
        elif key in clock:
            continue
        elif key == "airflow" and isinstance(value, dict) and isinstance(content.value.get(key), dict):
            for inner in value.keys() - content.value[key].keys():
                content.take(document, f"airflow.{inner}")
            content.value[key] = {**value, **content.value[key]}
        elif key not in content.value:
            content.value[key] = value
            content.take(document, key)


class _Scope:
    """What ``${x}`` stands for in one pipeline."""

    def __init__(self, content: Content, variables: Mapping[str, str], values: Mapping[str, Any]) -> None:
        self._content, self._variables, self._vars = content, variables, values
        self._parameters: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def parameters(self, template: yaml.Document, declared: dict[str, Any], given: dict[str, Any], name: str) -> None:
        """Takes the file's parameters and the template's defaults; a null default must be given."""
        content = self._content
        slips = set()
        for word in given.keys() - declared.keys():
            hint = did_you_mean(word, declared)
            slips |= {hint[len("did you mean ") : -1]} if hint.startswith("did") else set()
            content.problem(f"params.{word}", "UNKNOWN_KEY", f"the template {name} has no parameter {word}; {hint}")
        for word, default in declared.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
                content.problems.append(Problem(template.file, template.lines[f"params.{word}"], "BAD_NAME",
                                                f"{word!r} is not a parameter's name: a-z, 0-9 and _"))  # fmt: skip
            place = f"params.{word}"
            if given.get(word) is not None:
                value = self.substitute(given[word], place)
            else:
                value = default
                content.take(template, place)
            if value is None:
                if word not in slips:
                    content.problem("params" if given else "use", "MISSING_PARAMETER",
                                    f"the template {name} needs the parameter {word}")  # fmt: skip
                content.broken.add(place)
                value = ""
            elif word not in given:
                value = self.substitute(value, place)
            self._parameters[word] = value
            file, line = content.place(place)[:2]
            self._places[word] = f"{file}:{line}"

    def substitute(self, value: Any, path: str) -> Any:
        """The value with variables put in; its leaves are remembered with what they came through."""
        content = self._content
        if isinstance(value, dict):
            return {k: self.substitute(v, f"{path}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [self.substitute(v, f"{path}[{i}]") for i, v in enumerate(value)]
        through: tuple[str, ...] = ()
        if isinstance(value, str) and "${" in value:
            names = list(dict.fromkeys(m[1] for m in _VARIABLE.finditer(value) if m[1]))
            through = tuple(self._origin(name) for name in names)
            whole = _VARIABLE.fullmatch(value)
            if whole is not None and whole[1]:
                value = self._variable(whole, path)
                if whole[1] in self._parameters and not whole[1].isupper():
                    return self._moved(value, path, whole[1])
            else:
                value = _VARIABLE.sub(lambda m: "${" if m[1] is None else self._in_text(m, path), value)
            if any(SECRET.search(name) for name in names if name.isupper()):
                content.origins[path] = content.origins[path]._replace(value=HIDDEN, through=through)
                return value
        if path in content.origins:
            content.origins[path] = content.origins[path]._replace(value=value, through=through)
        return value

    def _moved(self, value: Any, path: str, name: str) -> Any:
        """A leaf that is a parameter stands where the parameter does."""
        content, place = self._content, f"params.{name}"
        through = (f"as {name} of {content.place(path)}",)
        for inner, origin in list(content.origins.items()):
            if inner == place or inner.startswith((f"{place}.", f"{place}[")):
                content.origins[path + inner[len(place) :]] = origin._replace(through=(*origin.through, *through))
        if not isinstance(value, dict | list):
            content.origins[path] = content.origins[path]._replace(value=value)
        if place in content.broken:
            content.broken.add(path)
        return value

    def _origin(self, name: str) -> str:
        if name.isupper():
            return f"${{{name}}} of the process environment"
        return f"${{{name}}} of {self._places.get(name, 'the environment')}"

    def _in_text(self, match: re.Match[str], path: str) -> str:
        value = self._variable(match, path)
        if isinstance(value, dict | list):
            self._content.problem(path, "BAD_VARIABLE", f"the value of {match[1]} is a list or a map, which cannot"
                                  " stand inside a text")  # fmt: skip
            self._content.broken.add(path)
            return ""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if re.search(r"['\";`\\]", text):
            self._content.problem(path, "BAD_VARIABLE", f"the value of {match[1]} holds a quote, a backslash or ;")
            self._content.broken.add(path)
        return text

    def _variable(self, match: re.Match[str], path: str) -> Any:
        name, default = match[1], match[3]
        if name.isupper():
            kind, values = "environment variable", dict(self._variables)
            if name in values and SECRET.search(name) and values[name]:
                self._content.secrets.add(values[name])
        else:
            kind = "parameter or entry of the environment's vars"
            values = {**self._vars, **self._parameters}
        if name in values:
            if f"params.{name}" in self._content.broken and name in self._parameters:
                self._content.broken.add(path)
            return FromText(values[name]) if name.isupper() else values[name]
        if match[2] is not None:
            return FromText(default) if name.isupper() else default
        close = get_close_matches(name, list(values), n=1)
        hint = f"did you mean {close[0]}? else" if close else "give it a value or"
        self._content.problem(path, "UNSET_VARIABLE", f"there is no {kind} {name}; {hint} write ${{{name}:-default}}")
        self._content.broken.add(path)
        return ""
