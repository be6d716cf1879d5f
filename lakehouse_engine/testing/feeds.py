"""Where a test's rows go: one feed for each thing that a pipeline reads. A new source has a class here and a line in
``FEEDS``.
"""

from __future__ import annotations

import csv
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from psycopg2 import sql as pg

from lakehouse_engine.component import Component
from lakehouse_engine.connections import Connections, kafka_key
from lakehouse_engine.errors import SpecError
from lakehouse_engine.sinks import Jdbc as Foreign
from lakehouse_engine.sinks import Kafka as Messages
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.postgres import pg_type
from lakehouse_engine.sources import Delta, Files, Jdbc, Kafka, Rate, Source
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.reached import reaching
from lakehouse_engine.testing import upstream
from lakehouse_engine.testing.bench import Bench, Record, encoded
from lakehouse_engine.testing.cases import Case, Row, did_you_mean


class Feed(Protocol):
    """One input. ``source``: what the pipeline reads in place of the real one."""

    source: Source

    def filled(self, row: Row, path: str) -> Row:
        """The row with the test's defaults; ``path``: its place in the test. Raises ``SpecError``."""

    def times(self) -> Sequence[str]:
        """Columns that tell event times: the test's clock never lies before one."""

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        """More rows; ``whole``: in place of those that are there. Raises ``upstream.Misfit``."""


@dataclass
class Place:
    """What feeds are made from. ``main``: the feed is that of the pipeline's own source."""

    bench: Bench
    case: Case
    spec: PipelineSpec
    storage: Path
    dsn: str | None
    name: str = ""
    main: bool = False

    @property
    def environment(self) -> Environment:
        """The test's own services, which are also every cluster and database of others that the pipeline names."""
        embedded = {kafka_key(one): self.bench.services.bootstrap_servers for one in self._clusters}
        if self.dsn is not None:
            embedded |= {"postgres": self.dsn, **{f"jdbc.{one}": self.dsn for one in self._databases}}
        return Environment(storage=str(self.storage), embedded=embedded)

    @property
    def _clusters(self) -> set[str | None]:
        return {one.connection for _, one in reaching(self.spec) if isinstance(one, Kafka | Messages)}

    @property
    def _databases(self) -> list[str]:
        return [one.connection for one in (self.spec.source, *self.spec.sinks) if isinstance(one, Jdbc | Foreign)]

    @property
    def connections(self) -> Connections:
        databases = {name: self.environment.jdbc(name) for name in self._databases}
        clusters = {name: self.bench.services.bootstrap_servers for name in self._clusters if name is not None}
        return Connections(self.bench.services.bootstrap_servers, self.dsn, self.storage, "test", databases, clusters)

    def problem(self, path: str, code: str, message: str) -> SpecError:
        return SpecError([self.case.problem(path, code, message)])


class TopicFeed:
    """A topic of one partition; rows come as JSON, text as it is."""

    def __init__(self, place: Place, source: Kafka) -> None:
        self._place = place
        self._topic = place.bench.topic(place.spec.name)
        self.source: Source = source.model_copy(update={"topic": self._topic})

    def times(self) -> Sequence[str]:
        contracts = self._place.spec.contracts.values()
        return [column for made in contracts for column, kind in made.columns.items() if kind == "timestamp"]

    def filled(self, row: Row, path: str) -> Row:
        return {**self._place.case.defaults, **row} if isinstance(row, Mapping) else row

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        if whole:
            raise self._place.problem(f".inputs.{self._place.name}", "BAD_VALUE", f"{self._place.name} is a topic: its"
                                      " rows come in batches")  # fmt: skip
        millis = int(clock.timestamp() * 1000)
        self._place.bench.send(self._topic, [_record(row, millis) for row in rows])


