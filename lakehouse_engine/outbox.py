"""Changes of windows on their way to a topic: written down in PostgreSQL by the transaction that makes them.

``lakehouse.outbox(id, branch, row)`` holds them in order until the broker has confirmed them. So whatever dies, each
change is sent at least once; one that was sent and not yet taken out is sent again, before those that came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lakehouse_engine import sql
from lakehouse_engine.connections import Connections
from lakehouse_engine.producing import into
from lakehouse_engine.sinks import Kafka
from lakehouse_engine.sinks.postgres import TYPES
from lakehouse_engine.spec.pipeline import PipelineSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: changes that are looked at, and sent, at a time
MOST = 5_000
_SPARK_TYPES = {**{theirs: ours for ours, theirs in TYPES.items()}, "smallint": "smallint"}


class Outbox:
    """The messages of one branch. ``columns``: the table's, by PostgreSQL type.

    Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC.
    """

    def __init__(self, branch: PipelineSpec, where: str | None, columns: Mapping[str, str],
                 to: Connections) -> None:  # fmt: skip
        assert isinstance(branch.sink, Kafka)
        self._name, self._where = branch.name, where
        kinds = {name: _spark_type(kind) for name, kind in columns.items() if name != "updated_at"}
        # PostgreSQL's JSON has bytes as text, in hex
        read = [f"{sql.name(name)} {'string' if kind == 'binary' else kind}" for name, kind in kinds.items()]
        self._schema = f"array<struct<{', '.join(one.replace(' ', ': ', 1) for one in read)}>>"
        self._columns = [f"unhex(substring({sql.name(name)}, 3)) as {sql.name(name)}" if kind == "binary" else
                         sql.name(name) for name, kind in kinds.items()]  # fmt: skip
        self._send = into(branch.sink, list(kinds), branch.key_columns, to.kafka(branch.sink.connection),
                          branch.where("sink"))  # fmt: skip

    def send(self, spark: SparkSession, connection: Any) -> int:
        """Sends what waits, oldest first, and takes it out; returns the number of messages.

        Raises ``RunError`` KAFKA_UNREACHABLE, NOT_DELIVERED.
        """
        count = 0
        while True:
            with connection, connection.cursor() as cursor:
                cursor.execute("select id, row::text from lakehouse.outbox where branch = %s order by id limit %s",
                               (self._name, MOST))  # fmt: skip
                waiting = cursor.fetchall()
            if not waiting:
                return count
            count += self._send(self._rows(spark, [row for _, row in waiting]))
            with connection, connection.cursor() as cursor:
                cursor.execute("delete from lakehouse.outbox where branch = %s and id <= %s",
                               (self._name, waiting[-1][0]))  # fmt: skip

    def _rows(self, spark: SparkSession, waiting: list[str]) -> DataFrame:
        """The rows to send, in order: one row of Spark's makes them, so they are of one partition."""
        # Spark puts variables into what it takes for SQL, in strings too
        text = sql.string(f"[{','.join(waiting)}]".replace("$", "\\u0024"))
        frame = spark.sql(f"select inline(from_json({text}, {sql.string(self._schema)}))").selectExpr(*self._columns)
        return frame if self._where is None else frame.filter(self._where)


def _spark_type(kind: str) -> str:
    return kind.replace("numeric", "decimal") if kind.startswith("numeric") else _SPARK_TYPES[kind]
