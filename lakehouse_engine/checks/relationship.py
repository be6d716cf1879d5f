"""``relationship``: the column's value is one of another table's, in jobs.

``relationship: {user_id: silver.users.user_id}``. The other table is read at its newest version, which the commit
names. Where its rows have changed since the last run, the run is a full one: so a full and an incremental run agree.
The job runs after the one that writes the other table.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import TABLE, Column

_OTHER = rf"{TABLE.pattern}\.[A-Za-z_][A-Za-z0-9_]*"


def _other(text: str) -> str:
    if not re.fullmatch(_OTHER, text):
        raise PydanticCustomError("BAD_NAME", "{other} is not <layer>.<table>.<column>", {"other": repr(text)})
    return text


Other = Annotated[str, AfterValidator(_other), WithJsonSchema(
    {"type": "string", "title": "layer.table.column", "pattern": f"^{_OTHER}$"})]  # fmt: skip


def related(table: str, column: str, ours: str) -> str:
    """The column of the joined rows that says whether ``ours`` is there."""
    return f"_related_{table.replace('.', '_')}_{column}_of_{ours}"


class Relationship(RowCheck):
    """One rule a column."""

    #: for each column ``<layer>.<table>.<column>``: where its value is
    columns: dict[Column, Other]

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def others(self) -> list[tuple[str, str, str]]:
        """(our column, their table, their column)."""
        return [(ours, *other.rsplit(".", 1)) for ours, other in self.columns.items()]  # type: ignore[misc]

    def rules(self) -> list[tuple[str, str]]:
        return [(f"relationship({ours})", related(table, column, ours)) for ours, table, column in self.others()]

    def expressions(self) -> list[str]:
        return [*self.columns, *([self.where] if self.where else [])]
