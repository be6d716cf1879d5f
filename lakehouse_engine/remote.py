"""Files of an object store, ``s3a://bucket/...``: listed and looked at through Hadoop's file systems, in Spark's JVM.

Spark runs when this is asked. Hadoop's S3A is ``hadoop-aws`` of pyspark's Hadoop with Amazon's SDK, some hundred
megabytes that are not among the engine's jars; where they come from, who may read what and which server it is, Spark's
settings say (``spark.hadoop.fs.s3a.*``, docs of hadoop-aws).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lakehouse_engine.errors import RunError, first_line
from lakehouse_engine.folders import PATTERN, File, fixed, shown


def listed(path: str, where: str) -> dict[str, File]:
    """The files below a folder, or of a pattern, by their paths below its fixed part; hidden ones left out.

    Raises ``RunError`` MISSING_JAR, FILES_UNREACHABLE.
    """
    found: dict[str, File] = {}
    with _said(path, where):
        hadoop, system, root = _at(path)
        for one in system.globStatus(hadoop(path)) or ():
            if one.isFile():
                _take(one, root if PATTERN & set(path) else fixed(path), found)
            elif not PATTERN & set(path):
                inner = system.listFiles(one.getPath(), True)
                while inner.hasNext():
                    _take(inner.next(), path.rstrip("/"), found)
    return dict(sorted(found.items()))


def looked_at(place: str, where: str) -> File | None:
    """A file as it is now; None where it is gone. Raises as ``listed`` does."""
    with _said(place, where):
        hadoop, system, _ = _at(place)
        if not system.exists(hadoop(place)):
            return None
        return _file(system.getFileStatus(hadoop(place)))


def text(place: str, where: str) -> str | None:
    """What a small file holds; None where there is none. Raises as ``listed`` does."""
    with _said(place, where):
        hadoop, system, _ = _at(place)
        if not system.exists(hadoop(place)):
            return None
        stream = system.open(hadoop(place))
        try:
            return bytes(stream.readAllBytes()).decode("utf-8", errors="replace")
        finally:
            stream.close()


def write(place: str, content: str, where: str) -> None:
    """A small file, in place of one that is there. Raises as ``listed`` does."""
    with _said(place, where):
        hadoop, system, _ = _at(place)
        stream = system.create(hadoop(place), True)
        try:
            stream.write(bytearray(content.encode("utf-8")))
        finally:
            stream.close()


def delete(place: str, where: str) -> None:
    """A file, or a folder with all that is in it; it may be gone. Raises as ``listed`` does."""
    with _said(place, where):
        hadoop, system, _ = _at(place)
        system.delete(hadoop(place), True)


def move(place: str, to: str, where: str) -> None:
    """Raises as ``listed`` does."""
    with _said(place, where):
        hadoop, system, _ = _at(place)
        system.mkdirs(hadoop(to.rpartition("/")[0]))
        if not system.rename(hadoop(place), hadoop(to)):
            raise RunError("FILES_UNREACHABLE", f"{place} could not be moved to {to}", where=where)


def _at(path: str) -> tuple[Any, Any, str]:
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    assert context is not None, "Spark runs where files elsewhere are asked for"
    jvm: Any = context._jvm
    hadoop = jvm.org.apache.hadoop.fs.Path
    return hadoop, hadoop(fixed(path)).getFileSystem(context._jsc.hadoopConfiguration()), fixed(path)


def _file(status: Any) -> File:
    return File(str(status.getPath().toString()), int(status.getLen()), int(status.getModificationTime()) * 1_000_000)


def _take(status: Any, root: str, found: dict[str, File]) -> None:
    file = _file(status)
    # of a disk Hadoop says file:/a for what was called file:///a
    path = file.place.rpartition(f"{root.partition('://')[2].rstrip('/')}/")[2]
    if shown(path):
        found[path] = file


@contextmanager
def _said(path: str, where: str) -> Iterator[None]:
    from py4j.protocol import Py4JJavaError

    try:
        yield
    except Py4JJavaError as error:
        said = first_line(error.java_exception.toString())
        if any(word in said for word in ("ClassNotFound", "NoClassDefFound", "No FileSystem for scheme")):
            scheme = path.partition(":")[0]
            raise RunError("MISSING_JAR", f"nothing on Spark's class path reads {scheme}:// ({said}); add"
                           " hadoop-aws of the version of pyspark's Hadoop and what it needs (docs/object-stores.md) by"
                           " spark.jars in the environment, or spark-submit --jars", where=where) from None  # fmt: skip
        raise RunError("FILES_UNREACHABLE", f"{path}: {said}", where=where) from None
