"""An archive of Java's loaded classes (AppCDS): Spark is up two seconds sooner, for 180 MB of cache.

Written once by a training run, beside the jars that it belongs to. Java checks the archive against its own build and
the class path at every start and goes without when they differ, so a stale one costs time and nothing else.
Source: https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html (dynamic archives).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import session
from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, locked, silent

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_EVENT = """concat('{"id": "', value, '", "at": "', date_format(timestamp, "yyyy-MM-dd'T'HH:mm:ss'Z'"), '"}')"""
_PARSED = "from_json(_text, 'id string, at string, _corrupt string', map('columnNameOfCorruptRecord', '_corrupt'))"
#: the expressions of a scan's batch, not its meaning
_BATCH = f"""
select m, w, k, detail, count(1) as n, max(_at) as at, sum(_x) as x from (
  select inline(array(
    named_struct('m', -1, 'w', 0L, 'k', cast(null as string), 'detail', cast(null as string), '_at', value, '_x', null),
    named_struct('m', 0, 'w', _start, 'k', _json.id, 'detail',
      case when not _json.id rlike '^[0-9]+$' then to_json(named_struct('row', _text)) end, '_at', null, '_x', value)))
  from (select *, _micros - pmod(_micros, get(_batch, 0)) as _start from (
    select *, unix_micros(try_cast(_json.at as timestamp)) as _micros from (
      select *, {_PARSED} as _json, coalesce(try_element_at(map(0, array(60000000L)), 0), array(1L)) as _batch from (
        select *, {_EVENT} as _text from training))))
  where is_valid_utf8(_text) and (not contains(_text, 'x') or try_parse_json(_text) is not null))
group by m, w, k, detail
"""
_DEADLINE = 180
_FILE = "classes.jsa"


def prepare(jars: Sequence[Path], report: Report = silent) -> Path | None:
    """The archive for these jars and ``JAVA_HOME``, made when there is none; None where Java cannot have one
    or the cache is read-only.

    Takes about 20 s the first time. A failed training run is reported, not raised: Spark runs without an archive.
    """
    archive = session.class_archive(jars)
    if archive is None or archive.exists():
        return archive
    if not os.access(archive.parent, os.W_OK):
        return None
    busy = RunError("CLASSES_BUSY", "another process has been preparing Java's classes for minutes", where=str(archive))
    with locked(archive.with_suffix(".lock"), deadline=_DEADLINE, busy=busy, report=report):
        return archive if archive.exists() else _made(archive, jars, report)


def _made(archive: Path, jars: Sequence[Path], report: Report) -> Path | None:
    report("preparing Java's classes for quick starts (once, about 20 seconds)")
    package = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".classes-") as scratch:
        command = [sys.executable, "-m", __name__, scratch, *map(str, jars)]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.getenv("PYTHONPATH")]))}
        try:
            done = subprocess.run(command, cwd=scratch, env=variables, capture_output=True, text=True,
                                  timeout=_DEADLINE, check=False)  # fmt: skip
            reason = "" if done.returncode == 0 else (done.stderr.strip() or "no output").splitlines()[-1]
        except subprocess.TimeoutExpired:
            reason = f"no end within {_DEADLINE} s"
        made = Path(scratch, _FILE)
        if reason or not made.exists():
            report(f"Spark starts two seconds slower, without an archive of classes: {reason or 'none was written'}")
            return None
        with made.open("rb") as file:
            os.fsync(file.fileno())  # Java crashes on an archive that a power cut has shortened
        os.replace(made, archive)
    return archive


def train(folder: str, jars: Sequence[Path]) -> None:
    """Loads the classes that pipelines use, in a JVM that writes them down when it ends."""
    settings = {"spark.driver.extraJavaOptions": f'"-XX:ArchiveClassesAtExit={folder}/{_FILE}" {session.QUIET_ARCHIVE}'}
    spark = session.start("training", jars=jars, settings=settings)
    gateway = spark.sparkContext._gateway
    assert gateway is not None
    table, done = f"{folder}/table", 0

    def batch(frame: DataFrame, _: int) -> None:
        nonlocal done
        frame.createOrReplaceTempView("training")
        frame.sparkSession.sql(_BATCH).collect()
        frame.coalesce(1).write.format("delta").mode("append").option("userMetadata", "{}").save(table)
        done += 1

    stream = spark.readStream.format("rate").option("rowsPerSecond", 1000).load()
    writer = stream.writeStream.foreachBatch(batch).option("checkpointLocation", f"{folder}/checkpoint")
    query = writer.trigger(processingTime="200 milliseconds").start()
    until = time.monotonic() + 60
    while done < 4 and query.isActive and time.monotonic() < until:
        time.sleep(0.1)
    query.stop()
    spark.read.format("delta").load(table).groupBy("value").count().write.format("delta").save(f"{folder}/gold")
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()  # the JVM ends, and writes the archive
    gateway.proc.wait(_DEADLINE)


if __name__ == "__main__":
    train(sys.argv[1], [Path(jar) for jar in sys.argv[2:]])
