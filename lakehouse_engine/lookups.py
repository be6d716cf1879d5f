"""The tables that a stream looks up: copies that its micro-batches join, read anew when they are too old.

A copy is one version of a table, held in Spark's memory and known to the batch's session under one name, so that the
text of a batch, and the code that Spark makes of it, stay the same when the table changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import combine
from lakehouse_engine.computed import Computed, Reads
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import LakehouseError, PlanError, RunError, said_by_spark
from lakehouse_engine.incremental import source_version
from lakehouse_engine.plan import Copy, Member
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.stages import Query

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass
class _Held:
    """``version`` of the table that the view has, None before the first; ``asked_at``: when it was the newest."""

    copy: Copy
    members: list[Member | Query]
    kinds: list[tuple[str, str]]
    version: int | None = None
    asked_at: int = 0
    frame: DataFrame | None = None


class Lookups:
    """All copies of a scan's members."""

    def __init__(self, spark: SparkSession, members: Iterable[Member | Query], storage: Path,
                 report: Callable[[str], None]) -> None:  # fmt: skip
        """Makes the views known to ``spark``, for their columns' types.

        Raises ``RunError`` MISSING_TABLE, AS_OF_GONE; ``PlanError`` UNKNOWN_COLUMN, EXPRESSION_TYPE at file:line.
        """
        self._spark, self._storage, self._report = spark, storage, report
        self._held: dict[str, _Held] = {}
        for member in members:
            for copy in member.copies:
                held = self._held.get(copy.view)
                if held is None:
                    frame = self._read(spark, copy, self._version(copy))
                    frame.limit(0).createOrReplaceTempView(copy.view)
                    held = self._held[copy.view] = _Held(copy, [], frame.dtypes)
                held.members.append(member)

    def refresh(self, session: SparkSession, now: int) -> dict[str, LakehouseError]:
        """Reads what is older than its step allows, at ``now`` (microseconds); a copy that is the newest stays.

        Gives the error of each member whose table cannot be looked up: DUPLICATE_KEY, MISSING_TABLE, AS_OF_GONE,
        SCHEMA_CHANGED. It has to be taken out.
        """
        failed: dict[str, LakehouseError] = {}
        for held in self._held.values():
            if held.version is None or now - held.asked_at >= held.copy.refresh:
                try:
                    self._renew(session, held)
                    held.asked_at = now
                except LakehouseError as error:
                    failed |= {member.name: error for member in held.members}
        return failed

    def forget(self, names: Iterable[str]) -> None:
        """Members that are gone ask for nothing any more."""
        gone = set(names)
        for view, held in list(self._held.items()):
            held.members = [member for member in held.members if member.name not in gone]
            if not held.members:
                self._drop(held)
                del self._held[view]

    def close(self) -> None:
        for view, held in self._held.items():
            self._drop(held)
            self._spark.catalog.dropTempView(view)

    def _drop(self, held: _Held) -> None:
        if held.frame is not None:
            held.frame.unpersist()
            held.frame = None

    def _version(self, copy: Copy) -> int:
        return source_version(copy.part, DeltaLog(delta_sink.table_path(self._storage, copy.part.source)))

    def _renew(self, session: SparkSession, held: _Held) -> None:
        version = self._version(held.copy)
        if version == held.version:
            return
        frame = self._read(session, held.copy, version)
        if frame.dtypes != held.kinds:
            raise RunError("SCHEMA_CHANGED", f"{held.copy.part.source} has columns of other types than at the start:"
                           " start the stream again", where=self._where(held))  # fmt: skip
        kept = frame.persist()
        found = combine.twice(kept, held.copy.step).limit(1).collect()
        if found:
            kept.unpersist()
            raise RunError("DUPLICATE_KEY", combine.told_twice(held.copy.step, found[0]), where=self._where(held))
        kept.createOrReplaceTempView(held.copy.view)
        self._drop(held)
        held.version, held.frame = version, kept
        self._report(f"{held.copy.part.source} is looked up at version {version}")

    def _where(self, held: _Held) -> str:
        return held.members[0].spec.where(held.copy.place)

    def _read(self, session: SparkSession, copy: Copy, version: int) -> DataFrame:
        from pyspark.errors import PySparkException

        path = str(delta_sink.table_path(self._storage, copy.part.source))

        def source() -> DataFrame:
            return session.read.format("delta").option("versionAsOf", version).load(path).drop("updated_at")

        try:
            return Computed(copy.part, Reads(source, lambda _: source())).rows().selectExpr(*copy.step.view())
        except PySparkException as error:
            raise PlanError("EXPRESSION_TYPE", said_by_spark(error),
                            where=copy.part.spec.where("source")) from None  # fmt: skip
