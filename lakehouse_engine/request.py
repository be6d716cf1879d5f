"""What a command asks for, in the words of the command line; whoever performs it reads the files itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lakehouse_engine.errors import UsageError


@dataclass(frozen=True)
class Span:
    """Which slices: from ``first`` to ``last``, both included, as text; ``full``: all there are, those of nulls too;
    ``late``: the days of windows that lack rows which are kept as late."""

    first: str | None = None
    last: str | None = None
    full: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        """Raises ``UsageError`` BAD_RANGE."""
        if self.full + self.late + (self.first is not None or self.last is not None) != 1:
            raise UsageError("BAD_RANGE", "a backfill takes --from and --to (one may be left out), or --full")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise UsageError("BAD_RANGE", f"--from {self.first} is after --to {self.last}")

    def __str__(self) -> str:
        if self.late:
            return "late rows"
        return "everything" if self.full else f"{self.first or 'the first'} to {self.last or 'the last'}"


@dataclass(frozen=True)
class Request:
    """``specs``: files and folders, relative to the project. ``variables``: the command's environment variables, from
    which files take values and secrets; never shown."""

    command: Literal["run", "serve", "backfill", "replay", "maintain", "validate", "plan"]
    specs: tuple[Path, ...]
    env: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    available_now: bool = False
    span: Span | None = None
    apply: bool = False
    json_log: bool = False
    #: of a plan: also each value with its place
    origins: bool = False
    #: host and port where the process shows its metrics
    metrics: tuple[str, int] | None = None


def metrics_address(host: str, port: int | None) -> tuple[str, int] | None:
    """Raises ``UsageError`` BAD_VALUE."""
    if port is not None and not 0 <= port < 65536:
        raise UsageError("BAD_VALUE", f"--metrics-port {port} is no port")
    return None if port is None else (host, port)
