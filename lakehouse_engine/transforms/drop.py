"""``drop``: leaves columns out. ``drop: [internal]``. A result whose key is dropped has no keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Columns, Component
from lakehouse_engine.rows import ColumnError, Rows


class Drop(Component):
    """The columns must be there; one at least stays."""

    #: the columns to leave out
    columns: Annotated[Columns, Field(json_schema_extra={"minItems": 1})]

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    @field_validator("columns")
    @classmethod
    def _some(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if not columns:
            raise PydanticCustomError("BAD_VALUE", "name at least one column to drop")
        return columns

    def drops(self, name: str) -> bool:
        return name.lower() in {column.lower() for column in self.columns}

    def leaves_none(self, columns: Iterable[str]) -> bool:
        """Whether it takes away all that would be stored."""
        stored = Rows.identity(dict.fromkeys(columns, "")).stored
        return bool(stored) and all(map(self.drops, stored))

    def row(self, rows: Rows, step: str) -> Rows:
        for name in self.columns:
            rows.resolve(name)
        if self.leaves_none(rows.columns):
            raise ColumnError("no column is left that would be stored", "NO_COLUMNS")
        return replace(rows, columns={n: text for n, text in rows.columns.items() if not self.drops(n)},
                       types={n: kind for n, kind in rows.types.items() if not self.drops(n)})  # fmt: skip

    def expressions(self) -> list[str]:
        return list(self.columns)
