"""A stream that fails is started again, and what fails then fails no other stream."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import supervise
from lakehouse_engine.errors import first_line
from lakehouse_engine.locks import acquire


class Run:
    """A scan's run: the first ends by an error, the second cannot start, the third goes on."""

    starts = 0

    def __init__(self, *_: Any) -> None:
        self.batches, self.detached, self.query = 0, dict[str, str](), SimpleNamespace(isActive=True)

    def start(self, *, available_now: bool) -> None:
        Run.starts += 1
        if Run.starts == 2:
            raise OSError("No space left on device")
        self.query.isActive = Run.starts > 2

    def why(self) -> BaseException:
        return OSError("No space left on device")

    def rest(self) -> None: ...

    release = stop = rest


def test_a_start_that_fails_on_a_full_disk_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = SimpleNamespace(began=lambda *_: None, see=lambda *_: None, progress=said.append)
    scan = SimpleNamespace(name="clicks@bronze.clicks", members=[SimpleNamespace(name="bronze.clicks")])
    monkeypatch.setattr(supervise, "StateRun", Run)
    monkeypatch.setattr(supervise.time, "monotonic", iter(range(0, 1000, 100)).__next__)
    one = supervise.Supervised(scan, None, None, told, available_now=False)  # type: ignore[arg-type]
    one.start()
    for _ in range(4):
        one.look()
    assert (Run.starts, one.done, one.failures) == (3, False, [])
    assert [line.partition(": ")[2] for line in said] == [
        "STREAM_FAILED: No space left on device; starting again in 1 s (1 of 5)",
        "STREAM_FAILED: No space left on device; starting again in 2 s (2 of 5)",
    ]


def test_a_lock_whose_holder_could_not_be_written_is_given_back(spark: SparkSession, tmp_path: Path) -> None:
    """Else nobody gets it while this JVM lives, not even the next try of its own."""
    (tmp_path / "_locks").mkdir()
    (tmp_path / "_locks" / "a.lock").symlink_to("/dev/full")
    for _ in range(2):
        with pytest.raises(Exception, match=r"No space left|Invalid argument"):
            acquire(spark, tmp_path, "a", "a")


def test_an_error_of_javas_is_told_by_what_it_was_and_by_its_last_cause() -> None:
    text = """An error occurred while calling o4380.save.
: org.apache.spark.SparkException: Job aborted.
\tat org.apache.spark.One.run(One.scala:1)
Caused by: org.apache.spark.SparkException: Task failed.
\tat org.apache.spark.Two.run(Two.scala:2)
Caused by: java.io.IOException: No space left on device
\tat java.base/Three.run(Three.java:3)"""
    told = "org.apache.spark.SparkException: Job aborted.: java.io.IOException: No space left on device"
    assert first_line(ValueError(text)) == told
    assert first_line(ValueError("An error occurred while calling o1.x.\n: java.lang.Error")) == "java.lang.Error"
    assert first_line(ValueError("\n one \n two")) == "one"
    assert first_line(ValueError()) == "ValueError"
