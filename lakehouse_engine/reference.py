"""The reference: a page for each kind of component and file, made from docstrings, fields and files that are run.

Nothing is written twice: what an option means stands on its field, what a component does and guarantees in its
docstring, and each example is a part of a file that a test loads (and, where tests stand beside it, runs).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lakehouse_engine import checks, contract, schema, sinks, sources, transforms
from lakehouse_engine.component import Component, format_duration
from lakehouse_engine.contract import editor
from lakehouse_engine.errors import UsageError
from lakehouse_engine.fields import types_of
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import Airflow, Input, Maintain, Panel, Trigger
from lakehouse_engine.testing import cases

#: where examples are looked for, in this order
EXAMPLES = ("pipelines", "examples/pipelines")
_KINDS: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "sources": ("Sources", sources.SOURCES, "Where rows come from: `source`."),
    "transforms": ("Transforms", transforms.TRANSFORMS, "What happens to rows: the list `transforms`, in order."),
    "checks": ("Checks", checks.CHECKS, "What the result's rows must meet: the list `checks`."),
    "sinks": ("Sinks", sinks.SINKS, "Where rows land: `sink`."),
}
_NOTE = "<!-- Made by `lakehouse reference`; write in the code's docstrings and fields instead. -->\n"


def pages(root: Path) -> dict[str, str]:
    """File name to Markdown. ``root``: the folder that holds the examples."""
    found = Examples(root)
    made = {f"{name}.md": _components(title, known, text, found, name) for name, (title, known, text) in _KINDS.items()}
    made["pipeline.md"] = _pipeline(found)
    made["environment.md"] = _file("Environments", "`environments/<name>.yaml`, for `--env <name>`: where services"
        " and storage are. Without `--env` it is the embedded stack. Secrets are `{env: NAME}` or `{file: path}`, never"
        " values.", schema.schemas()["environment.json"], found.text("environments/production.yaml"),
        Environment)  # fmt: skip
    made["contract.md"] = _file("Contracts", "`pipelines/contracts/<name>.yaml`: the shape of an event, as the part of"
        " JSON Schema 2020-12 that pipelines understand, so that producers can check with any validator.\n\n"
        + _prose(inspect.getdoc(contract) or "", skip=1), editor.file_schema(deep=False),
        found.text("contracts/order.yaml"))  # fmt: skip
    made["test.md"] = _file("Tests", "`<name>.test.yaml` beside a pipeline is a list of tests; `lakehouse test` runs"
        " them on real services.", cases.file_schema()["items"], found.text("silver/orders.test.yaml"))  # fmt: skip
    return made


def write(folder: Path, root: Path) -> int:
    made = pages(root)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(made)


def check(folder: Path, root: Path) -> None:
    """Raises ``UsageError`` STALE with every page that is not as it would be written."""
    stale = [name for name, text in pages(root).items()
             if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text]  # fmt: skip
    if stale:
        raise UsageError("STALE", f"{', '.join(stale)}: write them anew with: lakehouse reference --write",
                         where=str(folder))  # fmt: skip


class Examples:
    """Parts of files that tests load."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: list[tuple[Path, yaml.Document, list[str]]] = []
        for folder in EXAMPLES:
            for file in sorted((root / folder).rglob("*.yaml")):
                if not file.name.endswith(".test.yaml") and file.parent.name not in ("contracts", "templates"):
                    shown = file.relative_to(root).as_posix()
                    self._files.append((file, yaml.read(file, shown), file.read_text(encoding="utf-8").splitlines()))

    def text(self, name: str) -> str | None:
        """A whole file, by the end of its path."""
        found = [file for folder in ("pipelines", "examples") for file in sorted((self._root / folder).rglob("*.yaml"))
                 if file.as_posix().endswith(name)]  # fmt: skip
        if not found:
            return None
        return _block(found[0].relative_to(self._root).as_posix(), found[0].read_text(encoding="utf-8"))

    def key(self, key: str) -> str | None:
        """A top-level key as a file has it."""
        return next((_block(document.file, part) for _, document, lines in self._files
                     for part in [_part(document, lines, key)] if part), None)  # fmt: skip

    def component(self, kind: str, key: str) -> tuple[str, bool] | None:
        """A component as a file has it, and whether that file has tests that are run."""
        found = []
        for file, document, lines in self._files:
            path = _place(document.value, kind, key)
            part = _part(document, lines, path) if path else None
            if part:
                tested = file.with_name(f"{file.stem}{cases.SUFFIX}").is_file()
                found.append((not tested, len(part), _block(document.file, part), tested))
        return min(found)[2:] if found else None


