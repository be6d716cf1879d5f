"""YAML 1.2 as pipeline files use it: only true and false are booleans, dates stay text, every value knows its line.

Duplicate keys, tags, deep nesting and alias floods are refused. After an idea of Beam's SafeLineLoader.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lakehouse_engine.errors import Problem

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 40, 50_000
_PLAIN = (
    ("tag:yaml.org,2002:null", re.compile(r"(null|Null|NULL|~|)\Z")),
    ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+\Z")),
    ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")),
)
_BUILT_IN = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass
class Document:
    """``value``: dicts, lists and scalars. ``lines``: a path like ``transforms[1].window.by`` to its line from 1.

    ``broken``: paths whose value was refused here; ``holes``: maps that lack a part that was refused.
    """

    file: str
    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    holes: set[str] = field(default_factory=set)


class _Loader(yaml.SafeLoader):
    pass


def read(path: Path, shown: str) -> Document:
    """Reads one file; what is wrong with its YAML stands in ``problems`` (YAML_SYNTAX, DUPLICATE_KEY, YAML_LIMIT)."""
    document = Document(shown)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        document.problems.append(Problem(shown, 1, "UNREADABLE", f"the file cannot be read: {reason}"))
        return document
    if len(raw) > MAX_BYTES:
        document.problems.append(Problem(shown, 1, "YAML_LIMIT", f"the file is larger than {MAX_BYTES:,} bytes"))
        return document
    breaks = [match.start() for match in re.finditer("\n", text)]
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            document.problems.append(Problem(shown, 1, "YAML_SYNTAX", "the file is empty"))
            return document
        _Walk(document, breaks).build(node)
    except yaml.MarkedYAMLError as error:
        document.problems.append(Problem(shown, _line(error.problem_mark or error.context_mark, breaks), "YAML_SYNTAX",
                                         _reason(error)))  # fmt: skip
    except yaml.YAMLError as error:
        document.problems.append(Problem(shown, 1, "YAML_SYNTAX", str(error).splitlines()[0]))
    except (RecursionError, _LimitError):
        document.problems.append(Problem(shown, 1, "YAML_LIMIT", "the file nests too deep or repeats too much"))
    return document


def _line(mark: Any, breaks: Sequence[int]) -> int:
    """From 1, as editors count: YAML also takes U+2028 and its like for line breaks."""
    return bisect_left(breaks, mark.index) + 1 if mark else 1


def nearest(path: str, lines: Container[str]) -> str:
    """The path, or the nearest one above it that stands in the file; '' for the file itself."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return path


def _reason(error: yaml.MarkedYAMLError) -> str:
    reason = error.problem or "not YAML"
    if reason == "but found another document":
        return "a file holds one document; --- begins another"
    if "\\t" in reason:
        reason += "; indent with spaces"
    elif "found undefined alias" in reason or "expected alphabetic" in reason:
        reason += "; quote the value if it begins with * or &"
    elif "mapping values are not allowed" in reason:
        reason += "; quote a value that holds ': '"
    elif "','" in reason:
        reason += "; inside {} and [] quote an expression that holds , { } or ': '"
    return reason


class _LimitError(Exception):
    pass


class _Walk:
    def __init__(self, document: Document, breaks: Sequence[int]) -> None:
        self._document, self._breaks = document, breaks
        self._nodes = 0

    def build(self, node: Node) -> None:
        self._document.value = self._value(node, "", 0)

    def _value(self, node: Node, path: str, depth: int, flow: bool = False) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:  # an alias counts as often as it is used
            raise _LimitError
        line = _line(node.start_mark, self._breaks)
        self._document.lines.setdefault(path, line)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path, line, flow)
        if node.tag not in _BUILT_IN:
            self._problem(line, "YAML_SYNTAX", f"tags like {node.tag} are not allowed")
            self._document.broken.add(path)
            return None
        if isinstance(node, SequenceNode):
            inner = bool(node.flow_style)
            return [self._value(item, f"{path}[{i}]", depth + 1, inner) for i, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._map(node, path, depth)

    def _map(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node.start_mark, self._breaks)
            if not isinstance(key_node, ScalarNode):
                self._problem(line, "YAML_SYNTAX", "a key must be a plain word")
                self._document.holes.add(path)
                continue
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge" or key == "<<":
                self._problem(line, "YAML_SYNTAX", "merge keys (<<) are not allowed; write a template or defaults.yaml")
                self._document.holes.add(path)
                continue
            if value_node.value == "" and key.count("(") != key.count(")"):
                self._problem(line, "UNBALANCED", f"`{key}` has unbalanced parentheses: inside {{}} quote an expression"
                              " that holds a comma")  # fmt: skip
                continue
            if key in found:
                self._problem(line, "DUPLICATE_KEY", f"{key} stands twice in this map")
                continue
            inner = f"{path}.{key}" if path else key
            self._document.lines[inner] = line
            found[key] = self._value(value_node, inner, depth + 1, bool(node.flow_style))
        return found

    def _scalar(self, node: ScalarNode, path: str, line: int, flow: bool) -> Any:
        if node.style is not None:  # quoted or block: text
            return node.value
        implicit = node.tag.startswith("tag:yaml.org,2002:")
        if not implicit:
            self._problem(line, "YAML_SYNTAX", f"tags like {node.tag} are not allowed")
            self._document.broken.add(path)
            return None
        for tag, pattern in _PLAIN:
            if pattern.match(node.value):
                kind = tag.rpartition(":")[2]
                if kind == "null":
                    return None
                if kind == "bool":
                    return node.value.lower() == "true"
                return int(node.value) if kind == "int" else float(node.value)
        if flow and node.value.count("(") != node.value.count(")"):
            self._problem(line, "UNBALANCED", f"`{node.value}` has unbalanced parentheses: inside {{}} and [] quote an"
                          " expression that holds a comma")  # fmt: skip
            self._document.broken.add(path)
        return node.value

    def _problem(self, line: int, code: str, message: str) -> None:
        self._document.problems.append(Problem(self._document.file, line, code, message))
