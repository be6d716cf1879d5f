"""What a run of a job has to do, decided from the logs of its source and its target. Plain Python: no Spark here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lakehouse_engine import arrivals, noted, outside
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.locality import Other
from lakehouse_engine.plan import Job
from lakehouse_engine.sinks import Delta, Files, Unkept
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.spec.environment import Environment


@dataclass(frozen=True)
class Decision:
    """What to do and why. ``slices`` (kinds ``slices`` and ``rows``): values of ``replace_by`` as the log writes them.

    Kind ``rows``: in those slices rows were only added since the version ``since``, in the files ``added`` (bytes by
    path below the table). Kind ``changes``: what the commits after ``since`` changed. ``version``: the source's, to
    read. ``sources`` and ``fingerprint``: what the commit will say has been read, and by what; ``backfill``: what it
    will say of a backfill that it is a part of.
    """

    kind: Literal["nothing", "changes", "rows", "slices", "full"]
    reason: str
    version: int = 0
    slices: tuple[str | None, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    backfill: Mapping[str, Any] | None = None
    since: int = 0
    added: Mapping[str, int] = field(default_factory=dict)
    #: the versions to read of the other tables, by what the job's steps and checks call them
    others: Mapping[str, int] = field(default_factory=dict)


def decide(job: Job, storage: Path, *, full: bool = False, environment: Environment | None = None) -> Decision:
    """Compares the logs of what the job reads with what the target's last commit says it has read.

    ``environment``: how to reach a source that is no table. Raises ``RunError`` MISSING_TABLE, AS_OF_GONE, and what
    ``outside.state`` raises.
    """
    if outside.is_outside(job.spec):
        return _outside(job, storage, environment, full=full)
    source = DeltaLog(delta_sink.table_path(storage, job.source))
    version = source_version(job, source)
    others = other_versions(job, storage, version)
    read = as_read(job, storage, version, others)

    def everything(reason: str) -> Decision:
        return Decision("full", reason, version, sources=read, fingerprint=job.fingerprint, others=others)

    def nothing(reason: str) -> Decision:
        return Decision("nothing", reason, version, sources=read, fingerprint=job.fingerprint)

    if job.changes:
        return _changes(job, storage, everything("first run, all of it as inserts"), full=full)
    if full:
        return everything("asked for")
    if isinstance(job.spec.sink, Unkept):
        return _noted(job, storage, everything, nothing)
    if not isinstance(job.spec.sink, Delta):
        return everything("this sink keeps no progress")
    target = DeltaLog(delta_sink.table_path(storage, job.name))
    if target.version() is None:
        return everything("first run")
    record = target.record()
    stranger = _stranger(target, record, job.name)
    if record is None or stranger is not None:
        return everything(f"version {stranger} of {job.name} is not this pipeline's")
    if record.get("fingerprint") != job.fingerprint:
        unfinished = (record.get("backfill") or {}).get("finished") is False
        return everything("a backfill has not been finished" if unfinished else "the pipeline has changed")
    before = record["sources"].get(job.source, {})
    other = _other(source, read[job.source], before)
    if other is not None:
        return everything(f"{job.source} {other}")
    moved: set[str | None] = set()
    for one in job.others:
        reason, values = _moved(one, storage, read[one.key], record["sources"].get(one.key, {}), local=job.local)
        if reason is not None:
            return everything(reason)
        moved |= values
    if before["version"] == version and not moved:
        still = "what it reads is as it was" if job.others else f"{job.source} is still at version {version}"
        return nothing(still)
    if not job.local or job.slice_by is None:
        return everything(job.reason)
    change = source.changed(before["version"], job.slice_by, version)
    if change.slices is None:
        return everything(f"{job.source} does not tell which {job.slice_by} changed: {change.reason}")
    if not change.slices and not moved:
        return nothing(f"{job.source} has no changed rows")
    values = change.slices | moved
    changed = f"{len(values)} of {job.slice_by} changed"
    slices = Decision("slices", changed, version, in_order(values), read, job.fingerprint, others=others)
    added = change.added
    if moved or added is None or not (job.rowwise and arrivals.readable(source, added, version)):
        return slices
    if not _consistent(job, storage, record):
        return slices
    if any(_appends(target, value) >= arrivals.MOST_APPENDS for value in slices.slices):
        return slices
    return replace(slices, kind="rows", reason=f"{changed}, by new rows", since=before["version"], added=added)


def noted_as_read(job: Job, storage: Path) -> dict[str, Any] | None:
    """What the ledger of a sink that holds none says of the last run; None where there is none, or it is gone."""
    sink = job.spec.sink
    if not isinstance(sink, Unkept) or (isinstance(sink, Files) and sink.gone):
        return None
    return noted.read(storage, job.name)


def _noted(job: Job, storage: Path, everything: Callable[[str], Decision],
           nothing: Callable[[str], Decision]) -> Decision:  # fmt: skip
    """A job whose sink is not a table: all of it, where what it reads is not as it was."""
    record = noted_as_read(job, storage)
    if record is None:
        return everything("first run")
    if record.get("fingerprint") != job.fingerprint:
        return everything("the pipeline has changed")
    read = everything("").sources
    if any(record["sources"].get(key) != read[key] for key in read):
        return everything("what it reads is not as it was")
    return nothing("what it reads is as it was")


def _outside(job: Job, storage: Path, environment: Environment | None, *, full: bool) -> Decision:
    """A job whose source is no table: all of it, where that or another table is not as the last commit says.

    Raises ``RunError`` MISSING_TABLE, AS_OF_GONE.
    """
    others = other_versions(job, storage, 0)
    target = DeltaLog(delta_sink.table_path(storage, job.name))
    record = target.record() if isinstance(job.spec.sink, Delta) else noted_as_read(job, storage)
    before = None if full or record is None else record["sources"].get(job.source)
    if before is not None and record is not None and record.get("fingerprint") != job.fingerprint:
        before = outside.same_source(before)
    read = {one.key: _as_read(storage, one.table, others[one.name]) for one in job.others} | {
        job.source: outside.state(job.spec, environment, before)
    }
    everything = Decision("full", "first run", sources=read, fingerprint=job.fingerprint, others=others)
    if full:
        return replace(everything, reason="asked for")
    if not isinstance(job.spec.sink, Delta | Unkept):
        return replace(everything, reason="this sink keeps no progress")
    if target.version() is None and record is None:
        return everything
    if record is None or (isinstance(job.spec.sink, Delta) and _stranger(target, record, job.name) is not None):
        return replace(everything, reason=f"the newest commit of {job.name} is not this pipeline's")
    if record.get("fingerprint") != job.fingerprint:
        return replace(everything, reason="the pipeline has changed")
    if record["sources"] != read:
        return _grown(job, storage, record, everything)
    return replace(everything, kind="nothing", reason=outside.unchanged(job.spec, read[job.source]))


def _grown(job: Job, storage: Path, record: Mapping[str, Any], everything: Decision) -> Decision:
    """What was added alone, where each row of the result is made of one of the source and the others are as before."""
    everything = replace(everything, reason=outside.changed(job.spec))
    read, before = everything.sources, record["sources"]
    others = {key: at for key, at in read.items() if key != job.source}
    dedupes = any(step.key == "dedupe" for step in job.spec.transforms)
    if not (isinstance(job.spec.sink, Delta) and job.rowwise) or dedupes or job.slice_by or any(
            before.get(key) != at for key, at in others.items()):  # fmt: skip
        return everything
    added = outside.added(job.spec, before.get(job.source, {}), read[job.source])
    aside = DeltaLog(delta_sink.table_path(storage, f"{job.name}__quarantine"))
    held = aside.record()
    kept = (held or {}).get("sources", {}).get(job.source, before[job.source])
    # what is kept aside is ahead after a crash between the two commits, and there may be more than is told of
    if not added or record.get("backfill") or (held is None and aside.version() is not None):
        return everything
    if any(path in added for path in kept.get("named", {"": 0} if kept != before[job.source] else {})):
        return everything
    return replace(everything, kind="rows", reason=f"{len(added):,} files were added", added=added)


def _changes(job: Job, storage: Path, all_of_it: Decision, *, full: bool) -> Decision:
    """A job over changes: what came since the version that its last commit has read.

    Raises ``RunError`` CHANGES_OFF, CHANGES_GONE.
    """
    where, name, version = job.spec.where("source"), job.source, all_of_it.version
    source = DeltaLog(delta_sink.table_path(storage, name))
    target = DeltaLog(delta_sink.table_path(storage, job.name))
    if not delta_sink.keeps_changes(source, version):
        raise RunError("CHANGES_OFF", f"{name} does not keep what changes: run the pipeline that writes it together"
                       " with this one once (lakehouse run with both files), which makes it", where=where)  # fmt: skip
    record = target.record()
    if target.version() is None:
        return all_of_it
    begin = f"lakehouse reset {job.spec.file} begins anew with the table as it is"
    stranger = _stranger(target, record, job.name)
    if full or record is None or stranger is not None:
        reason = "changes come once" if full else f"version {stranger} of {job.name} is not this pipeline's"
        raise RunError("CHANGES_GONE", f"{reason}; {begin}", where=where)
    before, now = record["sources"].get(name, {}), all_of_it.sources[name]
    other = _other(source, now, before)
    there = set(source.versions())
    missing = [v for v in range(before.get("version", version) + 1, version + 1) if v not in there]
    if other is not None or missing:
        reason = f"{name} {other}" if other else f"version {missing[0]} of {name} is no longer in its log"
        raise RunError("CHANGES_GONE", f"{reason}; {begin}", where=where)
    if all(not source.changes_rows(v) for v in range(before["version"] + 1, version + 1)):
        return replace(all_of_it, kind="nothing", reason=f"{name} is as it was at version {before['version']}")
    said = f"versions {before['version'] + 1} to {version} of {name}"
    return replace(all_of_it, kind="changes", reason=said, since=before["version"])


def in_order(slices: frozenset[str | None] | set[str | None]) -> tuple[str | None, ...]:
    return tuple(sorted(slices, key=lambda s: (s is not None, s or "")))


def source_version(job: Job, source: DeltaLog) -> int:
    """The version of its source to read: the newest, or the one that ``as_of`` names."""
    return _version(job.source, source, getattr(job.spec.source, "as_of", None), job.spec.where("source"))


def _version(table: str, source: DeltaLog, wanted: int | str | None, where: str) -> int:
    """Raises ``RunError`` MISSING_TABLE, AS_OF_GONE."""
    newest = source.version()
    if newest is None:
        raise RunError("MISSING_TABLE", f"there is no table {table} yet; run the pipeline that writes it first",
                       where=where)  # fmt: skip
    if wanted is None:
        return newest
    there = source.versions()
    found = wanted if isinstance(wanted, int) else source.version_at(datetime.fromisoformat(wanted))
    if found is None or found not in there:
        first = datetime.fromtimestamp(source.info(there[0]).get("timestamp", 0) / 1000, timezone.utc)
        raise RunError("AS_OF_GONE", f"{table} as of {wanted} is not in its log, which holds versions {there[0]}"
                       f" to {newest}, from {first:%Y-%m-%dT%H:%M:%SZ} on; see: lakehouse history {table}",
                       where=where)  # fmt: skip
    return int(found)


def other_versions(job: Job, storage: Path, version: int) -> dict[str, int]:
    """The versions to read of the other tables, by name: one of each table, the source's too, which is at ``version``.

    Raises ``RunError`` MISSING_TABLE, AS_OF_GONE.
    """
    newest = {job.source: version} if getattr(job.spec.source, "as_of", None) is None else {}
    found = {}
    for one in job.others:
        if one.as_of is not None or one.table not in newest:
            log = DeltaLog(delta_sink.table_path(storage, one.table))
            asked = _version(one.table, log, one.as_of, job.spec.where(one.place))
            newest |= {one.table: asked} if one.as_of is None else {}
            found[one.name] = asked
        else:
            found[one.name] = newest[one.table]
    return found


def as_read(job: Job, storage: Path, version: int, others: Mapping[str, int]) -> dict[str, Any]:
    """What the commit says has been read: of each table its id, the version and that version's commit."""
    versions = {one.key: (one.table, others[one.name]) for one in job.others} | {job.source: (job.source, version)}
    return {key: _as_read(storage, *read) for key, read in versions.items()}


