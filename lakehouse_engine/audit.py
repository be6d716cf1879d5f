"""Whether every record that was read is accounted for, by what the stores themselves hold: one query, one walk of logs.

Of each stream, in each epoch: what a micro-batch read (its offset ranges) is what it counted
(``quarantined + filtered + duplicate + late + counted``); each range begins where the one before it ended; the last one
ends at the stored position; and what was counted as kept aside is there. A batch that is not so is looked up in the
topic: offsets without a record (transactions' marks, aborted records, compaction) are no rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from lakehouse_engine import definitions, printed
from lakehouse_engine.definitions import Definition
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.retention import GONE_BEFORE
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources.broker import records_between

if TYPE_CHECKING:
    from rich.table import Table

    from lakehouse_engine.spec.environment import Environment

#: by partition the first offset and the one after the last
Ranges = Mapping[int, tuple[int, int]]
_UUID = 36
#: how many records a topic holds in ranges; None where it does not hold them any more
Held = Callable[[str, Ranges], int | None]
#: the same by what a pipeline's rows are made of
Asked = Callable[[Definition | None], Held]


@dataclass(frozen=True)
class Batch:
    """One micro-batch as its commit has it. ``kept``: rows that it kept aside, by counter, as they lie there now."""

    number: int
    topic_id: str
    topic: str
    ranges: Ranges
    counters: Mapping[str, int]
    kept: Mapping[str, int] = field(default_factory=dict)
    #: of several topics: id, name and partition of what ``ranges`` has numbers for
    several: Mapping[int, tuple[str, str, int]] = field(default_factory=dict)

    def at(self, place: int) -> tuple[str, str, int]:
        """Id and name of the topic, and the partition."""
        return self.several.get(place, (self.topic_id, self.topic, place))

    def said(self, place: int) -> str:
        _, topic, partition = self.at(place)
        return f"partition {partition} of {topic}" if self.several else f"partition {partition}"

    def rows(self, held: Held) -> int | None:
        """How many records the topics hold in the ranges."""
        by_topic: dict[str, dict[int, tuple[int, int]]] = {}
        for place, at in self.ranges.items():
            by_topic.setdefault(self.at(place)[1], {})[self.at(place)[2]] = at
        found = [held(topic, ranges) for topic, ranges in by_topic.items()]
        return None if None in found else sum(number for number in found if number is not None)

    @property
    def of_table(self) -> bool:
        """Whether the ranges are versions of a Delta table, whose id is a UUID, and not offsets of a topic."""
        return len(self.topic_id) == _UUID

    @property
    def read(self) -> int:
        """Offsets; of a table's versions nothing tells the rows but what was counted."""
        return self.accounted if self.of_table else sum(until - since for since, until in self.ranges.values())

    @property
    def accounted(self) -> int:
        return sum(self.counters.values())


@dataclass(frozen=True)
class Audited:
    """A pipeline in one epoch: offsets it read, those without a record, its counters, and what does not hold."""

    pipeline: str
    store: str
    epoch: int
    batches: int
    read: int
    empty: int
    counters: Mapping[str, int]
    wrong: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.wrong

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def read(environment: Environment, names: Sequence[str] = ()) -> list[Audited]:
    """Every stream that has committed, by name; ``names``: those alone.

    Raises ``RunError`` POSTGRES_UNREACHABLE, and KAFKA_UNREACHABLE when a topic has to be asked.
    """

    def held(made_by: Definition | None) -> Held:
        return lambda topic, ranges: records_between(environment.kafka(_connection(made_by, topic)), topic, ranges)

    with closing(postgres_sink.connect(environment.postgres_dsn())) as connection, connection, \
            connection.cursor() as cursor:  # fmt: skip
        found = [*_postgres(cursor, held), *_delta(Path(environment.storage), held)]
    return sorted((one for one in found if not names or one.pipeline in names),
                  key=lambda one: (one.pipeline, one.epoch))  # fmt: skip


