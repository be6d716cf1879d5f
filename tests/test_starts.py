"""What a start says of a changed file is what happens: each verdict, then a run, then what the table holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from lakehouse_engine import epochs
from lakehouse_engine.changes import between
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import FencedError, RunError, SpecError
from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.local.stack import Services
from lakehouse_engine.locks import acquire
from lakehouse_engine.log import Log
from lakehouse_engine.plan import Plan
from lakehouse_engine.rename import Renamed
from lakehouse_engine.request import Span
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.sinks.postgres import connect
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load, read
from lakehouse_engine.streams import ScanRun
from tests.lab import send
from tests.platform import PROJECT
from tests.test_recount import CONTRACT, MIDNIGHT, moment

MINUTES = """
source: {kafka: {topic: TOPIC, history: bronze.events}}
transforms:
  - parse: event
  - filter: amount >= 0
  - watermark: {column: at, delay: 1 minute}
  - window: {tumbling: 1 minute, by: [user], measures: {n: count(*), mean: avg(amount)}}
sink: postgres
trigger: {every: 1 second}
"""
LANDING = """
source: {kafka: {topic: TOPIC}}
transforms:
  - parse: event
  - derive: {day: to_date(at)}
sink: delta
trigger: {every: 1 second}
"""
LATEST = """
source: {kafka: {topic: TOPIC, history: bronze.events}}
transforms:
  - parse: event
  - select: [user, at, amount]
