"""``explode``: a row for each element of an array. ``explode: {column: items, as: item, position: line, empty: keep}``.

The element stands in place of the array, which is gone; short: ``explode: items`` names it as the array. The other
columns are repeated. A row of the result is no longer what ``keys`` of the steps before identify, so they are void.

Counters stay those of the source's rows. In a stream a record counts as what the best of its elements came to: counted
when one was written, else quarantined when one was, else filtered; quarantined elements are kept one by one. A job
counts what became of each element, and how many rows were ``exploded`` out of others: rows of the source + exploded =
quarantined + filtered + duplicate + counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Column, Component
from lakehouse_engine.rows import FILTERED, ColumnError, Layer, Rows, Verdict, passing


class Explode(Component):
    """Jobs, and streams that land rows; a stream's window cannot follow it."""

    #: the array
    column: Column
    #: what the element is called; default: as the array
    as_: Column | None = Field(None, alias="as")
    #: a column for the element's place in the array, from 0 (int)
    position: Column | None = None
    #: a row whose array is empty or null: kept with a null element, or dropped as filtered
    empty: Literal["keep", "drop"] = "keep"

    @classmethod
    def short(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _apart(self) -> Explode:
        if self.position is not None and self.position.lower() == self.element.lower():
            raise PydanticCustomError("SAME_COLUMN", "element and position are both called {name}",
                                      {"name": self.position})  # fmt: skip
        return self

    @property
    def element(self) -> str:
        return self.as_ or self.column

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that the step adds or changes."""
        return (self.element, self.position) if self.position else (self.element,)

    def row(self, rows: Rows, step: str) -> Rows:
        array = rows.resolve(self.column)
        kept = {name: text for name, text in rows.columns.items() if name.lower() != self.column.lower()}
        for name in self.made:
            if name.lower() in {other.lower() for other in kept}:
                raise ColumnError(f"there is a column {name} already", "SAME_COLUMN")
        alias = f"_element{sum(layer.expands for layer in rows.layers)}"
        # a refused row stays one row, so that it is kept aside and counted once
        whole = f"if({passing(rows.verdicts)}, {array}, null)"
        placed = f"transform({whole}, (element, place) -> named_struct('v', element, 'p', place))"
        layer = Layer(alias, f"explode_outer({placed})", expands=True)
        if self.empty == "drop":
            rows = rows.refuse(Verdict(step, FILTERED, f"{alias} is null"))
        columns = {**kept, self.element: f"{alias}.v", **({self.position: f"{alias}.p"} if self.position else {})}
        types = {name: kind for name, kind in rows.types.items() if name in kept}
        types |= {self.position: "int"} if self.position else {}
        return replace(rows, columns=columns, types=types, layers=(*rows.layers, layer))

    def expressions(self) -> list[str]:
        return [self.column]
