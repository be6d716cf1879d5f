"""One way to start Spark: the settings that the engine's guarantees and its speed rest on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine.errors import RunError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_CHECKPOINTS = "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
#: state beside the heap, written as what changed since the batch before
_STATE = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
#: what numbers depend on; an environment cannot change these
_FIXED = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.streaming.stateStore.providerClass": _STATE,
    "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
    "spark.sql.variant.allowDuplicateKeys": "true",  # the last counts, as with from_json and with jsonschema
    # a commit says how far its source was read, also where it adds no row
    "spark.databricks.delta.skipRecordingEmptyCommits": "false",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # other readers take INT96 for another thing
}
#: fitted to one machine; an environment's `spark:` goes over them
_DEFAULTS = {
    "spark.sql.shuffle.partitions": "2",
    # a dozen pipelines use more than the default of 100: those of the others would be compiled anew in each batch
    "spark.sql.codegen.cache.maxEntries": "2000",
    "spark.sql.subexpressionElimination.skipForShortcutExpr": "true",  # what few rows need is not computed for all
    "spark.sql.inMemoryColumnarStorage.compressed": "false",  # kept for one reading: packing costs more
    "spark.sql.optimizer.windowGroupLimitThreshold": "-1",  # would sort before a dedupe's shuffle as well
    "spark.sql.adaptive.enabled": "false",  # small batches: planning again costs more than it gains
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.streaming.checkpointFileManagerClass": _CHECKPOINTS,  # the default forks five processes a file
    "spark.sql.streaming.minBatchesToRetain": "10",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",  # the default makes a task of each file
    "spark.scheduler.mode": "FAIR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.log.level": "ERROR",
}
#: Java's second compiler comes in twenty times later than by default: at a start its work is what the batches wait for
_LATE_COMPILER = ("-XX:Tier4InvocationThreshold=100000 -XX:Tier4MinInvocationThreshold=12000"
                  " -XX:Tier4BackEdgeThreshold=800000 -XX:Tier4CompileThreshold=300000")  # fmt: skip
_LOG4J = Path(__file__).parent / "log4j2.properties"
#: Java says nothing when an archive of classes does not fit
QUIET_ARCHIVE = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def apart(spark: SparkSession) -> SparkSession:
    """A session of the same Spark with temporary views of its own."""
    found = spark.newSession()
    for name, value in _FIXED.items():
        if found.conf.isModifiable(name):
            found.conf.set(name, value)
    return found


def start(app: str, *, jars: Sequence[Path] = (), settings: Mapping[str, str] | None = None,
          submitted: bool = False, warm: bool = False) -> SparkSession:  # fmt: skip
    """The session. ``submitted``: spark-submit has started the JVM and chosen master and class path. ``warm``: it will
    do the same things many times over, so that Java's second compiler pays early.

    Raises ``RunError`` SPARK_REMOTE, and MISSING_JARS when Delta is not on the class path.
    """
    if "SPARK_REMOTE" in os.environ:
        raise RunError("SPARK_REMOTE", "locks are held in the JVM that writes, which Spark Connect does not let anybody"
                       " do; unset SPARK_REMOTE, and keep Spark warm with: lakehouse up --engine")  # fmt: skip
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    options = {**_DEFAULTS, **(settings or {}), **_FIXED}
    level = options.pop("spark.log.level")  # set below: as a setting, Spark says on standard error that it was set
    builder = SparkSession.builder.appName(app)
    if submitted:
        for key in ("spark.driver.host", "spark.driver.bindAddress", "spark.driver.memory"):
            options.pop(key)  # the submitting side knows its network and its memory
    else:
        builder = builder.master(options.pop("spark.master", "local[*]"))
        options["spark.driver.extraClassPath"] = ":".join(str(jar) for jar in jars)
        options["spark.driver.extraJavaOptions"] = " ".join([
            "-Duser.timezone=UTC", f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}", "-XX:+UseParallelGC",
            *_archived(jars), *([] if warm else [_LATE_COMPILER]),
            "-XX:-DontCompileHugeMethods",  # a scan's generated code is one large method: else it stays interpreted
            options.get("spark.driver.extraJavaOptions", "")])  # fmt: skip
    for_executors = _submitted_conf("spark.executor.extraJavaOptions") if submitted else ""
    options["spark.executor.extraJavaOptions"] = " ".join([
        "-Duser.timezone=UTC", for_executors, options.get("spark.executor.extraJavaOptions", "")])  # fmt: skip
    for key, value in options.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel(level)
    _quiet()
    _require_delta(spark)
    return spark


def _quiet() -> None:
    """PySpark prints what Spark refuses, stack traces and all, before it raises it. What is raised says enough."""
    import logging

    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)


def _submitted_conf(key: str) -> str:
    """What spark-submit was told."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return SparkConf().get(key, "") or ""


def class_archive(jars: Sequence[Path]) -> Path | None:
    """Where an archive of Java's loaded classes lies for these jars, this Java and this pyspark, if there is one.

    None without jars, or without a Java in ``JAVA_HOME`` that has an archive of its own classes to build on.
    """
    library = Path(os.environ.get("JAVA_HOME", ""), "lib")
    modules = library / "modules"
    if not jars or not modules.is_file() or not (library / "server" / "classes.jsa").is_file():
        return None
    import pyspark

    parts = [str(modules), str(modules.stat().st_mtime_ns), str(pyspark.__file__), pyspark.__version__]
    folder = jars[0].parent
    return folder.with_name(f"{folder.name}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}.jsa")


def _archived(jars: Sequence[Path]) -> list[str]:
    archive = class_archive(jars)
    if archive is None or not archive.exists():
        return []
    return [f'"-XX:SharedArchiveFile={archive}"', "-Xshare:auto", QUIET_ARCHIVE]


def _require_delta(spark: SparkSession) -> None:
    try:
        spark.sql("use spark_catalog")
    except Exception as error:
        if "DeltaCatalog" not in str(error):
            raise
        raise RunError("MISSING_JARS", "Delta is not on Spark's class path; start with: spark-submit"
                       ' --driver-class-path "$(lakehouse jars --dir)/*" --jars "$(lakehouse jars --list)"'
                       " lakehouse_engine/runner.py SPEC...") from error  # fmt: skip
