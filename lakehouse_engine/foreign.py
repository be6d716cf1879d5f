"""Tables of databases that are not ours, through Spark's own JDBC reader and writer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.connections import Database
from lakehouse_engine.contract import Contract
from lakehouse_engine.errors import PlanError, RunError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_TABLE = "[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*){0,2}"
#: rows that a query fetches at a time: PostgreSQL's driver takes all of them at once where nothing is said
_FETCHED = 10_000
#: types without a column of a database; of arrays that of the elements counts
_NO_COLUMN = ("struct<", "map<", "variant", "interval")


def _table(text: str) -> str:
    if not re.fullmatch(_TABLE, text):
        raise PydanticCustomError("BAD_NAME", "{text} is not a table's name: letters, digits and _, with a point behind"
                                  " its schema", {"text": repr(text)})  # fmt: skip
    return text


#: a table as the database calls it, without quotes, so no query
ForeignTable = Annotated[str, AfterValidator(_table), WithJsonSchema(
    {"type": "string", "title": "schema.table", "pattern": f"^{_TABLE}$"})]  # fmt: skip


def read(spark: SparkSession, at: Database, table: str, contract: Contract, where: str) -> DataFrame:
    """``_value binary``: each row as JSON, with the contract's columns; all columns where it allows no others.

    Read once, by one query, and held: the rows of a run are those of one moment.

    Raises ``PlanError`` TABLE_DIFFERS, ``RunError`` JDBC_FAILED, MISSING_JAR.
    """
    with _failing(at, table, where):
        frame = spark.read.format("jdbc").options(**_options(at, table), fetchsize=_FETCHED).load()
        there = {name.lower(): name for name in frame.columns}
        missing = [field.name for field in contract.fields if field.required and field.name.lower() not in there]
        if missing:
            raise PlanError("TABLE_DIFFERS", f"{table} has no column {', '.join(missing)}, which the contract"
                            f" {contract.name} requires", where=where)  # fmt: skip
        named = {field.name: there[field.name.lower()] for field in contract.fields if field.name.lower() in there}
        if contract.closed or contract.keeps:
            named = {**{name: name for name in frame.columns if name not in named.values()}, **named}
        parts = ", ".join(f"{sql.string(name)}, {sql.name(column)}" for name, column in named.items())
        text = f"to_json(named_struct({parts}), {sql.AS_JSON})"
        return frame.selectExpr(f"cast({text} as binary) as _value").localCheckpoint()


def add(frame: DataFrame, at: Database, table: str, where: str, *, in_place: bool = False) -> None:
    """Adds the rows, in one transaction; ``in_place``: after the table has been emptied.

    The table is made where there is none. Raises ``RunError`` JDBC_FAILED, MISSING_JAR.
    """
    with _failing(at, table, where):
        writer = frame.write.format("jdbc").options(**_options(at, table), numPartitions=1, truncate=in_place)
        writer.mode("overwrite" if in_place else "append").save()


def no_column(kind: str) -> bool:
    """Whether no database has a column of this Spark type."""
    return kind.removeprefix("array<").startswith(_NO_COLUMN)


def _options(at: Database, table: str) -> Mapping[str, str]:
    secret = {"user": at.user, "password": at.password}
    return {"url": at.url, "dbtable": table, **{name: value for name, value in secret.items() if value is not None}}


@contextmanager
def _failing(at: Database, table: str, where: str) -> Iterator[None]:
    """What the driver says, in one line and without the password."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        java = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
        while java is not None and java.getCause() is not None:  # what the driver says is at the bottom
            java = java.getCause()
        said = str(java.getMessage()) if java is not None else str(error)
        if "No suitable driver" in said:
            raise RunError("MISSING_JAR", f"no driver on Spark's class path takes {at.url.split('//')[0]}; add its jar"
                           " (spark.jars in the environment)", where=where) from None  # fmt: skip
        said = said.split("\n")[0].split(" SQLSTATE")[0].strip()
        said = said.replace(at.password, "***") if at.password else said
        raise RunError("JDBC_FAILED", f"{table} of connection jdbc.{at.name}: {said}", where=where) from None
