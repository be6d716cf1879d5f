"""``relationship``: the column's value is one of another table's, in jobs.

``relationship: {user_id: silver.users.user_id}``. The other table is read at its newest version, which the commit
names. Where its rows have changed since the last run, the run is a full one: so a full and an incremental run agree.
The job runs after the one that writes the other table.
"""

from __future__ import annotations

import re

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import TABLE, Column

_OTHER = re.compile(rf"({TABLE.pattern})\.([A-Za-z_][A-Za-z0-9_]*)")


def related(table: str, column: str, ours: str) -> str:
    """The column of the joined rows that says whether ``ours`` is there."""
    return f"_related_{table.replace('.', '_')}_{column}_of_{ours}"


class Relationship(RowCheck):
    """One rule a column."""

    columns: dict[Column, str] = Field(description="For each column <layer>.<table>.<column>, where its value must be.")

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    @field_validator("columns")
    @classmethod
    def _others(cls, columns: dict[str, str]) -> dict[str, str]:
        for other in columns.values():
            if not _OTHER.fullmatch(other):
                raise PydanticCustomError("BAD_NAME", "{other} is not <layer>.<table>.<column>", {"other": repr(other)})
        return columns

    def others(self) -> list[tuple[str, str, str]]:
        """(our column, their table, their column)."""
        return [(ours, *other.rsplit(".", 1)) for ours, other in self.columns.items()]  # type: ignore[misc]

    def rules(self) -> list[tuple[str, str]]:
        return [(f"relationship({ours})", related(table, column, ours)) for ours, table, column in self.others()]

    def expressions(self) -> list[str]:
        return [*self.columns, *([self.where] if self.where else [])]