keys: [user]
sink: {postgres: {mode: upsert, order_by: [at]}}
trigger: {every: 1 second}
"""
Event = tuple[float, str, int]  # minutes from midnight, user, amount


@dataclass
class Lab:
    """A topic, and pipelines that are run as ``lakehouse run`` does; ``said``: what it reports."""

    spark: SparkSession
    stack: Services
    dsn: str
    folder: Path
    topic: str = field(default_factory=lambda: f"starts-{uuid.uuid4().hex[:8]}")
    said: list[str] = field(default_factory=list)
    sent: int = 0
    #: pipelines that have begun a new epoch and not run since: nothing is known of what ran before
    anew: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.write("contracts.event", CONTRACT)
        self.write("bronze.events", LANDING)
        ensure_topic(self.stack.bootstrap_servers, self.topic, 1)

    def file(self, name: str) -> Path:
        return self.folder / f"{name.replace('.', '/')}.yaml"

    def write(self, name: str, text: str) -> None:
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_text(text.replace("TOPIC", self.topic))

    def send(self, *events: Event) -> None:
        send(self.stack.bootstrap_servers, self.topic, [
            {"id": number, "at": moment(at), "user": user, "amount": amount}
            for number, (at, user, amount) in enumerate(events, start=self.sent + 1)])  # fmt: skip
        self.sent += len(events)

    @property
    def environment(self) -> Environment:
        embedded = {"postgres": self.dsn, "kafka": self.stack.bootstrap_servers}
        return Environment(storage=str(self.folder / "storage"), embedded=embedded)

    def perform(self, name: str, what: Callable[[Runner, Any], int]) -> None:
        runner = Runner(self.environment, tuple, Log(self.said.append), session=self.spark)
        try:
            assert what(runner, self.plan(name)) == 0
        finally:
            runner.close()

    def run(self, name: str, text: str | None = None) -> None:
        """``lakehouse diff`` of what ran before and what runs now says the same."""
        before = self.file(name).read_text() if self.file(name).exists() else None
        if text is not None:
            self.write(name, text)
        self.said.clear()
        try:
            self.perform(name, lambda runner, plan: runner.run(plan, available_now=True))
        except SpecError as error:
            told = [f"{problem.message.split(': ')[1].split(' ')[0]}: {problem.code.lower()}" for problem
                    in error.problems if problem.code in ("NEW_EPOCH", "CHANGE_REFUSED")]  # fmt: skip
            told = [one.replace("change_refused", "refused") for one in told]
            self.agree(name, before, told)
            if before is not None:
                self.file(name).write_text(before)  # as what has run
            raise
        self.agree(name, before, [])

    def agree(self, name: str, before: str | None, refused: list[str]) -> None:
        if before is None or name in self.anew or (self.folder / "storage" / "_renames").exists():
            self.anew.discard(name)
            return
        old = self.folder / "before" / self.file(name).relative_to(self.folder)
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder / "contracts", self.folder / "before" / "contracts", dirs_exist_ok=True)
        shutil.copytree(self.folder / "bronze", self.folder / "before" / "bronze", dirs_exist_ok=True)
        old.write_text(before)
        found = between(read([old]), read([self.file(name)]))
        # types of columns show in full to a start alone, and without an epoch of their own
        assert sorted(f"{one.path}: {one.verdict}" for one in found if not one.path.startswith("column ")) == sorted(
            one for one in [*self.verdicts(), *refused] if not one.startswith("column"))  # fmt: skip

    def backfill(self, name: str) -> None:
        self.perform(name, lambda runner, plan: runner.backfill(plan, Span(None, None, full=True)))

    def command(self, *words: str) -> str:
        """A command of a process of its own, about one pipeline."""
        name, pipeline, *more = words
        self.anew |= {pipeline} if "--yes" in more else set()
        (self.folder / ".lakehouse").mkdir(exist_ok=True)
        services = {"kafka": {"bootstrap_servers": self.stack.bootstrap_servers}, "postgres": {"dsn": self.dsn},
                    "pids": {}}  # fmt: skip
        (self.folder / ".lakehouse" / "services.json").write_text(json.dumps(services))
        (self.folder / ".lakehouse" / "storage").unlink(missing_ok=True)
        (self.folder / ".lakehouse" / "storage").symlink_to(self.folder / "storage")
        command = [sys.executable, "-m", "lakehouse_engine.cli", name, str(self.file(pipeline)), *more]
        done = subprocess.run(command, cwd=self.folder, text=True, capture_output=True, timeout=60, check=False,
                              env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip
        return done.stdout + done.stderr

    def reset(self, name: str) -> None:
        self.anew.add(name)
        epochs.reset([load([self.file(name)])[0]], self.folder / "storage", self.dsn, apply=True)

    def rename(self, old: str, new: str) -> None:
        file = next(file for file in (self.file(old), self.file(new)) if file.exists())
        spec = load([file], environment=self.environment)[0]
        Renamed(spec, old, new, self.folder / "storage").run(self.dsn, lambda: self.spark, self.said.append)

    def plan(self, name: str) -> Plan:
        return planned([self.file(name)], self.environment)

    def to(self, writer: str) -> Connections:
        return Connections(self.stack.bootstrap_servers, self.dsn, self.folder / "storage", writer)

    def forget(self) -> None:
        """The topic loses what it holds."""
        admin = AdminClient({"bootstrap.servers": self.stack.bootstrap_servers})
        admin.delete_records([TopicPartition(self.topic, 0, self.sent)])[TopicPartition(self.topic, 0)].result(10)

    def refused(self, name: str, text: str) -> list[str]:
        """``line: code`` of what a start of the changed file says."""
        with pytest.raises(SpecError) as raised:
            self.run(name, text)
        return [f"{problem.line}: {problem.code}" for problem in raised.value.problems]

    def verdicts(self) -> list[str]:
        """Of what the last run said: ``path: verdict``."""
        found = [re.match(r"\S+: (column \S+|\S+).*\n    (\w+):", line) for line in self.said]
        return [f"{match[1]}: {match[2]}" for match in found if match]

    def query(self, text: str) -> list[Any]:
        with closing(connect(self.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall()) if cursor.description else []

    def windows(self, columns: str, table: str = "realtime.minutes") -> dict[tuple[int, str], Any]:
        """By minute from midnight and user."""
        minute = f"(extract(epoch from window_start)::int - {int(MIDNIGHT.timestamp())}) / 60"
        rows = self.query(f'select {minute}, "user", {columns} from {table}')
        return {(row[0], row[1]): row[2] if len(row) == 3 else row[2:] for row in rows}

    def landed(self, columns: str, table: str = "bronze.events") -> list[Any]:
        frame = self.spark.read.format("delta").load(str(self.folder / "storage" / table.replace(".", "/")))
        return [tuple(row) for row in frame.selectExpr(columns.split(", ")).orderBy("id").collect()]


@pytest.fixture
def lab(spark: SparkSession, stack: Services, database: str, tmp_path: Path) -> Lab:
    return Lab(spark, stack, database, tmp_path)


def test_a_new_measure_is_not_known_of_windows_that_had_begun_until_they_are_counted_anew(lab: Lab) -> None:
    lab.send((0, "a", 1), (0.5, "a", 2), (3, "a", 5))
    lab.run("realtime.minutes", MINUTES)
    lab.run("bronze.events")
    assert lab.verdicts() == []
    more = MINUTES.replace("mean: avg(amount)", "mean: avg(amount), most: max(amount)")
    lab.send((3.5, "a", 1), (4, "a", 7), (4.5, "b", 9), (8, "a", 0))
    lab.run("realtime.minutes", more)
    assert lab.verdicts() == ["transforms[3].window.measures: from_here", "column most: from_here"]
    # of minute 3 two rows of three were counted by the new file: four of n, and no maximum that would be too small
    assert lab.windows("n, mean, most") == {(0, "a"): (2, 1.5, None), (3, "a"): (2, 3.0, None), (4, "a"): (1, 7.0, 7.0),
                                            (4, "b"): (1, 9.0, 9.0), (8, "a"): (1, 0.0, 0.0)}  # fmt: skip
    lab.run("bronze.events")
    lab.backfill("realtime.minutes")
    assert lab.windows("most") == {(0, "a"): 2.0, (3, "a"): 5.0, (4, "a"): 7.0, (4, "b"): 9.0, (8, "a"): 0.0}
    lab.send((9, "a", 3))
    lab.run("realtime.minutes")
    assert lab.windows("most")[9, "a"] == 3.0
    assert lab.verdicts() == []


def test_what_a_start_refuses_leaves_the_table_as_it_is(lab: Lab) -> None:
    lab.send((0, "a", 1), (3, "a", 5))
    lab.run("realtime.minutes", MINUTES)
    before = lab.windows("n, mean")
    for old, new, said in (
        ("tumbling: 1 minute", "tumbling: 5 minutes", ["7: NEW_EPOCH"]),
        ("by: [user]", "by: [user, id]", ["3: NEW_EPOCH", "7: NEW_EPOCH"]),
        ("column: at", "column: _timestamp", ["6: NEW_EPOCH"]),
        ("avg(amount)", "min(amount)", ["7: NEW_EPOCH"]),
        (", mean: avg(amount)", "", ["3: CHANGE_REFUSED"]),
        ("avg(amount)}}", "avg(amount)}, emit: final}", ["7: NEW_EPOCH"]),
        ("tumbling: 1 minute", "session: {gap: 1 minute}", ["7: NEW_EPOCH"] * 2),
        ("sink: postgres", "sink: {postgres: {table: live.minutes}}", ["8: NEW_EPOCH"]),
    ):
        assert lab.refused("realtime.minutes", MINUTES.replace(old, new)) == said
    with pytest.raises(SpecError, match="--from 2026-01-02 --to 2026-01-02"):
        lab.run("realtime.minutes", MINUTES.replace("tumbling: 1", "tumbling: 2"))
    lab.send((4, "b", -1), (4, "c", 1))
    lab.run("realtime.minutes", MINUTES.replace("amount >= 0", "amount <> 1"))
    assert lab.verdicts() == ["transforms[1].filter.condition: from_here"]
    assert lab.windows("n, mean") == before | {(4, "b"): (1, -1.0)}


def test_rows_gain_columns_and_keep_the_types_of_those_they_have(lab: Lab) -> None:
    lab.send((0, "a", 1))
    lab.run("bronze.events")
    lab.run("realtime.latest", LATEST)
    lab.send((1, "b", 2))
    lab.run("bronze.events", LANDING.replace("{day: to_date(at)}", "{day: to_date(at), big: amount > 1}"))
    assert lab.verdicts() == ["transforms[1].derive.columns: from_here", "column big: from_here"]
    assert lab.landed("id, big") == [(1, None), (2, True)]
    assert lab.refused("bronze.events", LANDING.replace("to_date(at)", "string(at)")) == ["3: CHANGE_REFUSED"]
    lab.run("bronze.events", LANDING)
    assert lab.verdicts() == ["transforms[1].derive.columns: from_here", "column big: from_here"]
    lab.run("realtime.latest", LATEST.replace("amount]", "amount, id]"))
    assert lab.verdicts() == ["transforms[1].select.items: from_here", "column id: from_here"]
    assert sorted(lab.query('select "user", amount, id from realtime.latest')) == [("a", 1.0, None), ("b", 2.0, 2)]
    less, other = LATEST.replace(", amount]", "]"), LATEST.replace("keys: [user]", "keys: [user, at]")
    assert lab.refused("realtime.latest", less) == ["3: CHANGE_REFUSED", "3: CHANGE_REFUSED"]
    assert lab.refused("realtime.latest", other) == ["6: NEW_EPOCH"]


def test_a_new_epoch_with_its_backfill_is_as_if_the_file_had_always_been_so(lab: Lab) -> None:
    lab.send((0, "a", 1), (1.5, "a", 2))
    lab.run("realtime.minutes", MINUTES)
    lab.run("bronze.events")
    lab.forget()  # the topic holds no more of it; bronze does
    lab.send((3, "a", 5), (9, "b", 1))
    wider = MINUTES.replace("tumbling: 1", "tumbling: 2")
    assert lab.refused("realtime.minutes", wider) == ["7: NEW_EPOCH"]
    said = lab.command("reset", "realtime.minutes")
    assert "realtime.minutes is set aside as realtime__epoch1.minutes" in said
    assert lab.windows("n") == {(0, "a"): 1, (1, "a"): 1}  # said, not done
    lab.command("reset", "realtime.minutes", "--yes")
    lab.run("realtime.minutes", wider)
    assert lab.windows("n") == {(2, "a"): 1, (8, "b"): 1}
    lab.run("bronze.events")
    lab.backfill("realtime.minutes")
    assert lab.windows("n, mean") == {(0, "a"): (2, 1.5), (2, "a"): (1, 5.0), (8, "b"): (1, 1.0)}
    assert lab.windows("n", "realtime__epoch1.minutes") == {(0, "a"): 1, (1, "a"): 1}
    assert lab.query("select epoch, count(*) from lakehouse.batches group by 1 order by 1") == [(1, 1), (2, 1)]


def test_a_stream_that_runs_is_not_begun_anew_and_one_on_another_host_is_fenced(lab: Lab) -> None:
    lab.send((0, "a", 1))
    lab.write("realtime.minutes", MINUTES)
    elsewhere = replace(lab.to("elsewhere"), storage=lab.folder / "another host's")
    run = ScanRun(lab.spark.newSession(), lab.plan("realtime.minutes").scans[0], elsewhere, lambda _: None)
    run.start(available_now=False)
    assert run.query is not None
    run.query.processAllAvailable()
    with closing(acquire(lab.spark, lab.folder / "storage", "realtime.minutes", "it")):
        assert f"LOCKED: realtime.minutes is being written by process {os.getpid()}" in lab.command(
            "reset", "realtime.minutes", "--yes")  # fmt: skip
    lab.reset("realtime.minutes")
    lab.run("realtime.minutes")
    lab.send((1, "a", 1))
    try:
        with pytest.raises(StreamingQueryException):
            run.query.processAllAvailable()
        assert isinstance(run.error, FencedError)
    finally:
        run.release()
    lab.run("realtime.minutes")
    assert lab.windows("n") == {(0, "a"): 1, (1, "a"): 1}
    assert lab.windows("n", "realtime__epoch1.minutes") == {(0, "a"): 1}


def test_tables_of_delta_and_state_of_spark_begin_anew(lab: Lab) -> None:
    once = LANDING.replace("  - derive", "  - watermark: {column: at, delay: 1 minute}\n  - dedupe: [id]\n  - derive")
    lab.send((0, "a", 1), (1, "b", 2))
    for text, other in ((LANDING, LANDING.replace("to_date(at)", "string(at)")),
                        (once, once.replace("[id]", "[user]"))):  # fmt: skip
        lab.run("bronze.events", text)
        assert lab.refused("bronze.events", other)[-1] in ("3: CHANGE_REFUSED", "6: NEW_EPOCH")
        lab.reset("bronze.events")
        lab.run("bronze.events", other)
        assert [row[0] for row in lab.landed("id")] == [1, 2]
        lab.reset("bronze.events")
    assert sorted(path.name for path in (lab.folder / "storage").glob("bronze__epoch*")) == [
        f"bronze__epoch{number}" for number in (1, 2, 3, 4)]  # fmt: skip


def test_a_pipeline_goes_on_under_its_new_name_wherever_the_rename_was_interrupted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.send((0, "a", 1), (1, "a", -1))
    lab.run("realtime.minutes", MINUTES)
    lab.run("bronze.events")
    lab.send((0.5, "a", 3))
    names = {"realtime.minutes": "live.per_minute", "bronze.events": "raw.arrived"}
    for old, new in names.items():
        for step in ("_in_postgres", "_checkpoint", "_say_again"):
            with monkeypatch.context() as patch:
                patch.setattr(Renamed, step, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    lab.rename(old, new)
        with pytest.raises(SpecError) as raised:
            lab.run(old)
        assert raised.value.code == "RENAME_UNFINISHED"
        lab.rename(old, new)
        assert not lab.file(old).exists()
    lab.write("live.per_minute", MINUTES.replace("bronze.events", "raw.arrived"))
    for name in reversed(names.values()):
        lab.run(name)
    assert lab.verdicts() == ["source.history: from_here"]
    assert lab.windows("n", "live.per_minute") == {(0, "a"): 2}
    assert lab.landed("id", "raw.arrived") == [(1,), (2,), (3,)]
    assert DeltaLog(lab.folder / "storage" / "raw" / "arrived").record()["pipeline"] == "raw.arrived"  # type: ignore
    assert lab.query("select pipeline, batch_id from lakehouse.batches order by 2") == [
        ("live.per_minute", 1), ("live.per_minute", 2)]  # fmt: skip
    lab.backfill("live.per_minute")


def test_a_rename_takes_no_name_that_is_there(lab: Lab) -> None:
    lab.run("realtime.minutes", MINUTES)
    lab.run("realtime.latest", LATEST)
    with pytest.raises(RunError) as raised:
        lab.rename("realtime.minutes", "realtime.latest")
    assert raised.value.code == "TARGET_EXISTS"
    lab.run("realtime.minutes")
