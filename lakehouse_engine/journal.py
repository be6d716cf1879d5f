"""What was seen of a run, as one value; and the journal, which keeps it in ``lakehouse.runs`` for people.

Best effort: nothing is ever read back by the engine, and a PostgreSQL that is slow, down or closed to us neither slows
nor fails a run. Entries wait in memory and are written by a thread of their own; a run that ends waits for it a moment.
What is older than ``KEPT_DAYS`` is deleted. Micro-batches that commit in PostgreSQL are in ``lakehouse.batches``, by
their own transaction, and not here.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn
from psycopg2.extras import execute_values

from lakehouse_engine import ledger
from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.progress import COUNTERS, Record, from_micros, now_micros
from lakehouse_engine.rows import COUNTED

KEPT_DAYS = 30
#: entries that wait for a database that does not answer; then the oldest are dropped
MOST_WAITING = 10_000
#: seconds: until a connection counts as failed, between two tries (growing), and that the end of a run waits
CONNECT_WITHIN, PAUSES, PATIENCE = 2, (1.0, 60.0), 3.0
_OPTIONS = "-c timezone=UTC -c statement_timeout=10000 -c lock_timeout=5000"

Kind = Literal["batch", "stream", "job", "backfill", "serve"]
#: what comes of a stream that failed: it starts again, is given up, or a member is taken out and the others go on
Step = Literal["restart", "given_up", "detached"]


@dataclass(frozen=True)
class Run:
    """One micro-batch, one run of a job, one slice of a backfill, one load, or one failure of a stream.

    Times are microseconds since 1970. ``rows`` written; ``behind``: records of the topic not read yet; ``version``,
    ``files``, ``bytes``: of the Delta table afterwards. ``counters``: rows by outcome. A failure has ``code`` and
    ``message``; one of a stream says what comes of it (``step``).
    """

    pipeline: str
    kind: Kind
    outcome: Literal["committed", "nothing", "failed"]
    started_at: int
    ended_at: int = field(default_factory=now_micros)
    code: str | None = None
    message: str | None = None
    version: int | None = None
    rows: int | None = None
    behind: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    files: int | None = None
    bytes: int | None = None
    #: where it was written: delta, postgres, console
    sink: str = "delta"
    batch_id: int | None = None
    watermark: int | None = None
    #: next offsets by topic and partition
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    #: microseconds between two micro-batches
    trigger: int | None = None
    step: Step | None = None
    #: rows and bytes of a query's state, before it
    state: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        return max(self.ended_at - self.started_at, 0) / 1e6

    @property
    def in_ledger(self) -> bool:
        """Whether ``lakehouse.batches`` has it already."""
        return self.kind == "batch" and self.sink == "postgres" and self.outcome == "committed"


See = Callable[[Run], None]


def seen(record: Record, trigger: int, sink: str, **more: Any) -> Run:
    """What a member of a scan did in one micro-batch."""
    return Run(record.pipeline, "batch", "committed", record.started_at, counters=record.counters, sink=sink,
               rows=record.counters.get(COUNTED, 0), behind=record.behind, batch_id=record.batch_id,
               watermark=record.watermark, positions=record.by_partition(), trigger=trigger,
               **more)  # fmt: skip


def failed(pipeline: str, kind: Kind, started_at: int, error: BaseException, **more: Any) -> Run:
    """The run that ended in ``error``; one that is not ours has the code of its kind."""
    if isinstance(error, LakehouseError):
        code, message = error.code, error.message
    else:
        lines = [line for line in str(error).splitlines() if line.strip()]
        code, message = f"{kind.upper()}_FAILED", lines[0] if lines else type(error).__name__
    return Run(pipeline, kind, "failed", started_at, code=code, message=message[:500], **more)


_SECRET = re.compile(r"((?:password|passwd|pwd|secret|token|api[_-]?key)\w*['\"]?\s*[=:]\s*)"
                     r"('[^']*'|\"[^\"]*\"|[^\s,;&]+)", re.IGNORECASE)  # fmt: skip
_IN_URL = re.compile(r"(\w://[^\s:/@]*:)[^\s/@]+@")


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without passwords: those that are known, and what stands where one usually does."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _IN_URL.sub(r"\1***@", _SECRET.sub(r"\1***", text))


def without_secrets(run: Run, secrets: Iterable[str]) -> Run:
    return run if run.message is None else replace(run, message=masked(run.message, secrets))


def secrets_of(dsn: str | None) -> tuple[str, ...]:
    """What must never be shown of an address."""
    password = parse_dsn(dsn).get("password") if dsn else None
    return (password,) if password else ()


_COLUMNS = ("pipeline", "kind", "started_at", "ended_at", "outcome", "code", "message", "version", "rows", "behind",
            *COUNTERS, "files", "bytes")  # fmt: skip
_INSERT = f"insert into lakehouse.runs ({', '.join(_COLUMNS)}) values %s"


def write(cursor: Any, runs: Sequence[Run]) -> None:
    """Appends the runs in the caller's transaction."""
    values = [(r.pipeline, r.kind, from_micros(r.started_at), from_micros(r.ended_at), r.outcome, r.code, r.message,
               r.version, r.rows, r.behind, *(r.counters.get(name) for name in COUNTERS), r.files, r.bytes)
              for r in runs]  # fmt: skip
    execute_values(cursor, _INSERT, values, page_size=1000)


