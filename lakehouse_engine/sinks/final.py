"""Windows that are sent once, when they are over: ``emit: final`` into PostgreSQL.

Micro-batches merge into ``<table>__state``; in the transaction of the batch that moves the watermark past a window's
end, the window goes from there into the table. No later row counts in it: a row is late when its window's end is at or
before the watermark of its batch, and that is never less than the one that closed the window. A start sees to the
latter even after ``delay`` was made longer: what the table holds says how far windows have been closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from psycopg2 import sql
from psycopg2.sql import Composable

from lakehouse_engine.errors import PlanError
from lakehouse_engine.progress import from_micros, to_micros
from lakehouse_engine.sinks.postgres import Merge, identifier, side_table

#: how the comment begins by which a state table is known to hold open windows alone; then how they are kept
_MARK = "lakehouse: "


@dataclass(frozen=True)
class FinalMerge(Merge):
    """``size`` of a window in microseconds; ``append``: a key that is in the table already is an error."""

    size: int = 0
    append: bool = False

    @property
    def has_state(self) -> bool:
        return True

    @property
    def mark(self) -> str:
        """Says how its open windows are kept."""
        return "emit final"

    def ensure(self, cursor: Any, where: str) -> list[str]:
        """Raises ``PlanError`` TABLE_DIFFERS, EMIT_CHANGED."""
        state = side_table(self.table, "state")
        before = mark_of(cursor, state)
        if exists(cursor, self.table) and before != self.mark:
            raise emit_changed(self.table, before, where)
        added = super().ensure(cursor, where)
        cursor.execute(sql.SQL("comment on table {} is %s").format(identifier(state)), (_MARK + self.mark,))
        return added

    @cached_property
    def _statement(self) -> Composable:
        return self.into_state

    def closed_until(self, cursor: Any) -> int | None:
        """The least watermark (microseconds) that closes every window that was sent; None for none."""
        cursor.execute(sql.SQL("select max(window_start) from {}").format(identifier(self.table)))
        start = to_micros(cursor.fetchone()[0])
        return None if start is None else start + self.size

    def close(self, cursor: Any, watermark: int | None) -> int:
        """Moves the windows that end at or before ``watermark`` (microseconds) into the table; returns their rows."""
        time = from_micros(watermark)
        if time is None:
            return 0
        cursor.execute(self._close, {"watermark": time, "begun": time - timedelta(microseconds=self.size)})
        return int(cursor.rowcount) // max(len(self.outbox), 1)

    @cached_property
    def _close(self) -> Composable:
        columns, values = self.results
        again: Composable = sql.SQL("")
        if not self.append:
            replaced = (sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in columns if c not in self.keys)
            again = sql.SQL(" on conflict ({}) do update set {}").format(
                self._key_names, sql.SQL(", ").join(replaced))  # fmt: skip
        return self.sent_on(self._closed, sql.SQL(
            "insert into {table} ({columns}) select {values} from closed order by {keys}{again}"
        ).format(
            table=identifier(self.table), keys=self._key_names,
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)), values=sql.SQL(", ").join(values),
            again=again))  # fmt: skip

    @property
    def _closed(self) -> Composable:
        """Takes what is over out of the state: ``closed`` has the columns that ``results`` reads."""
        state = identifier(side_table(self.table, "state"))
        return sql.SQL("closed as (delete from {} where window_start <= %(begun)s returning *)").format(state)


def exists(cursor: Any, table: str) -> bool:
    schema, _, name = table.partition(".")
    cursor.execute("select to_regclass(%s) is not null", (f'"{schema}"."{name}"',))
    return bool(cursor.fetchone()[0])


def mark_of(cursor: Any, state: str) -> str | None:
    """How a state table keeps open windows; None where it holds windows that were sent, or is not there."""
    schema, _, name = state.partition(".")
    cursor.execute("select obj_description(to_regclass(%s), 'pg_class')", (f'"{schema}"."{name}"',))
    comment = cursor.fetchone()[0]
    return comment.removeprefix(_MARK) if comment is not None and comment.startswith(_MARK) else None


def emit_changed(table: str, before: str | None, where: str) -> PlanError:
    """``before``: what ``mark_of`` says of its state."""
    was = {None: "emit: updates", "emit final": "emit: final"}.get(before, before)
    return PlanError("EMIT_CHANGED", f"{table} was filled with {was}, and its open windows are not where another"
                     " way looks for them; to begin anew: lakehouse reset", where=where)  # fmt: skip
