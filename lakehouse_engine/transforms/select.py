"""``select``: keeps, renames and computes columns. ``select: [order_id, item.sku, "coalesce(a, b) as c"]``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Component, SelectItem
from lakehouse_engine.rows import Rows


def _named(item: str) -> str:
    try:
        sql.select_item(item)
    except sql.ExpressionError as error:
        raise PydanticCustomError(error.code, "{message}", {"message": str(error)}) from None
    return item


class Select(Component):
    """Spark SQL select items, in order. Columns that begin with ``_`` travel on."""

    #: a column, a field of one, or ``expression as name``
    items: tuple[Annotated[SelectItem, AfterValidator(_named)], ...]

    @classmethod
    def short(cls, value: object) -> object:
        return {"items": [value] if isinstance(value, str) else value}

    @field_validator("items")
    @classmethod
    def _once(cls, items: tuple[str, ...]) -> tuple[str, ...]:
        names = [sql.select_item(item).name for item in items]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise PydanticCustomError("BAD_EXPRESSION", "two columns are named {name}", {"name": min(twice)})
        return items

    def row(self, rows: Rows, step: str) -> Rows:
        chosen = [sql.select_item(item) for item in self.items]
        hidden = {name: text for name, text in rows.columns.items() if name.startswith("_")}
        columns = hidden | {item.name: rows.resolve(item.expression) for item in chosen}
        types = {i.name: rows.types[i.expression] for i in chosen if i.expression in rows.types}
        return replace(rows, columns=columns, types={n: t for n, t in rows.types.items() if n in hidden} | types)

    def expressions(self) -> list[str]:
        return [sql.select_item(item).expression for item in self.items]
