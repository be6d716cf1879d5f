"""Runs one test: the pipeline's own plan on real services, a step of it after each batch, and what then is there.

What a pipeline reads is a feed (``feeds.py``), how it runs is a kind (``kinds.py``), what it wrote is a target
(``target.py``): this is the walk that is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path

from lakehouse_engine import analysis
from lakehouse_engine.errors import LakehouseError, SpecError
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.sinks import Console, Delta, Files, Jdbc, Postgres, Sink
from lakehouse_engine.sinks import Kafka as Topic
from lakehouse_engine.sources import Delta as TableSource
from lakehouse_engine.sources import Jdbc as Table
from lakehouse_engine.sources import Source
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.testing import counted, subject, upstream
from lakehouse_engine.testing.bench import Bench
from lakehouse_engine.testing.cases import SOURCE, Batch, Case, Rows, did_you_mean
from lakehouse_engine.testing.feeds import FEEDS, Feed, Place
from lakehouse_engine.testing.kinds import Running, running
from lakehouse_engine.testing.rendering import rendered
from lakehouse_engine.testing.target import Target
from lakehouse_engine.testing.upstream import Misfit
from lakehouse_engine.testing.values import Difference, Found, difference, moment

#: the clock of a test whose rows tell no time and that has no ``now``
_CLOCK = datetime(2026, 1, 1, tzinfo=timezone.utc)
_FAILS = ".expect.fails"


class Failed(Exception):
    """A test that does not hold in a way that no expectation can be put right: what, and its place below the test."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Finding:
    """One expectation and what there is. ``path``: its place below the test; rows, a number of them, or a code."""

    path: str
    what: str
    expected: Rows | int | str
    actual: Sequence[Found] | int | str

    @cached_property
    def difference(self) -> Difference | None:
        """What differs between rows; None when nothing does, or when they are not compared."""
        if not isinstance(self.expected, tuple) or isinstance(self.actual, int | str):
            return None
        return difference([row for row in self.expected if isinstance(row, Mapping)], self.actual)

    @property
    def holds(self) -> bool:
        return self.difference is None if isinstance(self.expected, tuple) else self.expected == self.actual

    def text(self, *, colour: bool = False) -> str:
        """What is wrong, in a line or in a table of rows."""
        if self.difference is not None:
            return f"{self.what}: {rendered(self.difference, colour=colour)}"
        return self.what if isinstance(self.expected, str) else f"{self.actual} {self.what}, not {self.expected}"


def findings(bench: Bench, case: Case) -> list[Finding]:
    """Every expectation of the test with what came of it.

    Raises ``Failed``, and ``LakehouseError`` for what went wrong without being expected.
    """
    found: list[Finding] = []
    try:
        found += _run(bench, case)
    except LakehouseError as error:
        if case.expect.fails is None:
            raise
        if case.expect.looks:
            raise Failed(_FAILS, f"it fails before it could write anything, so nothing else holds: {error}") from error
        found.append(_failure(case.expect.fails, error))
    if case.expect.fails is not None and not any(finding.path == _FAILS for finding in found):
        raise Failed(_FAILS, f"it does not fail with {case.expect.fails}")
    return found


def _failure(expected: str, error: LakehouseError) -> Finding:
    codes = sorted({p.code for p in error.problems} if isinstance(error, SpecError) else {error.code})
    wrong = "" if expected in codes else f"it fails, but not with {expected}: {error}"
    return Finding(_FAILS, wrong, expected, expected if expected in codes else codes[0])


def _run(bench: Bench, case: Case) -> Iterator[Finding]:
    storage = bench.storage()
    spec = subject.loaded(case, str(storage))
    if isinstance(spec.sink, Console) and case.expect.looks:
        raise Failed(".expect", "the console keeps nothing that could be compared")
    with prepared(bench, case, spec, storage) as (walk, target):
        yield from walk.through(target)


