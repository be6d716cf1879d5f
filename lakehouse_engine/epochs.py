"""``lakehouse reset``: a new epoch of a pipeline whose stream stands still. Its tables are set aside, none is deleted.

The tables of epoch 1 of ``realtime.minutes`` are ``realtime__epoch1.minutes`` and those beside it from then on: another
schema of PostgreSQL, another folder of the storage. The pipeline has not read anything then: it begins where its
``start`` says, and ``lakehouse backfill`` counts what only ``history`` still holds.

In PostgreSQL all of it is one transaction, which also takes the claim from whoever has it: a stream that runs on
another host is fenced at its next commit. In Delta a table is moved by renaming its folder, the one itself after those
beside it; interrupted, the same command goes on. The checkpoint of Spark's state goes last; one of an epoch that has
ended is void (``checkpoints.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg2 import sql

from lakehouse_engine import definitions, ledger, locks, progress
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError, UsageError
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.further import branches
from lakehouse_engine.spec.pipeline import PipelineSpec


@dataclass(frozen=True)
class Reset:
    """``moves``: tables and what they are called afterwards; ``span``: the first and the last day of its windows."""

    spec: PipelineSpec
    epoch: int
    moves: tuple[tuple[str, str], ...]
    span: tuple[str, str] | None = None

    def text(self) -> str:
        """What is done, and what is to be done after it."""
        spec, source = self.spec, self.spec.source
        if not self.moves:
            return f"{spec.name}: there is no table yet, and the next run begins at its source's start"
        lines = [f"{spec.name}: epoch {self.epoch} ends, {self.epoch + 1} begins"]
        lines += [f"  {old} is set aside as {new}" for old, new in self.moves]
        if isinstance(source, Kafka):
            lines.append(f"  the next run reads {source.origin} from its start ({source.start}); what the topic no"
                         " longer holds is in the tables set aside alone")  # fmt: skip
        else:
            lines.append("  the next run computes it from all that its source holds")
        if self.span is not None:
            lines.append(f"  then: lakehouse run {spec.file} --available-now, and lakehouse backfill {spec.file}"
                         f" --from {self.span[0]} --to {self.span[1]}")  # fmt: skip
        return "\n".join(lines)


def reset(specs: Sequence[PipelineSpec], storage: Path, dsn: str | None, *, apply: bool) -> list[Reset]:
    """Begins a new epoch of each, or with ``apply`` False says what would be done.

    ``dsn``: where one of them writes to PostgreSQL. Raises ``UsageError`` NOTHING_KEPT before anything is touched;
    ``RunError`` LOCKED, ASIDE_EXISTS.
    """
    for spec in specs:
        if not isinstance(spec.sink, Postgres | Delta):
            raise UsageError("NOTHING_KEPT", f"{spec.name} keeps nothing in {spec.sink.key} that could begin anew")
    # of a stream's further sinks those that keep a ledger as the first does; a topic's messages cannot be taken back
    specs = [one for spec in specs for one in (spec, *(branches(spec) if spec.is_stream else ()))
             if one is spec or isinstance(one.sink, Postgres | Delta)]  # fmt: skip
    with ExitStack() as held:
        for spec in specs:
            held.enter_context(locks.alone(storage, spec.table if isinstance(spec.sink, Delta) else spec.name))
        found = _in_postgres([spec for spec in specs if in_postgres(spec)], storage, dsn, apply=apply)
        for spec in specs:
            if isinstance(spec.sink, Delta):
                copies = [one.moves for one in found if one.spec is spec]
                found = [one for one in found if one.spec is not spec]
                found.append(_in_delta(spec, storage, [move for moves in copies for move in moves], apply=apply))
        for spec in specs if apply else ():
            shutil.rmtree(storage / "_checkpoints" / spec.name, ignore_errors=True)
        return found


def in_postgres(spec: PipelineSpec) -> bool:
    """Whether PostgreSQL has its table, or a copy of that."""
    return isinstance(spec.sink, Postgres) or bool(_copies(spec))


def _copies(spec: PipelineSpec) -> dict[str, str]:
    """A job's tables in PostgreSQL that follow its table in Delta, by their names in ``lakehouse.served``."""
    further = [] if spec.is_stream else [part for part in branches(spec) if isinstance(part.sink, Postgres)]
    return ({spec.name: spec.name} if spec.serve else {}) | {part.name: part.table for part in further}


