"""pytest collects ``<name>.test.yaml``: each test is an item at its own line; Spark, Kafka and PostgreSQL start once.

Installed with the package (entry point ``pytest11``); ``-p no:lakehouse`` leaves it out. A project may say what the
tests run on with a fixture ``lakehouse_stack`` of its own, of scope ``session``.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lakehouse_engine.testing.bench import Bench, Report
    from lakehouse_engine.testing.suite import Case, Stack

SUFFIX = ".test.yaml"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return File.from_parent(parent, path=file_path) if file_path.name.endswith(SUFFIX) else None


class File(pytest.Module):
    """A test file, as far as pytest is concerned a module of functions."""

    def _getobj(self) -> types.ModuleType:
        return types.ModuleType(self.path.name.removesuffix(SUFFIX))

    def collect(self) -> Iterator[pytest.Item]:
        from lakehouse_engine.errors import SpecError
        from lakehouse_engine.testing import reader

        try:
            cases = reader.find([self.path])
        except SpecError as error:
            raise self.CollectError(str(error)) from None
        for case in cases:
            yield Item.from_parent(self, name=case.name, callobj=_test_of(case), case=case)


class Item(pytest.Function):
    """One test."""

    def __init__(self, *, case: Case, **words: Any) -> None:
        super().__init__(**words)
        self._case = case

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self._case.line() - 1, self.name


def _test_of(case: Case) -> Any:
    def test(lakehouse_bench: Bench) -> None:
        from lakehouse_engine.testing.suite import result

        found = result(lakehouse_bench, case, print)
        if not found.passed:
            pytest.fail(f"{found.file}:{found.line}: {found.message}", pytrace=False)

    return test


@pytest.fixture(scope="session")
def lakehouse_stack() -> Stack:
    """What starts and stops Kafka and PostgreSQL below a folder."""
    from lakehouse_engine.local import stack

    return stack


@pytest.fixture(scope="session")
def lakehouse_bench(lakehouse_stack: Stack) -> Iterator[Bench]:
    """Spark, Kafka and PostgreSQL, each started when a test first needs it."""
    from lakehouse_engine.testing.bench import opened

    with opened(_jars, lakehouse_stack, print) as bench:
        yield bench


def _jars(report: Report) -> list[Path]:
    import os

    from lakehouse_engine.local import jars, java

    os.environ.update(java.find_java().environment())
    return jars.engine_jars(report)
