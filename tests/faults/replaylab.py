"""What a replayed schedule is done to: a topic of one partition, pipelines, a database, two storages.

A window's sum says which records it holds, and how often: record ``n`` counts ``4 ** n``.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from lakehouse_engine import progress
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.progress import Position, Record, to_micros
from lakehouse_engine.sinks.postgres import connect
from lakehouse_engine.sources import broker
from lakehouse_engine.spec.loader import load
from tests.faults.replayed import Running
from tests.model import laws
from tests.model.pipelines import ALL, FINAL, HOUR, LANDED, ROWS, UPDATES, VISITS, Pipeline
from tests.model.stores import Commit, Held, Late, Noted, Place, Storage, Table
from tests.model.topic import KINDS, Broker, Event

#: records that a sum of ``bigint`` can tell apart
MOST = 30
CONTRACT = """
type: object
required: [uid, bit, kind, k, at]
properties:
  {uid: {type: integer}, bit: {type: integer}, kind: {type: string}, k: {type: string},
   at: {type: string, format: date-time}}
"""
HEAD = """
source: {kafka: {topic: TOPIC, max_per_trigger: 3}}
trigger: {every: 0 s}
transforms:
  - parse: event
  - check: [{expression: "kind <> 'bad'"}]
"""
GOOD = """  - filter: kind <> 'filtered'
  - watermark: {column: at, delay: DELAY}
  - check: [{expression: "kind <> 'checked'"}]
