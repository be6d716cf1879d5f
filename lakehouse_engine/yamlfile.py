"""YAML 1.2 as pipelines, contracts and environments use it: plain values, and the line of each.

Only ``true`` and ``false`` are booleans, dates stay text, ``010`` is ten. Tags, duplicate keys, alias floods, deep
nesting and large files are refused. Keys are always text, as they are written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lakehouse_engine.errors import Problem, SpecError

MAX_CHARACTERS, MAX_DEPTH, MAX_ALIASES, MAX_VALUES = 256_000, 32, 64, 20_000
_PLAIN = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True,
                                  "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}  # fmt: skip
_QUOTE = "inside { } and [ ] put quotes around text that holds , { } [ ] or ': '"


@dataclass(frozen=True)
class Document:
    """``lines`` maps a path such as ``transforms[1].window.by[0]`` to its line; ``""`` is the whole."""

    file: str
    value: Any
    lines: dict[str, int]


class _Refused(Exception):
    def __init__(self, code: str, line: int, message: str) -> None:
        super().__init__(message)
        self.code, self.line = code, line


class _Loader(yaml.SafeLoader):
    """Composes nodes only; values are made by ``_Values``, which knows YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - shadows the parent's YAML 1.1 table
    depth = aliases = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise _Refused("YAML_LIMIT", line, f"more than {MAX_ALIASES} aliases")
        elif getattr(event, "tag", None) is not None:
            raise _Refused("YAML_SYNTAX", line, f"tags such as {event.tag} are not allowed; write the plain value")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused("YAML_LIMIT", line, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Values:
    """Turns nodes into values and notes lines and what is wrong."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.refused: list[_Refused] = []
        self.count = 0

    def of(self, node: Node, path: str, line: int, depth: int = 0) -> Any:
        self.lines.setdefault(path, line)
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:  # aliases multiply, or point at what holds them
            raise _Refused(
                "YAML_LIMIT", line, f"more than {MAX_VALUES} values or {MAX_DEPTH} levels with aliases expanded"
            )
        if isinstance(node, MappingNode):
            return self._map(node, path, depth)
        if isinstance(node, SequenceNode):
            for item in node.value if node.flow_style else ():
                self._balanced(item)
            return [self.of(item, f"{path}[{i}]", _line(item), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node) if isinstance(node, ScalarNode) else None

    def _map(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.refused.append(_Refused("YAML_SYNTAX", _line(key), f"a key must be text; {_QUOTE}"))
                continue
            if node.flow_style and not (self._balanced(key) and self._balanced(value)):
                continue
            if key.value in found:
                self.refused.append(_Refused("DUPLICATE_KEY", _line(key), f"{key.value} stands here twice"))
                continue
            below = f"{path}.{key.value}" if path else key.value
            found[key.value] = self.of(value, below, _line(key), depth + 1)
        return found

    def _balanced(self, node: Node) -> bool:
        """A common mistake: ``{n: f(a, b)}`` is split by YAML at the comma."""
        if not isinstance(node, ScalarNode) or node.style is not None:
            return True
        depth = lowest = 0
        for character in re.sub(r"'[^']*'", "", node.value):
            depth += (character == "(") - (character == ")")
            lowest = min(lowest, depth)
        if depth > 0:  # the other half lies beyond the comma, and needs no error of its own
            message = (
                f"`{node.value}` has an unbalanced parenthesis: YAML splits at commas; put the expression in quotes"
            )
            self.refused.append(_Refused("YAML_SYNTAX", _line(node), message))
        return depth == lowest == 0

    def _scalar(self, node: ScalarNode) -> Any:
        text = node.value
        if node.style is not None or len(text) > 64:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        return text


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def parse(text: str, file: str) -> Document:
    """One document. Raises ``SpecError`` YAML_SYNTAX, DUPLICATE_KEY, YAML_LIMIT with every problem that is seen."""
    values = _Values()
    try:
        if len(text) > MAX_CHARACTERS:
            raise _Refused("YAML_LIMIT", 1, f"larger than {MAX_CHARACTERS} characters")
        node = _compose(text)
        value = None if node is None else values.of(node, "", _line(node))
    except _Refused as refused:
        values.refused.append(refused)
    except yaml.MarkedYAMLError as error:
        values.refused.append(_syntax(error))
    except yaml.YAMLError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        values.refused.append(_Refused("YAML_SYNTAX", line, str(error).splitlines()[0]))
    except (RecursionError, ValueError) as error:
        values.refused.append(_Refused("YAML_SYNTAX", 1, f"cannot be read: {error}"))
    if values.refused:
        raise SpecError(Problem(file, refused.line, refused.code, str(refused)) for refused in values.refused)
    return Document(file, value, values.lines)


def read(path: Path, file: str) -> Document:
    """``parse`` of a file. Raises also ``SpecError`` MISSING_FILE, NOT_READABLE."""
    try:
        return parse(path.read_bytes().decode("utf-8"), file)
    except FileNotFoundError:
        raise SpecError([Problem(file, 0, "MISSING_FILE", "there is no such file")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem(file, line, "YAML_SYNTAX", "is not UTF-8 text")]) from None
    except OSError as error:
        raise SpecError([Problem(file, 0, "NOT_READABLE", error.strerror or "cannot be read")]) from None


def _compose(text: str) -> Node | None:
    loader = _Loader(text)
    try:
        node: Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _syntax(error: yaml.MarkedYAMLError) -> _Refused:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is not YAML"
    hints = list(_hints(error, problem))
    return _Refused("YAML_SYNTAX", mark.line + 1 if mark else 1, "; ".join([problem, *hints]))


def _hints(error: yaml.MarkedYAMLError, problem: str) -> Iterator[str]:
    if "'\\t'" in problem:
        yield "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem:
        yield "put quotes around text that holds ': '"
    elif "cannot start any token" in problem:
        yield "put quotes around the text"
    elif "expected a single document" in (error.context or ""):
        yield "one file is one document"
    elif "flow" in (error.context or ""):
        yield _QUOTE
