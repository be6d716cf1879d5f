"""The base of everything that stands under one key in a pipeline file, and the types its options are made of.

A component is one frozen pydantic model. Its class name in snake case is its YAML key (``filter:`` is ``Filter``), and
``short`` turns the short form (``filter: a > 1``) into options. Unknown options are refused; options that the language
knows but this version does not run yet stand in ``later`` and are refused with a code of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql

NAME = re.compile(r"[a-z][a-z0-9_]*")
TABLE = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")
_UNITS = {
    "ms": 1_000, "millisecond": 1_000, "milliseconds": 1_000,
    "s": 1_000_000, "second": 1_000_000, "seconds": 1_000_000,
    "m": 60_000_000, "minute": 60_000_000, "minutes": 60_000_000,
    "h": 3_600_000_000, "hour": 3_600_000_000, "hours": 3_600_000_000,
    "d": 86_400_000_000, "day": 86_400_000_000, "days": 86_400_000_000,
}  # fmt: skip


def parse_duration(value: object) -> int:
    """``2 minutes`` or ``30s`` in microseconds. Error: ``BAD_DURATION``."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*([a-z]+)\s*", value) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise PydanticCustomError("BAD_DURATION", "{value} is not a duration; write e.g. 2 minutes or 30s",
                                  {"value": repr(value)})  # fmt: skip
    return int(match[1]) * _UNITS[match[2]]


def is_name(text: str) -> bool:
    """Whether a layer or a pipeline may be called so: tables beside one have ``__`` in their names."""
    return NAME.fullmatch(text) is not None and "__" not in text and len(text) <= 48


def utc(text: str) -> str:
    """A time as ISO 8601 has it, in UTC unless it says otherwise, with its zone. Raises ``ValueError``."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).isoformat()


def a_day(micros: int) -> int:
    """Raises TOO_SHORT for less."""
    if micros < _UNITS["day"]:
        raise PydanticCustomError("TOO_SHORT", "at least 1 day")
    return micros


def a_week(micros: int | None) -> int | None:
    """Raises TOO_SHORT for less."""
    if micros is not None and micros < 7 * _UNITS["day"]:
        raise PydanticCustomError("TOO_SHORT", "at least 7 days: a reader that is at work must not lose its files")
    return micros


def parse_size(value: object) -> int:
    """``32 MB`` in bytes; units are B, KB, MB and GB of 1024. Error: ``BAD_SIZE``."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(B|KB|MB|GB)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("BAD_SIZE", "{value} is not a size; write e.g. 32 MB", {"value": repr(value)})
    size: int = int(match[1]) * 1024 ** ("B", "KB", "MB", "GB").index(match[2])
    return size


def format_duration(micros: int) -> str:
    """Microseconds in the largest unit that divides them: ``2 minutes``."""
    for unit in ("day", "hour", "minute", "second", "millisecond"):
        count, rest = divmod(micros, _UNITS[unit])
        if count and not rest:
            return f"{count} {unit}" + ("s" if count > 1 else "")
    return f"{micros // _UNITS['second']} seconds"


def _expression(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _checked(*, aggregates: bool = False, named: bool = False) -> AfterValidator:
    def check(text: str) -> str:
        try:
            sql.check(text, aggregates=aggregates, named=named)
        except sql.ExpressionError as error:
            raise PydanticCustomError(error.code, "{message}", {"message": str(error)}) from None
        return text

    return AfterValidator(check)


def _column(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) or len(text) > 63:
        raise PydanticCustomError("BAD_NAME", "{text} is not a column name: letters, digits and _, at most 63",
                                  {"text": repr(text)})  # fmt: skip
    return text


def _table(value: str) -> str:
    if not TABLE.fullmatch(value):
        raise PydanticCustomError("BAD_NAME", "{value} is not <layer>.<name>", {"value": repr(value)})
    return value


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value):
        raise PydanticCustomError("BAD_NAME", "{value} is not a topic's name: letters, digits, . _ - only",
                                  {"value": repr(value)})  # fmt: skip
    return value


def _connection(value: str) -> str:
    if not NAME.fullmatch(value):
        raise PydanticCustomError("BAD_NAME", "{text} is not a connection's name: a-z, 0-9 and _, a letter first",
                                  {"text": repr(value)})  # fmt: skip
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _other(value: str) -> str:
    if not (NAME.fullmatch(value) or TABLE.fullmatch(value)):
        raise PydanticCustomError("BAD_NAME", "{value} is neither an input's name nor a pipeline's (layer.name)",
                                  {"value": repr(value)})  # fmt: skip
    return value


