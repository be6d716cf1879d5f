"""Errors a user can act on: what is wrong, where, and how to mend it, with a code that never changes.

Every error prints as one line, ``<where>: <code>: <message>``. Codes are stable and asserted in tests; the prose may
change. ``SpecError`` ends the process with status 2 (a file is wrong), all others with status 1 (a run failed).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def said_by_spark(error: BaseException) -> str:
    """What Spark says is wrong, without its plan and its trace."""
    return str(error).split("\n")[0].split(" SQLSTATE")[0]


def first_line(error: BaseException) -> str:
    """The first line that says something, at most 300 characters of it; the error's type where it says nothing.

    Of an error of Java's: its own, and the last of its causes, for the first says where it was met and not what it was.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("An error occurred while calling") and len(lines) > 1:
        causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
        return ": ".join(dict.fromkeys([lines[1].removeprefix(": "), *causes[-1:]]))[:300]
    return lines[0][:300]


class LakehouseError(Exception):
    """One thing that is wrong. ``where`` is ``file:line``, a connection's name, a table or empty."""

    exit_status = 1

    def __init__(self, code: str, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.code}: {self.message}" if self.where else f"{self.code}: {self.message}"

    def __reduce__(self) -> Any:
        """As it is from an engine to its client; by default it would be made again from its message alone."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[LakehouseError], args: tuple[Any, ...], state: dict[str, Any]) -> LakehouseError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, order=True)
class Problem:
    """One error of one file. ``line`` counts from 1; 0 means the file as a whole. ``path``: ``keys[0]``."""

    file: str
    line: int
    code: str
    message: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code}: {self.message}"


class SpecError(LakehouseError):
    """One or more files are wrong; nothing has been touched. Carries every problem of every file, sorted."""

    exit_status = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(set(problems)))
        first = self.problems[0]
        super().__init__(first.code, first.message, where=f"{first.file}:{first.line}")

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(str(problem) for problem in self.problems))


class UsageError(LakehouseError):
    """The command line asks for something that cannot be done."""

    exit_status = 2


class PlanError(LakehouseError):
    """The files are well formed, yet what they ask for cannot be run here (a missing table, a wrong type)."""


class RunError(LakehouseError):
    """Something outside the files failed while running: a service, a table, another writer."""


class FencedError(RunError):
    """Another process has taken this pipeline over; this one must stop and must not try again."""
