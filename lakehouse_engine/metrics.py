"""Every metric there is, and where its values come from.

A process that runs pipelines counts what it does (``Metrics``) and shows it to Prometheus (``lakehouse run
--metrics-port``). What PostgreSQL keeps shows the same names for every process there was (``Ledger``, ``exposition``):
jobs end long before anybody could ask them. Alerts take the greatest of both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import psycopg2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import Run
from lakehouse_engine.ledger import BATCHES
from lakehouse_engine.progress import COUNTERS


@dataclass(frozen=True)
class Metric:
    """``runner``, ``ledger``: who shows it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    runner: bool = True
    ledger: bool = True


_OF = ("pipeline",)
ROWS = Metric("lakehouse_rows_total", "counter", "Rows by what became of them; of a job: of its runs.",
              (*_OF, "outcome"))  # fmt: skip
RUNS = Metric("lakehouse_runs_total", "counter", "Micro-batches, runs of jobs, loads and failures of streams.",
              (*_OF, "kind", "outcome"))  # fmt: skip
FAILURES = Metric("lakehouse_failures_total", "counter", "Failures by their code.", (*_OF, "kind", "code"))
RESTARTS = Metric("lakehouse_restarts_total", "counter", "Times that a failed stream was started again.", _OF,
                  ledger=False)  # fmt: skip
BATCH_SECONDS = Metric("lakehouse_batch_seconds", "histogram", "From the start of a micro-batch to its commit.", _OF,
                       ledger=False)  # fmt: skip
JOB_SECONDS = Metric("lakehouse_job_seconds", "histogram", "Runs of jobs, slices of backfills and loads.",
                     (*_OF, "kind"), ledger=False)  # fmt: skip
TRIGGER = Metric("lakehouse_trigger_seconds", "gauge", "Between two micro-batches; 0 is back to back.", _OF,
                 ledger=False)  # fmt: skip
BEHIND = Metric("lakehouse_behind_records", "gauge", "Records of the topic not read yet at the last commit.", _OF)
WATERMARK = Metric("lakehouse_watermark_delay_seconds", "gauge", "From the watermark to the last commit.", _OF)
COMMITTED = Metric("lakehouse_last_commit_timestamp_seconds", "gauge", "When it last wrote something.", _OF)
SUCCEEDED = Metric("lakehouse_last_success_timestamp_seconds", "gauge",
                   "When a run of this kind last ended well, if only because there was nothing to do.",
                   (*_OF, "kind"))  # fmt: skip
FAILED = Metric("lakehouse_last_run_failed", "gauge", "1 when the last run of this kind failed.", (*_OF, "kind"))
POSITION = Metric("lakehouse_position_offset", "gauge", "The next offset to read.", (*_OF, "topic", "partition"))
FILES = Metric("lakehouse_table_files", "gauge", "Live files of the Delta table.", _OF)
BYTES = Metric("lakehouse_table_bytes", "gauge", "Bytes of those files.", _OF)
STATE = Metric("lakehouse_state_bytes", "gauge", "PostgreSQL's tables <pipeline>__state, with their indexes.", _OF,
               runner=False)  # fmt: skip
HELD_ROWS = Metric("lakehouse_query_state_rows", "gauge", "Rows that a stream on Spark's state holds.", _OF,
                   ledger=False)  # fmt: skip
HELD_BYTES = Metric("lakehouse_query_state_bytes", "gauge", "Memory of that state.", _OF, ledger=False)
ANSWERS = Metric("lakehouse_ledger_up", "gauge", "1 when PostgreSQL's ledger could be read.", runner=False)
METRICS = (ROWS, RUNS, FAILURES, RESTARTS, BATCH_SECONDS, JOB_SECONDS, TRIGGER, BEHIND, WATERMARK, COMMITTED,
           SUCCEEDED, FAILED, POSITION, FILES, BYTES, STATE, HELD_ROWS, HELD_BYTES, ANSWERS)  # fmt: skip

