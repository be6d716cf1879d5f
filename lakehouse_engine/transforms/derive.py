"""``derive``: adds columns. ``derive: {event_date: to_date(timestamp)}``; the key is the resulting column."""

from __future__ import annotations

from lakehouse_engine.component import Column, Component, Expression
from lakehouse_engine.rows import Rows


class Derive(Component):
    """Every expression sees the rows as they came into the step."""

    #: each the resulting column: its expression
    columns: dict[Column, Expression]

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def row(self, rows: Rows, step: str) -> Rows:
        return rows.with_columns(self.columns)

    def expressions(self) -> list[str]:
        return list(self.columns.values())