def judge(pipeline: str, store: str, epoch: int, batches: Sequence[Batch], ends: Mapping[str, Mapping[int, int]],
          held: Held) -> Audited:  # fmt: skip
    """What holds of these batches, in order. ``ends``: stored positions by topic's id, partition."""
    wrong: list[str] = []
    last: dict[tuple[str, int], int] = {}
    empty = 0
    for batch in batches:
        for place, (since, until) in batch.ranges.items():
            topic_id, _, partition = batch.at(place)
            before = last.get((topic_id, partition), since)
            if before != since:
                what = "reads again from" if since < before else "leaves out what came before"
                wrong.append(f"batch {batch.number} {what} offset {since:,} of {batch.said(place)}; the one before"
                             f" ended at {before:,}")  # fmt: skip
            last[topic_id, partition] = until
        missing = batch.read - batch.accounted
        if missing:
            rows = batch.rows(held)
            if rows is None and missing > 0:
                wrong.append(f"batch {batch.number} read {batch.read:,} offsets and accounts for {batch.accounted:,};"
                             " the topic does not hold them any more, so nobody can say what they were")  # fmt: skip
            elif rows != batch.accounted:
                wrong.append(f"batch {batch.number} read {rows if rows is not None else batch.read:,} records and"
                             f" accounts for {batch.accounted:,}")  # fmt: skip
            else:
                empty += missing
        for name, kept in batch.kept.items():
            if kept < batch.counters.get(name, 0):
                wrong.append(f"batch {batch.number} counted {batch.counters[name]:,} rows as {name}, and"
                             f" {kept:,} are kept")  # fmt: skip
    for (topic_id, partition), until in last.items():
        stored = ends.get(topic_id, {}).get(partition)
        if stored is not None and stored != until:
            wrong.append(f"partition {partition} is stored as read up to {stored:,}, and its batches end at {until:,}")
    sums = {name: sum(batch.counters.get(name, 0) for batch in batches) for name in COUNTERS}
    return Audited(pipeline, store, epoch, len(batches), sum(batch.read for batch in batches), empty, sums,
                   tuple(wrong))  # fmt: skip


_BATCHES = """
select b.pipeline, b.epoch, b.batch_id, b.topic_id, coalesce(p.topic, ''), b.ranges, {counters}, {kept}
from lakehouse.batches b left join lateral (select max(topic) as topic from lakehouse.positions p
  where (p.pipeline, p.topic_id) = (b.pipeline, b.topic_id)) p on true order by b.pipeline, b.epoch, b.batch_id"""


def _postgres(cursor: Any, held: Asked) -> Iterator[Audited]:
    cursor.execute("select to_regclass('lakehouse.batches') is not null")
    if not cursor.fetchone()[0]:
        return
    cursor.execute("select pipeline, epoch, topic_id, partition, next_offset from lakehouse.positions")
    ends: dict[tuple[str, int], dict[str, dict[int, int]]] = {}
    for pipeline, epoch, topic_id, partition, offset in cursor.fetchall():
        ends.setdefault((pipeline, epoch), {}).setdefault(topic_id, {})[partition] = offset
    cursor.execute(sql.SQL(_BATCHES).format(
        counters=sql.SQL(", ").join(sql.SQL("b.{}").format(sql.Identifier(name)) for name in COUNTERS),
        kept=_late_by_batch(cursor)))  # fmt: skip
    grouped: dict[tuple[str, int], list[Batch]] = {}
    for pipeline, epoch, number, topic_id, topic, ranges, *counts, late in cursor.fetchall():
        counters = dict(zip(COUNTERS, counts, strict=True))
        kept = {} if late is None else {"late": late}
        batch = _batch(number, topic_id, topic, ranges, counters, kept)
        grouped.setdefault((pipeline, epoch), []).append(batch)
    made_by = definitions.held(cursor, [pipeline for pipeline, _ in grouped])
    for (pipeline, epoch), batches in grouped.items():
        ours = ends.get((pipeline, epoch), {})
        yield judge(pipeline, "postgres", epoch, batches, ours, held(made_by.get(pipeline)))


