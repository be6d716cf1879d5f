"""Reads test files: every mistake of every file at its line, before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec import yaml
from lakehouse_engine.testing import subject
from lakehouse_engine.testing.cases import (
    EXPECT,
    KEYS,
    SOURCE,
    SUFFIX,
    Batch,
    Case,
    Expect,
    Rows,
    did_you_mean,
    nearest,
)
from lakehouse_engine.testing.values import moment


def find(paths: Sequence[Path]) -> list[Case]:
    """The tests of pipelines, test files and folders, in order. Raises ``SpecError`` with all problems of all files."""
    problems: list[Problem] = []
    files: dict[Path, None] = {}
    for path in paths:
        for file in _files(path, problems):
            files.setdefault(file, None)
    cases = [case for file in files for case in _Reader(file, problems).cases()]
    problems += subject.problems(cases)  # of those, too, that are wrong in part
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
            if case is None:
                continue
            if case.name in names:
                self._problem(f"[{index}].name", "DUPLICATE_NAME", f"two tests are called {case.name!r}")
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
        slips = self._known(value, KEYS, path)
        for key in ("name", "expect"):
            if key not in value and key not in slips:
                self._problem(path, "MISSING_KEY", f"{key} is missing")
        name = value.get("name", path)
        name = name if self._is(name, str, f"{path}.name", "a name is text") else path
        maps = {key: value.get(key, {}) for key in ("defaults", "vars", "params")}
        maps = {key: one if self._is(one, dict, f"{path}.{key}", f"{key} is a map") else {}
                for key, one in maps.items()}  # fmt: skip
        now = value.get("now")
        if now is not None and moment(now) is None:
            self._problem(f"{path}.now", "BAD_VALUE", f"now is a time like 2026-01-01T10:00:00Z, not {now!r}")
        inputs, tables = (self._by_name(value.get(key, {}), f"{path}.{key}", f"{key} is a map from a name to rows")
                          for key in ("inputs", "tables"))  # fmt: skip
        batches = self._batches(value.get("batches", [[]]), f"{path}.batches")
        expect = self._expect(value.get("expect", {"fails": "-"}), f"{path}.expect",
                              len(batches) if isinstance(value.get("batches", []), list) else 9999)  # fmt: skip
        return Case(name, self._shown, pipeline, path, self._lines, batches, expect or Expect(), inputs=inputs,
                    tables=tables, now=moment(now), **maps)  # fmt: skip

    def _known(self, value: Mapping[str, Any], known: Sequence[str], path: str) -> set[str]:
        """Says which keys are not known; gives those that they are most likely meant to be."""
        slips = set()
        for key in value:
            if key not in known:
                self._problem(f"{path}.{key}", "UNKNOWN_KEY", f"{key} is unknown; {did_you_mean(key, known)}")
                slips |= set(get_close_matches(key, known, n=1))
        return slips

    def _batches(self, value: Any, path: str) -> tuple[Batch, ...]:
        if not self._is(value, list, path, "batches is a list of lists of rows"):
            return ()
        found: list[Batch] = []
        for index, batch in enumerate(value):
            place = f"{path}[{index}]"
            if isinstance(batch, dict):
                found.append(self._by_name(batch, place, "", records=True))
            else:
                found.append({SOURCE: self._rows(batch, place, records=True)})
        return tuple(found)

    def _by_name(self, value: Any, path: str, what: str, *, records: bool = False) -> Batch:
        if not self._is(value, dict, path, what):
            return {}
        return {name: self._rows(rows, f"{path}.{name}", records=records) for name, rows in value.items()}

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
        if not value:
            self._problem(path, "BAD_VALUE", f"nothing is expected; there are {', '.join(EXPECT)}")
        rows = self._rows(value["rows"], f"{path}.rows") if "rows" in value else None
        counts = {key: self._count(key, value[key], f"{path}.{key}") for key in ("late", "quarantined") if key in value}
        fails = value.get("fails")
        if fails is not None and not re.fullmatch(r"[A-Z_]+|-", str(fails)):
            self._problem(f"{path}.fails", "BAD_VALUE", f"fails is an error's code, like CHECK_FAILED, not {fails!r}")
        others = {name: self._rows(found, f"{path}.{name}") for name, found in value.items() if name not in EXPECT}
        return Expect(rows, self._after(value.get("after", {}), f"{path}.after", batches), fails=fails, others=others,
                      **counts)  # fmt: skip

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
