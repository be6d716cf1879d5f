"""Test files: ``<name>.test.yaml`` beside its pipeline is a list of tests, checked key by key before anything starts.

A row is a map, for Kafka also text (sent as it is) or null (a tombstone).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from lakehouse_engine.errors import Problem

Row = Mapping[str, Any] | str | None
Rows = tuple[Row, ...]
#: rows by input; those of the pipeline's own source stand under ``SOURCE``
Batch = Mapping[str, Rows]
SUFFIX = ".test.yaml"
SOURCE = "source"
KEYS = ("name", "defaults", "params", "vars", "now", "inputs", "tables", "batches", "expect")
EXPECT = ("rows", "after", "late", "quarantined", "fails")


def file_schema() -> dict[str, Any]:
    """What a test file may say, as JSON Schema."""
    record = {"type": ["object", "string", "null"]}
    records = {"type": "array", "items": record}
    rows = {"type": "array", "items": {"type": "object"}}
    count = {"type": ["integer", "array"], "items": {"type": "object"}}
    numbered = {"type": "object", "propertyNames": {"pattern": "^[1-9][0-9]{0,3}$"}, "additionalProperties": rows}
    expect = {
        "rows": {**rows, "description": "The result at the end; only the columns written count, order does not."},
        "after": {**numbered, "description": "The result after a batch, by its number from 1."},
        "late": {**count, "description": "Late rows, or how many."},
        "quarantined": {**count, "description": "Quarantined rows; a number is the pipeline's own counter."},
        "fails": {"type": ["string", "null"], "pattern": "^([A-Z_]+|-)$",
                  "description": "The code of the error it ends with; what else is expected is what is there then."},
    }  # fmt: skip
    given = {"type": "object", "additionalProperties": rows}
    case = {
        "name": {"type": "string", "description": "A sentence that is true when the test passes."},
        "defaults": {"type": "object", "description": "Fills the fields that a row lacks; those of other inputs than"
                     " the source only where they have such a column."},
        "params": {"type": "object", "description": "Goes over the pipeline's own params for its template."},
        "vars": {"type": "object", "description": "What ${lower} stands for."},
        "now": {"type": ["string", "null"], "description": "The clock of the source, e.g. 2026-01-01T10:00:00Z."},
        "inputs": {**given, "description": "Tables that the pipeline reads, given whole, by the input's name or the"
                   " table's; a batch that names one gives it anew."},
        "tables": {**given, "description": "What a table that the pipeline writes holds before, by the table's name."},
        "batches": {"type": "array", "items": {"type": ["array", "object"], "items": record,
                                               "additionalProperties": records},
                    "description": "Micro-batches of a stream or runs of a job: rows of the source, or a map from an"
                    " input to its rows, where the pipeline's own is called source. To Kafka a map goes as JSON (but"
                    " for _key, _headers and, of several topics, _topic, which are the record's), text as it is, null"
                    " as a tombstone. Without"
                    " batches there is one, of no rows."},
        "expect": {"type": "object", "properties": expect, "minProperties": 1, "additionalProperties": rows,
                   "description": "What must hold. Other keys: the rows of another sink, by its table or topic, or of"
                   " a side table."},
    }  # fmt: skip
    assert (tuple(case), tuple(expect)) == (KEYS, EXPECT)
    return {"type": "array", "items": {"type": "object", "properties": case, "additionalProperties": False,
                                       "required": ["name", "expect"]}}  # fmt: skip


@dataclass(frozen=True)
class Expect:
    """None: not asked. ``late`` and ``quarantined``: a number, or the rows of the side table. ``others``: by table or
    topic."""

    rows: Rows | None = None
    after: Mapping[int, Rows] = field(default_factory=dict)
    late: int | Rows | None = None
    quarantined: int | Rows | None = None
    fails: str | None = None
    others: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def looks(self) -> bool:
        """Whether it asks for anything but an error."""
        return bool(self.after or self.others) or any(
            one is not None for one in (self.rows, self.late, self.quarantined))  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One test. ``path`` is its place in the file (``[0]``), ``lines`` those of the whole file."""

    name: str
    file: str
    pipeline: Path
    path: str
    lines: Mapping[str, int] = field(repr=False)
    batches: tuple[Batch, ...]
    expect: Expect
    defaults: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Batch = field(default_factory=dict)
    tables: Batch = field(default_factory=dict)
    now: datetime | None = None
    #: whether a value that its column cannot hold is looked for before rows are written: one Spark job more
    careful: ClassVar[bool] = False

    def line(self, path: str = "") -> int:
        """The line of a path below the test, or of the nearest one above it."""
        return nearest(self.lines, self.path + path)

    def problem(self, path: str, code: str, message: str) -> Problem:
        """What is wrong at a path below the test."""
        return Problem(self.file, self.line(path), code, message, self.path + path)

    def batch_path(self, number: int, name: str) -> str:
        """Where the rows of an input in a batch (from 0) stand: a batch may be a list, then of the source alone."""
        place = f".batches[{number}]"
        return f"{place}.{name}" if f"{self.path}{place}.{name}" in self.lines else place


def nearest(lines: Mapping[str, int], path: str) -> int:
    while path and path not in lines:
        path = re.sub(r"(\.[^.\[\]]*|\[\d+\])$", "", path)
    return lines.get(path, 1)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
