"""What a run of a job has to do, decided from the logs of its source and its target. Plain Python: no Spark here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lakehouse_engine import arrivals
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.plan import EPOCH, Job
from lakehouse_engine.sinks import Delta
from lakehouse_engine.sinks import delta as delta_sink


@dataclass(frozen=True)
class Decision:
    """What to do and why. ``slices`` (kinds ``slices`` and ``rows``): values of ``replace_by`` as the log writes them.

    Kind ``rows``: in those slices rows were only added since the version ``since``, in the files ``added`` (bytes by
    path below the table). ``version``: the source's, to read. ``sources`` and ``fingerprint``: what the commit will say
    has been read, and by what; ``backfill``: what it will say of a backfill that it is a part of.
    """

    kind: Literal["nothing", "rows", "slices", "full"]
    reason: str
    version: int = 0
    slices: tuple[str | None, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    backfill: Mapping[str, Any] | None = None
    since: int = 0
    added: Mapping[str, int] = field(default_factory=dict)
    #: the versions to read of the other tables that checks look into
    related: Mapping[str, int] = field(default_factory=dict)


def decide(job: Job, storage: Path, *, full: bool = False) -> Decision:
    """Compares the source's log with what the target's last commit says it has read.

    Raises ``RunError`` MISSING_TABLE, AS_OF_GONE.
    """
    source = DeltaLog(delta_sink.table_path(storage, job.source))
    version = source_version(job, source)
    related = related_versions(job, storage)
    read = {table: _as_read(storage, table, held) for table, held in {**related, job.source: version}.items()}

    def everything(reason: str) -> Decision:
        return Decision("full", reason, version, sources=read, fingerprint=job.fingerprint, related=related)

    def nothing(reason: str) -> Decision:
        return Decision("nothing", reason, version, sources=read, fingerprint=job.fingerprint)

    if full:
        return everything("asked for")
    if not isinstance(job.spec.sink, Delta):
        return everything("this sink keeps no progress")
    target = DeltaLog(delta_sink.table_path(storage, job.name))
    if target.version() is None:
        return everything("first run")
    record = target.record()
    stranger = _stranger(target, record, job.name)
    if record is None or stranger is not None:
        return everything(f"version {stranger} of {job.name} is not this pipeline's")
    if record.get("fingerprint") != job.fingerprint or record.get("epoch") != EPOCH:
        unfinished = (record.get("backfill") or {}).get("finished") is False
        return everything("a backfill has not been finished" if unfinished else "the pipeline has changed")
    before = record["sources"].get(job.source, {})
    other = _other(source, read[job.source], before)
    if other is not None:
        return everything(f"{job.source} {other}")
    for table in related:
        log = DeltaLog(delta_sink.table_path(storage, table))
        moved = _related_change(log, read[table], record["sources"].get(table, {}))
        if moved is not None:
            return everything(f"{table}, which its checks look into, {moved}")
    if before["version"] == version:
        return nothing(f"{job.source} is still at version {version}")
    if not job.local or job.slice_by is None:
        return everything(job.reason)
    change = source.changed(before["version"], job.slice_by, version)
    if change.slices is None:
        return everything(f"{job.source} does not tell which {job.slice_by} changed: {change.reason}")
    if not change.slices:
        return nothing(f"{job.source} has no changed rows")
    changed = f"{len(change.slices)} of {job.slice_by} changed"
    slices = Decision("slices", changed, version, in_order(change.slices), read, job.fingerprint,
                      related=related)  # fmt: skip
    added = change.added
    if added is None or not (job.rowwise and arrivals.readable(source, added, version)):
        return slices
    if not _consistent(job, storage, record):
        return slices
    if any(_appends(target, value) >= arrivals.MOST_APPENDS for value in slices.slices):
        return slices
    return replace(slices, kind="rows", reason=f"{changed}, by new rows", since=before["version"], added=added)


def in_order(slices: frozenset[str | None] | set[str | None]) -> tuple[str | None, ...]:
    return tuple(sorted(slices, key=lambda s: (s is not None, s or "")))


def source_version(job: Job, source: DeltaLog) -> int:
    """The version to read: the newest, or the one that ``as_of`` names."""
    newest = source.version()
    where = job.spec.where("source")
    if newest is None:
        raise RunError("MISSING_TABLE", f"there is no table {job.source} yet; run the pipeline that writes it first",
                       where=where)  # fmt: skip
    wanted = getattr(job.spec.source, "as_of", None)
    if wanted is None:
        return newest
    there = source.versions()
    found = wanted if isinstance(wanted, int) else source.version_at(datetime.fromisoformat(wanted))
    if found is None or found not in there:
        first = datetime.fromtimestamp(source.info(there[0]).get("timestamp", 0) / 1000, timezone.utc)
        raise RunError("AS_OF_GONE", f"{job.source} as of {wanted} is not in its log, which holds versions {there[0]}"
                       f" to {newest}, from {first:%Y-%m-%dT%H:%M:%SZ} on; see: lakehouse history {job.source}",
                       where=where)  # fmt: skip
    return int(found)


def related_versions(job: Job, storage: Path) -> dict[str, int]:
    """The newest versions of the tables that the job's checks look into. Raises ``RunError`` MISSING_TABLE."""
    found = {}
    for table in job.spec.related:
        version = DeltaLog(delta_sink.table_path(storage, table)).version()
        if version is None:
            raise RunError("MISSING_TABLE", f"there is no table {table} yet; run the pipeline that writes it first",
                           where=job.spec.where("checks"))  # fmt: skip
        found[table] = version
    return found


