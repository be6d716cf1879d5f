"""``parse``: reads a record's bytes as JSON by a contract. ``parse: user_event``.

Adds the contract's columns. A record that does not keep the contract is quarantined with its raw bytes and every
reason; nothing is coerced. ``Contract.judge`` is the same verdict in Python, by ``jsonschema``; tests hold both to one
another, payload by payload.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic.types import JsonValue
from pydantic_core import PydanticCustomError

from lakehouse_engine.checks import Share
from lakehouse_engine.component import Column, Component
from lakehouse_engine.contract import EXTRA, Contract, ContractName, ddl
from lakehouse_engine.rows import FILTERED, QUARANTINED, Layer, Rows, Verdict, Watched, struct
from lakehouse_engine.transforms.strict import Json

of_columns = lru_cache(maxsize=256)(ddl.contract)


def _columns(text: str) -> str:
    try:
        of_columns(text)
    except ddl.DdlError as error:
        raise PydanticCustomError("BAD_DDL", "{message}", {"message": str(error)}) from None
    return text


def _only(name: str) -> dict[str, JsonValue]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class Parse(Component):
    """Reads a record's bytes by a contract; what does not keep it is quarantined. Exactly one of ``contract`` and
    ``ddl``."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only("contract"), _only("ddl")]})
    later: ClassVar[frozenset[str]] = frozenset({"format"})

    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName | None = None
    #: the columns, in place of a contract: string, bigint, double, boolean, timestamp, date, array, struct, map and
    #: variant, each null where it is missing unless it says ``not null``
    ddl: Annotated[str, AfterValidator(_columns), WithJsonSchema({"type": "string", "title": "columns"})] | None = None
    #: one column for all that is read, a struct, instead of a column for each field
    into: Column | None = None
    #: the column that holds the bytes
    column: Column = "_value"
    #: the share of refused records, e.g. 1%, above which a run fails
    tolerance: Share | None = None
    #: a record without a value, which compacted topics keep for a key that is gone: quarantined, or dropped and counted
    #: as filtered
    tombstones: Literal["quarantine", "drop"] = "quarantine"

    @classmethod
    def short(cls, value: object) -> object:
        return {"contract": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Parse:
        if (self.contract is None) == (self.ddl is None):
            raise PydanticCustomError("BAD_PARSE", "parse reads by a contract, or by ddl, a list of columns: say one")
        return self

    @property
    def reads_by(self) -> str:
        """The contract's name, also of the one that ``ddl`` is."""
        return self.contract if self.ddl is None else of_columns(self.ddl).name  # type: ignore[return-value]

    def made(self, contract: Contract) -> dict[str, str]:
        """The columns that it adds, with their types."""
        if self.into is None:
            return contract.columns
        fields = ",".join(f"{field.name}:{field.spark_type}" for field in contract.fields)
        return {self.into: f"struct<{fields}>", **({EXTRA: "variant"} if contract.keeps else {})}

    def expressions(self) -> list[str]:
        return [self.column]

    def row(self, rows: Rows, step: str, contract: Contract) -> Rows:
        """Adds a column per field, or one for all.

        Layers are named after contract and column, so members of a scan share them.
        """
        value = rows.resolve(self.column)
        if self.tombstones == "drop":
            rows = rows.refuse(Verdict(step, FILTERED, f"{value} is null"))
        alias = f"_{contract.name}_of{self.column}"
        json = Json(contract, f"cast({value} as string)", alias)
        ok = f"{alias}_ok"
        layers: tuple[Layer, ...] = (Layer(alias, json.struct()), *json.made(), Layer(ok, json.accepted()))
        verdict = Verdict(step, QUARANTINED, f"not {ok}", json.reasons(value))
        made = json.columns()
        if self.into is not None:
            fields = {field.name: made.pop(field.name) for field in contract.fields}
            layers = (*layers, Layer(f"{alias}_whole", f"if({ok}, {struct(fields)}, null)"))
            made = {self.into: f"{alias}_whole", **made}
        columns, types = {**rows.columns, **made}, {**rows.types, **self.made(contract)}
        known = {layer.alias for layer in rows.layers}
        added = tuple(layer for layer in layers if layer.alias not in known)
        if self.tolerance is not None:
            name = f"parse({contract.name})"
            rows = rows.watch(
                [Watched(name, f"not {ok}", "quarantine", f"{step}.tolerance", len(rows.verdicts), self.tolerance)]
            )
        rows = rows.refuse(verdict)
        if contract.keeps:
            found = f"{json.columns()[EXTRA]} is not null"
            rows = rows.watch([Watched(f"unknown_fields({contract.name})", found, "warn", step, len(rows.verdicts))])
        return replace(rows, columns=columns, types=types, layers=(*rows.layers, *added))