def _late_by_batch(cursor: Any) -> sql.Composable:
    """SQL: how many rows the batch ``b`` has kept as late; null where it has no such table (its epoch's), and where
    they were too old to stay."""
    cursor.execute("select table_schema, table_name from information_schema.tables where table_name like '%\\_\\_late'"
                   " and table_schema <> 'lakehouse'")  # fmt: skip
    cases = []
    for schema, name in cursor.fetchall():
        layer, _, ended = schema.partition("__epoch")
        epoch = sql.Literal(int(ended)) if ended else sql.SQL(
            "(select max(n.epoch) from lakehouse.batches n where n.pipeline = b.pipeline)")  # fmt: skip
        table = sql.Identifier(schema, name)
        cursor.execute(GONE_BEFORE, (table.as_string(cursor),))
        (gone,) = cursor.fetchone() or (None,)
        cases.append(sql.SQL("when b.pipeline = {} and b.epoch = {} and b.started_at >= {} then (select count(*)"
                             " from {} l where l.batch_id between coalesce(b.first_batch, b.batch_id) and b.batch_id)"
                             ).format(
            sql.Literal(f"{layer}.{name.removesuffix('__late')}"), epoch, sql.Literal(gone or "-infinity"), table))
    return sql.SQL("case {} end").format(sql.SQL(" ").join(cases)) if cases else sql.SQL("null::bigint")


def _delta(storage: Path, held: Asked) -> Iterator[Audited]:
    for folder in sorted(storage.glob("[a-z]*/*/_delta_log")):
        table = folder.parent
        if "__" in table.name:
            continue
        grouped: dict[tuple[str, int], list[Batch]] = {}
        aside = _kept(delta_sink.beside(table, "quarantine"))
        for _, record in _records(table):
            number = record["batch_id"]
            kept = {"quarantined": aside.get(number, 0)} if number >= min(aside, default=1 << 62) else {}
            batch = _batch(number, record["topic_id"], record["topic"], record["positions"], record["counters"], kept)
            grouped.setdefault((record["pipeline"], record["epoch"]), []).append(batch)
        for (pipeline, epoch), batches in grouped.items():
            yield judge(pipeline, "delta", epoch, batches, {}, held(definitions.of_log(DeltaLog(table), pipeline)))


def _connection(made_by: Definition | None, topic: str) -> str | None:
    """The connection by which the pipeline reads a topic."""
    if made_by is None:
        return None
    sources = [made_by.file["source"], *(one["source"] for one in made_by.file.get("inputs", {}).values())]
    return next((one.get("connection") for one in sources if one.get("topic") == topic), None)


def _records(table: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """The records of a stream's commits; compactions repeat one."""
    log = DeltaLog(table)
    for version in log.versions():
        record = log.record_of(version)
        if record is not None and record["kind"] == "stream" and not record.get("repeats"):
            yield version, record


def _kept(table: Path) -> dict[int, int]:
    """Rows by the batch that kept them aside; those of commits that the log no longer has are not told."""
    log, found = DeltaLog(table), dict[int, int]()
    for version, record in _records(table):
        files = [action["add"] for action in log.actions(version) if "add" in action]
        rows = sum(json.loads(file["stats"])["numRecords"] for file in files if file.get("stats"))
        found[record["batch_id"]] = found.get(record["batch_id"], 0) + rows
    return found


def _batch(number: int, topic_id: str, topic: str, stored: Mapping[str, Mapping[str, Any]],
           counters: Mapping[str, int], kept: Mapping[str, int]) -> Batch:  # fmt: skip
    """``stored``: ranges as a commit has them, by partition, of several topics by topic and partition."""
    if not any("/" in key for key in stored):
        found = {int(key): (at["from"], at["to"]) for key, at in stored.items()}
        return Batch(number, topic_id, topic, found, counters, kept)
    ranges, several = {}, {}
    for place, (key, at) in enumerate(sorted(stored.items())):
        name, _, partition = key.rpartition("/")
        ranges[place] = (at["from"], at["to"])
        several[place] = (at.get("topic_id", topic_id), name or topic, int(partition))
    return Batch(number, topic_id, topic, ranges, counters, kept, several)


def text(found: Sequence[Audited]) -> str:
    """The table as plain lines, and below it what does not hold."""
    wrong = [f"{one.pipeline}: {said}" for one in found for said in one.wrong]
    return "\n".join([*printed.lines(table(found)), *wrong])


def table(found: Sequence[Audited]) -> Table:
    """For people."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("pipeline", "store", "epoch", "batches", "offsets", "no record", *COUNTERS, "holds")
    for head in heads:
        shown.add_column(head, justify="left" if head in ("pipeline", "store", "holds") else "right", no_wrap=True)
    for one in found:
        numbers = (one.epoch, one.batches, one.read, one.empty, *(one.counters[name] for name in COUNTERS))
        shown.add_row(one.pipeline, one.store, *(f"{number:,}" for number in numbers), "yes" if one.ok else "NO")
    return shown
