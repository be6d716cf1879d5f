"""``cast``: gives columns another type. ``cast: {amount: "decimal(18,2)"}``.

A value that does not fit is quarantined with itself among the reasons; null stays null. What fits is what Spark's
``try_cast`` takes: text must be a number to become one (``' 12 '`` is, ``'12.5'`` is no ``bigint``), while a number
loses what its new type has no digits for (12.5 becomes 12 as ``bigint``, 0.125 becomes 0.13 as
``decimal(18,2)``). A pair of types that Spark cannot convert at all is an error when the pipeline starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Component
from lakehouse_engine.rows import QUARANTINED, Rows, Verdict

_PLAIN = ("string", "boolean", "tinyint", "smallint", "int", "bigint", "float", "double", "date", "timestamp", "binary")
#: other names of types, and those that are meant
_OTHER = {"integer": "int", "long": "bigint", "short": "smallint", "byte": "tinyint", "real": "float",
          "numeric": "decimal(18,2)", "decimal": "decimal(18,2)", "bool": "boolean", "text": "string"}  # fmt: skip
_DECIMAL = r"decimal\(([1-9]|[12][0-9]|3[0-8])(?:, ?([0-9]|[12][0-9]|3[0-8]))?\)"
#: characters of a value that does not fit which its reason shows
_SHOWN = 80


def _type(value: str) -> str:
    if value in _PLAIN:
        return value
    match = re.fullmatch(_DECIMAL, value)
    if match and int(match[2] or 0) <= int(match[1]):
        return f"decimal({match[1]},{match[2] or 0})"
    word = value.strip().lower()
    if word.startswith("decimal("):
        raise PydanticCustomError("BAD_TYPE", "{value} is no decimal; write e.g. decimal(18,2), of 38 digits at most",
                                  {"value": repr(value)})  # fmt: skip
    close = [_OTHER[word]] if word in _OTHER else get_close_matches(word, _PLAIN, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_PLAIN)} and decimal(18,2)"
    raise PydanticCustomError("BAD_TYPE", "{value} is not a type to cast to; {hint}",
                              {"value": repr(value), "hint": hint})  # fmt: skip


Type = Annotated[str, AfterValidator(_type), WithJsonSchema(
    {"type": "string", "title": "type", "pattern": f"^({'|'.join(_PLAIN)}|{_DECIMAL})$"})]  # fmt: skip


class Cast(Component):
    """Columns keep their place; all of a row's values that do not fit are its reasons."""

    #: for each column its new Spark type
    columns: dict[Column, Type]

    @classmethod
    def short(cls, value: object) -> object:
        return {"columns": value}

    def row(self, rows: Rows, step: str) -> Rows:
        names = {name.lower(): name for name in rows.columns}
        made = {names.get(column.lower(), column): f"try_cast({rows.resolve(column)} as {kind})"
                for column, kind in self.columns.items()}  # fmt: skip
        refused = [f"(({rows.resolve(column)}) is not null and {made[names[column.lower()]]} is null)"
                   for column in self.columns]  # fmt: skip
        found = zip(refused, self._reasons(rows), strict=True)
        reasons = ", ".join(f"if({bad}, {reason}, null)" for bad, reason in found)
        rows = rows.refuse(Verdict(step, QUARANTINED, f"({' or '.join(refused)})",
                                   f"filter(array({reasons}), reason -> reason is not null)"))  # fmt: skip
        types = {names[column.lower()]: kind for column, kind in self.columns.items()}
        return replace(rows, columns={**rows.columns, **made}, types={**rows.types, **types})

    def _reasons(self, rows: Rows) -> Iterator[str]:
        for column, kind in self.columns.items():
            shown = f"left(cast({rows.resolve(column)} as string), {_SHOWN})"
            yield f"concat({sql.string(f'cast({column}): ')}, {shown}, {sql.string(f' does not fit {kind}')})"

    def expressions(self) -> list[str]:
        return list(self.columns)
