"""Runs one test: the pipeline's own plan on real services, one start of the stream or one run of the job per batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lakehouse_engine import jobs
from lakehouse_engine.errors import LakehouseError, Problem, RunError, SpecError
from lakehouse_engine.plan import Plan, compile_plan
from lakehouse_engine.sinks import Console, Postgres
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.streams import Connections, ScanRun
from lakehouse_engine.testing import upstream
from lakehouse_engine.testing.bench import Bench, encoded
from lakehouse_engine.testing.cases import Case, Row, Rows, did_you_mean
from lakehouse_engine.testing.target import Target
from lakehouse_engine.testing.values import difference, moment

#: the clock of a test whose rows tell no time and that has no ``now``
_CLOCK = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Failed(Exception):
    """An expectation that does not hold: what, and its place below the test."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def run_case(bench: Bench, case: Case) -> None:
    """Raises ``Failed``, and ``LakehouseError`` for what went wrong without being expected."""
    expected = case.expect.fails
    try:
        _run(bench, case)
    except LakehouseError as error:
        codes = {problem.code for problem in error.problems} if isinstance(error, SpecError) else {error.code}
        if expected is None:
            raise
        if expected not in codes:
            raise Failed(".expect.fails", f"it fails, but not with {expected}: {error}") from error
        return
    if expected is not None:
        raise Failed(".expect.fails", f"it does not fail with {expected}")


def _run(bench: Bench, case: Case) -> None:
    storage = bench.storage()
    environment = Environment(storage=str(storage), vars=dict(case.vars))
    spec = load([case.pipeline], environment=environment)[0]
    needs_postgres = isinstance(spec.sink, Postgres)
    database: AbstractContextManager[str | None] = bench.database() if needs_postgres else nullcontext(None)
    with database as dsn:
        run = _Stream(bench, case, spec, storage, dsn) if spec.is_stream else _Job(bench, case, spec, storage, dsn)
        target = Target(bench, spec, storage, dsn)
        if isinstance(spec.sink, Console) and set(vars(case.expect)) - {"fails"}:
            raise Failed(".expect", "the console keeps nothing that could be compared")
        for number, batch in enumerate(case.batches, start=1):
            run.batch(batch, number - 1)
            if number in case.expect.after:
                _compare(case.expect.after[number], target.rows(), f".expect.after.{number}", f"after batch {number}")
        if case.expect.rows is not None:
            _compare(case.expect.rows, target.rows(), ".expect.rows", "at the end")
        for kind, wanted in (("late", case.expect.late), ("quarantined", case.expect.quarantined)):
            path = f".expect.{kind}"
            if isinstance(wanted, tuple):
                _compare(wanted, target.aside(kind), path, f"{kind} rows")
            elif wanted is not None and target.counted(kind) != wanted:
                raise Failed(path, f"{target.counted(kind)} rows are {kind}, not {wanted}")


def _compare(expected: Rows, actual: Sequence[Mapping[str, Any]], path: str, what: str) -> None:
    rows = [row for row in expected if isinstance(row, Mapping)]
    known = list(dict.fromkeys(column for row in actual for column in row))
    for index, row in enumerate(rows):
        unknown = [column for column in row if known and column not in known]
        if unknown:
            column = unknown[0]
            raise Failed(f"{path}[{index}].{column}", f"there is no column {column}; {did_you_mean(column, known)}")
    different = difference(rows, actual)
    if different is not None:
        raise Failed(path, f"{what}\n{different}")


def _greatest(rows: Sequence[Row], columns: Sequence[str], before: datetime) -> datetime:
    """The test's clock: so late that no row of the batch lies in the future."""
    times = [moment(row.get(column)) for row in rows if isinstance(row, Mapping) for column in columns]
    return max((time for time in times if time is not None), default=before)


class _Stream:
    def __init__(self, bench: Bench, case: Case, spec: PipelineSpec, storage: Path, dsn: str | None) -> None:
        assert isinstance(spec.source, Kafka)
        self._bench, self._case = bench, case
        self._times = [c for made in spec.contracts.values() for c, kind in made.columns.items() if kind == "timestamp"]
        self._clock = _CLOCK
        compile_plan([spec])  # a wrong step shows before a topic is made
        self._topic = bench.topic(spec.name)
        source = spec.source.model_copy(update={"topic": self._topic})
        plan: Plan = compile_plan([spec.model_copy(update={"source": source})])
        self._scan = plan.scans[0]
        self._to = Connections(bench.services.bootstrap_servers, dsn, storage, "test")

    def batch(self, rows: Rows, _: int) -> None:
        """Sends the rows, then starts the stream once and waits until it has read them."""
        filled = [self._case.filled(row) for row in rows]
        self._clock = self._case.now or _greatest(filled, self._times, self._clock)
        millis = int(self._clock.timestamp() * 1000)
        self._bench.send(self._topic, [(encoded(row), millis) for row in filled])
        run = ScanRun(self._bench.spark, self._scan, self._to, lambda _: None)
        run.start(available_now=True)
        assert run.query is not None
        try:
            run.query.awaitTermination()
        except Exception as error:
            if isinstance(run.error, LakehouseError):
                raise run.error from error
            raise RunError("STREAM_FAILED", first_line(run.error or error), where=self._scan.name) from error
        finally:
            run.stop()
            run.release()
        for reason in run.detached.values():
            raise RunError("STREAM_FAILED", reason)


class _Job:
    def __init__(self, bench: Bench, case: Case, spec: PipelineSpec, storage: Path, dsn: str | None) -> None:
        self._bench, self._case, self._storage, self._dsn = bench, case, storage, dsn
        self._job = compile_plan([spec]).jobs[0]
        self._source = upstream.source(bench, spec, case.vars, storage)
        self._clock = _CLOCK
        self._sent = 0

    def batch(self, rows: Rows, index: int) -> None:
        """Appends the rows to the source's table, then runs the job if it finds anything new."""
        self._source.append(self._bench.spark, list(self._landed(rows, index)))
        jobs.run(self._bench.spark, self._job, self._storage, self._dsn, now=self._clock)

    def _landed(self, rows: Rows, batch: int) -> Iterator[dict[str, Any]]:
        """Rows with defaults, and with the record's place and time where the source has them."""
        columns = self._source.columns
        filled = []
        self._check_columns(self._case.defaults, ".defaults")
        for position, row in enumerate(rows):
            path = f".batches[{batch}][{position}]"
            if not isinstance(row, Mapping):
                raise self._problem(path, "BAD_VALUE", "a row of a table is a map; text and null are for Kafka")
            self._check_columns(row, path)
            filled.append({**self._case.defaults, **row})
        times = [c for c, kind in columns.items() if kind == "timestamp" and c not in ("_timestamp", "updated_at")]
        self._clock = self._case.now or _greatest(filled, times, self._clock)
        for row in filled:
            place = {"_topic": self._job.source, "_partition": 0, "_offset": self._sent,
                     "_timestamp": self._clock.isoformat()}  # fmt: skip
            self._sent += 1
            yield {**{column: value for column, value in place.items() if column in columns}, **row}

    def _check_columns(self, row: Mapping[str, Any], path: str) -> None:
        known = list(self._source.columns)
        for column in row:
            if column not in known:
                raise self._problem(f"{path}.{column}", "UNKNOWN_COLUMN",
                                    f"the source has no column {column}; {did_you_mean(column, known)}")  # fmt: skip

    def _problem(self, path: str, code: str, message: str) -> SpecError:
        return SpecError([Problem(self._case.file, self._case.line(path), code, message)])


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
