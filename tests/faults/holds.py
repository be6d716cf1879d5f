"""Stops a child's JVM at a step inside Spark and Delta: before a file is made, before or after a rename, in a task.

Nothing of the engine knows of it. A jar at the end of Java's class path has Hadoop use another local file system
(``held/Held.java``). The folder in ``LAKEHOUSE_FAULTS`` says where to stop: ``wanted`` has a line a hold (name, act,
pattern), ``<name>.held`` is there when it is reached, and ``<name>.go`` lets it go on.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyspark

HERE = Path(__file__).parent / "held"


class Hold(Protocol):
    """Where a process waits."""

    def reached(self) -> bool: ...

    def let_go(self) -> None: ...

    def cut(self) -> None:
        """Lets go what cannot go on: the other side is not there any more."""

    def full(self) -> None:
        """Lets go with the error of a full disk."""


def made_jar(folder: Path) -> Path:
    """Raises ``RuntimeError`` where there is no ``javac``: a JDK is needed, a JRE does not do."""
    compiler = shutil.which("javac")
    if compiler is None:
        raise RuntimeError("these tests compile a file system for Hadoop: they need a JDK (javac) on PATH")
    classes, jar = folder / "classes", folder / "held.jar"
    command = [compiler, "-nowarn", "--release", "17", "-cp", f"{Path(pyspark.__file__).parent}/jars/*",
               "-d", str(classes), str(HERE / "Held.java")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    with zipfile.ZipFile(jar, "w") as file:
        file.write(HERE / "core-site.xml", "core-site.xml")
        for path in classes.rglob("*.class"):
            file.write(path, str(path.relative_to(classes)))
    return jar


class Holds:
    """The holds of the JVMs that are started with ``variables``."""

    def __init__(self, folder: Path, jar: Path) -> None:
        folder.mkdir()
        self._folder, self._number, self._lines = folder, 0, dict[str, str]()
        self.variables = {"LAKEHOUSE_FAULTS": str(folder), "SPARK_DIST_CLASSPATH": str(jar)}
        #: Java's: Spark reads its settings from there
        self.option = "-Dspark.plugins=lakehouse.faults.Held$Tasks"

    def hold(self, act: str, pattern: str) -> Hold:
        """``act``: create, rename, renamed, task. The first that the pattern is found in waits, in one JVM."""
        self._number += 1
        name = f"hold{self._number}"
        self._lines[name] = f"{name}\t{act}\t{pattern}"
        self._write()
        return _Held(self._folder, name, lambda: self._over(name))

    def _over(self, name: str) -> None:
        self._lines.pop(name, None)
        self._write()

    def _write(self) -> None:
        made = self._folder / "wanted.tmp"
        made.write_text("\n".join(self._lines.values()))
        made.replace(self._folder / "wanted")


@dataclass(frozen=True)
class _Held:
    folder: Path
    name: str
    over: Callable[[], None]

    def reached(self) -> bool:
        return (self.folder / f"{self.name}.held").exists()

    def let_go(self) -> None:
        self.over()
        (self.folder / f"{self.name}.go").write_text("on")

    cut = let_go

    def full(self) -> None:
        """Lets go with the error of a full disk."""
        self.over()
        made = self.folder / f"{self.name}.full"
        made.write_text("full")
        made.replace(self.folder / f"{self.name}.go")