@contextmanager
def prepared(bench: Bench, case: Case, spec: PipelineSpec, storage: Path) -> Iterator[tuple[Walk, Target]]:
    """What runs the pipeline of ``spec`` on the case's rows, and what looks at the tables that it writes."""
    compile_plan([spec])  # a wrong step shows before anything is made
    analysis.require(bench.spark, [spec], Environment(storage=str(storage), vars=dict(case.vars)))
    needs_postgres = any(isinstance(one, Postgres | Jdbc | Table) for one in (spec.source, *spec.sinks))
    database: AbstractContextManager[str | None] = bench.database() if needs_postgres else nullcontext(None)
    with database as dsn:
        own = {sink.topic: bench.topic(spec.name) for sink in spec.sinks if isinstance(sink, Topic)}
        own |= {sink.path: str(bench.storage() / "files") for sink in spec.sinks if isinstance(sink, Files)}
        own |= {sink.table: sink.table for sink in spec.sinks if isinstance(sink, Jdbc)}
        walk = Walk(Place(bench, case, _into(spec, own), storage, dsn))
        with closing(walk.running):
            yield walk, Target(bench, spec, storage, dsn, own)


def _into(spec: PipelineSpec, own: Mapping[str, str]) -> PipelineSpec:
    """The pipeline with topics and folders of the test in place of those that it writes."""

    def sink(one: Sink) -> Sink:
        if isinstance(one, Files):
            return one.model_copy(update={"path": own[one.path]})
        return one.model_copy(update={"topic": own[one.topic]}) if isinstance(one, Topic) else one

    further = tuple(one.model_copy(update={"sink": sink(one.sink)}) for one in spec.further)
    return spec.model_copy(update={"sink": sink(spec.sink), "further": further})