_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """What this process has done. ``see`` is a watcher of the runner."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"counter": Counter, "gauge": Gauge}
        self._of: dict[Metric, Any] = {}
        for metric in METRICS:
            if metric.runner and metric.kind == "histogram":
                self._of[metric] = Histogram(metric.name, metric.help, metric.labels, registry=self.registry,
                                             buckets=_BUCKETS)  # fmt: skip
            elif metric.runner:
                self._of[metric] = made[metric.kind](metric.name, metric.help, metric.labels, registry=self.registry)

    def expect(self, streams: Mapping[str, int]) -> None:
        """Streams and their triggers (microseconds): they are there from the first scrape on, with zeros."""
        for pipeline, trigger in streams.items():
            self._of[TRIGGER].labels(pipeline).set(trigger / 1e6)
            self._of[RESTARTS].labels(pipeline)
            self._of[RUNS].labels(pipeline, "batch", "committed")
            for outcome in COUNTERS:
                self._of[ROWS].labels(pipeline, outcome)

    def see(self, run: Run) -> None:
        of, name = self._of, run.pipeline
        of[RUNS].labels(name, run.kind, run.outcome).inc()
        for outcome, number in run.counters.items():
            of[ROWS].labels(name, outcome).inc(number)
        if run.outcome == "failed":
            of[FAILURES].labels(name, run.kind, run.code).inc()
            if run.step == "restart":
                of[RESTARTS].labels(name).inc()
        elif run.kind == "batch":
            of[BATCH_SECONDS].labels(name).observe(run.seconds)
        else:
            of[JOB_SECONDS].labels(name, run.kind).observe(run.seconds)
        if run.kind not in ("batch", "stream"):
            of[FAILED].labels(name, run.kind).set(run.outcome == "failed")
            if run.outcome != "failed":
                of[SUCCEEDED].labels(name, run.kind).set(run.ended_at / 1e6)
        if run.outcome == "committed":
            of[COMMITTED].labels(name).set(run.ended_at / 1e6)
        if run.watermark is not None:
            of[WATERMARK].labels(name).set((run.ended_at - run.watermark) / 1e6)
        held_rows, held_bytes = run.state or (None, None)
        for metric, value in ((BEHIND, run.behind), (FILES, run.files), (BYTES, run.bytes), (HELD_ROWS, held_rows),
                              (HELD_BYTES, held_bytes)):  # fmt: skip
            if value is not None:
                of[metric].labels(name).set(value)
        for (topic, partition), offset in run.positions.items():
            of[POSITION].labels(name, topic, partition).set(offset)

    def serve(self, host: str, port: int) -> tuple[Any, int]:
        """Shows the metrics at ``http://host:port/metrics`` from a thread; the server and its port.

        ``port`` 0 takes a free one. Raises ``RunError`` PORT_IN_USE.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise RunError("PORT_IN_USE", f"metrics cannot be shown at {host}:{port}: {error.strerror or error}",
                           where="--metrics-port") from None  # fmt: skip
        return server, int(server.server_port)


_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in COUNTERS)
#: what each stream has added to the ledger since a position in it; read through the ledger's key
_NEW_BATCHES = f"""select p.pipeline, b.* from (select distinct pipeline from lakehouse.positions) p
  left join unnest(%s::text[], %s::int[], %s::bigint[]) as m (pipeline, epoch, batch_id) on m.pipeline = p.pipeline,
  lateral (select max(array[epoch, batch_id]), {BATCHES}, {_SUMS} from lakehouse.batches b where b.pipeline = p.pipeline
    and (b.epoch, b.batch_id) > (coalesce(m.epoch, -1), coalesce(m.batch_id, -1))) b"""
#: runs of the last minute may still be joined by ones with a smaller id, of another process: they are counted anew
_NEW_RUNS = f"""select pipeline, kind, outcome, coalesce(code, ''), count(*), {_SUMS} from lakehouse.runs
  where id > %s and (id <= %s) = %s group by 1, 2, 3, 4"""
_SETTLED = """select coalesce((select min(id) - 1 from lakehouse.runs where ended_at > now() - interval '1 minute'),
  (select max(id) from lakehouse.runs), 0)"""
_LAST_BATCHES = """select p.pipeline, extract(epoch from committed_at), extract(epoch from committed_at - watermark),
  behind from (select distinct pipeline from lakehouse.positions) p, lateral (select committed_at, watermark, behind
  from lakehouse.batches b where b.pipeline = p.pipeline order by epoch desc, batch_id desc limit 1) b"""
_LAST_RUNS = """select l.pipeline, l.kind, l.outcome = 'failed', extract(epoch from s.ended_at),
  extract(epoch from c.ended_at), c.behind, c.files, c.bytes from lakehouse.last_runs l
  left join lateral (select ended_at from lakehouse.runs r where r.pipeline = l.pipeline and r.kind = l.kind
    and r.outcome <> 'failed' order by ended_at desc limit 1) s on true
  left join lateral (select ended_at, behind, files, bytes from lakehouse.runs r where r.pipeline = l.pipeline
    and r.kind = l.kind and r.outcome = 'committed' order by ended_at desc limit 1) c on true"""
#: of the topic as it is: a recreated one has another id
_POSITIONS = """select p.pipeline, p.topic, p.partition, p.next_offset from lakehouse.positions p join lateral
  (select topic_id from lakehouse.batches b where b.pipeline = p.pipeline order by epoch desc, batch_id desc limit 1) b
  on p.topic_id = any(string_to_array(b.topic_id, ' '))"""
_STATES = """select schemaname || '.' || left(tablename, -7), pg_total_relation_size(format('%I.%I', schemaname,
  tablename)::regclass) from pg_tables where tablename like '%\\_\\_state'"""


