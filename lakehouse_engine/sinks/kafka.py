"""``kafka``: a message for each row, into a topic that is there.

**Delivery guarantees**: at least once, in the order of the source's partitions. The producer is idempotent and waits
for all replicas (``acks=all``); what has been sent is noted only after the broker has confirmed all of it. So a crash
between the two sends the last micro-batch, or what a job's last run changed, again; nothing is left out, and the last
message of a key is the right one. Of windows each change is written down in PostgreSQL, in the transaction that makes
it, and taken out when the broker has it: after ``emit: updates`` each change of a window in a micro-batch is one
message, after ``emit: final`` each window is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.component import Component, ConnectionName, Expression, Topic

#: the whole row, in ``value``
_ROW = re.compile(r"\bstruct\s*\(\s*\*\s*\)", re.IGNORECASE)
#: to the microsecond: Spark's own default ends at milliseconds
_OPTIONS = f"map('ignoreNullFields', 'false', 'timestampFormat', \"{sql.TIME_FORMAT}\")"
#: how a message's parts are called as columns, all of them binary; a header's value has its name behind ``header_``
KEY, VALUE, HEADER = "key", "value", "header_"


def _of_row(text: str) -> str:
    try:
        sql.check(_ROW.sub("struct(1)", text))
    except sql.ExpressionError as error:
        message = str(error).replace("struct(1)", "struct(*)")
        raise PydanticCustomError(error.code, "{message}", {"message": message}) from None
    return text


def _header(name: str) -> str:
    if not re.fullmatch(r".{1,249}", name):
        raise PydanticCustomError("BAD_NAME", "{name} is not a header's name: 1 to 249 characters",
                                  {"name": repr(name)})  # fmt: skip
    return name


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


OfRow = Annotated[str, BeforeValidator(_text), AfterValidator(_of_row), WithJsonSchema(
    {"type": ["string", "number"], "title": "Spark SQL"})]  # fmt: skip
Header = Annotated[str, AfterValidator(_header), WithJsonSchema({"type": "string", "pattern": "^.{1,249}$"})]


class Kafka(Component):
    """Messages to a topic; after a window beside a table of postgres."""

    #: its name; there must be one
    topic: Topic
    #: of the environment: ``eu`` is its connection ``kafka.eu``; default: ``kafka``
    connection: ConnectionName | None = None
    #: what messages of one partition, and of a compacted topic's one entry, have in common; default: JSON of ``keys``
    key_: Expression | None = Field(default=None, alias="key")
    #: what a message says, where ``struct(*)`` is the row; default: JSON of all columns that are stored
    value: OfRow | None = None
    #: of each message, by name
    headers: Mapping[Header, Expression] = Field(default_factory=dict)

    def target(self, pipeline: str) -> str:
        """The topic."""
        return self.topic

    def expressions(self) -> list[str]:
        """What reads columns of the result."""
        return [text for text in (self.key_, self.value, *self.headers.values()) if text]

    def message(self, columns: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
        """SQL over a row with these columns: ``key``, ``value`` and ``header_<name>``, each binary."""
        key = self.key_ or (_json(keys) if keys else "cast(null as string)")
        value = _json(columns) if self.value is None else _ROW.sub(_struct(columns), self.value)
        parts = {KEY: key, VALUE: value, **{f"{HEADER}{name}": text for name, text in self.headers.items()}}
        return {name: f"cast(cast(({text}) as string) as binary)" for name, text in parts.items()}


def _struct(columns: Sequence[str]) -> str:
    return f"named_struct({', '.join(f'{sql.string(name)}, {sql.name(name)}' for name in columns)})"


def _json(columns: Sequence[str]) -> str:
    return f"to_json({_struct(columns)}, {_OPTIONS})"
