"""Services shared by all tests: real ones, started once a session, or once for each of several workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.local import classes
from lakehouse_engine.local import stack as local
from lakehouse_engine.local.jars import engine_jars
from lakehouse_engine.local.java import find_java
from lakehouse_engine.local.stack import Services
from lakehouse_engine.session import start
from tests.platform import Platform, empty_database, platform

# Most Sparks of this suite end before Java's second compiler has paid for itself: a third less processor time. The
# first alone would get room for 48 MB of code.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=192m")
#: what takes minutes comes first, so that no worker is left alone with it at the end
LONG = ("faults/", "test_platform.py", "orchestration/", "test_engine.py", "docs/", "test_cluster.py",
        "compose/test_entry_points.py", "test_incremental.py", "local/test_classes.py")  # fmt: skip


@pytest.hookimpl(trylast=True)  # after the order was shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        place = os.path.relpath(item.path, here)
        return next((i for i, name in enumerate(LONG) if place.startswith(name)), len(LONG))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def java_classes() -> None:
    """The archive that ``lakehouse up`` writes: every Spark that a test starts is up seconds sooner."""
    os.environ.update(find_java().environment())
    classes.prepare(engine_jars())


@pytest.fixture(scope="session")
def stack_root() -> Iterator[Path]:
    """Where the broker and the server of these tests are kept."""
    # Not pytest's own folder: as root that one is closed to the user PostgreSQL runs as.
    root = Path(tempfile.mkdtemp(prefix="lakehouse-stack-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def stack(java_classes: None, stack_root: Path) -> Iterator[Services]:
    """A Kafka broker and a PostgreSQL on loopback: ``.bootstrap_servers`` and ``.dsn``. Tests name their own topics."""
    try:
        yield local.up(stack_root)
    finally:
        local.down(stack_root)


@pytest.fixture
def lake(stack: Services, tmp_path: Path) -> Iterator[Platform]:
    """The reference platform with a topic, a database and a storage of its own."""
    with platform(stack, tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="session")
def spark(java_classes: None) -> Iterator[SparkSession]:
    """The engine's own Spark session, one for the whole suite."""
    session = start("tests", jars=engine_jars())
    yield session
    session.stop()


@pytest.fixture
def database(stack: Services) -> Iterator[str]:
    """The address of an empty database of its own."""
    with empty_database(stack) as dsn:
        yield dsn


class Shared:
    """The suite's own broker and server, for the YAML tests that pytest collects."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def up(self, root: Path, kafka_port: None, postgres_port: None, report: Callable[[str], None], /) -> Services:
        return self._services

    def down(self, root: Path, report: Callable[[str], None], /) -> bool:
        return False


@pytest.fixture(scope="session")
def lakehouse_stack(stack: Services) -> Shared:
    return Shared(stack)