"""
WINDOW = GOOD + "  - window: {KIND, by: [k], measures: {uids: sum(bit)}, emit: EMIT}\nsink: postgres\n"
FILES = {
    UPDATES.name: WINDOW.replace("KIND", "sliding: {size: 12 hours, every: 6 hours}").replace("EMIT", "updates"),
    FINAL.name: WINDOW.replace("KIND", "tumbling: 6 hours").replace("EMIT", "final"),
    VISITS.name: WINDOW.replace("KIND", "session: {gap: 3 hours}").replace("EMIT", "final"),
    ROWS.name: GOOD + '  - select: [uid, "_partition as place", "_offset as nr"]\nsink: postgres\n',
    LANDED.name: "sink: delta\n",
}


@dataclass
class Lab:
    """``broker``: the model's, with what was sent."""

    spark: SparkSession
    stack: Services
    dsn: str
    folder: Path
    topic: str = field(default_factory=lambda: f"replayed-{uuid.uuid4().hex[:8]}")
    processes: list[Running] = field(default_factory=list)
    poisoned: set[str] = field(default_factory=set)
    delays: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storages = [self.folder / "one", self.folder / "other"]
        self.broker, self.backups, self.uids, self.newest = Broker(1), list[dict[str, str]](), 0, 24 * HOUR
        self.unsent: list[Event] = []
        self.sent = {0: 0}
        self.clock = 1_700_000_000_000_000
        (self.folder / "contracts").mkdir(parents=True)
        (self.folder / "contracts" / "event.yaml").write_text(CONTRACT)
        ensure_topic(self.stack.bootstrap_servers, self.topic, 1)

    def scan(self, pipelines: list[Pipeline], delay: int) -> Any:
        files = []
        for pipeline in pipelines:
            file = self.folder / f"delay{delay}" / f"{pipeline.name.replace('.', '/')}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (HEAD + FILES[pipeline.name]).replace("TOPIC", self.topic).replace("DELAY", f"{delay // HOUR} hours")
            file.write_text(text)
            files.append(file)
        contracts = self.folder / f"delay{delay}" / "contracts"
        if not contracts.exists():
            contracts.symlink_to(self.folder / "contracts")
        (scan,) = compile_plan(load(files)).scans
        return scan

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(connect(self.dsn, name="lab")) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    # what happens, as in the model's world; what does not apply does nothing

    def act(self, name: str, *numbers: int) -> None:
        if name != "produce":
            self._send()
        getattr(self, name)(*numbers)

    def produce(self, partition: int, kind: int, hours: int, key: int) -> None:
        if self.uids >= MOST:
            return
        at = self.newest + (hours - 12) * HOUR
        self.newest = max(self.newest, at)
        self.uids += 1
        event = Event(self.uids, KINDS[kind], "ab"[key], at)
        assert event.kind != "gap"
        self.broker.topic.partitions[0].events.append(event)
        self.unsent.append(event)

    def _send(self) -> None:
        """All at once, so that no batch comes between."""
        producer = Producer({"bootstrap.servers": self.stack.bootstrap_servers, "linger.ms": 100})
        for event in self.unsent:
            at = progress.from_micros(event.at)
            assert at is not None
            row = {"uid": event.uid, "bit": 4**event.uid, "kind": event.kind, "k": event.key,
                   "at": at.strftime("%Y-%m-%dT%H:%M:%SZ")}  # fmt: skip
            producer.produce(self.topic, json.dumps(row), partition=0)
        assert producer.flush(20) == 0
        self.sent = {0: self.sent[0] + len(self.unsent)}
        self.unsent.clear()

    @property
    def alive(self) -> list[Running]:
        return [process for process in self.processes if not process.ended]

    def run(self, host: int, members: int, delay: int) -> None:
        chosen = [p for i, p in enumerate(ALL) if members >> i & 1]
        if not chosen or len(self.alive) >= 4:
            return
        self.processes.append(Running(self, f"w{len(self.processes)}", host, chosen, (0, 5 * HOUR)[delay]))

    def advance(self, which: int, number: int, cut: int) -> None:
        if self.alive:
            self.alive[which % len(self.alive)].advance(number)

    def finish(self, which: int) -> None:
        self.advance(which, 300, 0)

    def crash(self, which: int) -> None:
        if self.alive:
            self.alive[which % len(self.alive)].kill()

    def poison(self, member: int) -> None:
        self.poisoned ^= {ALL[member].name}

    def _tables(self) -> list[str]:
        return [row[0] for row in self.ask("select format('%I.%I', schemaname, tablename) from pg_tables"
                                           " where schemaname in ('lakehouse', 'realtime')")]  # fmt: skip

    def backup(self) -> None:
        if len(self.backups) >= 2:
            return
        copies = {}
        with closing(connect(self.dsn, name="lab")) as connection, connection, connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read")
            for table in self._tables():
                copies[table] = f'backup{len(self.backups)}."{table}"'
                cursor.execute(f"create schema if not exists backup{len(self.backups)}")
                cursor.execute(f"create table {copies[table]} as table {table}")
        self.backups.append(copies)

    def restore(self, which: int) -> None:
        if not self.backups:
            return
        self.hold()  # it would take away what has gone wrong
        copies = self.backups[which % len(self.backups)]
        self.ask("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                 " and application_name <> 'lab'")  # fmt: skip
        with closing(connect(self.dsn, name="lab")) as connection, connection, connection.cursor() as cursor:
            for table in self._tables():
                cursor.execute(f"truncate {table}")
                if table in copies:
                    cursor.execute(f"insert into {table} overriding system value select * from {copies[table]}")

    def close(self) -> None:
        for process in self.alive:
            process.kill()
        AdminClient({"bootstrap.servers": self.stack.bootstrap_servers}).delete_topics([self.topic])

    # what is there

    def hold(self) -> None:
        """Raises ``AssertionError`` where what the engine has left breaks a law."""
        held = Held()
        self.broker.ever = {self._topic_id(): self.broker.topic}
        for name, topic, partition, offset, time_, idle, last, writer in self.ask(
            "select pipeline, topic_id, partition, next_offset, max_event_time, idle, last_row_at, writer"
            " from lakehouse.positions"):  # fmt: skip
            held.positions[name, 1, topic, partition] = (
                Position(offset, to_micros(time_), idle, to_micros(last)), writer)  # fmt: skip
        for pipeline in ALL[:4]:
            held.logs[pipeline.name, 1] = self._log(pipeline)
            held.tables[pipeline.name] = self._table(pipeline)
        storages = [self._storage(folder) for folder in self.storages]
        laws.hold(SimpleNamespace(database=SimpleNamespace(held=held), pipelines=ALL, broker=self.broker,  # type: ignore[arg-type]
                                  storages=storages, furthest={}))  # fmt: skip

    def _topic_id(self) -> str:
        return broker.describe(self.stack.bootstrap_servers, self.topic).id

    def _log(self, pipeline: Pipeline) -> list[Any]:
        found = []
        for number, at, topic, ranges, watermark, *counters in self.ask(
            f"select batch_id, started_at, topic_id, ranges, watermark, {', '.join(progress.COUNTERS)}"
            " from lakehouse.batches where pipeline = %s order by 1", pipeline.name):  # fmt: skip
            before = {int(p): Position(r["from"]) for p, r in ranges.items()}
            after = {int(p): Position(r["to"]) for p, r in ranges.items()}
            record = Record(pipeline.name, 1, number, to_micros(at) or 0, topic, "", before, after,
                            to_micros(watermark), dict(zip(progress.COUNTERS, counters, strict=True)))  # fmt: skip
            found.append(Noted(record, self.delays.get((pipeline.name, number), 0), {0: 0}))
        return found

    def _place(self, offset: int) -> Place:
        return (0, offset, self.broker.topic.partitions[0].events[offset])

    def _table(self, pipeline: Pipeline) -> Table:
        table, name = Table(), pipeline.name
        if not self.ask("select to_regclass(%s)::text", name)[0][0]:
            return table
        topic = self._topic_id()
        table.quarantine = [(topic, self._place(o)) for (o,) in self.ask(f'select "offset" from {name}__quarantine')]
        if pipeline is ROWS:
            table.rows = [(topic, self._place(o)) for (o,) in self.ask(f"select nr from {name}")]
            return table
        for offset, missed, batch in self.ask(f'select "offset", missed, batch_id from {name}__late'):
            table.late.append(Late(self._place(offset), topic, [to_micros(m) or 0 for m in missed], batch))
        assert pipeline.window is not None
        for start, key, uids in self.ask(f"select window_start, k, uids from {name}"):
            table.sent[to_micros(start) or 0, key] = _uids(uids)
            if pipeline is FINAL:
                table.ends[to_micros(start) or 0, key] = (to_micros(start) or 0) + pipeline.window.size
        if pipeline is FINAL:
            table.state = {(to_micros(start) or 0, key): _uids(uids) for start, key, uids in
                           self.ask(f"select window_start, k, uids from {name}__state")}  # fmt: skip
        if pipeline is VISITS:
            for start, key, end in self.ask(f"select window_start, k, window_end from {name}"):
                table.ends[to_micros(start) or 0, key] = to_micros(end) or 0
            for first, last, key, uids in self.ask(f"select session__first, session__last, k, uids from {name}__state"):
                table.sessions.setdefault(key, []).append((to_micros(first) or 0, to_micros(last) or 0, _uids(uids)))
        return table

    def _storage(self, folder: Path) -> Storage:
        storage = Storage(folder.name)
        for side, commits in (("", storage.landed), ("__quarantine", storage.aside)):
            log = DeltaLog(folder / "bronze" / f"events{side}")
            for version in log.versions():
                record = log.record_of(version)
                if record is None or record.get("repeats"):
                    continue
                number, after = progress.from_user_metadata(record)
                before = {int(p): Position(r["from"]) for p, r in record["positions"].items()}
                commits.append(Commit(Record("bronze.events", 1, number, 0, record["topic_id"], "", before, after, None,
                                             record["counters"]), ()))  # fmt: skip
            if commits:
                offset = "_offset" if not side else "offset"
                rows = self.spark.read.format("delta").load(str(log.path)).select(offset).collect()
                last = commits[-1].record
                commits[-1] = Commit(last, tuple((last.topic_id, self._place(row[0])) for row in rows))
        return storage


def _uids(total: Any) -> Counter[int]:
    found, number, rest = Counter[int](), 0, int(total)
    while rest:
        rest, digit = divmod(rest, 4)
        if digit:
            found[number] = digit
        number += 1
    return found