class Walk:
    """Batch by batch: rows to their inputs, a step of the pipeline, a look at its table."""

    def __init__(self, place: Place) -> None:
        self._place, self._case = place, place.case
        self._feeds, self._spec = _fed(place)
        self.running: Running = running(place, self._spec)
        self._clock = _CLOCK
        self._taken = 0

    @property
    def sources(self) -> Mapping[str, Source]:
        """What the pipeline reads here, by the names of its inputs."""
        return {name: feed.source for name, feed in self._feeds.items()}

    def through(self, target: Target) -> list[Finding]:
        found = list(self._expected(target))
        # where an expectation does not hold already, that is what is shown, and put right on request
        if self._case.expect.fails is None and all(one.holds for one in found) and counted.asked(
                self._case, self._spec):  # fmt: skip
            different = counted.differs(self._place, self._spec, target)
            if different is not None:
                raise Failed("", different)
        return found

    def _expected(self, target: Target) -> Iterator[Finding]:
        expect = self._case.expect
        try:
            yield from self.batches(target)
        except LakehouseError as error:
            if expect.fails is None:
                raise
            for number in expect.after:
                if number > self._taken:
                    raise Failed(f".expect.after.{number}", f"it fails in batch {self._taken + 1}: {error}") from error
            yield _failure(expect.fails, error)  # what is there then is looked at all the same
        if expect.rows is not None:
            yield self._rows(".expect.rows", "at the end", expect.rows, target.rows())
        for name, wanted in expect.others.items():
            yield self._rows(f".expect.{name}", name, wanted, target.named(name))
        for kind, asked in (("late", expect.late), ("quarantined", expect.quarantined)):
            if isinstance(asked, tuple):
                yield self._rows(f".expect.{kind}", f"{kind} rows", asked, target.aside(kind))
            elif asked is not None:
                yield Finding(f".expect.{kind}", f"rows are {kind}", asked, target.counted(kind))

    def batches(self, target: Target) -> Iterator[Finding]:
        """Gives and runs one after the other; what is expected after each."""
        case, after = self._case, self._case.expect.after
        self._tables(target)
        self._give(case.inputs, lambda name: f".inputs.{name}", whole=True)
        self._empty()
        for number, batch in enumerate(case.batches):
            self._give({SOURCE: (), **batch}, partial(case.batch_path, number))
            self.running.step(self._clock)
            self._taken = number + 1
            if number + 1 in after:
                yield self._rows(f".expect.after.{number + 1}", f"after batch {number + 1}", after[number + 1],
                                 target.rows())  # fmt: skip

    def _tables(self, target: Target) -> None:
        """What the pipeline's own tables hold before."""
        for name, rows in self._case.tables.items():
            sink, place = subject.sinks(self._place.spec).get(name), self._place
            if not isinstance(sink, Delta | Postgres):
                raise Failed(f".tables.{name}", f"{name} is no table: nothing can be in it before")
            plain = [row for row in rows if isinstance(row, Mapping)]
            if isinstance(sink, Delta):
                table = upstream.written(place.bench, place.spec, place.case.vars, place.storage)
                for index, row in enumerate(plain):
                    self._known(row, list(table.columns), f".tables.{name}[{index}]")
                table.write(place.bench.spark, plain)
            else:
                self.running.step(self._clock)  # which makes the table
                target.insert(name, plain)

    def _give(self, batch: Batch, path: Callable[[str], str], *, whole: bool = False) -> None:
        """Rows to their inputs; those that ``inputs`` gives whole are given whole again."""
        filled = {name: [self._feeds[name].filled(row, f"{path(name)}[{index}]") for index, row in enumerate(rows)]
                  for name, rows in batch.items()}  # fmt: skip
        told = [moment(row.get(column)) for name, rows in filled.items() for column in self._feeds[name].times()
                for row in rows if isinstance(row, Mapping)]  # fmt: skip
        # the clock: ``now``, else so late that no row of the batch lies in the future
        self._clock = self._case.now or max((time for time in told if time is not None), default=self._clock)
        for name, rows in filled.items():
            try:
                self._feeds[name].give(rows, self._clock, whole=whole or (bool(rows) and name in self._case.inputs))
            except Misfit as misfit:
                raise SpecError([self._case.problem(f"{path(name)}[{index}].{column}", "BAD_VALUE", why)
                                 for index, column, why in misfit.found]) from None  # fmt: skip

    def _empty(self) -> None:
        """A table that the test says nothing of is there, and empty."""
        said = {id(self._feeds[name]) for name in (SOURCE, *self._case.inputs)}
        for feed in self._feeds.values():
            if id(feed) not in said:
                said.add(id(feed))
                feed.give((), self._clock, whole=False)

    def _rows(self, path: str, what: str, expected: Rows, actual: Sequence[Found]) -> Finding:
        known = list(dict.fromkeys(column for row in actual for column in row))
        for index, row in enumerate(expected):
            if known and isinstance(row, Mapping):
                self._known(row, known, f"{path}[{index}]")
        return Finding(path, what, expected, actual)

    def _known(self, row: Found, known: Sequence[str], path: str) -> None:
        for column in row:
            if column not in known:
                raise Failed(f"{path}.{column}", f"there is no column {column}; {did_you_mean(column, known)}")


def _fed(place: Place) -> tuple[dict[str, Feed], PipelineSpec]:
    """A feed for each name that the test may give rows to, and the pipeline that reads them.

    What is read under two names is one feed.
    """
    spec, feeds, made = place.spec, dict[str, Feed](), dict[object, Feed]()
    for name, source in subject.sources(spec).items():
        same = (source.key, source.table if isinstance(source, TableSource) else getattr(source, "origin", name))
        if same not in made:
            made[same] = FEEDS[type(source)](replace(place, name=name, main=name == SOURCE), source)
        feeds[name] = made[same]
    inputs = {name: one.model_copy(update={"source": feeds[name].source}) for name, one in spec.inputs.items()}
    return feeds, spec.model_copy(update={"source": feeds[SOURCE].source, "inputs": inputs})
