"""Locks that live exactly as long as the writer: held by the JVM that writes, on files under the storage.

Delta's local log store and a checkpoint are safe for one writer process only. Python's own lock would be gone before,
or after, the JVM is.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Lock:
    """A held lock; ``release`` gives it back, and so does the end of the JVM."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def release(self) -> None:
        self._channel.close()


def acquire(spark: SparkSession, storage: Path, name: str, holder: str) -> Lock:
    """Locks ``name`` (a table or a scan) for this JVM. Raises ``RunError`` LOCKED, naming who holds it."""
    folder = storage / "_locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    jvm: Any = spark._jvm
    channel = jvm.java.io.RandomAccessFile(str(path), "rw").getChannel()
    try:
        lock = channel.tryLock()
    except Exception as error:  # OverlappingFileLockException: this very JVM holds it
        channel.close()
        if "OverlappingFileLock" not in str(error):
            raise
        lock = None
    if lock is None:
        raise RunError("LOCKED", f"{name} is being written by {_holder(path)}; stop that one first", where=name)
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "pipelines": holder}).encode()
    channel.truncate(0)
    channel.write(jvm.java.nio.ByteBuffer.wrap(text), 0)
    return Lock(channel)


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']} ({held['pipelines']})"
    except (OSError, ValueError, KeyError):
        return "another process"  # it has locked the file and not yet written its name
