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

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Column, Component
from lakehouse_engine.rows import QUARANTINED, Rows, Verdict

_NAMES = {"integer": "int", "long": "bigint", "short": "smallint", "byte": "tinyint", "real": "float", "dec": "decimal",
          "numeric": "decimal", "bool": "boolean", "text": "string"}  # fmt: skip
_PLAIN = ("string", "boolean", "tinyint", "smallint", "int", "bigint", "float", "double", "date", "timestamp", "binary")
_DECIMAL = re.compile(r"decimal\s*\(\s*(\d{1,2})\s*(?:,\s*(\d{1,2})\s*)?\)")
#: characters of a value that does not fit which its reason shows
_SHOWN = 80


def _type(value: str) -> str:
    word, *rest = value.strip().lower().partition("(")
    text = _NAMES.get(word.strip(), word.strip()) + "".join(rest)
    if text in _PLAIN:
        return text
    match = _DECIMAL.fullmatch(text)
    if match and 0 < int(match[1]) <= 38 and int(match[2] or 0) <= int(match[1]):
        return f"decimal({int(match[1])},{int(match[2] or 0)})"
    if text.startswith("decimal"):
        raise PydanticCustomError("BAD_TYPE", "{value} is no decimal; write e.g. decimal(18,2), of 38 digits at most",
                                  {"value": repr(value)})  # fmt: skip
    close = get_close_matches(text, _PLAIN, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_PLAIN)} and decimal(18,2)"
    raise PydanticCustomError("BAD_TYPE", "{value} is not a type to cast to; {hint}",
                              {"value": repr(value), "hint": hint})  # fmt: skip


Type = Annotated[str, AfterValidator(_type)]


class Cast(Component):
    """Columns keep their place; all of a row's values that do not fit are its reasons."""

    columns: dict[Column, Type] = Field(description="For each column its new Spark type.")

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
