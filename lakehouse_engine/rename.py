"""``lakehouse rename OLD NEW``: a pipeline with another name, and all that was kept under the old one.

Its table, those beside it and those of ended epochs, what the ledger says, a copy in PostgreSQL, requests to delete
from it, the checkpoint of Spark's state, and at last the file and its test. Each step finds what is left to be done, so
a rename that was interrupted is finished by the same command; until then no start takes either name
(RENAME_UNFINISHED): ``_renames/<old>`` in the storage holds the new one. In PostgreSQL all of it is one transaction,
which also takes the claim. In Delta a folder is renamed, and then a commit repeats the table's newest record with the
new name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from lakehouse_engine import ledger, locks, noted
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError, UsageError
from lakehouse_engine.sinks import Console, Delta, Files, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import listed
from lakehouse_engine.spec.further import TO, branches
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Report = Callable[[str], None]
#: the tables of the ledger that know pipelines by their names
_LEDGER = {**dict.fromkeys(("positions", "batches", "queries", "definitions", "backfills", "served", "runs"),
                           "pipeline"), "outbox": "branch"}  # fmt: skip


@dataclass(frozen=True)
class Renamed:
    """``spec``: as its file, of the old name or already of the new one, says it."""

    spec: PipelineSpec
    old: str
    new: str
    storage: Path

    @property
    def tables(self) -> tuple[str, str]:
        """Before and after: a table of PostgreSQL that the file gives a name keeps it."""
        named = isinstance(self.spec.sink, Postgres) and self.spec.sink.table
        return (str(named), str(named)) if named else (self.old, self.new)

    def run(self, dsn: str | None, spark: Callable[[], SparkSession], report: Report) -> None:
        """``dsn``: where PostgreSQL has something of it; ``spark`` is asked for where a Delta table is there.

        Raises ``RunError`` LOCKED, TARGET_EXISTS; ``UsageError`` NOT_YET.
        """
        if isinstance(self.spec.sink, Console):
            raise UsageError("NOTHING_KEPT", f"{self.old} keeps nothing in the console; rename its file")
        if self.spec.deletes_from:
            raise UsageError("NOT_YET", f"{self.old} asks {self.spec.deletes_from} to delete rows, which knows it by"
                             " its name; renaming such a pipeline comes with a later version")  # fmt: skip
        with ExitStack() as held:
            for name in (self.old, self.new):
                held.enter_context(locks.alone(self.storage, name))
            self._check(dsn)
            mark = _mark(self.storage, self.old)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(self.new)
            if dsn is not None:
                self._in_postgres(dsn, report)
            for old, new in self._folders():
                new.parent.mkdir(parents=True, exist_ok=True)
                old.rename(new)
                report(f"{old} is {new}")
            self._checkpoint()
            self._notes()
        self._say_again(spark)
        for path, target in self._files():
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
            report(f"{path} is {target}")
        mark.unlink()

    def _check(self, dsn: str | None) -> None:
        """Nothing of the new name is in the way of what has the old one."""
        there = [str(new) for _, new in (*self._folders(), *self._files()) if new.exists()]
        if dsn is not None:
            with closing(postgres_sink.connect(dsn)) as connection, connection, connection.cursor() as cursor:
                there += [new for _, new in _moves(cursor, *self.tables) if postgres_sink.columns_of(cursor, new)]
        if there:
            raise RunError("TARGET_EXISTS", f"there is {', '.join(there)} already; nothing was changed", where=self.new)

    def _in_postgres(self, dsn: str, report: Report) -> None:
        with closing(postgres_sink.connect(dsn)) as connection, connection, connection.cursor() as cursor:
            ledger.make(cursor)
            cursor.execute("lock table lakehouse.positions in share row exclusive mode")
            for table, column in _LEDGER.items():  # also those of further sinks, <pipeline>><target>
                named = f"({column} = %(old)s or starts_with({column}, %(old)s || '{TO}'))"
                claimed = ", writer = 'rename'" if table in ("positions", "queries") else ""
                cursor.execute(f"update lakehouse.{table} set {column} = %(new)s || substr({column},"
                               f" length(%(old)s) + 1){claimed} where {named}",
                               {"old": self.old, "new": self.new})  # fmt: skip
            cursor.execute("update lakehouse.definitions set definition = definition || jsonb_build_object('table', %s)"
                           " where pipeline = %s and definition is not null", (self.tables[1], self.new))  # fmt: skip
            for old, new in _moves(cursor, *self.tables):
                _move(cursor, old, new)
                report(f"{old} is {new}")

    def _folders(self) -> Iterator[tuple[Path, Path]]:
        """What is to be renamed in the storage; the table itself after those beside it."""
        old, new = (delta_sink.table_path(self.storage, name) for name in (self.old, self.new))
        ended = [folder / old.name for folder in self.storage.glob(f"{old.parent.name}__epoch[0-9]*")]
        for table in (*ended, old):
            layer = table.parent.name.replace(old.parent.name, new.parent.name, 1)
            for one in (*(delta_sink.beside(table, side) for side in postgres_sink.SIDES), table):
                if DeltaLog(one).version() is not None:
                    yield one, self.storage / layer / one.name.replace(old.name, new.name, 1)
        for name in (self.old, *(part.name for part in branches(self.spec.model_copy(update={"name": self.old})))):
            found = listed.folder(self.storage, name)
            if found.is_dir():
                yield found, listed.folder(self.storage, f"{self.new}{name[len(self.old) :]}")
        for folder in ("_deletes", "_checkpoints"):
            if (self.storage / folder / self.old).is_dir():
                yield self.storage / folder / self.old, self.storage / folder / self.new

    def _checkpoint(self) -> None:
        file = self.storage / "_checkpoints" / self.new / "lakehouse.json"
        if file.exists():
            made = {**json.loads(file.read_text()), "pipeline": self.new}
            part = file.with_name("lakehouse.json.part")
            part.write_text(json.dumps(made, indent=1))
            part.rename(file)

    def _notes(self) -> None:
        """How far rows have gone to topics and folders, as first sink or as a further one."""
        for name in (self.old, *(part.name for part in branches(self.spec.model_copy(update={"name": self.old})))):
            found, new = noted.read(self.storage, name), f"{self.new}{name[len(self.old):]}"
            if found is not None:
                noted.write(self.storage, new, json.dumps({**found, "pipeline": new} if "pipeline" in found else found))
                noted.place(self.storage, name).unlink()
        for sink in self.spec.sinks:
            if isinstance(sink, Files):
                sink.belongs_to(self.old, self.new)

    def _say_again(self, spark: Callable[[], SparkSession]) -> None:
        further = [part for part in branches(self.spec) if isinstance(part.sink, Delta)]
        called = {part.table: f"{self.new}{TO}{part.table}" for part in further}
        for table, name in {self.new: self.new, **called}.items():
            path = delta_sink.table_path(self.storage, table)
            record = DeltaLog(path).record()
            if record is not None and record["pipeline"] != name:
                with closing(locks.acquire(spark(), self.storage, table, name)):
                    delta_sink.say_again(spark(), path, {**record, "pipeline": name})

    def _files(self) -> Iterator[tuple[Path, Path]]:
        file = Path(self.spec.file)
        layer, _, name = self.new.partition(".")
        for path in (file.with_name(f"{file.stem}.test.yaml"), file):
            target = file.parent.parent / layer / path.name.replace(file.stem, name, 1)
            if path.exists() and path != target:
                yield path, target


def unfinished(storage: Path, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Which of the pipelines a rename has begun with and not ended, with its old and its new name."""
    folder = storage / "_renames"
    for mark in sorted(folder.iterdir()) if folder.is_dir() else ():
        old, new = mark.name, mark.read_text()
        yield from ((name, old, new) for name in names if name in (old, new))


