from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from lakehouse_engine.dashboard.app import create_app
from lakehouse_engine.dashboard.project import Project
from lakehouse_engine.dashboard.server import listen
from lakehouse_engine.local.stack import Services
from lakehouse_engine.spec.environment import Environment
from tests.grafana.seed import Seed, fill
from tests.platform import PROJECT, empty_database

TWO_DAYS = 2880


@dataclass
class Served:
    """A dashboard on a port of its own, as ``lakehouse dashboard`` runs it, in a thread."""

    project: Project
    token: str | None = None
    port: int = 0

    def start(self) -> Served:
        listening = listen("127.0.0.1", self.port)
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(create_app(self.project, self.token), log_level="warning", access_log=False,
                                timeout_graceful_shutdown=1)  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(
    dsn: str, storage: Path, pipelines: Path = PROJECT / "pipelines", token: str | None = None
) -> Iterator[Served]:
    environment = Environment(storage=str(storage), embedded={"postgres": dsn})
    made = Served(Project([pipelines], lambda: environment), token).start()
    try:
        yield made
    finally:
        made.stop()
        made.project.database.close()


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def seed(stack: Services) -> Iterator[Seed]:
    """Two days of minutes and batches up to now, 400 days of gold; for each module anew, lest its now is long ago."""
    with empty_database(stack) as dsn:
        yield fill(dsn, PROJECT / "grafana" / "reader.sql", TWO_DAYS)


@pytest.fixture(scope="module")
def served(seed: Seed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(seed.dsn, tmp_path_factory.mktemp("storage")) as made:
        yield made
