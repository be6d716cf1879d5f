"""Keeps tables fast: few files a partition, a clustered or z-ordered layout, a short log, no dead files.

Everything here rewrites how rows lie and never what they are. Each commit repeats the record of the last one that did
change rows, so that progress survives the day the log drops that one. Storage is a local folder in this version: file
sizes are read from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from lakehouse_engine import progress, sql
from lakehouse_engine.component import format_duration
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.locks import acquire
from lakehouse_engine.sinks import Delta
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.pipeline import Maintain, PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]
_MICROS_PER_HOUR = 3_600_000_000
#: when a row was kept aside, by table
_ASIDE = {"late": "arrived_at", "quarantine": "quarantined_at"}


@dataclass(frozen=True)
class Layout:
    """A table's data files: their sizes in bytes by partition (the folder below the table, '' without partitions)."""

    sizes: Mapping[str, tuple[int, ...]]

    def crowded(self, policy: Maintain) -> list[str]:
        """Partitions with as many small files as the policy allows, or more."""
        return sorted(p for p, number in self.small(policy).items() if number >= policy.compact.files)

    def small(self, policy: Maintain) -> dict[str, int]:
        """Files by partition that are smaller than the policy wants."""
        return {p: sum(size < policy.compact.smaller_than for size in sizes) for p, sizes in self.sizes.items()}

    def __str__(self) -> str:
        most = max((len(sizes) for sizes in self.sizes.values()), default=0)
        files = sum(len(sizes) for sizes in self.sizes.values())
        return f"{files:,} files in {len(self.sizes):,} partitions, {most} at most"


