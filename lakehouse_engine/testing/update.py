"""Rewrites what a test expects to what there is, in its file: ``lakehouse test --update``.

Only the cells that differ are touched, rows that are missing go and new ones come where the list ends; comments, order,
quotes and layout stay, so that the change can be read as a diff. The places are those of the YAML parser's marks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lakehouse_engine.errors import RunError
from lakehouse_engine.spec import yaml as documents
from lakehouse_engine.testing.cases import Case
from lakehouse_engine.testing.execute import Finding
from lakehouse_engine.testing.values import Found, plain_text, same, written

#: text that is the same without quotes: words, paths, times and dates
_PLAIN = re.compile(r"(?!(?:null|true|false)$)[a-z_/][\w/.@+-]*|\d{4}-\d{2}-\d{2}(?:T[\d:.]+Z)?", re.IGNORECASE)
#: begin and end of what goes, and what comes
Edit = tuple[int, int, str]


def rewrite(file: Path, wrong: Sequence[tuple[Case, Finding]]) -> int:
    """Puts expectations of one file right; returns how many. Raises ``RunError`` NOT_UPDATED, the file as it was."""
    text = file.read_text(encoding="utf-8")
    text += "" if text.endswith("\n") else "\n"
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    edits: list[Edit] = []
    for case, finding in wrong:
        edits += _edits(text, _Place(root, case.path, finding.path), finding)
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        _check(file, documents.read(beside, str(file)), wrong)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    return len(wrong)


def _check(file: Path, document: documents.Document, wrong: Sequence[tuple[Case, Finding]]) -> None:
    """Reads back what was written: an anchor, or a layout that nobody thought of, must not end in a wrong file."""
    for case, finding in wrong:
        value: Any = document.value
        for word in (int(case.path.strip("[]")), "expect", *_words(finding.path)):
            value = value[word] if value is not None else None
        read = tuple(value) if isinstance(value, list) else value
        if document.problems or not replace(finding, expected=read).holds:
            raise RunError("NOT_UPDATED", "what was written would not be read back as it is; change the file by hand",
                           where=f"{file}:{case.line(finding.path)}")  # fmt: skip


def _words(path: str) -> tuple[str, ...]:
    """Keys below ``expect``; a table's name holds a dot itself."""
    words = path.removeprefix(".expect.")
    return ("after", words.removeprefix("after.")) if words.startswith("after.") else (words,)


class _Place:
    """Where an expectation stands. ``column``: that of its key; ``flow``: its key stands inside braces."""

    def __init__(self, root: Any, case: str, path: str) -> None:
        self.node: Any = root.value[int(case.strip("[]"))]
        self.flow, self.column = False, 0
        for key in ("expect", *_words(path)):
            assert isinstance(self.node, MappingNode)
            self.flow = self.flow or bool(self.node.flow_style)
            name, self.node = next((k, v) for k, v in self.node.value if k.value == key)
            self.column = name.start_mark.column
            self.after = name.end_mark.index


def _edits(text: str, place: _Place, finding: Finding) -> Iterator[Edit]:
    difference = finding.difference
    if difference is None:
        yield _span(place.node, str(finding.actual))
        return
    assert isinstance(place.node, SequenceNode)
    assert isinstance(finding.expected, tuple)
    items = {id(row): node for row, node in zip(finding.expected, place.node.value, strict=True)}
    for expected, found in difference.changed:
        yield from _cells(items[id(expected)], expected, found)
    # a row in place of one that is gone; what is left over only goes, or only comes
    both = min(len(difference.missing), len(difference.unexpected))
    for gone, new in zip(difference.missing, difference.unexpected, strict=False):
        node = items[id(gone)]
        yield node.start_mark.index, _end(node), _row(new, node.flow_style, node.start_mark.column)
    gone_nodes = [items[id(row)] for row in difference.missing[both:]]
    if gone_nodes:
        yield from _removed(text, place, place.node, gone_nodes)
    elif difference.unexpected[both:]:
        yield _added(text, place, place.node, difference.unexpected[both:])


def _cells(node: Node, expected: Found, found: Found) -> Iterator[Edit]:
    for name, value in node.value:
        if not same(expected[name.value], found[name.value]):
            quoted = isinstance(value, ScalarNode) and value.style in ("'", '"')
            yield _span(value, literal(found[name.value], quoted=quoted))


def _removed(text: str, place: _Place, rows: SequenceNode, gone: Sequence[Node]) -> Iterator[Edit]:
    kept = [node for node in rows.value if node not in gone]
    if not kept:
        begin, end = (rows.start_mark.index, _end(rows)) if rows.flow_style else (place.after, _end(rows))
        yield begin, end, "[]" if rows.flow_style else ": []"
        return
    last = rows.value.index(kept[-1])
    for index, node in enumerate(rows.value):
        if node not in gone:
            continue
        if not rows.flow_style:  # its lines, with the comment at its end
            yield text.rindex("\n", 0, node.start_mark.index) + 1, text.index("\n", _end(node)) + 1, ""
        elif index < last:
            yield node.start_mark.index, rows.value[index + 1].start_mark.index, ""
    if rows.flow_style and last + 1 < len(rows.value):
        yield _end(kept[-1]), _end(rows.value[-1]), ""


def _added(text: str, place: _Place, rows: SequenceNode, new: Sequence[Found]) -> Edit:
    if not rows.value:
        if place.flow or len(new) == 1:
            return _span(rows, "[" + ", ".join(_row(row, True, 0) for row in new) + "]")
        begin = " " * (place.column + 2)
        end = text.index("\n", _end(rows))
        comment = text[_end(rows) : end]
        return place.after, end, ":" + comment + "".join(f"\n{begin}- {_row(row, True, 0)}" for row in new)
    last = rows.value[-1]
    if rows.flow_style:
        return _end(last), _end(last), "".join(f", {_row(row, True, 0)}" for row in new)
    column = last.start_mark.column
    dash = last.start_mark.index - text.rindex("\n", 0, last.start_mark.index) - 1
    begin = " " * (text[last.start_mark.index - dash : last.start_mark.index].index("-"))
    gap = " " * (column - len(begin) - 1)
    at = text.index("\n", _end(last)) + 1
    return at, at, "".join(f"{begin}-{gap}{_row(row, last.flow_style, column)}\n" for row in new)


def _row(row: Found, flow: bool | None, column: int) -> str:
    cells = [f"{name}: {literal(value)}" for name, value in row.items()]
    return "{" + ", ".join(cells) + "}" if flow or not cells else f"\n{' ' * column}".join(cells)


def _span(node: Node, new: str) -> Edit:
    return node.start_mark.index, _end(node), new


def _end(node: Any) -> int:
    """Where its last character is: the parser ends a block where the next thing begins."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, MappingNode) else last)


def literal(value: Any, *, quoted: bool = False) -> str:
    """A value as a test writes it inside braces; ``quoted``: a single one stood in quotes."""
    return written(value, lambda leaf: _leaf(leaf, quoted=quoted and leaf is value))


def _leaf(value: Any, *, quoted: bool) -> str:
    if isinstance(value, int | float) and not quoted:
        return repr(value)
    text = plain_text(value)
    if isinstance(value, Decimal) or quoted or not _PLAIN.fullmatch(text):
        return '"' + text.translate(_ESCAPED) + '"'
    return text


_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"})
