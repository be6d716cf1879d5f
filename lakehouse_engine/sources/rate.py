"""``rate``: rows that the engine makes itself, for trying things. ``rate: {rows_per_second: 5}``.

Columns: ``timestamp timestamp``, when a row was made, and ``value bigint``, counted from 0.

**Delivery guarantees**: which value comes next is written with the rows, so each is in the result once; after a pause
it goes on where it was, with the times that are then. Nothing is made while the stream does not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lakehouse_engine.component import Component, Whole
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.reading import Behind, Held, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COLUMNS = {"timestamp": "timestamp", "value": "bigint"}


class Rate(Component):
    """So many rows in each second, for streams."""

    #: rows that are made in a second
    rows_per_second: Annotated[Whole, Field(ge=1, json_schema_extra={"minimum": 1})] = 1

    @property
    def origin(self) -> str:
        """What people call it."""
        return self.key


class Never:
    """It is never behind."""

    def start(self) -> None:
        """Nothing listens."""

    def ask(self) -> None:
        """Nobody is asked."""

    def behind(self, positions: Mapping[int, int]) -> int:
        return 0

    def close(self) -> None:
        """Nothing listens."""


class OfRate:
    """The position is the value that comes next, of partition 0."""

    placed = True

    def __init__(self, source: Rate) -> None:
        self._source = source
        self.topic = TopicState(source.key, source.key, {0: (0, 0)})
        self.ends: Behind = Never()
        self._base = 0

    def starts(self) -> dict[int, int]:
        return {0: 0}

    def commit(self, positions: Mapping[int, int]) -> str | None:
        return None

    def check_same(self, record: Mapping[str, Any], pipeline: str, where: str) -> None:
        """There is only one."""

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        self._base = min((positions.get(0, 0) for _, positions in held), default=0)
        return spark.readStream.format("rate").option("rowsPerSecond", self._source.rows_per_second).load()

    def begin(self, spark: SparkSession) -> DataFrame:
        return self._placed(self.stream(spark, Path(), ()))

    def check(self, positions: Mapping[int, int], pipeline: str) -> None:
        """There is always more."""

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        return self._placed(frame)

    def still(self) -> None:
        """Rows say by themselves what they are of."""

    def idle(self) -> bool:
        return False

    def reached(self, checkpoint: Path, number: int) -> dict[int, int] | None:
        return None

    def nothing(self, spark: SparkSession) -> str:
        return f"({placed(COLUMNS)})"

    def explained(self, positions: Mapping[int, int], pipeline: str) -> None:
        return None

    def _placed(self, frame: DataFrame) -> DataFrame:
        """Spark begins each run with 0."""
        return frame.selectExpr("timestamp", f"value + {self._base}L as value", "'rate' as _topic", "0 as _partition",
                                f"value + {self._base}L as _offset", "cast(null as binary) as _key",
                                "cast(null as binary) as _value")  # fmt: skip
