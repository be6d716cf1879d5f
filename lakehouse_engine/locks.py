"""Locks that live exactly as long as the writer: held by the JVM that writes, on files under the storage.

Delta's local log store and a checkpoint are safe for one writer process only. Python's own lock would be gone before,
or after, the JVM is.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


#: what this process holds. Asked first: on Linux, closing any descriptor of a file gives back every lock that the
#: process has on it, so a second try must not even open one that is held here
_ours: set[Path] = set()
_guard = threading.Lock()
#: what stands in the names of tables, scans and further sinks, and in those of files as well
_PLAIN = "@>% "


class Lock:
    """A held lock; ``close`` gives it back, and so does the end of the JVM."""

    def __init__(self, path: Path, channel: Any) -> None:
        self._path, self._channel = path, channel

    def close(self) -> None:
        with _guard:
            if self._path in _ours:
                _ours.discard(self._path)
                self._channel.close()


def acquire(spark: SparkSession, storage: Path, name: str, holder: str, *, patience: float = 0.0) -> Lock:
    """Locks ``name`` (a table or a scan) for this JVM, waiting ``patience`` seconds for who holds it.

    Raises ``RunError`` LOCKED, naming who holds it.
    """
    folder = storage / "_locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{quote(name, safe=_PLAIN)}.lock"
    deadline = time.monotonic() + patience
    while True:
        lock = _try(spark, path, holder)
        if lock is not None:
            return lock
        if time.monotonic() >= deadline:
            raise RunError("LOCKED", f"{name} is being written by {_holder(path)}; stop that one first", where=name)
        time.sleep(0.1)


@contextmanager
def alone(storage: Path, name: str) -> Iterator[None]:
    """Locks ``name`` while the context lasts, from a process without a JVM: Java's locks are POSIX locks, as these are.

    Raises ``RunError`` LOCKED, naming who holds it.
    """
    folder = storage / "_locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{quote(name, safe=_PLAIN)}.lock"
    held = RunError("LOCKED", f"{name} is being written by {_holder(path)}; stop that one first", where=name)
    with _guard:
        if path in _ours:
            raise held
        file = path.open("r+" if path.exists() else "w+", encoding="utf-8")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise held from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "pipelines": name}, file)
        file.flush()
        yield


def _try(spark: SparkSession, path: Path, holder: str) -> Lock | None:
    """The file's lock, with the holder written into it; None when somebody else has it."""
    jvm: Any = spark._jvm
    with _guard:
        if path in _ours:
            return None
        channel = jvm.java.io.RandomAccessFile(str(path), "rw").getChannel()
        if channel.tryLock() is None:
            channel.close()
            return None
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "pipelines": holder}).encode()
        try:
            channel.truncate(0)
            channel.write(jvm.java.nio.ByteBuffer.wrap(text), 0)
        except Exception:
            channel.close()  # the JVM would hold it, and nobody give it back
            raise
        _ours.add(path)
        return Lock(path, channel)


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']} ({held['pipelines']})"
    except (OSError, ValueError, KeyError):
        return "another process"  # it has locked the file and not yet written its name
