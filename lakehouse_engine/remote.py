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
from lakehouse_engine.folders import PATTERN, File, fixed


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
    if not file.place.rpartition("/")[2].startswith((".", "_")):
        found[file.place.removeprefix(f"{root}/")] = file


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
                           " hadoop-aws of the version of pyspark's Hadoop, and Amazon's SDK (spark.jars in the"
                           " environment, or spark-submit --jars)", where=where) from None  # fmt: skip
        raise RunError("FILES_UNREACHABLE", f"{path}: {said}", where=where) from None
