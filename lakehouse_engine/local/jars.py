"""The jars that pyspark's wheel lacks: fetched once by exact version, verified by SHA-256, kept in a cache.

``engine.lock`` and ``broker.lock`` list every jar, so nothing is resolved at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, cache_dir, locked, silent, write_atomically
from lakehouse_engine.local.ivy import Jar, fetch


def engine_jars(report: Report = silent) -> list[Path]:
    """Delta, Kafka, Avro and PostgreSQL for Spark, on top of pyspark's own jars. Raises as ``fetched`` does."""
    return fetched("engine", report)


def broker_jars(report: Report = silent) -> list[Path]:
    """Everything the local Kafka broker runs on. Raises as ``fetched`` does."""
    return fetched("broker", report)


def engine_dir() -> Path:
    """The folder that holds exactly the engine's jars once ``engine_jars`` has run: ``DIR/*`` is a class path."""
    return _folder("engine")


def fetched(name: str, report: Report = silent) -> list[Path]:
    """The verified jars of ``<name>.lock``. Raises JAR_CHECKSUM, JAR_UNEXPECTED, JARS_UNREACHABLE and Java's errors."""
    jars, folder = read_lock(name), _folder(name)
    if _stamped(folder, jars):
        pass
    elif not os.access(folder.parent, os.W_OK):
        _verify_read_only(folder, jars)
    else:
        busy = RunError("JARS_BUSY", "another process has been fetching jars for 15 minutes", where=str(folder))
        with locked(folder.with_suffix(".lock"), deadline=900, busy=busy, report=report):
            if not _stamped(folder, jars):
                _complete(name, folder, jars, report)
    return [folder / jar.file for jar in jars]


def read_lock(name: str) -> list[Jar]:
    """The jars of ``<name>.lock``, one a line: ``group:artifact:version sha256``."""
    lines = Path(__file__).with_name(f"{name}.lock").read_text(encoding="utf-8").splitlines()
    fields = [re.split("[: ]", line) for line in lines if line and not line.startswith("#")]
    return [Jar(group, artifact, version, sha256) for group, artifact, version, sha256 in fields]


def _folder(name: str) -> Path:
    # A changed lock file is another folder: two versions of this package can share the cache.
    lock = Path(__file__).with_name(f"{name}.lock").read_bytes()
    return cache_dir() / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"


def _stat(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    # Whole seconds: image layers and archives keep no more.
    return [found.st_size, int(found.st_mtime)]


def _stamped(folder: Path, jars: list[Jar]) -> bool:
    """Whether nothing has changed since the jars were hashed. Hashing 70 MB at every start would cost 0.3 s."""
    try:
        stamp = json.loads(folder.with_suffix(".verified").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(stamp == {jar.file: _stat(folder / jar.file) for jar in jars}) and not _unexpected(folder, jars)


def _unexpected(folder: Path, jars: list[Jar]) -> set[str]:
    return {path.name for path in folder.glob("*.jar")} - {jar.file for jar in jars}


def _complete(name: str, folder: Path, jars: list[Jar], report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    strangers = _unexpected(folder, jars)
    if strangers:
        names = ", ".join(sorted(strangers))
        raise RunError(
            "JAR_UNEXPECTED", f"delete {names}: not in {name}.lock, yet on the class path", where=str(folder)
        )
    present = [jar for jar in jars if (folder / jar.file).exists()]
    for jar in present:
        _verify(jar, folder / jar.file)
    missing = [jar for jar in jars if jar not in present]
    if missing:
        report(f"fetching {len(missing)} jars for the {name} into {folder} (once, up to a minute)")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            fetch(missing, Path(scratch), report)
            for jar in missing:
                _verify(jar, Path(scratch, jar.file))
            for jar in missing:
                os.replace(Path(scratch, jar.file), folder / jar.file)
    stamp = {jar.file: _stat(folder / jar.file) for jar in jars}
    write_atomically(folder.with_suffix(".verified"), json.dumps(stamp))


def _verify_read_only(folder: Path, jars: list[Jar]) -> None:
    """A cache that came with an image: hash it at every start, since no stamp can be left."""
    if _unexpected(folder, jars) or not all((folder / jar.file).exists() for jar in jars):
        raise RunError(
            "CACHE_UNWRITABLE",
            "the cache is read-only and lacks jars or has others; set LAKEHOUSE_CACHE to a folder you may write",
            where=str(folder),
        )
    for jar in jars:
        _verify(jar, folder / jar.file)


def _verify(jar: Jar, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != jar.sha256:
        raise RunError(
            "JAR_CHECKSUM",
            f"SHA-256 of {jar.file} is {digest}, expected {jar.sha256}: damaged, or not the one published;"
            " delete it if it is there and start again, and do not use it if that does not help",
            where=str(path),
        )
