"""The rows of a job between two steps that look at many of them: told apart by their outcome, and counted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakehouse_engine import rows, sql
from lakehouse_engine.rows import Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass
class Segment:
    """Rows between two steps that look at many rows: ``frame`` comes in, ``passed`` goes on.

    ``judged``: the rows with their outcome, where a step refuses or counts some. Numbers are of rows: ``seen`` after
    its explode, ``out`` of ``passed``; None while they are not known.
    """

    frame: DataFrame
    current: Rows | None
    judged: DataFrame | None
    passed: DataFrame
    #: as many rows come in as went out of the segment before: a lookup stands between them
    as_many: bool = False
    #: the table that the rows come from, and what its slice column is called; what is kept aside of them says so
    origin: str = ""
    unit: str | None = None
    #: the input whose rows they are; '' for the pipeline's own
    input: str = ""
    seen: int = -1
    quarantined: int = 0
    out: int | None = None

    @property
    def refuses(self) -> bool:
        return self.current is not None and any(v.outcome == rows.QUARANTINED for v in self.current.verdicts)

    @property
    def expands(self) -> bool:
        return self.current is not None and self.current.expanded

    @property
    def into(self) -> int:
        """The rows of ``frame``; those that were seen where none was made of another."""
        return self.seen if self.seen >= 0 and not self.expands else self.frame.count()

    def passes(self, into: int) -> int:
        if self.out is None:
            filters = self.current is not None and self.current.verdicts
            self.out = self.passed.count() if filters else into
        return self.out


def conserved(segments: Sequence[Segment]) -> dict[str, int]:
    """What was filtered, dropped as a duplicate and added by explode: the difference between two counts.

    Of rows that no step put together with others: rows of the source + exploded = quarantined + filtered + duplicate +
    counted.
    """
    filtered = duplicate = exploded = 0
    before: int | None = None
    for segment in segments:
        into = before if segment.as_many and before is not None else segment.into
        if before is not None:
            duplicate += before - into
        passed = segment.passes(into)
        if segment.judged is not None:
            exploded += segment.seen - into
            filtered += segment.seen - segment.quarantined - passed
        else:
            filtered += into - passed
        before = passed
    found = {rows.FILTERED: filtered}
    if any(not segment.as_many for segment in segments[1:]):
        found[rows.DUPLICATE] = duplicate
    if any(segment.expands for segment in segments):
        found["exploded"] = exploded
    return found


def layered(frame: DataFrame, current: Rows) -> DataFrame:
    """``frame`` with the layers as columns; what they join are views of its session."""
    if any(layer.joins for layer in current.layers):
        view = f"layered_{uuid.uuid4().hex}"
        frame.createOrReplaceTempView(view)
        try:
            return frame.sparkSession.sql(rows.layered(view, current.layers))
        finally:
            frame.sparkSession.catalog.dropTempView(view)
    for level in rows.levels(current.layers):
        frame = frame.selectExpr("*", *level)
    return frame


def named(columns: Mapping[str, str]) -> list[str]:
    return [f"{text} as {sql.name(name)}" for name, text in columns.items()]


def judges(current: Rows, last: bool) -> bool:
    """Whether its rows are told apart in one pass; filters before the last segment are not worth being kept."""
    aside = any(verdict.outcome == rows.QUARANTINED for verdict in current.verdicts)
    return aside or bool(current.watched) or current.expanded or (last and bool(current.verdicts))


def texts_read(current: Rows) -> list[str]:
    """The SQL that is read from rows that are kept judged."""
    texts = [*current.columns.values(), *(watched.failed for watched in current.watched)]
    for verdict in current.verdicts:
        texts += [text for text in (verdict.refused, verdict.reasons, verdict.row) if text]
    return texts
