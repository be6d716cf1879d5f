"""Runs a query whose state is Spark's: one Structured Streaming query with a checkpoint that is kept.

Each micro-batch ends in one commit of the sink (``endings.py``). A batch that the sink has already comes again after a
crash between that commit and Spark's own note of it: it is computed, for the state's sake, and not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lakehouse_engine import progress, rows, sql
from lakehouse_engine.checkpoints import Checkpoint, Held, Made
from lakehouse_engine.connections import Connections
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.endings import Batch, Ending, IntoDelta, IntoPostgres, Shown
from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.journal import See, seen
from lakehouse_engine.judged import Counts
from lakehouse_engine.locks import acquire
from lakehouse_engine.lookups import Lookups
from lakehouse_engine.progress import Position, Record
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks.delta_upsert import DELETES
from lakehouse_engine.stages import Branch, Query, Stateful
from lakehouse_engine.stateful import Frames, Parts
from lakehouse_engine.streamrun import Report, StreamRun, reading
from lakehouse_engine.transforms import Dedupe, Join, Union, Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class StateRun(StreamRun):
    """One start of a query, from its claim to its end."""

    def __init__(self, spark: SparkSession, query: Query, connections: Connections, report: Report,
                 see: See = lambda _: None) -> None:  # fmt: skip
        self.plan = query
        self._reads = {branch.name: reading(branch.spec, connections) for branch in query.branches}
        super().__init__(query.name, spark, connections, report, see, self._reads[""].ends)
        folder = connections.storage / "_checkpoints" / query.name
        reset = f"lakehouse reset {query.spec.file}"
        self._checkpoint = Checkpoint(folder, query.spec.where("transforms"), reset)
        self._positions: dict[str, Mapping[int, Position]] = {}
        self._ending = self._ends_in(reset)
        self._held: Held | None = None
        self._lookups: Lookups | None = None

    def _ends_in(self, reset: str) -> Ending:
        sink = self.plan.spec.sink
        if isinstance(sink, Postgres):
            assert self._to.postgres_dsn is not None
            return IntoPostgres(self.plan, self._to.postgres_dsn, self._to.writer, reset)
        return IntoDelta(self.plan, self._to.storage, reset) if isinstance(sink, Delta) else Shown(self.plan)

    def start(self, *, available_now: bool, every: int | None = None) -> None:
        """Checks that sink and checkpoint belong together and starts. Nothing has been written when this raises.

        ``every``: microseconds between two micro-batches, instead of the plan's.
        """
        from pyspark import __version__ as version

        try:
            for name in (self.plan.name, f"query {self.plan.name}"):
                self._locks.append(acquire(self._spark, self._to.storage, name, self.plan.name))
            self._held = self._ending.held()
            topics = {branch.spec.source.origin: self._reads[branch.name].topic.id for branch in self.plan.branches}
            kept = isinstance(self._ending, IntoPostgres | IntoDelta)
            self._lookups = Lookups(self._spark, [self.plan], self._to.storage, self._report)
            frames = Frames(self.plan, {name: read.begin(self._spark) for name, read in self._reads.items()})
            made = Made(self.plan.name, self._ending.epoch, self.plan.fingerprint, topics, version)
            made = self._checkpoint.open(made, self._held) if kept else self._checkpoint.scratch(made)
            if self.plan.fed:
                path = delta_sink.table_path(self._to.storage, self.plan.name)
                delta_sink.feed(self._spark, path, DeltaLog(path).record())
            self._ending.claim(made.id, frames.kinds)
            if isinstance(self._ending, IntoDelta):
                path = delta_sink.table_path(self._to.storage, self.plan.name)
                kinds = {name: kind for name, kind in frames.kinds.items() if name != DELETES}
                delta_sink.widen(self._spark, path, kinds, self.plan.spec.where("sink"))
            self._claim_positions()
            self._frames = frames
            self._begin(frames.frame, self._checkpoint.folder, self.plan.every if every is None else every,
                        available_now=available_now, mode=self.plan.mode)  # fmt: skip
        except BaseException:
            self.release()
            raise

    def _claim_positions(self) -> None:
        """Those of a topic that two inputs read are the first one's."""
        seen_topics = set()
        for name, read in self._reads.items():
            topic = read.topic
            if topic.id in seen_topics:
                continue
            seen_topics.add(topic.id)
            self._positions[name] = self._ending.positions(topic, read.starts())
            read.check(progress.offsets(self._positions[name]), self.plan.name)

    def _explained(self) -> LakehouseError | None:
        """Of tables: Spark stops where it meets a commit that it cannot follow."""
        found = (self._reads[name].explained(progress.offsets(positions), self.plan.name)
                 for name, positions in self._positions.items())  # fmt: skip
        return next((error for error in found if error is not None), None)

    def _write(self, frame: DataFrame, number: int, started_at: int) -> int:
        frame.persist()
        try:
            return self._commit(frame, number, started_at)
        finally:
            frame.unpersist()

    def _commit(self, frame: DataFrame, number: int, started_at: int) -> int:
        if self._held is not None and number <= self._held.batch:
            frame.count()  # the state has to be there for the next one
            return 0
        assert self._lookups is not None
        for error in self._lookups.refresh(frame.sparkSession, started_at).values():
            raise error
        parts = self._placed(self._frames.apart(frame), number)
        counts = [judge.count(part) for judge, part in zip(self._frames.records, parts.records, strict=True)]
        watermark = self._checkpoint.watermark_before(number)
        late, n_late = self._late(parts, watermark) if watermark is not None else (None, 0)
        result = self._frames.judged(parts.result)
        made = self._frames.judge.count(result, placed=False)
        warnings = self._warnings(counts, made, started_at)
        after = self._after(counts, number)
        record, others = self._records(after, self._counters(counts, made, n_late), warnings, started_at, watermark)
        good = result.filter(f"_outcome = '{rows.COUNTED}'")
        batch = Batch(number, record, others, self._frames.stored, good, made.outcomes.get(rows.COUNTED, 0),
                      self._refused(parts, result, counts, made), late, self._state())  # fmt: skip
        for read in self._reads.values():
            read.still()
        more = self._ending.write(batch)
        self._positions |= after
        run = seen(replace(record, behind=self._ends.behind(record.offsets)), self.plan.every, self.plan.spec.sink.key,
                   **more)  # fmt: skip
        self._see(replace(run, rows=batch.rows, state=batch.state))
        return sum(sum(count.outcomes.values()) for count in counts)

    def _warnings(self, counts: list[Counts], made: Counts, started_at: int) -> dict[str, int]:
        """By name, of the records and of the result. Raises ``RunError`` CHECK_FAILED."""
        found: dict[str, int] = {}
        for judge, count in zip([*self._frames.records, self._frames.judge], [*counts, made], strict=True):
            for name, failing in judge.warnings(count, started_at).items():
                found[name] = found.get(name, 0) + failing
        return found

    def _counters(self, counts: list[Counts], made: Counts, late: int) -> dict[str, int]:
        """Of source records, by what became of them; a row of the result that is refused counts as quarantined.

        ``counted``: those that the state was given. Where a dedupe alone keeps state they are rows of the result.
        """
        found = dict.fromkeys(progress.COUNTERS, 0)
        for count in counts:
            for outcome, number in count.outcomes.items():
                found[outcome] += number
        found[rows.LATE] += late
        found[rows.COUNTED] -= late
        stages = [stage.transform for branch in self.plan.branches for stage in branch.stages]
        alone = all(isinstance(transform, Dedupe | Union) for transform in stages)
        if alone and not any(rows.expanded for rows in (self.plan.rows, *(b.rows for b in self.plan.branches))):
            found[rows.DUPLICATE] = found[rows.COUNTED] - made.rows
            found[rows.COUNTED] = made.outcomes.get(rows.COUNTED, 0)
            found[rows.FILTERED] += made.outcomes.get(rows.FILTERED, 0)
        found[rows.QUARANTINED] += made.outcomes.get(rows.QUARANTINED, 0)
        return found

    def _placed(self, parts: Parts, number: int) -> Parts:
        """A table's rows that do not say where they came from came by the batch's version."""
        found = []
        for read, records in zip(self._reads.values(), parts.records, strict=True):
            ends = read.reached(self._checkpoint.folder, number)
            if ends is not None:
                at = f"coalesce(_at_offset, {ends[0] - 1}L) as _at_offset"
                records = records.selectExpr(*[at if n == "_at_offset" else sql.name(n) for n in records.columns])
            found.append(records)
        return replace(parts, records=tuple(found))

    def _after(self, counts: list[Counts], number: int) -> dict[str, Mapping[int, Position]]:
        found: dict[str, Mapping[int, Position]] = {}
        for (name, read), count in zip(self._reads.items(), counts, strict=True):
            ends = read.reached(self._checkpoint.folder, number)
            if name in self._positions:
                before = self._positions[name]
                found[name] = progress.reached(before, count.ends if ends is None else ends)
        return found

    def _records(self, after: Mapping[str, Mapping[int, Position]], counters: Mapping[str, int],
                 warnings: Mapping[str, int], started_at: int,
                 watermark: int | None) -> tuple[Record, tuple[Record, ...]]:  # fmt: skip
        made = []
        for name, before in self._positions.items():
            topic = self._reads[name].topic
            behind = None if name else self._ends.behind(progress.offsets(after[name]))
            made.append(Record(self.plan.name, self._ending.epoch, self._ending.batch_id + 1, started_at, topic.id,
                               topic.name, before, after[name], watermark, counters, warnings, behind,
                               several=topic.several))  # fmt: skip
        return made[0], tuple(made[1:])

    def _late(self, parts: Parts, watermark: int) -> tuple[DataFrame | None, int]:
        """The rows that the first step with state drops, as it judges them: by the watermark of the batch before.

        Also those that are late for some of their windows alone; the number is of those that count nowhere.
        """
        found: DataFrame | None = None
        for branch, records in zip(self.plan.branches, parts.records, strict=True):
            state = self._first_state(branch)
            if state is None:
                continue
            first, place = state
            oldest = end = "_time"
            missed = "cast(null as array<bigint>)"
            if isinstance(first, Window) and first.session:
                missed, oldest, end = "array(_time)", *[f"_time + {first.size}L"] * 2
            elif isinstance(first, Window):
                newest = f"(_time - pmod(_time, {first.every}L))"
                back = f"sequence(0L, {first.size // first.every - 1}L)"
                starts = f"transform({back}, i -> {newest} - i * {first.every}L)"
                missed = f"array_sort(filter({starts}, s -> s + {first.size}L <= {watermark}L))"
                oldest, end = f"{newest} + {first.every}L", f"{newest} + {first.size}L"
            chosen = records.filter(f"_outcome = '{rows.COUNTED}' and {oldest} <= {watermark}L").selectExpr(
                f"{sql.string(place)} as step", "_at_topic as origin", "_at_partition as partition",
                "_at_offset as offset", "to_json(_row) as row", "_time as time", f"{missed} as missed",
                f"{end} <= {watermark}L as lost")  # fmt: skip
            found = chosen if found is None else found.unionAll(chosen)
        if found is None:
            return None, 0
        (some, lost) = found.selectExpr("count(*)", "count_if(lost)").collect()[0]
        return (found.drop("lost") if some else None), lost

    def _first_state(self, branch: Branch) -> tuple[Stateful, str] | None:
        """The step that is the first to drop late rows of an input, and its place; None where none does."""
        stages = [(stage, branch.spec.below) for stage in branch.stages]
        if branch.name:  # on from where it comes in
            main = self.plan.stages
            into = next(i for i, s in enumerate(main) if isinstance(s.transform, Join | Union)
                        and branch.name in s.transform.others)  # fmt: skip
            stages += [(stage, "") for stage in main[into:]]
        return next(((stage.transform, f"{below}{stage.place}") for stage, below in stages
                     if not isinstance(stage.transform, Union)), None)  # fmt: skip

    def _refused(self, parts: Parts, result: DataFrame, counts: list[Counts], made: Counts) -> DataFrame | None:
        """What ``parse`` and checks refuse, before the state and after it, where this pipeline keeps it."""
        aside = f"_outcome = '{rows.QUARANTINED}' and _step is not null"
        found: list[DataFrame] = []
        for branch, records, count in zip(self.plan.branches, parts.records, counts, strict=True):
            if count.refused and branch.keeps:
                found.append(records.filter(aside).selectExpr(
                    "_step as step", "_reasons as reasons", "_at_topic as origin", "_at_partition as partition",
                    "_at_offset as offset", "_key as key", "_value as value", "_as_row as row"))  # fmt: skip
        if made.refused:
            found.append(result.filter(aside).selectExpr(
                "_step as step", "_reasons as reasons",
                f"coalesce(_at_topic, {sql.string(self.plan.table)}) as origin", "_at_partition as partition",
                "_at_offset as offset", "cast(null as binary) as key", "cast(null as binary) as value",
                "_refused_row as row"))  # fmt: skip
        whole: DataFrame | None = None
        for frame in found:
            whole = frame if whole is None else whole.unionAll(frame)
        return whole

    def _state(self) -> tuple[int, int] | None:
        """Rows and bytes of state after the batch before, as Spark tells them."""
        last: Any = self.query.lastProgress if self.query is not None else None
        operators = last["stateOperators"] if last is not None else []
        if not operators:
            return None
        return (sum(o["numRowsTotal"] for o in operators), sum(o["memoryUsedBytes"] for o in operators))

    def release(self) -> None:
        self._ending.close()
        if self._lookups:
            self._lookups.close()
        super().release()