def _in_postgres(specs: Sequence[PipelineSpec], storage: Path, dsn: str | None, *, apply: bool) -> list[Reset]:
    if not specs:
        return []
    assert dsn is not None
    with closing(postgres_sink.connect(dsn)) as connection, connection.cursor() as cursor:
        ledger.make(cursor)
        cursor.execute("lock table lakehouse.positions in share row exclusive mode")
        found = [_of_one(cursor, spec) if isinstance(spec.sink, Postgres) else _of_copies(cursor, spec, storage)
                 for spec in specs]  # fmt: skip
        if apply:
            connection.commit()
        else:
            connection.rollback()
    return found


def _of_one(cursor: Any, spec: PipelineSpec) -> Reset:
    epoch = progress.epoch_of(cursor, spec.name)
    before = definitions.held(cursor, [spec.name]).get(spec.name)
    table = spec.table if before is None else before.table
    span = postgres_sink.window_days(cursor, table)
    for ledgers in ("positions", "queries"):  # who holds the claim finds that it is not theirs any more
        cursor.execute(f"update lakehouse.{ledgers} set writer = 'reset' where (pipeline, epoch) = (%s, %s)",
                       (spec.name, epoch))  # fmt: skip
    cursor.execute("delete from lakehouse.backfills where pipeline = %s", (spec.name,))
    cursor.execute("insert into lakehouse.definitions (pipeline, epoch) values (%s, %s)", (spec.name, epoch + 1))
    return Reset(spec, epoch, tuple(_moved(cursor, table, epoch, spec.name)), span)


def _of_copies(cursor: Any, spec: PipelineSpec, storage: Path) -> Reset:
    epoch = delta_sink.epoch_of(delta_sink.table_path(storage, spec.name))
    copies = _copies(spec)
    cursor.execute("delete from lakehouse.served where pipeline = any(%s)", (list(copies),))
    moves = [move for table in copies.values() for move in _moved(cursor, table, epoch, spec.name)]
    return Reset(spec, epoch, tuple(moves))


def _moved(cursor: Any, table: str, epoch: int, pipeline: str) -> Iterator[tuple[str, str]]:
    """Sets a table and those beside it aside. Raises ``RunError`` ASIDE_EXISTS."""
    schema, _, name = table.partition(".")
    aside = f"{schema}__epoch{epoch}"
    for one in (name, *(f"{name}__{side}" for side in postgres_sink.SIDES)):
        if not postgres_sink.columns_of(cursor, f"{schema}.{one}"):
            continue
        if postgres_sink.columns_of(cursor, f"{aside}.{one}"):
            raise RunError("ASIDE_EXISTS", f"there is a table {aside}.{one} already; drop it, or rename it",
                           where=pipeline)  # fmt: skip
        cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(aside)))
        cursor.execute(sql.SQL("alter table {} set schema {}").format(
            sql.Identifier(schema, one), sql.Identifier(aside)))  # fmt: skip
        yield f"{schema}.{one}", f"{aside}.{one}"


def _in_delta(spec: PipelineSpec, storage: Path, copies: Sequence[tuple[str, str]], *, apply: bool) -> Reset:
    path = delta_sink.table_path(storage, spec.table)
    epoch = delta_sink.epoch_of(path)
    moves = [(old, delta_sink.set_aside(old, epoch)) for old in _tables(path)]
    for _, new in moves:
        if new.exists():
            raise RunError("ASIDE_EXISTS", f"there is a folder {new} already; delete it, or rename it", where=spec.name)
    for old, new in moves if apply else ():
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
    folders = [(f"{old.parent.name}.{old.name}", f"{new.parent.name}.{new.name}") for old, new in moves]
    return Reset(spec, epoch, (*copies, *folders))


def _tables(path: Path) -> Iterator[Path]:
    """The table itself comes last: while it is there, its epoch goes on."""
    for one in (*(delta_sink.beside(path, side) for side in postgres_sink.SIDES), path):
        if DeltaLog(one).version() is not None:
            yield one