def _as_read(storage: Path, table: str, version: int) -> dict[str, Any]:
    log = DeltaLog(delta_sink.table_path(storage, table))
    return {"id": log.table_id(), "version": version, "commit": log.commit_id(version)}


def _related_change(log: DeltaLog, now: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """What happened to another table since it was read, if its rows may be others now. Compactions change nothing."""
    other = _other(log, now, before)
    if other is not None:
        return other
    there = set(log.versions())
    if any(version not in there for version in range(before["version"] + 1, now["version"] + 1)):
        return f"no longer has what came after version {before['version']} in its log"
    return None if log.changed_after(before["version"]) is None else "has changed"


def _consistent(job: Job, storage: Path, record: Mapping[str, Any]) -> bool:
    """Whether the table and what it keeps aside are those of the version that was read, row by row.

    After a backfill slices may be ahead of it; after a crash between the two commits what is kept aside is.
    """
    if record.get("backfill") is not None:
        return False
    aside = DeltaLog(delta_sink.table_path(storage, f"{job.name}__quarantine"))
    held = aside.record()
    if held is None:
        return aside.version() is None
    now, then = held["sources"].get(job.source, {}), record["sources"][job.source]
    return (held.get("backfill") is None and held.get("fingerprint") == job.fingerprint
            and now.get("id") == then["id"] and now.get("version", -1) <= then["version"]
            and aside.changed_after(held["version"]) is None)  # fmt: skip


def _appends(target: DeltaLog, value: str | None) -> int:
    """How many runs have added rows to the slice since it was last computed as a whole."""
    count = 0
    for version in reversed(target.versions()):
        record = target.record_of(version) or {}
        if record.get("repeats") or (record.get("slices") is not None and value not in record["slices"]):
            continue
        if not record.get("appended"):
            break
        count += 1
    return count


def _stranger(target: DeltaLog, record: Mapping[str, Any] | None, name: str) -> int | None:
    """The commit that makes the table's rows another's than this pipeline's, if there is one."""
    if record is None or record["pipeline"] != name:
        return target.version() or 0
    return target.changed_after(record["version"])


def _other(source: DeltaLog, now: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """Why the source is not the table that was read before, if it is not."""
    if now["id"] is None or before.get("id") != now["id"]:
        return "is another table than before"
    if before.get("version", -1) > now["version"]:
        return f"has gone back from version {before['version']} to {now['version']}"
    then = source.commit_id(before["version"])
    if before.get("commit") and then and then != before["commit"]:
        return f"has another version {before['version']} than the one that was read"
    return None
