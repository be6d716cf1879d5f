"""Test files: ``<name>.test.yaml`` beside its pipeline is a list of tests, checked key by key before anything starts.

A row is a map, for Kafka also text (sent as it is) or null (a tombstone).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec import yaml
from lakehouse_engine.testing.values import moment

Row = Mapping[str, Any] | str | None
Rows = tuple[Row, ...]
SUFFIX = ".test.yaml"
_KEYS = ("name", "defaults", "batches", "vars", "now", "expect")
_LATER = {"tables", "inputs", "params"}
_EXPECT = ("rows", "after", "late", "quarantined", "fails")


def file_schema() -> dict[str, Any]:
    """What a test file may say, as JSON Schema."""
    record = {"type": ["object", "string", "null"]}
    rows = {"type": "array", "items": {"type": "object"}}
    count = {"type": ["integer", "array"], "items": {"type": "object"}}
    numbered = {"type": "object", "propertyNames": {"pattern": "^[1-9][0-9]{0,3}$"}, "additionalProperties": rows}
    expect = {
        "rows": {**rows, "description": "The result at the end; only the columns written count, order does not."},
        "after": {**numbered, "description": "The result after a batch, by its number from 1."},
        "late": {**count, "description": "Late rows, or how many."},
        "quarantined": {**count, "description": "Quarantined rows; a number is the pipeline's own counter."},
        "fails": {"type": ["string", "null"], "pattern": "^([A-Z_]+|-)$",
                  "description": "The code of the error it ends with."},
    }  # fmt: skip
    case = {
        "name": {"type": "string", "description": "A sentence that is true when the test passes."},
        "defaults": {"type": "object", "description": "Fills the fields that a row lacks."},
        "batches": {"type": "array", "items": {"type": "array", "items": record}, "description":
                    "Micro-batches of a stream or runs of a job. To Kafka a map goes as JSON, text as it is, null as a"
                    " tombstone."},
        "vars": {"type": "object", "description": "What ${lower} stands for."},
        "now": {"type": ["string", "null"], "description": "The clock of the source, e.g. 2026-01-01T10:00:00Z."},
        "expect": {"type": "object", "properties": expect, "additionalProperties": False, "minProperties": 1,
                   "description": "What must hold."},
    }  # fmt: skip
    assert (tuple(case), tuple(expect)) == (_KEYS, _EXPECT)
    return {"type": "array", "items": {"type": "object", "properties": case, "additionalProperties": False,
                                       "required": ["name", "batches", "expect"]}}  # fmt: skip


@dataclass(frozen=True)
class Expect:
    """None: not asked. ``late`` and ``quarantined``: a number, or the rows of the side table."""

    rows: Rows | None = None
    after: Mapping[int, Rows] = field(default_factory=dict)
    late: int | Rows | None = None
    quarantined: int | Rows | None = None
    fails: str | None = None


@dataclass(frozen=True)
class Case:
    """One test. ``path`` is its place in the file (``[0]``), ``lines`` those of the whole file."""

    name: str
    file: str
    pipeline: Path
    path: str
    lines: Mapping[str, int] = field(repr=False)
    batches: tuple[Rows, ...]
    expect: Expect
    defaults: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, Any] = field(default_factory=dict)
    now: datetime | None = None

    def line(self, path: str = "") -> int:
        """The line of a path below the test, or of the nearest one above it."""
        return nearest(self.lines, self.path + path)

    def filled(self, row: Row) -> Row:
        return {**self.defaults, **row} if isinstance(row, Mapping) else row


def nearest(lines: Mapping[str, int], path: str) -> int:
    while path and path not in lines:
        path = re.sub(r"(\.[^.\[\]]*|\[\d+\])$", "", path)
    return lines.get(path, 1)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def find(paths: Sequence[Path]) -> list[Case]:
    """The tests of pipelines, test files and folders, in order. Raises ``SpecError`` with all problems of all files."""
    problems: list[Problem] = []
    files: dict[Path, None] = {}
    for path in paths:
        for file in _files(path, problems):
            files.setdefault(file, None)
    cases = [case for file in files for case in _Reader(file, problems).cases()]
    if problems:
        raise SpecError(problems)
    return cases


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob(f"*{SUFFIX}"))
    test = path if path.name.endswith(SUFFIX) else path.with_name(f"{path.stem}{SUFFIX}")
    if path.is_file() and test.is_file():
        return [test]
    code, missing = ("FILE_MISSING", path) if not path.is_file() else ("NO_TESTS", test)
    problems.append(Problem(str(path), 0, code, f"there is no {missing.name} here"))
    return []


class _Reader:
    """One file."""

    def __init__(self, file: Path, problems: list[Problem]) -> None:
        self._file, self._shown, self._problems = file, str(file), problems
        self._lines: dict[str, int] = {}

    def cases(self) -> Iterator[Case]:
        document = yaml.read(self._file, self._shown)
        self._problems += document.problems
        self._lines = document.lines
        pipeline = self._file.with_name(self._file.name.removesuffix(SUFFIX) + ".yaml")
        if not pipeline.is_file():
            self._problem("", "FILE_MISSING", f"there is no pipeline {pipeline.name} beside its tests")
        if document.problems or not self._is(document.value, list, "", "a test file is a list of tests"):
            return
        names: set[str] = set()
        for index, value in enumerate(document.value):
            case = self._case(value, f"[{index}]", pipeline)
            if case is not None and case.name in names:
                self._problem(f"[{index}].name", "DUPLICATE_NAME", f"two tests are called {case.name!r}")
            if case is not None:
                names.add(case.name)
                yield case

    def _problem(self, path: str, code: str, message: str) -> None:
        self._problems.append(Problem(self._shown, nearest(self._lines, path), code, message, path))

    def _is(self, value: object, kind: type | tuple[type, ...], path: str, what: str) -> bool:
        # YAML's true is no number
        if isinstance(value, kind) and not isinstance(value, bool):
            return True
        self._problem(path, "BAD_VALUE", what)
        return False

    def _case(self, value: Any, path: str, pipeline: Path) -> Case | None:
        if not self._is(value, dict, path, "a test is a map with name, batches and expect"):
            return None
        before = len(self._problems)
        slips = self._known(value, _KEYS, path)
        for key in ("name", "batches", "expect"):
            if key not in value and key not in slips:
                self._problem(path, "MISSING_KEY", f"{key} is missing")
        self._is(value.get("name", "-"), str, f"{path}.name", "a name is text")
        for key in ("defaults", "vars"):
            self._is(value.get(key, {}), dict, f"{path}.{key}", f"{key} is a map")
        now = value.get("now")
        if now is not None and moment(now) is None:
            self._problem(f"{path}.now", "BAD_VALUE", f"now is a time like 2026-01-01T10:00:00Z, not {now!r}")
        batches = self._batches(value.get("batches", []), f"{path}.batches")
        expect = self._expect(value.get("expect", {"fails": "-"}), f"{path}.expect",
                              len(batches) if isinstance(value.get("batches"), list) else 9999)  # fmt: skip
        if len(self._problems) > before or expect is None:
            return None
        return Case(value["name"], self._shown, pipeline, path, self._lines, batches, expect,
                    value.get("defaults", {}), value.get("vars", {}), moment(now))  # fmt: skip

    def _known(self, value: Mapping[str, Any], known: Sequence[str], path: str) -> set[str]:
        """Says which keys are not known; gives those that they are most likely meant to be."""
        slips = set()
        for key in value:
            if key in _LATER:
                self._problem(f"{path}.{key}", "NOT_YET", f"{key} comes with a later version")
            elif key not in known:
                self._problem(f"{path}.{key}", "UNKNOWN_KEY", f"{key} is unknown; {did_you_mean(key, known)}")
                slips |= set(get_close_matches(key, known, n=1))
        return slips

    def _batches(self, value: Any, path: str) -> tuple[Rows, ...]:
        if not self._is(value, list, path, "batches is a list of lists of rows"):
            return ()
        found = []
        for index, batch in enumerate(value):
            if isinstance(batch, dict):
                self._problem(f"{path}[{index}]", "NOT_YET", "batches of several inputs come with a later version")
            else:
                found.append(self._rows(batch, f"{path}[{index}]", records=True))
        return tuple(found)

    def _rows(self, value: Any, path: str, *, records: bool = False) -> Rows:
        if not self._is(value, list, path, "rows are a list; begin each with a dash, or write [{...}, {...}]"):
            return ()
        kinds = (dict, str, type(None)) if records else (dict,)
        what = "a row is a map" + (", text as it is sent, or null" if records else "")
        for index, row in enumerate(value):
            self._is(row, kinds, f"{path}[{index}]", what)
        return tuple(value)

    def _expect(self, value: Any, path: str, batches: int) -> Expect | None:
        if not self._is(value, dict, path, "expect is a map"):
            return None
        self._known(value, _EXPECT, path)
        if not value:
            self._problem(path, "BAD_VALUE", f"nothing is expected; there are {', '.join(_EXPECT)}")
        rows = self._rows(value["rows"], f"{path}.rows") if "rows" in value else None
        counts = {key: self._count(key, value[key], f"{path}.{key}") for key in ("late", "quarantined") if key in value}
        fails = value.get("fails")
        if fails is not None and not re.fullmatch(r"[A-Z_]+|-", str(fails)):
            self._problem(f"{path}.fails", "BAD_VALUE", f"fails is an error's code, like CHECK_FAILED, not {fails!r}")
        return Expect(rows, self._after(value.get("after", {}), f"{path}.after", batches), fails=fails, **counts)

    def _count(self, key: str, value: Any, path: str) -> int | Rows:
        if isinstance(value, list):
            return self._rows(value, path)
        return int(value) if self._is(value, int, path, f"{key} is a number of rows, or the rows") else 0

    def _after(self, value: Any, path: str, batches: int) -> dict[int, Rows]:
        found = {}
        if self._is(value, dict, path, "after is a map from a batch's number to rows"):
            for key, rows in value.items():
                if not re.fullmatch(r"[1-9][0-9]{0,3}", key):
                    self._problem(f"{path}.{key}", "BAD_VALUE", f"after holds rows by a batch's number, not {key}")
                elif int(key) > batches:
                    self._problem(f"{path}.{key}", "BAD_VALUE", f"batches are numbered from 1 to {batches}, not {key}")
                made = self._rows(rows, f"{path}.{key}")
                if key.isdecimal():
                    found[int(key)] = made
        return found
