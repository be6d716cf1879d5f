"""Tests in the user's own format: ``<name>.test.yaml`` beside a pipeline, run on real Spark, Kafka and PostgreSQL.

A stream's test reads a topic of its own with one partition; a batch is what one start of the stream reads. A record's
``_timestamp`` is ``now``, else the greatest event time of its batch. A job's test appends each batch to the source's
table and runs the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.testing import cases
from lakehouse_engine.testing.bench import Bench, Report, Stack, opened
from lakehouse_engine.testing.cases import Case
from lakehouse_engine.testing.execute import Failed, first_line, run_case

#: tests that run side by side: one mostly waits for the driver, for a commit, for the broker
AT_ONCE = 2


@dataclass(frozen=True)
class Result:
    """One test; ``line`` is that of the test, or of the expectation that does not hold."""

    name: str
    file: str
    line: int
    passed: bool
    message: str
    seconds: float

    def __str__(self) -> str:
        head = f"{'passed' if self.passed else 'FAILED'} {self.file}:{self.line}: {self.name} ({self.seconds:.1f} s)"
        return "\n".join([head, *(f"    {line}" for line in self.message.splitlines())])


def run(
    paths: Sequence[Path], *, jars: Callable[[Report], Sequence[Path]], stack: Stack, report: Report
) -> list[Result]:
    """Every test of these pipelines, test files and folders. Raises ``SpecError`` when a test file is wrong."""
    found = cases.find(paths)
    if not found:
        return []
    # the bench is closed first: without Spark, what still runs after an interruption ends at once
    with ThreadPoolExecutor(AT_ONCE) as pool, opened(jars, stack, report) as bench:
        running = [pool.submit(_result, bench, case, report) for case in found]
        try:
            return [future.result() for future in running]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(bench: Bench, case: Case, report: Report) -> Result:
    report(f"{case.file}: {case.name}")
    began = time.monotonic()
    line, message = case.line(), ""
    try:
        run_case(bench, case)
    except Failed as failed:
        line, message = case.line(failed.path), str(failed)
    except LakehouseError as error:
        message = str(error)
    except Exception as error:  # a row that its column cannot hold, a service that went away: the others go on
        message = f"{type(error).__name__}: {first_line(error)}"
    return Result(case.name, case.file, line, not message, message, time.monotonic() - began)


__all__ = ["Result", "Stack", "run"]
