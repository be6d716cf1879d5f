"""Sources of jobs that are no tables of ours: what a commit says has been read of them, and the rows of just that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from lakehouse_engine import foreign
from lakehouse_engine.sources import Files, Jdbc, Kafka, files
from lakehouse_engine.sources.ranges import Range, bounded
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def is_outside(spec: PipelineSpec) -> bool:
    return isinstance(spec.source, Files | Jdbc | Kafka)


def state(spec: PipelineSpec, environment: Environment | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What there is to read, as a commit tells it. ``before``: what the last run has read; None: none, or never mind.

    Raises ``RunError`` MISSING_FILES, MISSING_JAR, FILES_UNREACHABLE; KAFKA_UNREACHABLE, MISSING_TOPIC, DATA_LOST,
    TOPIC_RECREATED.
    """
    source = spec.source
    if isinstance(source, Files):
        return source.listing(spec.where("source"))
    if isinstance(source, Jdbc):  # no two moments are the same
        return {"read_at": datetime.now(timezone.utc).isoformat()}
    assert isinstance(source, Kafka)
    assert environment is not None
    read = Range.of(before, source) if before and "topic_id" in before else None
    return bounded(source, environment.kafka(source.connection), read, spec.where("source")).told()


def same_source(before: Mapping[str, Any]) -> dict[str, Any]:
    """What still holds of what was read where the pipeline reads something else of it now."""
    return {**before, "offsets": {}} if "offsets" in before else {}


def added(spec: PipelineSpec, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, int]:
    """What there is to read beside what was read, which is as it was: parts, with their bytes; none where that is not
    all that has changed, or cannot be told."""
    return (files.added(before, now) or {}) if isinstance(spec.source, Files) else {}


def rows(spark: SparkSession, spec: PipelineSpec, told: Mapping[str, Any], environment: Environment | None,
         only: Mapping[str, int] | None = None) -> DataFrame:  # fmt: skip
    """The rows of what ``state`` told, or of the parts of it that were ``added``. Raises ``RunError`` MISSING_JAR,
    JDBC_FAILED; ``PlanError`` TABLE_DIFFERS."""
    source = spec.source
    if isinstance(source, Files):
        return source.read(spark, spec.contracts[source.contract], spec.where("source"), only)
    assert environment is not None
    if isinstance(source, Jdbc):
        return foreign.read(spark, environment.jdbc(source.connection), source.table, spec.contracts[source.contract],
                            spec.where("source"))  # fmt: skip
    assert isinstance(source, Kafka)
    return Range.of(told, source).read(spark, source, environment.kafka(source.connection))


def changed(spec: PipelineSpec) -> str:
    """Why there may be something to do, in words."""
    if isinstance(spec.source, Jdbc):
        return "a database does not tell whether a table has changed"
    return "what it reads is not as it was"


def unchanged(spec: PipelineSpec, told: Mapping[str, Any]) -> str:
    """Why there is nothing to do, in words."""
    if isinstance(spec.source, Files):
        return f"{told['files']:,} files are as they were"
    return f"{spec.source.origin} holds the same records between start and end"
