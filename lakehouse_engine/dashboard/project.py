"""The pipelines that the dashboard shows. A file that changes is read again while the server runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lakehouse_engine.dashboard.boards import Board, boards
from lakehouse_engine.database import Database, Shared
from lakehouse_engine.errors import SpecError
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec

#: seconds between two looks at the files
_LOOK = 2.0


class Project:
    """Specs, database and storage of one project. ``environment`` is read anew for each connection that is made."""

    def __init__(self, paths: Sequence[Path], environment: Callable[[], Environment]) -> None:
        self._paths, self._environment = tuple(paths), environment
        self._lock = threading.Lock()
        self._seen, self._looked = self._files(), time.monotonic()
        first = environment()
        self._specs = load(self._paths, environment=first)
        self._boards = boards(self._specs)
        #: the validator's lines, while a file is wrong; what was read before is shown on
        self.problems: tuple[str, ...] = ()
        self.storage = Path(first.storage)
        self.database = Database(self.dsn)
        self.shared = Shared()

    def dsn(self) -> str:
        """As the environment says now. Raises ``RunError`` STACK_DOWN, NO_CONNECTION, SECRET_MISSING."""
        return self._environment().postgres_dsn()

    @property
    def specs(self) -> tuple[PipelineSpec, ...]:
        self._refresh()
        return self._specs

    @property
    def boards(self) -> dict[str, Board]:
        self._refresh()
        return self._boards

    def _files(self) -> dict[Path, int]:
        found = [f for path in self._paths for f in ([path] if path.is_file() else path.rglob("*.yaml"))]
        return {file: file.stat().st_mtime_ns for file in found if file.exists()}

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked < _LOOK:
                return
            seen, self._looked = self._files(), time.monotonic()
            if seen == self._seen:
                return
            self._seen = seen
            try:
                specs = load(self._paths, environment=self._environment())
            except SpecError as error:
                self.problems = tuple(map(str, error.problems))
                return
            self._specs, self._boards, self.problems = specs, boards(specs), ()
