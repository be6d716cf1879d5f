"""``parse``: reads a record's bytes as JSON by a contract. ``parse: user_event``.

Adds the contract's columns. A record that does not keep the contract is quarantined with its raw bytes and every
reason; nothing is coerced. ``Contract.judge`` is the same verdict in Python, by ``jsonschema``; tests hold both to one
another, payload by payload.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from lakehouse_engine.checks import Share
from lakehouse_engine.component import Column, Component
from lakehouse_engine.contract import EXTRA, Contract, ContractName
from lakehouse_engine.rows import FILTERED, QUARANTINED, Layer, Rows, Verdict, Watched
from lakehouse_engine.transforms.strict import Json


class Parse(Component):
    """Reads a record's bytes by a contract; what does not keep it is quarantined."""

    later: ClassVar[frozenset[str]] = frozenset({"into", "format", "ddl"})

    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName
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

    def expressions(self) -> list[str]:
        return [self.column]

    def row(self, rows: Rows, step: str, contract: Contract) -> Rows:
        """Adds a column per field. Layers are named after contract and column, so members of a scan share them."""
        value = rows.resolve(self.column)
        if self.tombstones == "drop":
            rows = rows.refuse(Verdict(step, FILTERED, f"{value} is null"))
        alias = f"_{contract.name}_of{self.column}"
        json = Json(contract, f"cast({value} as string)", alias)
        ok = f"{alias}_ok"
        layers = (Layer(alias, json.struct()), *json.made(), Layer(ok, json.accepted()))
        verdict = Verdict(step, QUARANTINED, f"not {ok}", json.reasons(value))
        columns, types = {**rows.columns, **json.columns()}, {**rows.types, **contract.columns}
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