def clean(cursor: Any) -> None:
    """Deletes what is older than ``KEPT_DAYS``; looks at one row where there is nothing to delete."""
    old = f"now() - interval '{KEPT_DAYS} days'"
    cursor.execute(f"select ended_at < {old} from lakehouse.runs order by id limit 1")
    if cursor.fetchone() == (True,):
        cursor.execute(f"delete from lakehouse.runs where ended_at < {old}")


class Journal:
    """Takes runs at once and writes them when it can. ``report`` is told once that it cannot, and once that it can."""

    def __init__(self, dsn: str, report: Callable[[str], None]) -> None:
        self._dsn, self._report = dsn, report
        self._waiting: deque[Run] = deque(maxlen=MOST_WAITING)
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._cleaned: float | None = None
        self._pause = 0.0
        self._tried = 0

    def see(self, run: Run) -> None:
        if run.in_ledger:
            return
        with self._wake:
            self._waiting.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_on, name="journal", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Waits ``PATIENCE`` seconds at most for what is not written yet."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _write_on(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                runs = list(self._waiting)
                self._tried = len(runs)
            if runs and self._write(runs):
                with self._wake:
                    for _ in range(min(len(runs), len(self._waiting))):
                        self._waiting.popleft()
            with self._wake:
                if self._closing and (not self._waiting or self._pause):
                    break  # all written, or a last try was in vain
                if self._pause:
                    self._wake.wait_for(lambda: self._closing, timeout=self._pause)
        if self._connection is not None:
            self._connection.close()

    def _write(self, runs: Sequence[Run]) -> bool:
        try:
            if self._connection is None:
                self._connection = psycopg2.connect(self._dsn, connect_timeout=CONNECT_WITHIN, options=_OPTIONS,
                                                    application_name="lakehouse journal",
                                                    tcp_user_timeout=10_000)  # fmt: skip
            try:
                self._insert(self._connection, runs)
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
                ledger.prepare(self._connection)
                self._insert(self._connection, runs)
        except psycopg2.Error as error:
            if not self._pause:
                lines = str(error).strip().splitlines()
                reason = masked(lines[-1].strip() if lines else type(error).__name__, secrets_of(self._dsn))
                self._report(f"lakehouse.runs is not written for now: {reason}")
            first, last = PAUSES
            self._pause = min(self._pause * 2, last) or first
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return False
        if self._pause:
            self._report("lakehouse.runs is written again")
        self._pause = 0.0
        return True

    def _insert(self, connection: Connection, runs: Sequence[Run]) -> None:
        with connection, connection.cursor() as cursor:
            write(cursor, runs)
        if self._cleaned is None or time.monotonic() - self._cleaned > 3600:
            with connection, connection.cursor() as cursor:
                clean(cursor)
            self._cleaned = time.monotonic()
