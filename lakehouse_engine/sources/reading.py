"""What a stream reads, by positions that its sinks keep: the offsets of a topic here, a table's versions in
``versions.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lakehouse_engine import sql
from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.sources import broker, kafka
from lakehouse_engine.sources.broker import TopicState
from lakehouse_engine.sources.ends import Ends
from lakehouse_engine.sources.kafka import Kafka

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


#: what a batch says of the place of its rows, beside their columns
PLACE = {"_topic": "string", "_partition": "int", "_offset": "bigint", "_key": "binary", "_value": "binary"}


def placed(columns: Mapping[str, str]) -> str:
    """SQL of a query that gives no row, of these columns (name and type) and ``PLACE``."""
    chosen = ", ".join(f"cast(null as {kind}) as {sql.name(name)}" for name, kind in {**columns, **PLACE}.items())
    return f"select {chosen} where false"


class Behind(Protocol):
    """How much of what is read there is left; see ``Ends``."""

    def start(self) -> None: ...
    def ask(self) -> None: ...
    def behind(self, positions: Mapping[int, int]) -> int: ...
    def close(self) -> None: ...


#: a pipeline and the next position of each partition that its sink holds
Held = tuple[str, Mapping[int, int]]


class Reading(Protocol):
    """``topic``: what is read, as the ledger calls it. ``ends``: where it ends by now.

    ``placed``: each row says its position; else that is known of the batch alone, and another one of its name is not
    begun anew: what was read of that one is in the table.
    """

    @property
    def topic(self) -> TopicState: ...
    @property
    def ends(self) -> Behind: ...

    placed: bool

    def starts(self) -> dict[int, int]:
        """The position by partition at which a pipeline begins that has not read yet."""

    def commit(self, positions: Mapping[int, int]) -> str | None:
        """What tells what was read last from something else at these positions, where there can be such a thing."""

    def check_same(self, record: Mapping[str, Any], pipeline: str, where: str) -> None:
        """Raises ``RunError`` where a commit's record is of another one that was called so, or of what was there."""

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        """The stream from the least position on; ``checkpoint``: an empty folder that the query will have.

        Raises ``LakehouseError`` where what follows a position is not there any more.
        """

    def begin(self, spark: SparkSession) -> DataFrame:
        """The stream of a query whose checkpoint is kept and says where it is; a new one begins at ``starts``.

        As ``batch`` gives it, but that no row has an ``_offset`` which does not say its own.
        """

    def check(self, positions: Mapping[int, int], pipeline: str) -> None:
        """Raises ``RunError`` where what follows is not there any more."""

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        """A micro-batch with the place of each row: ``_topic``, ``_partition``, ``_offset``, ``_key``, ``_value``."""

    def still(self) -> None:
        """Raises ``RunError`` TOPIC_RECREATED where what was read until now may be of another one that is called so.

        Asked after a micro-batch was read and before its position is written.
        """

    def idle(self) -> bool:
        """Whether Spark has begun a micro-batch for which nothing has come."""

    def reached(self, checkpoint: Path, number: int) -> dict[int, int] | None:
        """The positions after a micro-batch, where its rows do not tell them."""

    def nothing(self, spark: SparkSession) -> str:
        """SQL of a relation with the columns of ``batch`` and without a row."""

    def explained(self, positions: Mapping[int, int], pipeline: str) -> LakehouseError | None:
        """Why the query may have ended, where what it reads says so."""


class OfTopic:
    """A topic of Kafka. Raises ``RunError`` KAFKA_UNREACHABLE, MISSING_TOPIC."""

    placed = True

    def __init__(self, source: Kafka, bootstrap_servers: str) -> None:
        self._source, self._servers = source, bootstrap_servers
        self.topic = broker.describe(bootstrap_servers, source.one, where=source.reached)
        self.ends: Ends = Ends(bootstrap_servers, self.topic)
        self._ids = broker.Ids(bootstrap_servers, source.reached)

    def starts(self) -> dict[int, int]:
        return broker.offsets_at(self._servers, self.topic, self._source.start)

    def commit(self, positions: Mapping[int, int]) -> str | None:
        return None

    def check_same(self, record: Mapping[str, Any], pipeline: str, where: str) -> None:
        """A topic that was made anew is read from its start."""

    def stream(self, spark: SparkSession, checkpoint: Path, held: Sequence[Held]) -> DataFrame:
        start = self._source.start
        if not held:
            at_end = start in ("earliest", "latest")
            starting = str(start) if at_end else broker.starting_offsets(self.topic, [self.starts()])
        else:
            # once more, after the claim: until then another process may have read on
            claimed = self.topic
            self.topic = broker.describe(self._servers, self._source.one, where=self._source.reached)
            if claimed.id != self.topic.id:
                raise broker.recreated(claimed.name)
            for name, positions in held:
                broker.check_held(self.topic, positions, name)
            starting = broker.starting_offsets(self.topic, [positions for _, positions in held])
        return kafka.read(spark, self._source, self._servers, starting)

    def begin(self, spark: SparkSession) -> DataFrame:
        starting = broker.starting_offsets(self.topic, [self.starts()])
        return kafka.read(spark, self._source, self._servers, starting)

    def check(self, positions: Mapping[int, int], pipeline: str) -> None:
        broker.check_held(self.topic, positions, pipeline)

    def still(self) -> None:
        """Spark reads by name. A topic that has the id of the claim now has had it ever since, and so had what was
        read."""
        self._ids.check(self.topic)

    def batch(self, frame: DataFrame, checkpoint: Path, number: int) -> DataFrame:
        return frame

    def idle(self) -> bool:
        return False

    def reached(self, checkpoint: Path, number: int) -> dict[int, int] | None:
        return None

    def nothing(self, spark: SparkSession) -> str:
        return kafka.NO_RECORDS

    def explained(self, positions: Mapping[int, int], pipeline: str) -> LakehouseError | None:
        return None
