"""Which contracts suit rows whose cells are single values."""

from __future__ import annotations

from collections.abc import Iterator

from lakehouse_engine.contract import NOUNS
from lakehouse_engine.errors import Problem
from lakehouse_engine.sources import Files, Jdbc
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at


def cells_are_single_values(spec: PipelineSpec) -> Iterator[Problem]:
    """A column of a database may be an array, one of CSV may not."""
    source = spec.source
    if not isinstance(source, Jdbc) and not (isinstance(source, Files) and source.format == "csv"):
        return
    contract = spec.contracts.get(source.contract)
    for field in contract.fields if contract is not None else ():
        if field.holds("object", "map", "any") or (field.parts and isinstance(source, Files)):
            what = NOUNS.get(field.kind, "of any type")
            said = f"{field.name} of {source.contract} is {what}, and a cell of a table or of CSV is one value"
            place = f"source.{source.key}.contract"
            yield at(spec, place, "COLUMN_TYPE", f"{said}: read it as text, and derive what it holds")
