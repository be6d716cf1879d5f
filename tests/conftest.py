"""Services shared by all tests: real ones, started once a session."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.local import stack as local
from lakehouse_engine.local.jars import engine_jars
from lakehouse_engine.local.java import find_java
from lakehouse_engine.local.stack import Services
from lakehouse_engine.session import start
from tests.platform import Platform, platform


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
    name = f"t{uuid.uuid4().hex[:10]}"
    administrator = psycopg2.connect(stack.dsn)
    administrator.autocommit = True
    with administrator.cursor() as cursor:
        cursor.execute(f"create database {name}")
    yield stack.dsn.rpartition("/")[0] + f"/{name}"
    with administrator.cursor() as cursor:
        cursor.execute(f"drop database {name} with (force)")
    administrator.close()
