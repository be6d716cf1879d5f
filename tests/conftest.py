"""Services shared by all tests: real ones, started once a session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.local import stack as local
from lakehouse_engine.local.jars import engine_jars
from lakehouse_engine.local.java import find_java
from lakehouse_engine.local.stack import Services
from lakehouse_engine.session import start
from tests.platform import Platform, empty_database, platform


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


@pytest.fixture
def lake(stack: Services, tmp_path: Path) -> Iterator[Platform]:
    """The reference platform with a topic, a database and a storage of its own."""
    with platform(stack, tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The engine's own Spark session, one for the whole suite."""
    os.environ.update(find_java().environment())
    session = start("tests", jars=engine_jars())
    yield session
    session.stop()


@pytest.fixture
def database(stack: Services) -> Iterator[str]:
    """The address of an empty database of its own."""
    with empty_database(stack) as dsn:
        yield dsn