def _place(value: Any, kind: str, key: str) -> str | None:
    """Where a file uses the component: ``transforms[1]``."""
    if not isinstance(value, dict):
        return None
    if kind in ("sources", "sinks"):
        top = kind.removesuffix("s")
        one = value.get(top)
        if isinstance(one, list):
            return next((f"{top}[{index}]" for index, inner in enumerate(one)
                         if inner == key or (isinstance(inner, dict) and key in inner)), None)  # fmt: skip
        used = one == key or (isinstance(one, dict) and key in one)
        return top if used or (kind == "sources" and key == "delta" and isinstance(one, str)) else None
    for index, one in enumerate(value.get(kind) or []):
        if one == key or (isinstance(one, dict) and key in one):
            return f"{kind}[{index}]"
    return None


def _part(document: yaml.Document, lines: Sequence[str], path: str) -> str | None:
    """The lines of a path, from its own to the one before the next that is indented no deeper."""
    if path not in document.lines:
        return None
    first = document.lines[path] - 1
    indent = len(lines[first]) - len(lines[first].lstrip())
    last = first + 1
    while last < len(lines) and (not lines[last].strip() or len(lines[last]) - len(lines[last].lstrip()) > indent):
        last += 1
    return "\n".join(line[indent:] for line in lines[first:last]).rstrip() + "\n"


def _block(file: str, text: str) -> str:
    return f"```yaml\n# {file}\n{text.rstrip()}\n```\n"


def _components(title: str, known: Mapping[str, type[Component]], text: str, found: Examples, kind: str) -> str:
    common = sorted(checks.COMMON) if kind == "checks" else []
    parts = [_NOTE, f"# {title}\n", text + "\n"]
    if common:
        parts.append(f"Beside a check's own key may stand {_listed(common)}.\n")
    for key, component in known.items():
        parts += [f"## {key}\n", _about(component)]
        parts += [_short(component), _options(_as_written(component), component)]
        example = found.component(kind, key) or _own_example(component)
        if example:
            parts.append(example[0])
    return "\n".join(part for part in parts if part)


def _own_example(component: type[Component]) -> tuple[str, bool] | None:
    """The one of the docstring: ``key: ...``."""
    texts = f"{_module(component)}\n{inspect.getdoc(component) or ''}"
    match = re.search(rf"``({component.key}: .+?)``", " ".join(texts.split()))
    return (f"```yaml\n{match[1]}\n```\n", False) if match else None


def _about(component: type[Component]) -> str:
    module = sys.modules[component.__module__]
    own = module.__name__.rpartition(".")[2] == component.key
    return "\n".join(filter(None, [_prose(_module(component)) if own else "", _prose(inspect.getdoc(component) or "")]))


def _module(component: type[Component]) -> str:
    return inspect.getdoc(sys.modules[component.__module__]) or ""


def _prose(text: str, skip: int = 0) -> str:
    """A docstring's paragraphs as Markdown."""
    text = re.sub(r"^``\w+``: (\w)", lambda match: match[1].upper(), text)
    paragraphs = text.replace("``", "`").split("\n\n")[skip:]
    return "\n\n".join(paragraphs) + "\n" if paragraphs else ""


def _as_written(component: type[Component]) -> dict[str, Any]:
    """The options; one that has no name in a file, because the value stands for it, comes first as *value*."""
    shape = schema.model(component)
    bare = component.short({"?": 1})
    if not isinstance(bare, dict) or "?" in bare:
        return shape
    name = next(iter(bare))
    rest = {key: one for key, one in shape["properties"].items() if key != name}
    shape["required"] = ["*value*" if key == name else key for key in shape.get("required", [])]
    return {**shape, "properties": {"*value*": shape["properties"][name], **rest}}


def _short(component: type[Component]) -> str:
    words = {"string": "a text", "array": "a list"}
    named = "?" in (component.short({"?": 1}) or {})  # type: ignore[operator]
    kinds = [words[kind] for kind in words if named and kind in schema.by_type(schema.component(component))]
    alone = "null" in schema.by_type(schema.component(component))
    texts = [f"Short: {' or '.join(kinds)} in place of the options." if kinds else "",
             f"Without options its name alone: `{component.key}`." if alone else ""]  # fmt: skip
    return " ".join(filter(None, texts)) + "\n" if any(texts) else ""