def _as_read(storage: Path, table: str, version: int) -> dict[str, Any]:
    log = DeltaLog(delta_sink.table_path(storage, table))
    return {"id": log.table_id(), "version": version, "commit": log.commit_id(version)}


def _moved(one: Other, storage: Path, now: Mapping[str, Any], before: Mapping[str, Any],
           *, local: bool) -> tuple[str | None, frozenset[str | None]]:  # fmt: skip
    """Why all has to be computed since another table was read, if it has; else the slices that changed there.

    Compactions change nothing.
    """
    if one.ignored:
        return None, frozenset()
    log, told = DeltaLog(delta_sink.table_path(storage, one.table)), f"{one.table}, {one.why},"
    other = _other(log, now, before)
    if other is not None:
        return f"{told} {other}", frozenset()
    if now["version"] == before["version"]:
        return None, frozenset()
    there = set(log.versions())
    if any(version not in there for version in range(before["version"] + 1, now["version"] + 1)):
        return f"{told} no longer has what came after version {before['version']} in its log", frozenset()
    if log.changed_after(before["version"]) is None:
        return None, frozenset()
    if one.slice_by is None or not local:
        return f"{told} has changed", frozenset()
    change = log.changed(before["version"], one.slice_by, now["version"])
    if change.slices is None:
        return f"{told} does not tell which {one.slice_by} changed: {change.reason}", frozenset()
    return None, change.slices


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
