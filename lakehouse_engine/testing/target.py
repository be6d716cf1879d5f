"""What a test looks at: the rows of the pipeline's table, of its side tables, and its counters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lakehouse_engine import noted
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.sent import TOTALS
from lakehouse_engine.sinks import Delta, Files, Postgres, Unkept
from lakehouse_engine.sinks import Kafka as Topic
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.testing import subject
from lakehouse_engine.testing.bench import Bench

Found = Mapping[str, Any]
_SUFFIX = {"late": "late", "quarantined": "quarantine"}


class Target:
    def __init__(self, bench: Bench, spec: PipelineSpec, storage: Path, dsn: str | None,
                 own: Mapping[str, str]) -> None:  # fmt: skip
        """``own``: what of this test is in place of the topics, folders and foreign tables that the pipeline writes."""
        self._bench, self._spec, self._storage, self._dsn = bench, spec, storage, dsn
        self._own = own
        self._table = spec.table
        self._beside = spec.name if isinstance(spec.sink, Unkept) else self._table
        self._sinks = subject.sinks(spec)

    def rows(self) -> list[Found]:
        """The table; empty while there is none."""
        return self._read(self._table)

    def named(self, name: str) -> list[Found]:
        """Another table that the pipeline writes, or one beside it, by its name."""
        return [_flat(row) if "__" in name else row for row in self._read(name)]

    def insert(self, table: str, rows: Sequence[Found]) -> None:
        """Adds rows to a table that is there."""
        from psycopg2 import sql as pg
        from psycopg2.extras import Json

        assert self._dsn is not None
        name = pg.Identifier(*table.split("."))
        with closing(postgres_sink.connect(self._dsn)) as connection, connection, connection.cursor() as cursor:
            for row in rows:
                values = [Json(value) if isinstance(value, dict) else value for value in row.values()]
                cursor.execute(pg.SQL("insert into {} ({}) values ({})").format(
                    name, pg.SQL(", ").join(map(pg.Identifier, row)),
                    pg.SQL(", ").join(pg.Placeholder() * len(row))), values)  # fmt: skip

    def aside(self, kind: str) -> list[Found]:
        """Rows kept as ``late`` or ``quarantined``: the side table's columns, and the fields of the row itself."""
        return [_flat(row) for row in self._read(postgres_sink.side_table(self._beside, _SUFFIX[kind]))]

    def counted(self, kind: str) -> int:
        """A stream: its counter over all batches. A job: what it keeps aside now, as a run replaces its slices."""
        if not self._spec.is_stream:
            return len(self.aside(kind))
        if isinstance(self._spec.sink, Postgres):
            query = f"select coalesce(sum({kind}), 0)::bigint as n from lakehouse.batches where pipeline = %s"
            return int(self._ask(query, (self._spec.name,))[0]["n"]) if self._exists("lakehouse.batches") else 0
        record = noted.read(self._storage, self._spec.name)
        if record is not None:
            return int(record[TOTALS].get(kind, 0))
        log = DeltaLog(delta_sink.table_path(self._storage, self._spec.name))
        records = [log.record_of(version) for version in log.versions()]
        return sum(int(record["counters"].get(kind, 0)) for record in records if record is not None)

    def _read(self, table: str) -> list[Found]:
        sink = self._sinks.get(table) or self._sinks.get(table.rpartition("__")[0], self._spec.sink)
        if isinstance(sink, Delta) or (isinstance(sink, Unkept) and table not in self._own):
            return self._delta(delta_sink.table_path(self._storage, table))
        if isinstance(sink, Topic):
            return [_message(*one) for one in self._bench.received(self._own[table])]
        if isinstance(sink, Files):
            return self._files(Path(self._own[table]), sink)
        table = table if "." in table else f"public.{table}"  # as the database itself reads it
        if not self._exists(table):
            return []
        schema, _, name = table.partition(".")
        return self._ask(f'select * from "{schema}"."{name}"')

    def _delta(self, path: Path) -> list[Found]:
        if DeltaLog(path).version() is None:
            return []
        return delta_sink.plain_rows(self._bench.spark.read.format("delta").load(str(path)))

    def _files(self, path: Path, sink: Files) -> list[Found]:
        if not path.exists():
            return []
        return delta_sink.plain_rows(self._bench.spark.read.format(sink.format).option("header", True).load(str(path)))

    def _exists(self, table: str) -> bool:
        schema, _, name = table.partition(".")
        return bool(self._ask("select to_regclass(%s) is not null as n", (f'"{schema}"."{name}"',))[0]["n"])

    def _ask(self, query: str, values: Sequence[object] = ()) -> list[Found]:
        assert self._dsn is not None
        connection = postgres_sink.connect(self._dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, values)
                names = [column.name for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            connection.close()


def _message(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> Found:
    """A message's fields, where its value is an object; beside them ``_key``, ``_value`` and ``_headers`` as text."""
    texts = [None if part is None else part.decode(errors="replace") for part in (key, value)]
    told = {name: None if text is None else text.decode(errors="replace") for name, text in headers}
    return {**_fields(texts[1]), "_key": texts[0], "_value": texts[1], "_headers": told}


def _flat(row: Found) -> Found:
    """The side table's columns over the row's own fields; ``key`` and ``value`` as text."""
    sides = dict(row)
    for column in ("key", "value"):
        if sides.get(column) is not None:
            raw = sides[column]
            raw = base64.b64decode(raw) if isinstance(raw, str) else bytes(raw)
            sides[column] = raw.decode(errors="replace")
    return {**_fields(sides.get("value")), **_fields(sides.get("row")), **sides}


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