class Ledger(Collector):
    """The ledger of one database as metrics. Counts go on from the last scrape; they begin anew with the process."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._guard = threading.Lock()
        self._marks: dict[str, tuple[int, int]] = {}
        self._settled = 0
        self._rows: dict[tuple[str, ...], float] = {}
        self._runs: dict[tuple[str, ...], float] = {}
        self._failures: dict[tuple[str, ...], float] = {}

    def describe(self) -> Iterable[Any]:
        return ()

    def collect(self) -> Iterator[Any]:
        with self._guard:
            found: dict[Metric, dict[tuple[str, ...], float]] = {m: {} for m in METRICS if m.ledger}
            try:
                options = "-c timezone=UTC -c statement_timeout=10000 -c default_transaction_read_only=on"
                opened = closing(psycopg2.connect(self._dsn, connect_timeout=2, options=options))
                with opened as connection, connection, connection.cursor() as cursor:
                    cursor.execute("select to_regclass('lakehouse.last_runs') is not null")
                    if cursor.fetchone() == (True,):
                        self._read(cursor, found)
                found[ANSWERS][()] = 1
            except psycopg2.Error:
                found = {ANSWERS: {(): 0}}
        for metric, values in found.items():
            family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                metric.name, metric.help, labels=metric.labels)  # fmt: skip
            for labels, value in sorted(values.items()):
                family.add_metric(labels, value)
            yield family

    def _read(self, cursor: Any, found: dict[Metric, dict[tuple[str, ...], float]]) -> None:
        marks = list(self._marks.items())
        cursor.execute(_NEW_BATCHES, ([p for p, _ in marks], [at[0] for _, at in marks], [at[1] for _, at in marks]))
        for pipeline, last, number, *sums in cursor.fetchall():
            if last is not None:
                self._marks[pipeline] = (last[0], last[1])
                _add(self._runs, (pipeline, "batch", "committed"), number)
                for outcome, count in zip(COUNTERS, sums, strict=True):
                    _add(self._rows, (pipeline, outcome), count)
        cursor.execute(_SETTLED)
        (settled,) = cursor.fetchone()
        settled = max(settled, self._settled)
        self._count_runs(cursor, settled, True, self._rows, self._runs, self._failures)
        fresh = dict(self._rows), dict(self._runs), dict(self._failures)
        self._count_runs(cursor, settled, False, *fresh)
        self._settled = settled
        found[ROWS], found[RUNS], found[FAILURES] = fresh
        cursor.execute(_LAST_BATCHES)
        for pipeline, at, delay, behind in cursor.fetchall():
            _set(found[COMMITTED], (pipeline,), at)
            _set(found[WATERMARK], (pipeline,), delay)
            _set(found[BEHIND], (pipeline,), behind)
        cursor.execute(_LAST_RUNS)
        for pipeline, kind, failed, succeeded, committed, behind, files, size in cursor.fetchall():
            if kind not in ("batch", "stream"):
                _set(found[FAILED], (pipeline, kind), failed)
                _set(found[SUCCEEDED], (pipeline, kind), succeeded)
            if committed is not None:
                _set(found[COMMITTED], (pipeline,), max(committed, found[COMMITTED].get((pipeline,), 0)))
            for metric, value in ((BEHIND, behind), (FILES, files), (BYTES, size)):
                _set(found[metric], (pipeline,), value)
        cursor.execute(_POSITIONS)
        for pipeline, topic, partition, offset in cursor.fetchall():
            found[POSITION][pipeline, topic, str(partition)] = offset
        cursor.execute(_STATES)
        found[STATE] = {(pipeline,): size for pipeline, size in cursor.fetchall()}

    def _count_runs(self, cursor: Any, settled: int, below: bool, rows: dict[tuple[str, ...], float],
                    runs: dict[tuple[str, ...], float], failures: dict[tuple[str, ...], float]) -> None:  # fmt: skip
        cursor.execute(_NEW_RUNS, (self._settled, settled, below))
        for pipeline, kind, outcome, code, number, *sums in cursor.fetchall():
            _add(runs, (pipeline, kind, outcome), number)
            if outcome == "failed":
                _add(failures, (pipeline, kind, code), number)
            for name, count in zip(COUNTERS, sums, strict=True):
                if outcome == "committed":
                    _add(rows, (pipeline, name), count)


def _add(to: dict[tuple[str, ...], float], key: tuple[str, ...], number: Any) -> None:
    to[key] = to.get(key, 0) + float(number)


def _set(to: dict[tuple[str, ...], float], key: tuple[str, ...], value: Any) -> None:
    if value is not None:
        to[key] = float(value)


@lru_cache(maxsize=8)
def _ledger(dsn: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Ledger(dsn))
    return registry


def exposition(dsn: str | None) -> bytes:
    """What the ledger at ``dsn`` holds, in Prometheus' text format; nothing but ``lakehouse_ledger_up`` when it does
    not answer, and nothing without an address. Its content type is ``prometheus_client.CONTENT_TYPE_LATEST``."""
    return generate_latest(_ledger(dsn)) if dsn else b""