class TopicsFeed(TopicFeed):
    """Several topics, each of one partition: a row's ``_topic`` says which, the first one where it says none.

    They are called as the rows say, behind a prefix that the test alone has.
    """

    def __init__(self, place: Place, source: Kafka) -> None:
        self._place = place
        self._prefix = f"test-{uuid.uuid4().hex[:12]}-"
        self._asked = source
        self._made: dict[str, str] = {}
        made = [self._topic_of(name) for name in source.topics or ()]
        self.source: Source = source.of_test(self._prefix, made)

    def filled(self, row: Row, path: str) -> Row:
        row = super().filled(row, path)
        named = row.get("_topic") if isinstance(row, Mapping) else next(iter(self._made), None)
        if named is None and self._asked.pattern is not None:
            raise self._place.problem(path, "BAD_VALUE", "of a pattern a row says in _topic what topic it comes to")
        if named is not None and not self._asked.reads(str(named)):
            raise self._place.problem(path, "BAD_VALUE", f"{named} is none of the topics that the source reads")
        return row

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        if whole:
            super().give(rows, clock, whole=whole)
        millis, by_topic = int(clock.timestamp() * 1000), dict[str, list[Record]]()
        for row in rows:
            named = row.get("_topic") if isinstance(row, Mapping) else None
            topic = self._topic_of(str(named)) if named is not None else next(iter(self._made.values()))
            by_topic.setdefault(topic, []).append(_record(row, millis, "_topic"))
        for topic, records in by_topic.items():
            self._place.bench.send(topic, records)

    def _topic_of(self, name: str) -> str:
        """Made when it is first asked for."""
        if name not in self._made:
            self._made[name] = self._place.bench.topic(self._place.spec.name, f"{self._prefix}{name}")
        return self._made[name]


def _record(row: Row, millis: int, *more: str) -> Record:
    """A map's ``_key``, ``_headers`` (a map) and ``more`` are those of the record, and not of its value."""
    if not isinstance(row, Mapping):
        return encoded(row), millis, None, ()
    value = {name: field for name, field in row.items() if name not in ("_key", "_headers", *more)}
    headers = [(name, encoded(text)) for name, text in (row.get("_headers") or {}).items()]
    return encoded(value), millis, encoded(row.get("_key")), headers


class TableFeed:
    """A Delta table with the columns that the pipeline writing it would give it, and a landing's own columns."""

    def __init__(self, place: Place, source: Delta) -> None:
        self._place = place
        self.source: Source = source
        self._table = upstream.table(place.bench, place.spec, source.table, place.case.vars, place.storage)
        self._sent = 0

    def times(self) -> Sequence[str]:
        columns = self._table.columns.items()
        return [name for name, kind in columns if kind == "timestamp" and name not in ("_timestamp", "updated_at")]

    def filled(self, row: Row, path: str) -> Row:
        if not isinstance(row, Mapping):
            raise self._place.problem(path, "BAD_VALUE", "a row of a table is a map; text and null are for Kafka")
        defaults, columns = self._place.case.defaults, self._table.columns
        if self._place.main:
            self._check_columns(defaults, ".defaults")
        self._check_columns(row, path)
        return {**{name: value for name, value in defaults.items() if name in columns}, **row}

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        columns, full = self._table.columns, []
        for row in rows:
            assert isinstance(row, Mapping)
            place = {"_topic": self._table.name, "_partition": 0, "_offset": self._sent,
                     "_timestamp": clock.isoformat()}  # fmt: skip
            self._sent += 1
            full.append({**{name: value for name, value in place.items() if name in columns}, **row})
        if self._place.case.careful:
            self._table.check(self._place.bench.spark, full)
        self._table.write(self._place.bench.spark, full, whole=whole)

    def _check_columns(self, row: Mapping[str, Any], path: str) -> None:
        known = list(self._table.columns)
        for column in row:
            if column not in known:
                what = "the source" if self._place.main else self._place.name
                raise self._place.problem(f"{path}.{column}", "UNKNOWN_COLUMN",
                                          f"{what} has no column {column}; {did_you_mean(column, known)}")  # fmt: skip


