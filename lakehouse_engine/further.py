"""The further sinks of a job: each is brought to the version of its table, and says in its own ledger which it has.

So a run that ends between two of them leaves nothing out: the next one gives each what it lacks, also when the job
itself has nothing to do.
"""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse_engine import foreign, noted, serving, sql
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.locks import acquire
from lakehouse_engine.plan import Job
from lakehouse_engine.producing import into
from lakehouse_engine.serving import Mirror, Stale
from lakehouse_engine.sinks import Delta, Files, Jdbc, Kafka, Postgres, Unkept
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks.postgres import Part
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.further import branches
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


#: seconds that a copy waits for who holds its table: a compaction, or a run that is about to end
LOCK_PATIENCE = 30.0


@dataclass(frozen=True)
class Brought:
    """What a further sink was given: ``rows``, and why those."""

    target: str
    rows: int
    reason: str


def lacking(job: Job, storage: Path, environment: Environment | None) -> list[Stale]:
    """The further sinks that do not hold the table's version. Raises ``RunError`` POSTGRES_UNREACHABLE."""
    log = DeltaLog(delta_sink.table_path(storage, job.name))
    if not job.spec.further or log.version() is None:
        return []
    assert environment is not None
    mirrors = [_mirror(job.spec, number, part) for number, part in enumerate(branches(job.spec))]
    copies = [one for one in mirrors if isinstance(one.sink, Postgres)]
    found = serving.stale(copies, storage, environment.postgres_dsn()) if copies else []
    for one in mirrors:
        if isinstance(one.sink, Delta):
            stale = serving.compare(one, log, _copied(DeltaLog(delta_sink.table_path(storage, one.table)), one.key))
        elif not isinstance(one.sink, Postgres):
            gone = isinstance(one.sink, Files) and one.sink.gone
            stale = serving.compare(one, log, None if gone else _noted(storage, one.key))
        else:
            continue
        found += [stale] if stale is not None else []
    return found


def _mirror(spec: PipelineSpec, number: int, part: PipelineSpec) -> Mirror:
    # when a row was last changed is for tables
    updated_at = isinstance(part.sink, Delta | Postgres) and part.sink.updated_at
    return Mirror(spec, part.sink.target(spec.name), part.name, f"sink[{number + 1}]", spec.further[number].where,
                  updated_at, part.sink)  # fmt: skip


def _noted(storage: Path, key: str) -> tuple[str | None, int, str | None] | None:
    found = noted.read(storage, key)
    return None if found is None else (found["table_id"], found["version"], found["commit_id"])


def _copied(log: DeltaLog, key: str) -> tuple[str | None, int, str | None] | None:
    """What a further table of Delta says that it holds; None where it is not there, or another hand has changed it."""
    record = log.record()
    if record is None or record["pipeline"] != key or log.changed_after(record["version"]) is not None:
        return None
    of = record["copy_of"]
    return of["table_id"], of["version"], of["commit_id"]


def bring(spark: SparkSession, job: Job, storage: Path, environment: Environment | None) -> list[Brought]:
    """Gives each what it lacks; the caller holds the table. Raises what its sinks raise."""
    found = []
    for item in lacking(job, storage, environment):
        assert environment is not None
        sink = item.mirror.sink
        if isinstance(sink, Postgres):
            done = serving.load(spark, item, storage, environment.postgres_dsn())
            rows, reason = done.rows, done.reason
        elif isinstance(sink, Delta):
            rows, reason = _copy(spark, item, sink, storage), item.reason
        else:
            assert isinstance(sink, Unkept)
            reason, part = item.reason, item.part
            if isinstance(sink, Jdbc) and part is not None:
                reason, part = f"{reason}, and jdbc writes a table as a whole", None
            if isinstance(sink, Files) and part is not None and sink.partition_by[:1] != (part.column,):
                reason, part = f"{reason}, and partition_by does not begin with {part.column}", None
            frame = serving.part_of(serving.rows_of(spark, item, storage), part)
            rows = write(frame, sink, job.spec, environment, storage, item.mirror.place, part)
            record = {"table_id": item.table_id, "version": item.version, "commit_id": item.commit_id, "rows": rows}
            noted.write(storage, item.mirror.key, json.dumps(record))
        found.append(Brought(f"{sink.key} {item.mirror.table}", rows, reason))
    return found


def _copy(spark: SparkSession, item: Stale, sink: Delta, storage: Path) -> int:
    """Writes what a further table of Delta lacks in one commit that says which version it then holds; the rows."""
    mirror, path = item.mirror, delta_sink.table_path(storage, item.mirror.table)
    began, run = datetime.now(timezone.utc), f"{mirror.key}/{uuid.uuid4().hex}"
    frame = serving.part_of(serving.rows_of(spark, item, storage), item.part).persist()
    with closing(acquire(spark, storage, mirror.table, mirror.key, patience=LOCK_PATIENCE)):
        try:
            rows, kinds, part = frame.count(), dict(frame.dtypes), item.part
            where = None if part is None else sql.among(part.column, kinds[part.column], part.slices)
            record = {"pipeline": mirror.key, "epoch": 1, "kind": "copy", "started_at": began.isoformat(),
                      "counters": {"counted": rows}, "copy_of": {
                          "table_id": item.table_id, "version": item.version, "commit_id": item.commit_id}}  # fmt: skip
            delta_sink.replace(frame, path, json.dumps(record), partition_by=sink.partition_by,
                               cluster_by=sink.cluster_by, where=where, run=run)  # fmt: skip
        finally:
            frame.unpersist()
    return rows


def write(frame: DataFrame, sink: Unkept, spec: PipelineSpec, environment: Environment | None, storage: Path,
          place: str = "sink", part: Part | None = None) -> int:  # fmt: skip
    """Writes the rows into a sink that holds no ledger; their number. ``part``: they are what there is of this.

    Raises what the sink raises.
    """
    if isinstance(sink, Kafka):
        assert environment is not None
        return into(sink, frame.columns, spec.key_columns, environment.kafka(sink.connection), spec.where(place))(frame)
    frame = frame.persist()
    try:
        if isinstance(sink, Jdbc):
            assert environment is not None
            foreign.add(frame, environment.jdbc(sink.connection), sink.table, spec.where(place), in_place=True)
        else:
            sink.write(frame, spec.name, storage, spec.where(place), None if part is None else part.slices)
        return frame.count()
    finally:
        frame.unpersist()