def layout(spark: SparkSession, path: Path) -> Layout:
    """The files of the table's newest version."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for uri in spark.read.format("delta").load(str(path)).inputFiles():
        found = Path(unquote(urlparse(uri).path))
        partition = found.parent.relative_to(path.resolve()).as_posix()
        sizes["" if partition == "." else partition].append(found.stat().st_size)
    return Layout({partition: tuple(found) for partition, found in sizes.items()})


def predicate(partitions: list[str], kinds: Mapping[str, str]) -> str:
    """SQL that selects partitions given as folders (``day=2026-01-01/kind=a``); '' when they are the whole table."""
    alternatives = []
    for folder in partitions:
        if not folder:
            return ""
        parts = []
        for part in folder.split("/"):
            column, _, value = part.partition("=")
            text = unquote(value)
            null = text == "__HIVE_DEFAULT_PARTITION__"
            parts.append(sql.among(unquote(column), kinds.get(unquote(column), "string"), [None if null else text]))
        alternatives.append(" and ".join(parts))
    return " or ".join(f"({text})" for text in alternatives)


def compact(spark: SparkSession, path: Path, policy: Maintain, partitions: list[str], *, stream: bool) -> None:
    """Rewrites the small files of partitions as few large ones, in one commit without a change of data."""
    where = predicate(partitions, DeltaLog(path).columns() or {})
    zorder = f" zorder by ({', '.join(map(sql.name, policy.zorder_by))})" if policy.zorder_by else ""
    with _session(spark, path, stream=stream) as session:
        delta_sink.keep_statistics(session, path, policy.zorder_by)
        session.conf.set("spark.databricks.delta.optimize.minFileSize", str(policy.compact.smaller_than))
        session.sql(f"optimize {_table(path)}{f' where {where}' if where else ''}{zorder}").collect()


class Keeper:
    """Compacts the table of a stream, by its own writer and between its batches: nobody else may write there."""

    def __init__(self, path: Path, policy: Maintain) -> None:
        self._log, self._policy = DeltaLog(path), policy
        self._small: dict[str, int] = {}  # files below the policy's size, by partition
        self._seen: int | None = None

    def after(self, spark: SparkSession) -> None:
        """Looks at what the last commits added; rewrites the partitions that have become crowded."""
        newest = self._log.version()
        if newest is None:
            return
        if self._seen is None:
            self._small = layout(spark, self._log.path).small(self._policy)
        else:
            below = self._policy.compact.smaller_than
            for version in range(self._seen + 1, newest + 1):
                for file in (action["add"] for action in self._log.actions(version) if "add" in action):
                    partition = _partition(file["path"])
                    self._small[partition] = self._small.get(partition, 0) + (file["size"] < below)
        self._seen = newest
        crowded = [p for p, number in self._small.items() if number >= self._policy.compact.files]
        if crowded:
            compact(spark, self._log.path, self._policy, crowded, stream=True)
            self._small |= dict.fromkeys(crowded, 1)  # what came of them may be small itself
            self._seen = self._log.version()


def _partition(path: str) -> str:
    """The folder of a data file as the log writes it; '' in a table without partitions."""
    folder = Path(unquote(path)).parent.as_posix()
    return "" if folder == "." else folder


def maintain(spark: SparkSession, spec: PipelineSpec, storage: Path, report: Report, *, apply: bool) -> None:
    """What the pipeline's ``maintain`` asks for, on its tables; without ``apply`` only says what it would do.

    A table that is being written is left to its writer, which is said. Raises ``RunError`` of Spark's commands.
    """
    assert isinstance(spec.sink, Delta)
    for name in (spec.table, *(f"{spec.table}__{side}" for side in delta_sink.SIDES)):
        path = delta_sink.table_path(storage, name)
        if DeltaLog(path).version() is None:
            continue
        try:
            with closing(acquire(spark, storage, spec.table, f"maintenance of {spec.name}")):
                kept = spec.sink.vacuum_after or spec.maintain.vacuum_after
                policy = spec.maintain.model_copy(update={"vacuum_after": kept})
                policy = policy if name == spec.table else Maintain().model_copy(update={"vacuum_after": kept})
                clustered = bool(spec.sink.cluster_by) and name == spec.table
                if clustered and apply:
                    delta_sink.cluster(spark, path, spec.sink.cluster_by)
                side = name.rpartition("__")[2] if name != spec.table else ""
                if spec.is_stream and side in _ASIDE and spec.maintain.aside_after is not None:
                    _forget(spark, name, path, _ASIDE[side], spec.maintain.aside_after, report, apply=apply)
                _maintain(spark, name, path, policy, report, apply=apply, stream=spec.is_stream, clustered=clustered)
        except RunError as error:
            if error.code != "LOCKED":
                raise
            report(f"{name}: left alone: {error.message.partition(';')[0]}, which looks after it")


def _forget(spark: SparkSession, name: str, path: Path, column: str, after: int, report: Report, *,
            apply: bool) -> None:  # fmt: skip
    """Deletes rows that a stream kept aside so long ago (microseconds)."""
    with _session(spark, path, stream=True) as session:
        old = f"{column} < timestamp_micros({progress.now_micros() - after}L)"
        number = session.read.format("delta").load(str(path)).filter(old).count()
        if number:
            report(f"{name}: {'' if apply else 'would '}delete {number:,} rows, older than {format_duration(after)}")
        if number and apply:
            session.sql(f"delete from {_table(path)} where {old}").collect()


def _maintain(spark: SparkSession, name: str, path: Path, policy: Maintain, report: Report, *, apply: bool,
              stream: bool, clustered: bool) -> None:  # fmt: skip
    before = layout(spark, path)
    would = "" if apply else "would "
    report(f"{name}: {before}")
    if clustered:
        how, where = "cluster", [""]
    elif policy.zorder_by:
        how, where = f"z-order by {', '.join(policy.zorder_by)}", _to_order(path, before)
    else:
        how, where = "compact", before.crowded(policy)
    if where:
        report(f"{name}: {would}{how} {'the table' if where == [''] else f'{len(where)} partitions'}")
        if apply:
            compact(spark, path, policy, where, stream=stream)
            report(f"{name}: {layout(spark, path)}")
    with _session(spark, path, stream=stream) as session:
        kept = f"interval {format_duration(policy.log_after)}"
        log = f"{would}keep the log for {format_duration(policy.log_after)} and checkpoint it"
        report(f"{name}: {log}")
        if apply:
            held = {row["key"]: row["value"] for row in session.sql(f"show tblproperties {_table(path)}").collect()}
            if held.get("delta.logRetentionDuration") != kept:
                session.sql(f"alter table {_table(path)} set tblproperties ('delta.logRetentionDuration' = '{kept}')")
            jvm = session._jvm
            assert jvm is not None
            jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session._jsparkSession, str(path)).checkpoint()
        if policy.vacuum_after is not None:
            hours = policy.vacuum_after // _MICROS_PER_HOUR
            dead = session.sql(f"vacuum {_table(path)} retain {hours} hours{'' if apply else ' dry run'}").collect()
            report(f"{name}: {would}delete files dead for {format_duration(policy.vacuum_after)}"
                   + ("" if apply else f": {len(dead)}"))  # fmt: skip


def _to_order(path: Path, now: Layout) -> list[str]:
    """Partitions that have changed since the table was last put in order by us; all of them the first time."""
    log = DeltaLog(path)
    changed: set[str] = set()
    for version in reversed(log.versions()):
        info = log.info(version)
        if info.get("operation") == "OPTIMIZE" and info.get("operationParameters", {}).get("zOrderBy", "[]") != "[]":
            return sorted(changed & set(now.sizes))
        for action in log.actions(version):
            file = action.get("add")
            if file is not None and file.get("dataChange", True):
                changed.add(_partition(file["path"]))
    return sorted(now.sizes)


def _table(path: Path) -> str:
    return f"delta.`{path}`"


@contextmanager
def _session(spark: SparkSession, path: Path, *, stream: bool) -> Iterator[SparkSession]:
    """A session whose commits on the table repeat the newest record of ours.

    A job's table that somebody else wrote last has no record to repeat: its next run must see that, and recompute.
    """
    session = spark.newSession()
    # how many tasks a vacuum lists files with: the default of 10,000 takes a minute to schedule
    session.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", "8")
    log = DeltaLog(path)
    record = log.record()
    if record is not None and (stream or log.changed_after(record["version"]) is None):
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", delta_sink.repeated(record))
    yield session