class FileFeed:
    """A folder in place of the path; each batch is a file more, rows as JSON or CSV, text as it is."""

    def __init__(self, place: Place, source: Files) -> None:
        self._place, self._folder = place, place.bench.storage()
        self.source: Source = source.model_copy(update={"path": str(self._folder)})
        self._format, self._columns = source.format, list(place.spec.contracts[source.contract].columns)

    def times(self) -> Sequence[str]:
        return ()

    def filled(self, row: Row, path: str) -> Row:
        if row is None or (isinstance(row, str) and self._format != "json"):
            raise self._place.problem(path, "BAD_VALUE", f"a row of {self._format} is a map")
        return {**self._place.case.defaults, **row} if isinstance(row, Mapping) else row

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        there = sorted(self._folder.iterdir())
        for old in there if whole else ():
            old.unlink()
        if not rows and there:
            return
        if self._format not in ("json", "csv"):
            self._typed(rows, self._folder / f"{len(there):06d}")
            return
        with (self._folder / f"{len(there):06d}").open("w", encoding="utf-8", newline="") as file:
            if self._format == "json":
                file.writelines((encoded(row) or b"").decode() + "\n" for row in rows)
                return
            table = csv.DictWriter(file, [*self._columns, *_others(rows, self._columns)], restval="")
            table.writeheader()
            table.writerows(row for row in rows if isinstance(row, Mapping))


    def _typed(self, rows: Sequence[Row], path: Path) -> None:
        """A file of columns that have types: what the rows look like."""
        beside = self._place.bench.storage()
        (beside / "rows").write_text("".join((encoded(row) or b"").decode() + "\n" for row in rows), encoding="utf-8")
        frame = self._place.bench.spark.read.json(str(beside / "rows")).coalesce(1)
        frame.write.format(self._format).save(str(beside / "files"))
        (made,) = (one for one in (beside / "files").iterdir() if one.name.startswith("part-"))
        made.rename(path)


class ForeignFeed:
    """A table of PostgreSQL with the columns of the contract; each batch adds rows to it."""

    def __init__(self, place: Place, source: Jdbc) -> None:
        assert place.dsn is not None
        self._place, self._dsn = place, place.dsn
        self.source: Source = source
        columns = place.spec.contracts[source.contract].columns
        self._table, self._columns = source.table.split("."), list(columns)
        *schema, _ = self._table
        made = [pg.SQL("create schema if not exists {}").format(pg.Identifier(*schema))] if schema else []
        kinds = {name: pg.SQL(pg_type(kind, "")) for name, kind in columns.items()}
        typed = (pg.SQL("{} {}").format(pg.Identifier(name), kind) for name, kind in kinds.items())
        self._ask(*made, pg.SQL("create table {} ({})").format(self._name, pg.SQL(", ").join(typed)))

    @property
    def _name(self) -> pg.Identifier:
        return pg.Identifier(*self._table)

    def times(self) -> Sequence[str]:
        return ()

    def filled(self, row: Row, path: str) -> Row:
        if not isinstance(row, Mapping):
            raise self._place.problem(path, "BAD_VALUE", "a row of a table is a map")
        made = {**self._place.case.defaults, **row}
        for column in made:
            if column not in self._columns:
                raise self._place.problem(f"{path}.{column}", "UNKNOWN_COLUMN", f"the source has no column {column};"
                                          f" {did_you_mean(column, self._columns)}")  # fmt: skip
        return made

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        into = pg.SQL("insert into {} ({}) values ({})")
        self._ask(*([pg.SQL("delete from {}").format(self._name)] if whole else []), *[
            into.format(self._name, pg.SQL(", ").join(map(pg.Identifier, row)),
                        pg.SQL(", ").join(map(pg.Literal, row.values())))
            for row in rows if isinstance(row, Mapping)])  # fmt: skip

    def _ask(self, *statements: pg.Composable) -> None:
        with closing(postgres_sink.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def _others(rows: Sequence[Row], known: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row if name not in known))


class NoFeed:
    """A source that makes its rows itself."""

    def __init__(self, place: Place, source: Rate) -> None:
        self._place = place
        self.source: Source = source

    def times(self) -> Sequence[str]:
        return ()

    def filled(self, row: Row, path: str) -> Row:
        raise self._place.problem(path, "BAD_VALUE", f"{self.source.key} makes its rows itself")

    def give(self, rows: Sequence[Row], clock: datetime, *, whole: bool) -> None:
        """There is nothing to give."""


def _of_kafka(place: Place, source: Kafka) -> Feed:
    return TopicsFeed(place, source) if source.several else TopicFeed(place, source)


FEEDS: Mapping[type[Component], Callable[[Place, Any], Feed]] = {
    Kafka: _of_kafka, Delta: TableFeed, Files: FileFeed, Jdbc: ForeignFeed, Rate: NoFeed,
}  # fmt: skip
