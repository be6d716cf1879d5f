"""By what a pipeline's rows are made, kept in the sink beside them: a start can tell what has changed since.

In PostgreSQL a row of ``lakehouse.definitions`` for each epoch, written by the transaction that claims the pipeline.
In Delta in the record of a commit: of a stream in the first of each start and in every hundredth, for logs are cleaned
from their old end; of a job in each.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lakehouse_engine import noted
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.plan import fingerprint
from lakehouse_engine.progress import to_micros
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.stages import query
from lakehouse_engine.transforms import Window

#: commits of a stream between two that say the definition, and how far back it is looked for
EVERY, _FAR = 100, 1000
#: how rows come to be in the table: added for good, by their keys, merged into windows or sessions, through Spark's
#: state, or computed anew by each run
Way = Literal["added", "keyed", "windows", "sessions", "state", "computed"]


@dataclass(frozen=True)
class Definition:
    """``file``: what the file says, by key. ``columns``: names of the table's, as far as they were known.

    ``state``: by what Spark's state was made (``Query.fingerprint``). ``since``: measures that came later than the
    table; windows that begin at or before the time (microseconds) do not have them.
    """

    way: Way
    sink: str
    table: str
    keys: tuple[str, ...]
    fingerprint: str
    file: Mapping[str, Any]
    state: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    since: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(stored: Mapping[str, Any]) -> Definition:
    """What an older version did not know is as it is by default, and what a newer one added is left out."""
    known = {name: stored[name] for name in Definition.__dataclass_fields__ if name in stored}
    lists = {name: tuple(known.get(name, ())) for name in ("keys", "columns")}
    return Definition(**{**known, **lists})


def of(spec: PipelineSpec, columns: Iterable[str] = ()) -> Definition:
    """``columns``: names of the table's."""
    way, state = _way(spec), dict[str, str]()
    if way == "state":
        state = query(spec, lambda part: part.name, lambda _, place: place).fingerprint
    return Definition(way, spec.sink.key, spec.table, tuple(spec.key_columns), fingerprint(spec), _said(spec),
                      state, tuple(columns))  # fmt: skip


def _way(spec: PipelineSpec) -> Way:
    if spec.is_stream and needs_state(spec):
        return "state"
    window = next((step for step in spec.transforms if isinstance(step, Window)), None)
    if spec.is_stream and window is not None:
        return "sessions" if window.session else "windows"
    if isinstance(spec.sink, Delta | Postgres) and spec.sink.mode in ("upsert", "scd2"):
        return "keyed"
    return "added" if spec.is_stream or spec.reads_changes else "computed"


def _said(spec: PipelineSpec) -> dict[str, Any]:
    aside: dict[str, Any] = {**dict.fromkeys(("file", "lines", "complete", "below", "name"), True),
                             "contracts": {"__all__": {"file"}}}  # fmt: skip
    made: dict[str, Any] = json.loads(spec.model_dump_json(exclude=aside, exclude_defaults=True))
    for key in ("source", "sink"):
        part = getattr(spec, key)
        made[key] = {"": part.key, **json.loads(part.model_dump_json(by_alias=True, exclude_defaults=True))}
    for key, steps in (("transforms", spec.transforms), ("checks", spec.checks)):
        made[key] = [[one.key, json.loads(one.model_dump_json(by_alias=True, exclude_defaults=True))] for one in steps]
    return made


def said(definition: Mapping[str, Any] | None, batch_id: int, *, already: bool) -> dict[str, Any]:
    """What the record of a stream's commit says of it; ``already``: this start has said it."""
    return {} if already and batch_id % EVERY else {"definition": definition}


def held(cursor: Any, pipelines: Collection[str]) -> dict[str, Definition]:
    """Of the newest epoch of each pipeline that PostgreSQL knows, in the caller's transaction."""
    cursor.execute("select to_regclass('lakehouse.definitions') is not null")
    if cursor.fetchone() != (True,):
        return {}
    cursor.execute("select distinct on (pipeline) pipeline, definition from lakehouse.definitions"
                   " where pipeline = any(%s) order by pipeline, epoch desc", (list(pipelines),))  # fmt: skip
    return {name: from_json(stored) for name, stored in cursor.fetchall() if stored}


def hold(cursor: Any, pipeline: str, epoch: int, now: Definition, added: Collection[str] = ()) -> Definition:
    """Keeps the definition; the caller has claimed the pipeline, so that nobody else commits until it does.

    ``added``: columns that its table has had from now on. Returns it with ``since``.
    """
    before = held(cursor, [pipeline]).get(pipeline)
    new = set(added) | (set(now.columns) - set(before.columns) if before is not None and before.columns else set())
    since = {name: at for name, at in (before.since if before else {}).items() if name in now.columns}
    if new and now.way == "windows":
        cursor.execute("select max(max_event_time) from lakehouse.positions where pipeline = %s and epoch = %s",
                       (pipeline, epoch))  # fmt: skip
        reached = to_micros(cursor.fetchone()[0])
        since |= {name: reached for name in new if reached is not None}
    now = replace(now, since=since)
    cursor.execute("insert into lakehouse.definitions (pipeline, epoch, definition) values (%s, %s, %s)"
                   " on conflict (pipeline, epoch) do update set definition = excluded.definition, at = excluded.at"
                   " where definitions.definition is distinct from excluded.definition",
                   (pipeline, epoch, json.dumps(now.as_json())))  # fmt: skip
    return now


def of_log(log: DeltaLog, pipeline: str) -> Definition | None:
    """What the newest commit says that has a definition; None where none of the last ones has."""
    for version in list(reversed(log.versions()))[:_FAR]:
        record = log.record_of(version) or {}
        if record.get("definition") and record["pipeline"] == pipeline:
            return from_json(record["definition"])
    return None


def of_note(storage: Path, pipeline: str) -> Definition | None:
    """Of what goes to a topic or a folder: the note of how far that is says it."""
    found = (noted.read(storage, pipeline) or {}).get("definition")
    return from_json(found) if found else None