def _mark(storage: Path, old: str) -> Path:
    return storage / "_renames" / old


def _moves(cursor: Any, old: str, new: str) -> list[tuple[str, str]]:
    """The tables that there are of the old name, with those of ended epochs, and what they will be called."""
    if old == new:
        return []
    (schema, _, name), (target, _, called) = old.partition("."), new.partition(".")
    cursor.execute("select nspname from pg_namespace where nspname = %s or nspname ~ ('^' || %s || '__epoch[0-9]+$')",
                   (schema, schema))  # fmt: skip
    schemas = sorted(row[0] for row in cursor.fetchall())
    found = [(f"{one}.{name}{side}", f"{one.replace(schema, target, 1)}.{called}{side}") for one in schemas
             for side in ("", *(f"__{side}" for side in postgres_sink.SIDES))]  # fmt: skip
    return [(before, after) for before, after in found if postgres_sink.columns_of(cursor, before)]


def _move(cursor: Any, old: str, new: str) -> None:
    (schema, _, name), (target, _, called) = old.partition("."), new.partition(".")
    postgres_sink.ensure_schema(cursor, new)
    cursor.execute(sql.SQL("alter table {} rename to {}").format(
        sql.Identifier(schema, name), sql.Identifier(called)))  # fmt: skip
    cursor.execute(sql.SQL("alter table {} set schema {}").format(
        sql.Identifier(schema, called), sql.Identifier(target)))  # fmt: skip
    for column in postgres_sink.columns_of(cursor, new):
        before, after = (postgres_sink.index_name(table, column) for table in (old, new))
        cursor.execute(sql.SQL("alter index if exists {} rename to {}").format(
            sql.Identifier(target, before), sql.Identifier(after)))  # fmt: skip
