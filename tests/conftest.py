"""Services shared by all tests: real ones, started once a session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse_engine.local import stack as local
from lakehouse_engine.local.stack import Services


@pytest.fixture(scope="session")
def stack() -> Iterator[Services]:
    """A Kafka broker and a PostgreSQL on loopback: ``.bootstrap_servers`` and ``.dsn``. Tests name their own topics."""
    # Not pytest's own folder: as root that one is closed to the user PostgreSQL runs as.
    root = Path(tempfile.mkdtemp(prefix="lakehouse-stack-"))
    root.chmod(0o755)
    try:
        yield local.up(root)
    finally:
        local.down(root)
        shutil.rmtree(root)
