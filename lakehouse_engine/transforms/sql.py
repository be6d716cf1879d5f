"""``sql``: what no other step says, as one select, in jobs.

``sql: select * from input qualify row_number() over (partition by day order by n desc) <= 10``. The rows so far are
``input``; other inputs and pipelines' Delta tables go by their names. The result's columns are those of the select, and
what ``keys`` of the steps before say is void.

Refused are statements other than a select, files, functions that run code or give other rows at a replay, samples, and
a ``limit`` without an ``order by``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import queries
from lakehouse_engine.component import Component, Flag
from lakehouse_engine.sql import ExpressionError


def _checked(text: str) -> str:
    try:
        queries.check(text)
    except ExpressionError as error:
        raise PydanticCustomError(error.code, "{message}", {"message": str(error)}) from None
    return text


class Sql(Component):
    """With ``replace_by`` a run recomputes changed slices alone only where ``local: true`` says that it may."""

    #: one select, which reads ``input``
    query: Annotated[str, AfterValidator(_checked), WithJsonSchema({"type": "string", "title": "Spark SQL query"})]
    #: a slice of the result depends on that slice of ``input`` and of the other inputs alone
    local: Flag = False

    @classmethod
    def short(cls, value: object) -> object:
        return {"query": value} if isinstance(value, str) else value

    @property
    def others(self) -> tuple[str, ...]:
        """The other inputs that it reads, beside ``input``: names of ``inputs`` and of pipelines."""
        return tuple(name for name in queries.tables(self.query) if name != queries.INPUT)

    def expressions(self) -> list[str]:
        return []
