"""A micro-batch of a scan as one SQL text: each row once, all window members at once.

Every record becomes one struct per member (its outcome, window, keys and measured values) and one for its partition;
``inline`` unfolds them and one aggregation counts everything: partial aggregates, counters, positions, greatest event
times, and the rows that are kept aside. The text is put together here because the same plan built column by column
costs a fifth of a second per batch at twelve members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lakehouse_engine import rows as outcomes
from lakehouse_engine import sql
from lakehouse_engine.places import SEVERAL
from lakehouse_engine.progress import Position
from lakehouse_engine.rows import Layer, Rows, Tally, Verdict, layered, tallies
from lakehouse_engine.sinks.sessions import FIRST, LAST
from lakehouse_engine.transforms.window import Window

#: what a struct says, in its field ``o``: the row's outcome, or a window that it counts in (sliding only)
COUNTED, LATE, FILTERED, QUARANTINED, WINDOW, SEEN = range(6)
_COUNTER = {COUNTED: outcomes.COUNTED, LATE: outcomes.LATE, FILTERED: outcomes.FILTERED,
            QUARANTINED: outcomes.QUARANTINED}  # fmt: skip
POSITION = -1


@dataclass(frozen=True)
class Measured:
    """A base aggregate other than ``count(*)``: its column in the result, its function and argument over the source."""

    column: str
    function: str
    argument: str


@dataclass(frozen=True)
class WindowMember:
    """A window pipeline as the scan sees it. ``keeps`` are the steps whose refused rows it keeps itself.

    ``place``: SQL of the partition and offset that a row which is kept aside is said to come from. ``several``: rows
    come of several topics. ``raw``: of one that
    is refused the record is kept, else its columns.
    """

    name: str
    rows: Rows
    window: Window
    keeps: frozenset[str] = frozenset()
    place: tuple[str, str] = ("_partition", "_offset")
    several: bool = False
    raw: bool = True

    @property
    def keys(self) -> list[str]:
        return [self.rows.resolve(column) for column in self.window.by]

    def measured(self, index: int) -> list[tuple[str, Measured | None]]:
        """(base column, its aggregate; None for ``count(*)``, which the group's own count answers)."""
        found: list[tuple[str, Measured | None]] = []
        for name, text in self.window.measures.items():
            measure = sql.measure(text)
            argument = None if measure.argument is None else self.rows.resolve(measure.argument)
            names = [name] if measure.function != "avg" else [f"{name}__sum", f"{name}__count"]
            functions = [measure.function] if measure.function != "avg" else ["sum", "count"]
            for position, (column, function) in enumerate(zip(names, functions, strict=True)):
                slot = f"a{index}_{len(found)}_{position}"
                found.append((column, None if argument is None else Measured(slot, function, argument)))
        return found


@dataclass
class Result:
    """What a batch did for one member. ``partials``: window start (micros), keys as text, base aggregates.

    Of sessions they are parts that begin ``gap`` apart, with their first and last event time (micros) at the end.
    """

    partials: list[list[Any]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    tallied: list[tuple[Tally, int]] = field(default_factory=list)
    late: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


class ScanQuery:
    """Compiles the members once; ``text`` makes the SQL of a batch, ``read`` takes its result apart."""

    def __init__(self, members: Sequence[WindowMember]) -> None:
        self.members = tuple(members)
        #: what a record's position is of
        self._key = SEVERAL if any(member.several for member in members) else "_partition"
        self._width = max((len(m.window.by) for m in members), default=0)
        self._times: list[tuple[str, str]] = []  # (event time SQL, condition that a row reaches the watermark)
        self._verdicts: dict[str, str] = {}  # refused SQL -> column
        for member in self.members:
            for verdict in member.rows.verdicts:
                self._verdicts.setdefault(verdict.refused, f"_refused{len(self._verdicts)}")
            if self._time(member) not in self._times:
                self._times.append(self._time(member))
        #: by what else than event time rows are put into windows: SQL -> column
        self._columns: dict[str, str] = {}
        for member in self.members:
            if member.window.column is not None:
                text = member.rows.resolve(sql.name(member.window.column))
                self._columns.setdefault(text, f"_by{len(self._columns)}")
        self._measured = [[*m.measured(i), *self._ends(i, m)] for i, m in enumerate(self.members)]
        self._slots = [m for measured in self._measured for _, m in measured if m is not None]
        #: per member what is counted of its rows, beside their outcome
        self._tallies = [self._watched(index, member) for index, member in enumerate(self.members)]
        self._slots += [slot for found in self._tallies for _, slot in found]
        self._layers = self._compile_layers()
        self._keys = ["m", "o", "w", *(f"k{i}" for i in range(self._width)), "detail"]
        columns = [*self._keys, "n", "at", *(f"t{i}" for i in range(len(self._times)))]
        columns += [slot.column for slot in self._slots]
        self._place = {column: index for index, column in enumerate(columns)}  # a row's fields are slow by name

    def _ends(self, index: int, member: WindowMember) -> list[tuple[str, Measured]]:
        """What the parts of a session are put together by: the first and the last event time, in microseconds."""
        names = ((FIRST, "min"), (LAST, "max")) if member.window.session else ()
        return [(name, Measured(f"s{index}_{function}", function, self._placed(member))) for name, function in names]

    def _watched(self, index: int, member: WindowMember) -> list[tuple[Tally, Measured]]:
        """Each a count of the rows that the member did not have yet."""
        found = []
        written = f"_outcome{index} = {COUNTED}"
        for number, tally in enumerate(tallies(member.rows, written, lambda v: self._verdicts[v.refused])):
            fresh = f"_outcome{index} <> {SEEN} and {tally.condition}"
            found.append((tally, Measured(f"w{index}_{number}", "count", f"if({fresh}, 1, null)")))
        return found

    def _time(self, member: WindowMember) -> tuple[str, str]:
        time = member.rows.event_time
        assert time is not None, "the loader requires a watermark before a window"
        before = [f"not {self._verdicts[v.refused]}" for v in member.rows.verdicts[: time.after]]
        return time.expression, " and ".join(before) or "true"

    def _micros(self, member: WindowMember) -> str:
        return f"_time{self._times.index(self._time(member))}"

    def _placed(self, member: WindowMember) -> str:
        """The microseconds by which a row is put into windows."""
        if member.window.column is None:
            return self._micros(member)
        return self._columns[member.rows.resolve(sql.name(member.window.column))]

    def _compile_layers(self) -> list[Layer]:
        """Computed once per row: members' own layers, verdicts, event times, start of the newest window, outcomes."""
        found: dict[str, Layer] = {}
        for member in self.members:
            for layer in member.rows.layers:
                found.setdefault(layer.alias, layer)
        for refused, column in self._verdicts.items():
            found[column] = Layer(column, refused)
        for index, (time, reaches) in enumerate(self._times):
            found[f"_time{index}"] = Layer(f"_time{index}", f"if({reaches}, unix_micros({time}), null)")
        for text, column in self._columns.items():
            found[column] = Layer(column, f"unix_micros({text})")
        for member in self.members:
            alias = self._start(member)
            micros = self._placed(member)
            found.setdefault(alias, Layer(alias, f"{micros} - pmod({micros}, {member.window.every})"))
        for index, member in enumerate(self.members):
            found[f"_outcome{index}"] = Layer(f"_outcome{index}", self._outcome(index, member))
        return list(found.values())

    def _start(self, member: WindowMember) -> str:
        return f"_start{self._placed(member)}_{member.window.every}"

    def text(self, view: str, watermarks: Sequence[int | None], floors: Sequence[Mapping[int, int] | None]) -> str:
        """The batch's SQL over ``view``. ``floors``: a member's next offset per partition where it is ahead of others.

        What changes from batch to batch stands in one map literal alone: Spark hands a map to the generated code by
        reference, so the code stays the same, compiled and warm. A number would be written into it.
        """
        inner = layered(view, [Layer("_batch", _parameters(watermarks, floors, self._key)), *self._layers])
        structs = [f"array({', '.join([self._position(), *self._rowwise()])})"]
        structs += [self._windows(i) for i, m in enumerate(self.members) if m.window.sliding]
        array = structs[0] if len(structs) == 1 else f"concat({', '.join(structs)})"
        keys = ", ".join(self._keys)
        # an exact type for sums of whole numbers is the user's: Spark widens int to bigint and keeps double
        aggregates = ["count(1) as n", "max(_at) as at"]
        aggregates += [f"max(_t{i}) as t{i}" for i in range(len(self._times))]
        aggregates += [f"{s.function}(_{s.column}) as {s.column}" for s in self._slots]
        return f"select {keys}, {', '.join(aggregates)} from (select inline({array}) from ({inner})) group by {keys}"

    def _outcome(self, index: int, member: WindowMember) -> str:
        codes = {outcomes.FILTERED: FILTERED, outcomes.QUARANTINED: QUARANTINED}
        cases = "".join(f" when {self._verdicts[v.refused]} then {codes[v.outcome]}" for v in member.rows.verdicts)
        late = member.window.late(self._placed(member), self._start(member), _watermark(index))
        return f"case when _offset < {_floor(index)} then {SEEN}{cases} when {late} then {LATE} else {COUNTED} end"

    def _struct(self, m: int, o: str, w: str, keys: Sequence[str], detail: str, extra: Mapping[str, str]) -> str:
        pairs = {"m": str(m), "o": o, "w": w, **{f"k{i}": "cast(null as string)" for i in range(self._width)}}
        pairs.update({f"k{i}": key for i, key in enumerate(keys)})
        pairs.update({"detail": detail, "_at": "cast(null as bigint)"})
        pairs.update({f"_t{i}": "cast(null as bigint)" for i in range(len(self._times))})
        pairs.update({f"_{slot.column}": "null" for slot in self._slots})
        pairs.update(extra)
        return f"named_struct({', '.join(f'{sql.string(name)}, {text}' for name, text in pairs.items())})"

    def _position(self) -> str:
        times = {f"_t{i}": f"_time{i}" for i in range(len(self._times))}
        none = "cast(null as string)"
        # how many members have the row already: those whose floors are the greatest
        had = " + ".join(f"if(_offset < {_floor(index)}, 1, 0)" for index in range(len(self.members)))
        return self._struct(POSITION, had, f"cast({self._key} as bigint)", [], none, {"_at": "_offset", **times})

    def _rowwise(self) -> list[str]:
        found = []
        for index, member in enumerate(self.members):
            outcome = f"_outcome{index}"
            watched = {f"_{slot.column}": slot.argument for _, slot in self._tallies[index]}
            counted = f"{outcome} = {COUNTED}"
            if member.window.sliding:
                aside = self._aside(index, member)
                found.append(self._struct(index, outcome, "cast(null as bigint)", [], aside, watched))
                continue
            keys = [f"if({counted}, cast({key} as string), null)" for key in member.keys]
            start = f"if({counted}, {self._start(member)}, null)"
            aside = self._aside(index, member)
            values = self._values(index, counted)
            found.append(self._struct(index, outcome, start, keys, aside, {**values, **watched}))
        return found

    def _values(self, index: int, counted: str) -> dict[str, str]:
        measured = [m for _, m in self._measured[index] if m is not None]
        return {f"_{m.column}": f"if({counted}, {m.argument}, null)" for m in measured}

    def _windows(self, index: int) -> str:
        """The windows of a sliding member that a row counts in: those that are not closed."""
        member = self.members[index]
        window = member.window
        start = f"({self._start(member)} - i * {window.every})"
        keys = [f"cast({key} as string)" for key in member.keys]
        struct = self._struct(index, str(WINDOW), start, keys, "cast(null as string)", self._values(index, "true"))
        count = window.size // window.every
        newest = f"transform(sequence(0L, {count - 1}L), i -> {struct})"
        open_ = f"filter({newest}, s -> s.w + {window.size} > {_watermark(index)})"
        return f"if(_outcome{index} = {COUNTED}, {open_}, array())"

    def _aside(self, index: int, member: WindowMember) -> str:
        """JSON of a row that is kept aside (which makes it a group of its own), null for every other."""
        micros = self._placed(member)
        stored = ", ".join(f"{sql.string(n)}, {text}" for n, text in member.rows.stored.items())
        place = f"'p', {member.place[0]}, 'o', {member.place[1]}"
        if member.several:
            place += ", 'topic', _topic"
        row = f"'row', to_json(named_struct({stored}))" if stored else "'row', '{}'"
        late = f"_outcome{index} = {LATE}"
        if member.window.sliding:  # closed for some windows, open for others
            # the oldest window ends `every` after the newest one begins
            oldest_end = f"{self._start(member)} + {member.window.every}"
            late += f" or (_outcome{index} = {COUNTED} and {oldest_end} <= {_watermark(index)})"
        cases = f" when {late} then to_json(named_struct({place}, 'time', {micros}, {row}))"
        kept = [v for v in member.rows.verdicts if v.outcome == outcomes.QUARANTINED and v.step in member.keeps]
        for verdict in kept:
            here = f"_outcome{index} = {QUARANTINED} and {self._first(member, verdict)}"
            cases += f" when {here} then {_refused(verdict, place, raw=member.raw)}"
        return f"case{cases} end"

    def _first(self, member: WindowMember, verdict: Verdict) -> str:
        before = []
        for other in member.rows.verdicts:
            if other == verdict:
                break
            before.append(f"not {self._verdicts[other.refused]}")
        return " and ".join([*before, self._verdicts[verdict.refused]])

    def read(self, rows: Sequence[Any], floors: Sequence[Mapping[int, int] | None]
             ) -> tuple[dict[int, int], list[dict[int, int]], list[Result]]:  # fmt: skip
        """(next offset per partition; per member: the greatest event time, per partition, of the rows that it did not
        have yet, and its result). ``floors``: those of the ``text``."""
        ends: dict[int, int] = {}
        greatest: list[dict[int, int]] = [{} for _ in self.members]
        results = [Result(tallied=[(tally, 0) for tally, _ in found]) for found in self._tallies]
        times = slice(self._place["at"] + 1, self._place["at"] + 1 + len(self._times))
        for row in rows:
            member, outcome, window, *keys = row[: self._place["detail"]]
            if member != POSITION:
                self._member(member, outcome, window, keys, row, results[member])
                continue
            ends[window] = max(ends.get(window, 0), row[self._place["at"]] + 1)
            for index in self._without(window, outcome, floors):
                time = row[times][self._time_index(index)]
                if time is not None:
                    greatest[index][window] = max(greatest[index].get(window, time), time)
        return ends, greatest, results

    def _member(self, index: int, outcome: int, window: int, keys: list[str], row: Any, result: Result) -> None:
        detail, count = row[self._place["detail"]], row[self._place["n"]]
        if outcome in _COUNTER:
            name = _COUNTER[outcome]
            result.counters[name] = result.counters.get(name, 0) + count
        if outcome != WINDOW:
            slots = [slot.column for _, slot in self._tallies[index]]
            result.tallied = [(tally, number + row[self._place[slot]])
                              for (tally, number), slot in zip(result.tallied, slots, strict=True)]  # fmt: skip
        if detail is not None:
            (result.refused if outcome == QUARANTINED else result.late).append(json.loads(detail))
        elif outcome == WINDOW or (outcome == COUNTED and not self.members[index].window.sliding):
            width = len(self.members[index].window.by)
            values = [count if m is None else row[self._place[m.column]] for _, m in self._measured[index]]
            result.partials.append([window, *keys[:width], *values])

    def _without(self, partition: int, had: int, floors: Sequence[Mapping[int, int] | None]) -> Sequence[int]:
        """The members that did not have rows of the partition which ``had`` of them had."""
        if not had:
            return range(len(self.members))
        return sorted(range(len(self.members)), key=lambda index: -(floors[index] or {}).get(partition, 0))[had:]

    def _time_index(self, index: int) -> int:
        return self._times.index(self._time(self.members[index]))


#: a watermark that closes no window
_NONE = -(2**62)


def _parameters(watermarks: Sequence[int | None], floors: Sequence[Mapping[int, int] | None], key: str) -> str:
    """SQL array<bigint> of what a record's position is of (``key``): per member its watermark and the offset below
    which it has all."""

    def values(partition: int | None) -> str:
        found = []
        for watermark, floor in zip(watermarks, floors, strict=True):
            held = floor.get(partition, 0) if floor and partition is not None else 0
            found += [f"{_NONE if watermark is None else watermark}L", f"{held}L"]
        return f"array({', '.join(found)})"

    partitions = sorted({0, *(p for floor in floors if floor for p in floor)})
    entries = ", ".join(f"{partition}, {values(partition)}" for partition in partitions)
    return f"coalesce(try_element_at(map({entries}), {key}), {values(None)})"


def _watermark(index: int) -> str:
    return f"get(_batch, {2 * index})"


def _floor(index: int) -> str:
    return f"get(_batch, {2 * index + 1})"


def _refused(verdict: Verdict, place: str, *, raw: bool) -> str:
    what = "'key', base64(_key), 'value', base64(_value)" if raw else f"'row', to_json({verdict.row})"
    return (f"to_json(named_struct({place}, 'step', {sql.string(verdict.step)}, 'reasons', {verdict.reasons},"
            f" {what}))")  # fmt: skip


def scan_floors(
    positions: Sequence[Mapping[int, Position]], others: Sequence[Mapping[int, Position]] = ()
) -> list[Mapping[int, int] | None]:
    """Per member the offsets below which it has everything, where that is above the least of all members.

    ``others``: members that read the same batches and are no windows, and where those stood that were taken out. Who
    has no position in a partition has nothing of it.
    """
    everyone = [*positions, *others]
    partitions = {p for member in everyone for p in member}
    least = {p: min(member.get(p, Position(0)).next_offset for member in everyone) for p in partitions}
    found: list[Mapping[int, int] | None] = []
    for member in positions:
        ahead = {p: position.next_offset for p, position in member.items() if position.next_offset > least[p]}
        found.append(ahead or None)
    return found
