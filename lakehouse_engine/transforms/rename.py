"""``rename``: gives columns other names. ``rename: {page_url: page}``; the key is the resulting column.

The pipeline's keys follow, and columns keep their order. A column cannot take the name of one that stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Column, Component
from lakehouse_engine.rows import ColumnError, Rows


class Rename(Component):
    """All names change at once, so two columns may swap theirs."""

    #: for each new name the column that gets it
    columns: dict[Column, Column]

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    @field_validator("columns")
    @classmethod
    def _once(cls, columns: dict[str, str]) -> dict[str, str]:
        old = [name.lower() for name in columns.values()]
        for name in columns.values():
            if old.count(name.lower()) > 1:
                raise PydanticCustomError("SAME_COLUMN", "{column} would get two names; derive a second column",
                                          {"column": name})  # fmt: skip
        return columns

    @property
    def new(self) -> dict[str, str]:
        """New names by old ones in lower case, as Spark compares them."""
        return {old.lower(): new for new, old in self.columns.items()}

    def renamed(self, columns: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.new.get(name.lower(), name) for name in columns)

    def taken(self, columns: Iterable[str]) -> list[str]:
        """The new names that a column has that stays."""
        stay = {name.lower() for name in columns} - self.new.keys()
        return [name for name in self.columns if name.lower() in stay]

    def row(self, rows: Rows, step: str) -> Rows:
        for name in self.columns.values():
            rows.resolve(name)
        for name in self.taken(rows.columns):
            raise ColumnError(f"there is a column {name} already", "SAME_COLUMN")
        columns = dict(zip(self.renamed(rows.columns), rows.columns.values(), strict=True))
        types = {self.new.get(name.lower(), name): kind for name, kind in rows.types.items()}
        return replace(rows, columns=columns, types=types)

    def expressions(self) -> list[str]:
        return list(self.columns.values())
