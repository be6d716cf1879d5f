"""``not_null``: the columns have a value. ``not_null: [event_id, user_id]``."""

from __future__ import annotations

from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import Columns


class NotNull(RowCheck):
    """One rule a column, each with its own reason."""

    #: the columns that must have a value
    columns: Columns

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"not_null({column})", f"{column} is not null") for column in self.columns]
