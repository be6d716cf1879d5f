"""How a pipeline is run under test: one class for each way that pipelines run, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from lakehouse_engine import jobs
from lakehouse_engine.errors import LakehouseError, RunError, first_line
from lakehouse_engine.plan import Scan, compile_plan
from lakehouse_engine.session import apart
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.staterun import StateRun
from lakehouse_engine.streamrun import StreamRun
from lakehouse_engine.streams import ScanRun
from lakehouse_engine.testing.feeds import Place


class Running(Protocol):
    def step(self, clock: datetime) -> None:
        """Takes what its inputs hold now and returns when it has written. Raises ``LakehouseError``."""

    def close(self) -> None:
        """Ends whatever still runs."""


class ByScan:
    """A stream whose progress lies in its sinks: each step is one start of it, of each scan where it has several."""

    def __init__(self, place: Place, spec: PipelineSpec) -> None:
        # a session of its own: tests of one pipeline run side by side, and a session knows a query by its name
        self._spark = apart(place.bench.spark)
        self._scans = compile_plan([spec]).scans
        self._to = place.connections

    def step(self, clock: datetime) -> None:
        for scan in self._scans:
            self._start(scan)

    def _start(self, scan: Scan) -> None:
        run = ScanRun(self._spark, scan, self._to, lambda _: None)
        run.start(available_now=True)
        assert run.query is not None
        try:
            run.query.awaitTermination()
        except Exception as error:
            raise _failure(run, error, scan.name) from error
        finally:
            run.stop()
            run.release()
        for reason in run.detached.values():
            raise RunError("STREAM_FAILED", reason)

    def close(self) -> None:
        """Nothing runs between steps."""


class OnState:
    """A stream whose state is Spark's: one query that runs on, and is waited for after each batch.

    Started anew for each it would judge lateness in another way than a stream that runs.
    """

    def __init__(self, place: Place, spec: PipelineSpec) -> None:
        self._spark, self._query = apart(place.bench.spark), compile_plan([spec]).queries[0]
        self._to = place.connections
        self._run: StateRun | None = None

    def step(self, clock: datetime) -> None:
        if self._run is None:
            self._run = StateRun(self._spark, self._query, self._to, lambda _: None)
            self._run.start(available_now=False, every=0)
        query = self._run.query
        assert query is not None
        try:
            query.processAllAvailable()
        except Exception as error:
            raise _failure(self._run, error, self._query.name) from error

    def close(self) -> None:
        if self._run is not None:
            self._run.stop()
            self._run.release()


class AsJob:
    """A job: each step is one run, which does nothing when it finds nothing new."""

    def __init__(self, place: Place, spec: PipelineSpec) -> None:
        self._place, self._job = place, compile_plan([spec]).jobs[0]
        self._environment = place.environment

    def step(self, clock: datetime) -> None:
        jobs.run(self._place.bench.spark, self._job, self._place.storage, self._place.dsn, now=clock,
                 environment=self._environment)  # fmt: skip

    def close(self) -> None:
        """Nothing runs between steps."""


def _failure(run: StreamRun, error: Exception, where: str) -> LakehouseError:
    """Why a stream ended, by what its own batch, or its source, said."""
    why = run.why() or error
    return why if isinstance(why, LakehouseError) else RunError("STREAM_FAILED", first_line(why), where=where)


#: asked in turn; the first that takes the pipeline runs it
KINDS: Sequence[tuple[Callable[[PipelineSpec], bool], Callable[[Place, PipelineSpec], Running]]] = (
    (lambda spec: spec.is_stream and bool(needs_state(spec)), OnState),
    (lambda spec: spec.is_stream, ByScan),
    (lambda spec: True, AsJob),
)


def running(place: Place, spec: PipelineSpec) -> Running:
    return next(kind for takes, kind in KINDS if takes(spec))(place, spec)
