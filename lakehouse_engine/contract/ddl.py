"""A contract as a list of columns, ``id bigint not null, at timestamp``, for what nobody else has to check."""

from __future__ import annotations

import hashlib

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from lakehouse_engine.contract import COLUMN, Contract, Field, Kind

_KINDS: dict[object, Kind] = {
    exp.DataType.Type.TEXT: "string", exp.DataType.Type.BIGINT: "integer", exp.DataType.Type.DOUBLE: "number",
    exp.DataType.Type.BOOLEAN: "boolean", exp.DataType.Type.TIMESTAMPTZ: "timestamp",
    exp.DataType.Type.TIMESTAMP: "timestamp", exp.DataType.Type.DATE: "date", exp.DataType.Type.VARIANT: "any",
    exp.DataType.Type.STRUCT: "object", exp.DataType.Type.ARRAY: "array", exp.DataType.Type.MAP: "map"}  # fmt: skip


_OPEN = ("object", "array", "map")


class DdlError(ValueError):
    """What is wrong with the list."""


def contract(text: str) -> Contract:
    """Raises ``DdlError``. Its name is that of its text: who writes the same columns shares the reading of them."""
    try:
        tree = parse_one(f"create table t ({text})", read="spark")
    except SqlglotError:
        raise DdlError("it is not a list of columns with types, e.g. id bigint not null, at timestamp") from None
    listed = tree.this.expressions if isinstance(tree, exp.Create) and isinstance(tree.this, exp.Schema) else []
    fields = tuple(_column(one) for one in listed)
    if not fields or len(list(tree.find_all(exp.Create))) > 1:
        raise DdlError("it is not a list of columns with types, e.g. id bigint not null, at timestamp")
    return Contract(name=f"ddl_{hashlib.sha256(text.encode()).hexdigest()[:12]}", file="", fields=_apart(fields))


def _apart(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    names = [field.name.lower() for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DdlError(f"two columns are called {twice}")
    return fields


def _column(tree: exp.Expr) -> Field:
    if not isinstance(tree, exp.ColumnDef) or not isinstance(tree.args.get("kind"), exp.DataType):
        raise DdlError("each column has a name and a type, e.g. id bigint")
    constraints = [constraint.args.get("kind") for constraint in tree.args.get("constraints") or ()]
    if any(not isinstance(one, exp.NotNullColumnConstraint) for one in constraints):
        raise DdlError(f"{tree.name} says more than a type and not null")
    return _field(tree.name, tree.args["kind"], required=bool(constraints))


def _field(name: str, kind: exp.DataType, *, required: bool) -> Field:
    if not COLUMN.fullmatch(name) and name not in ("[]", "{}"):
        raise DdlError(f"{name!r} is not a column name: a letter, then letters, digits and _")
    found = _KINDS.get(kind.this)
    if found is None or (found in _OPEN) != bool(kind.expressions):
        shown = kind.sql(dialect="spark").lower()
        raise DdlError(f"{name} is {shown}; JSON is read as string, bigint, double, boolean, timestamp, date, array<>,"
                       " struct<>, map<> or variant: cast it afterwards")  # fmt: skip
    made = Field(name=name, kind=found, required=required, nullable=not required)
    if found == "object":
        return made.model_copy(update={"fields": _apart(tuple(map(_column, kind.expressions)))})
    if found == "array":
        (element,) = kind.expressions
        return made.model_copy(update={"element": _field("[]", element, required=False)})
    if found == "map":
        key, value = kind.expressions
        if key.this != exp.DataType.Type.TEXT:
            raise DdlError(f"{name}: keys of a map are strings in JSON")
        return made.model_copy(update={"element": _field("{}", value, required=False)})
    return made
