"""The archive of Java's classes: made once, used by Spark, harmless when it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse_engine import session
from lakehouse_engine.local import classes, jars
from lakehouse_engine.local.java import find_java

START = """
import sys
from pathlib import Path
from lakehouse_engine import session
options = {"spark.driver.extraJavaOptions": "-Xlog:class+load:file=" + sys.argv[1]}
spark = session.start("archived", jars=[Path(jar) for jar in sys.argv[2:]], settings=options)
print(spark.sql("select 1 + 1 as two").collect()[0]["two"])
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The engine's jars in a folder of their own, and ``JAVA_HOME`` for this module."""
    folder = tmp_path_factory.mktemp("cache") / "engine"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in find_java().environment().items():
            patch.setenv(name, value)
        if not Path(os.environ["JAVA_HOME"], "lib", "server", "classes.jsa").exists():
            pytest.skip("this Java has no archive of its own classes to build on")
        yield [Path(shutil.copy2(jar, folder)) for jar in jars.engine_jars()]


def start(paths: list[Path], log: Path) -> str:
    """Starts Spark in a process of its own; returns Java's list of loaded classes and where each came from."""
    command = [sys.executable, "-c", START, str(log), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "2", done.stderr[-2000:]
    return log.read_text()


def test_spark_takes_its_classes_from_the_archive(copied: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    archive = classes.prepare(copied, said.append)
    assert archive is not None, said
    assert archive.stat().st_size > 10_000_000
    assert said == ["preparing Java's classes for quick starts (once, about 20 seconds)"]
    assert [path.name for path in archive.parent.iterdir() if path.name.startswith(".classes-")] == []
    loaded = start(copied, tmp_path / "with").splitlines()
    delta = [line for line in loaded if " org.apache.spark.sql.delta.Delta" in line]
    archived = [line for line in delta if "shared objects file (top)" in line]
    assert len(archived) > len(delta) / 2  # lambdas are made anew
    assert classes.prepare(copied, said.append) == archive
    assert len(said) == 1

    archive.chmod(0o644)
    with archive.open("r+b") as file:
        file.write(bytes(4096))  # its header
    assert "shared objects file (top)" not in start(copied, tmp_path / "broken")


@pytest.mark.usefixtures("copied")
def test_a_failed_training_run_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    broken = folder / "broken.jar"
    broken.write_text("no jar")
    said: list[str] = []
    assert classes.prepare([broken], said.append) is None
    assert len(said) == 2
    assert said[1].startswith("Spark starts two seconds slower")
    assert session.class_archive([broken]) not in list(tmp_path.iterdir())
