"""A micro-batch of a stream without a window: its rows are judged once, counted, and told apart by their outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakehouse_engine import rows, sql
from lakehouse_engine.checks import Freshness
from lakehouse_engine.errors import RunError
from lakehouse_engine.places import SEVERAL
from lakehouse_engine.plan import Member

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: rows of a micro-batch from which on a tolerance is judged: of fewer, one may be a large share
LEAST_JUDGED = 1_000


class Judge:
    """Compiles a member once. ``columns``: those that its good rows have, by name, over the source."""

    def __init__(self, member: Member, columns: Mapping[str, str], *, made: bool = False) -> None:
        """``made``: of rows that a step with state made; what they have as a place is theirs."""
        self._member, self.columns = member, columns
        written = rows.passing(member.rows.verdicts)
        self._tallies = rows.tallies(member.rows, written)
        self._fresh = [check for check in member.spec.checks if isinstance(check, Freshness)]
        #: what tells a table's rows apart where several are made of one
        self._record = ["_record"] if not member.spec.placed and member.rows.expanded and not made else []
        kept = [v for v in member.rows.verdicts if v.step in member.keeps]
        step, reasons = rows.first_reasons(member.rows.verdicts, member.keeps)
        chosen = [f"{text} as {sql.name(name)}" for name, text in columns.items()]
        chosen += [f"{rows.outcome(member.rows.verdicts)} as _outcome", f"{step} as _step", f"{reasons} as _reasons"]
        chosen += [f"{tally.condition} as _tally{i}" for i, tally in enumerate(self._tallies)]
        times = [member.rows.resolve(check.time) for check in self._fresh]
        chosen += [f"if({written}, {time}, null) as _newest{i}" for i, time in enumerate(times)]
        partition, offset = ("_partition", "_offset") if made else member.place
        at = "_timestamp" if member.spec.raw and not made else "cast(null as timestamp)"
        place = ["_topic as _at_topic", f"{partition} as _at_partition", f"{offset} as _at_offset",
                 f"{at} as _at_timestamp"]  # fmt: skip
        #: what has a position of its own, as a row is found in the batch and as it is judged
        self._source_key, self.key = "_partition", "_at_partition"
        if member.several and not made:
            self._source_key, self.key = SEVERAL, f"_at{SEVERAL}"
            place.append(f"{SEVERAL} as {self.key}")
        aside = not (member.spec.raw or made) and any(verdict.outcome == rows.QUARANTINED for verdict in kept)
        row = rows.first_row(kept) if aside else "cast(null as string)"
        self._chosen = ", ".join([*chosen, *place, "_key", "_value", f"{row} as _as_row", *self._record])

    def judge(self, frame: DataFrame, view: str, held: Mapping[int, int]) -> DataFrame:
        """The batch's rows that are not held yet.

        ``columns``, ``_outcome string``, ``_step string`` and ``_reasons array<string>`` of what the pipeline keeps
        aside itself, the record's ``_at_topic string``, ``_at_partition int``, ``_at_offset bigint``, of several topics
        ``_at_place int``, ``_at_timestamp timestamp``, ``_key`` and ``_value binary``; of a table's row, ``_as_row
        string`` (JSON) is what was refused.
        """
        if self._record:
            from pyspark.sql import functions as F

            frame = frame.withColumn("_record", F.monotonically_increasing_id())
        frame.createOrReplaceTempView(view)
        inner = rows.layered(view, self._member.rows.layers)
        new = not_before(held, self._source_key)
        return frame.sparkSession.sql(f"select {self._chosen} from ({inner}) where {new}")

    def count(self, judged: DataFrame, *, placed: bool = True) -> Counts:
        """``placed``: a row has a record that it comes of; else each row counts for itself."""
        expanded = placed and self._member.rows.expanded
        record = [self.key, "_at_offset", *self._record] if expanded else []
        return _count(judged, self.key, len(self._tallies), len(self._fresh), record)

    def warnings(self, counts: Counts, started_at: int) -> dict[str, int]:
        """Rows that fail, by the warning's name. Raises ``RunError`` CHECK_FAILED."""
        warnings, stop = rows.concluded(zip(self._tallies, counts.tallied, strict=True), LEAST_JUDGED)
        if stop is not None:
            raise RunError("CHECK_FAILED", f"{stop.message}; nothing was written",
                           where=self._member.spec.where(stop.place))  # fmt: skip
        for check, newest in zip(self._fresh, counts.newest, strict=True):
            warnings[check.name or f"freshness({check.column})"] = int(not check.accepts(newest, started_at))
        return warnings


def not_before(held: Mapping[int, int], key: str, offset: str = "_offset") -> str:
    """SQL: the record is not below its position; ``key``: the column of what that is of."""
    if not held:
        return "true"
    # a map, as in scan.py: the generated code stays the same from batch to batch
    entries = ", ".join(f"{place}, {position}L" for place, position in sorted(held.items()))
    return f"{offset} >= coalesce(try_element_at(map({entries}), {key}), 0L)"


@dataclass(frozen=True)
class Counts:
    """``outcomes`` are of the source's records; of what was made of them ``rows``, and ``refused`` (quarantined)."""

    ends: dict[int, int]
    outcomes: dict[str, int]
    tallied: list[int]
    newest: list[int | None]
    rows: int
    refused: int


#: what a record came to of which several rows were made: the best of what they came to
_BEST = (rows.COUNTED, rows.QUARANTINED, rows.FILTERED)


def _count(parsed: DataFrame, key: str, tallies: int, fresh: int, record: Sequence[str]) -> Counts:
    """``record``: what rows of one record have in common, where there may be several."""
    from pyspark.sql import functions as F

    wanted = [F.count("*").alias("rows"), F.expr(f"count_if(_outcome = '{rows.QUARANTINED}')").alias("refused")]
    wanted += [F.expr(f"count_if(_tally{i})").alias(f"w{i}") for i in range(tallies)]
    wanted += [F.max(f"_newest{i}").alias(f"t{i}") for i in range(fresh)]
    outcome = F.col("_outcome")
    if record:
        best = F.expr(f"min(array_position(array({', '.join(map(sql.string, _BEST))}), _outcome))").alias("best")
        parsed = parsed.groupBy(*record).agg(*wanted, best)
        outcome = F.element_at(F.array(*map(F.lit, _BEST)), F.col("best").cast("int"))
        wanted = [F.sum(name).alias(name) for name in ("rows", "refused", *(f"w{i}" for i in range(tallies)))]
        wanted += [F.max(f"t{i}").alias(f"t{i}") for i in range(fresh)]
    grouped = parsed.groupBy(key, outcome.alias("_outcome")).agg(
        F.count("*").alias("n"), F.max("_at_offset").alias("last"), *wanted
    )
    ends: dict[int, int] = {}
    outcomes: dict[str, int] = {}
    tallied, seen, refused = [0] * tallies, 0, 0
    newest: list[int | None] = [None] * fresh
    for row in grouped.collect():
        if row[key] is not None and row["last"] is not None:
            ends[row[key]] = max(row["last"] + 1, ends.get(row[key], 0))
        outcomes[row["_outcome"]] = outcomes.get(row["_outcome"], 0) + row["n"]
        tallied = [total + row[f"w{i}"] for i, total in enumerate(tallied)]
        newest = [_later(time, row[f"t{i}"]) for i, time in enumerate(newest)]
        seen, refused = seen + row["rows"], refused + row["refused"]
    return Counts(ends, outcomes, tallied, newest, seen, refused)


def _later(one: int | None, other: int | None) -> int | None:
    return max((time for time in (one, other) if time is not None), default=None)
