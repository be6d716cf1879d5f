"""``parse``: reads a record's bytes as JSON by a contract. ``parse: user_event``.

Adds the contract's columns. A record that does not keep the contract is quarantined with its raw bytes and every
reason; nothing is coerced (``contract.py`` has the rules).
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import Column, Component


class Parse(Component):
    """``contract`` is the name of a file in ``pipelines/contracts/``; ``column`` holds the bytes."""

    later: ClassVar[frozenset[str]] = frozenset({"into", "format", "tombstones", "ddl"})

    contract: str
    column: Column = "_value"

    @classmethod
    def short(cls, value: object) -> object:
        return {"contract": value} if isinstance(value, str) else value

    @field_validator("contract")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise PydanticCustomError("BAD_NAME", "{value} is not a contract's name", {"value": repr(value)})
        return value

    def expressions(self) -> list[str]:
        return [self.column]
