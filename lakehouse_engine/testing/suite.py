"""Runs tests side by side, and tells what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lakehouse_engine.errors import LakehouseError, first_line
from lakehouse_engine.testing import reader, update
from lakehouse_engine.testing.bench import Bench, Report, Stack, opened
from lakehouse_engine.testing.cases import Case
from lakehouse_engine.testing.execute import Failed, Finding, findings

#: tests that run side by side: one mostly waits for the driver, for a commit, for the broker
AT_ONCE = 2


@dataclass(frozen=True)
class Result:
    """One test; ``line`` is that of the test, or of the first expectation that does not hold.

    ``wrong``: the expectations that do not hold; none of them where the test failed in another way.
    """

    case: Case
    line: int
    message: str
    seconds: float
    wrong: tuple[Finding, ...] = ()
    error: bool = False

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def file(self) -> str:
        return self.case.file

    @property
    def passed(self) -> bool:
        return not self.message

    def text(self, *, colour: bool = False) -> str:
        """The verdict, and below it what is wrong; ``colour`` for a terminal."""
        head = f"{'passed' if self.passed else 'FAILED'} {self.file}:{self.line}: {self.name} ({self.seconds:.1f} s)"
        message = _message(self.wrong, colour=True) if self.wrong and colour else self.message
        return "\n".join([head, *(f"    {line}".rstrip() for line in message.splitlines())])

    __str__ = text

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "file": self.file, "line": self.line, "passed": self.passed,
                "message": self.message, "seconds": self.seconds}  # fmt: skip


def run(paths: Sequence[Path], *, jars: Callable[[Report], Sequence[Path]], stack: Stack, report: Report,
        words: Sequence[str] = ()) -> list[Result]:  # fmt: skip
    """The tests of these pipelines, test files and folders: with ``words``, those whose name or file holds one.

    Raises ``SpecError`` when a test file is wrong.
    """
    found = [case for case in reader.find(paths) if not words or any(
        word.lower() in f"{case.file}: {case.name}".lower() for word in words)]  # fmt: skip
    if not found:
        return []
    # the bench is closed first: without Spark, what still runs after an interruption ends at once
    with ThreadPoolExecutor(AT_ONCE) as pool, opened(jars, stack, report) as bench:
        running = [pool.submit(result, bench, case, report) for case in found]
        try:
            return [future.result() for future in running]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def result(bench: Bench, case: Case, report: Report) -> Result:
    """Runs one test, whatever comes of it."""
    report(f"{case.file}: {case.name}")
    began = time.monotonic()
    wrong: tuple[Finding, ...] = ()
    line, message, error = case.line(), "", False
    try:
        wrong = tuple(finding for finding in findings(bench, case) if not finding.holds)
        if wrong:
            line, message = case.line(wrong[0].path), _message(wrong)
    except Failed as failed:
        line, message = case.line(failed.path), str(failed)
    except LakehouseError as raised:
        message, error = str(raised), True
    except Exception as raised:  # a row that its column cannot hold, a service that went away: the others go on
        message, error = f"{type(raised).__name__}: {first_line(raised)}", True
    return Result(case, line, message, time.monotonic() - began, wrong, error)


def updated(results: Sequence[Result]) -> tuple[list[Result], dict[Path, int]]:
    """Rewrites what failed tests expect to what there is; the results as they are then, and how many in which file.

    A test that failed in another way stays as it is. Raises ``RunError`` NOT_UPDATED.
    """
    files: dict[Path, int] = {}
    for file in dict.fromkeys(one.file for one in results if one.wrong):
        wrong = [(one.case, finding) for one in results if one.file == file for finding in one.wrong]
        files[Path(file)] = update.rewrite(Path(file), wrong)
    return [replace(one, line=one.case.line(), message="", wrong=()) if one.wrong else one for one in results], files


def _message(wrong: Sequence[Finding], *, colour: bool = False) -> str:
    return "\n".join(finding.text(colour=colour) for finding in wrong)


__all__ = ["Case", "Result", "Stack", "result", "run", "updated"]