def _options(shape: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    rows = list(_rows(shape, model, ""))
    if not rows:
        return ""
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _rows(shape: Mapping[str, Any], model: type[BaseModel] | None, prefix: str) -> Iterator[str]:
    patterns = shape.get("patternProperties", {})
    named = [(re.sub(r"\(.*\)", "<name>", text.strip("^$")).replace("\\", ""), one) for text, one in patterns.items()]
    for name, one in [*shape.get("properties", {}).items(), *named]:
        if not isinstance(one, dict) or "description" not in one:
            continue  # a note that JSON Schema knows, and that nothing depends on
        info = {i.alias or n: i for n, i in model.model_fields.items()}.get(name) if model else None
        default = "required" if name in shape.get("required", []) else _default(info.default if info else None, one)
        shown = name if name == "*value*" else f"`{prefix}{name}`"
        yield f"| {shown} | {_type(one)} | {default} | {_cell(one.get('description', ''))} |"
        for nested in _objects(one):
            yield from _rows(nested, _nested(info), "" if name == "*value*" else f"{prefix}{name}.")


def _objects(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The object whose keys an option has, or the values of its map have."""
    found = [inner for inner in schema.by_type(dict(one)).get("object", []) if "properties" in inner]
    if not found and isinstance(one.get("additionalProperties"), dict):
        found = [inner for inner in schema.by_type(one["additionalProperties"]).get("object", [])
                 if "properties" in inner]  # fmt: skip
    return found


def _nested(info: Any) -> type[BaseModel] | None:
    types = types_of(info.annotation) if info else []
    return next((one for one in types if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _default(value: object, one: Mapping[str, Any]) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or value == () or value == "" or "Undefined" in repr(value):
        return "none"
    kind = str(one.get("title", ""))
    if isinstance(value, int) and kind == "duration":
        return format_duration(value)
    if isinstance(value, int) and kind == "size":
        return f"{value // 1024 // 1024} MB"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _type(one: Any) -> str:
    if not isinstance(one, dict):
        return "any"
    words: list[str] = []
    for branch in one.get("anyOf", [one]):
        kinds = branch.get("type", [])
        for kind in [kinds] if isinstance(kinds, str) else kinds or ["any"]:
            words += [_word(kind, branch)]
    return " or ".join(dict.fromkeys(word for word in words if word))


def _word(kind: str, branch: Mapping[str, Any]) -> str:
    if "enum" in branch:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in branch["enum"]]
        return ", ".join(f"`{text}`" for text in texts if not text.startswith("["))
    if "const" in branch:
        return f"`{json.dumps(branch['const'])}`".replace('"', "")
    if branch.get("title") and kind not in ("null", "object"):
        return str(branch["title"])
    if kind == "array":
        return f"list of {_type(branch.get('items', {}))}"
    if kind == "object" and "properties" not in branch and isinstance(branch.get("additionalProperties"), dict):
        inner = branch["additionalProperties"]
        return f"map to {_type(inner)}" if "properties" not in inner else "map"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`",
            "object": "map", "null": ""}.get(kind, kind)  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _file(title: str, text: str, shape: Mapping[str, Any], example: str | None,
          model: type[BaseModel] | None = None) -> str:  # fmt: skip
    return "\n".join(filter(None, [_NOTE, f"# {title}\n", text + "\n", _options(shape, model), example]))


def _pipeline(found: Examples) -> str:
    shape = schema.schemas()["pipeline.json"]
    models: dict[str, type[BaseModel]] = {"trigger": Trigger, "airflow": Airflow, "maintain": Maintain, "panel": Panel}
    pages: dict[str, str] = {"source": "sources.md", "transforms": "transforms.md", "checks": "checks.md",
                             "sink": "sinks.md"}  # fmt: skip
    see = {key: f" See [{page.removesuffix('.md')}]({page})." for key, page in pages.items()}
    rows = [f"| `{key}` | {_cell(one.get('description', ''))}{see.get(key, '')} |"
            for key, one in shape["properties"].items()]  # fmt: skip
    parts = [_NOTE, "# Pipelines\n", "`pipelines/<layer>/<name>.yaml` is the pipeline `<layer>.<name>`, and so are its"
             " table, its task and its metrics. A `trigger` makes it a stream, a `schedule` a job.\n",
             "\n".join(["| key | meaning |", "|---|---|", *rows]) + "\n"]  # fmt: skip
    parts += ["## inputs\n", _prose(inspect.getdoc(Input) or ""), found.key("inputs") or ""]
    for key, model in models.items():
        parts += [f"## {key}\n", _prose(inspect.getdoc(model) or ""), _options(schema.model(model), model),
                  found.key(key) or ""]  # fmt: skip
    parts += ["## Reuse\n", _REUSE, found.text("templates/landing.yaml") or "", found.text("bronze/orders.yaml") or "",
              found.text("pipelines/defaults.yaml") or ""]  # fmt: skip
    return "\n".join(part for part in parts if part)


_REUSE = """\
A template is a pipeline with `params` (null: each file gives it) in `pipelines/templates/`. `use` takes it whole;
further keys of the file replace the template's as a whole, and a `trigger` or a `schedule` excludes the other.
`defaults.yaml` of the nearest folder, then of those above it up to `pipelines`, fills the top-level keys that are still
missing; `airflow` is merged key by key. `${lower}` is a parameter, else an entry of the environment's `vars`;
`${UPPER}` is a variable of the process; `${x:-default}` and `$${` for a literal. A value that is only `${x}` keeps its
type. `lakehouse plan --origins` shows where each value comes from, and an error stands at the line that holds the
value, in whichever file.
"""
