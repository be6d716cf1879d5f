"""What a command says while it works: lines for people, or one JSON object a line for machines.

``lakehouse run --json-log`` (or ``LAKEHOUSE_LOG=json``) writes on standard error a line for every micro-batch of a
pipeline, run of a job, load and failure, with the fields of ``FIELDS`` (those without a value are left out), and a line
of kind ``message`` for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.journal import Run, masked
from lakehouse_engine.progress import COUNTERS, from_micros, now_micros

#: the fields of a line and what they hold
FIELDS = {
    "time": "when it ended; ISO 8601, UTC",
    "kind": "`batch`, `stream` (a failure of one), `job`, `backfill`, `serve`, `message`",
    "pipeline": "its name",
    "outcome": "`committed`, `nothing`, `failed`",
    "seconds": "from its start to its end",
    "sink": "`delta`, `postgres`, `console`",
    "rows": "written",
    "behind": "records of the topic that were not read yet",
    **dict.fromkeys(COUNTERS, "rows, by what became of them"),
    "batch": "number of the micro-batch in its pipeline",
    "watermark": "of the micro-batch; ISO 8601, UTC",
    "version": "of the Delta table after it",
    "files": "live files of the Delta table after it",
    "bytes": "of those files",
    "code": "of a failure; never changes",
    "message": "of a failure, without secrets; or what a `message` says",
    "step": "what comes of a stream that failed: `restart`, `given_up`, `detached`",
}


def fields(run: Run) -> dict[str, Any]:
    """The fields of a run's line, in the order of ``FIELDS``."""
    watermark = from_micros(run.watermark)
    found = {
        "time": _time(run.ended_at), "kind": run.kind, "pipeline": run.pipeline, "outcome": run.outcome,
        "seconds": round(run.seconds, 3), "sink": run.sink if run.outcome != "failed" else None, "rows": run.rows,
        "behind": run.behind, **{name: run.counters.get(name) for name in COUNTERS}, "batch": run.batch_id,
        "watermark": watermark.isoformat() if watermark else None, "version": run.version, "files": run.files,
        "bytes": run.bytes, "code": run.code, "message": run.message, "step": run.step,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _time(micros: int) -> str:
    moment = from_micros(micros)
    assert moment is not None
    return moment.isoformat(timespec="milliseconds")


class Log:
    """Gives lines to ``write``. Called, it takes a message; ``progress`` is for what a run's own line says as well."""

    def __init__(self, write: Callable[[str], None], *, as_json: bool = False) -> None:
        self._write, self._as_json = write, as_json

    def __call__(self, text: str) -> None:
        if self._as_json:
            self._line({"time": _time(now_micros()), "kind": "message", "message": masked(text)})
        else:
            self._write(text)

    def progress(self, text: str) -> None:
        if not self._as_json:
            self._write(text)

    def see(self, run: Run) -> None:
        if self._as_json:
            self._line(fields(run))

    def error(self, error: LakehouseError) -> None:
        """The last line of a command that fails."""
        if self._as_json:
            self._line({"time": _time(now_micros()), "kind": "message", "code": error.code,
                        "message": masked(str(error))})  # fmt: skip
        else:
            self._write(str(error))

    def _line(self, values: dict[str, Any]) -> None:
        self._write(json.dumps(values, ensure_ascii=False))