def _paired(value: object) -> object:
    return {name: name for name in _NAMES.validate_python(value)} if isinstance(value, str | list) else value


def _some(pairs: dict[str, str]) -> dict[str, str]:
    if not pairs:
        raise PydanticCustomError("BAD_VALUE", "name at least one column")
    return pairs


class FromText(str):
    """The value of a variable of the process environment, which has text only: it may stand for a number."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, FromText) and re.fullmatch(r"-?[0-9]{1,18}", value) else value


def _flag(value: object) -> object:
    return value == "true" if isinstance(value, FromText) and value in ("true", "false") else value


def _shape(kind: str | list[str], title: str, **keywords: Any) -> WithJsonSchema:
    """What an editor can check of a value; ``title`` names the type in the reference."""
    return WithJsonSchema({"type": kind, "title": title, **keywords})


_COLUMN = {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$"}
_SQL = ["string", "number", "boolean"]
#: an option that is a number or a switch is written as one, never as text
Whole = Annotated[int, Field(strict=True), BeforeValidator(_whole)]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
Duration = Annotated[int, BeforeValidator(parse_duration), _shape(
    "string", "duration", pattern=rf"^\s*[0-9]{{1,9}}\s*({'|'.join(_UNITS)})\s*$")]  # fmt: skip
Size = Annotated[int, BeforeValidator(parse_size), _shape(
    "string", "size", pattern=r"^\s*[0-9]{1,9}\s*(B|KB|MB|GB)\s*$")]  # fmt: skip
Expression = Annotated[str, BeforeValidator(_expression), _checked(), _shape(_SQL, "Spark SQL")]
Aggregation = Annotated[str, BeforeValidator(_expression), _checked(aggregates=True), _shape(
    _SQL, "Spark SQL that aggregates")]  # fmt: skip
SelectItem = Annotated[str, BeforeValidator(_expression), _checked(named=True), _shape(_SQL, "Spark SQL as name")]
Column = Annotated[str, AfterValidator(_column), _shape("string", "column", **_COLUMN)]
Table = Annotated[str, AfterValidator(_table), _shape("string", "layer.name", pattern=f"^{TABLE.pattern}$")]
Topic = Annotated[str, AfterValidator(_topic), _shape("string", "topic", pattern="^[A-Za-z0-9._-]{1,249}$")]
#: ``crm`` of the environment's connection ``jdbc.crm``, ``eu`` of ``kafka.eu``
ConnectionName = Annotated[str, AfterValidator(_connection), _shape(
    "string", "connection", pattern=f"^{NAME.pattern}$")]  # fmt: skip
Columns = Annotated[tuple[Column, ...], BeforeValidator(_listed), _shape(
    ["array", "string"], "columns", items={"type": "string", **_COLUMN}, **_COLUMN)]  # fmt: skip
_NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(Columns)
#: columns by the name that they have in the result; a list is of columns that keep their names
Pairs = Annotated[dict[Column, Column], BeforeValidator(_paired), AfterValidator(_some), _shape(
    ["array", "string", "object"], "columns", items={"type": "string", **_COLUMN}, minItems=1, **_COLUMN,
    propertyNames=_COLUMN, additionalProperties={"type": "string", "title": "column", **_COLUMN},
    minProperties=1)]  # fmt: skip
#: one of ``inputs``, or a pipeline for its Delta table
Other = Annotated[str, AfterValidator(_other), _shape(
    "string", "input or layer.name", pattern=rf"^({NAME.pattern}|{TABLE.pattern})$")]  # fmt: skip


class Model(BaseModel):
    """Frozen, and nothing unknown passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()


class Component(Model):
    """What stands under one key. ``key`` is that key."""

    key: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.key = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def short(cls, value: object) -> object:
        """The options that a short form stands for; a map is already options."""
        return {} if value is None else value


@dataclass(frozen=True)
class Unread:
    """Stands where a component could not be read. ``key``: what it says it is, or most likely means; '' unknown.

    ``columns``: those that it makes, where that shows.
    """

    key: str
    columns: tuple[str, ...] | None = None

    def expressions(self) -> list[str]:
        return []

    def target(self, pipeline: str) -> str:
        return self.key
