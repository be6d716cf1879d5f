"""The warm engine of a project, started detached and stopped like the rest of the stack."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import process
from lakehouse_engine.local.files import Report

#: seconds that Spark has to start
PATIENCE = 120.0
STOP = (signal.SIGTERM, signal.SIGKILL)


def start(root: Path, report: Report) -> None:
    """Starts ``lakehouse engine`` unless it runs; returns when it takes requests. Raises ENGINE_NOT_STARTED."""
    folder = root.resolve() / ".lakehouse"
    record, log, answers = folder / "engine" / "process.json", folder / "logs" / "engine.log", folder / "engine.json"
    known = process.recorded(record)
    if known is not None and process.alive(known) and answers.exists():
        report(f"already running: engine, process {known.pid}")
        return
    for path in (record.parent, log.parent):
        path.mkdir(parents=True, exist_ok=True)
    answers.unlink(missing_ok=True)
    begun = log.stat().st_size if log.exists() else 0
    report("starting the engine (Spark)")
    command = [sys.executable, "-m", "lakehouse_engine.cli", "engine"]
    started = process.spawn(command, log, record, mark="lakehouse_engine", cwd=root)
    deadline = time.monotonic() + PATIENCE
    while not answers.exists():
        if not process.alive(started) or time.monotonic() > deadline:
            process.stop(started, STOP, 10, report)
            raise RunError("ENGINE_NOT_STARTED", process.last_lines(log, begun), where=str(root))
        time.sleep(0.05)


def stop(root: Path, report: Report) -> bool:
    """Stops it when it runs; what a job was writing is there whole or not at all."""
    folder = root.resolve() / ".lakehouse"
    known = process.recorded(folder / "engine" / "process.json")
    running = known is not None and process.alive(known)
    if known is not None and running:
        report("stopping engine")
        process.stop(known, STOP, 20, report)
    (folder / "engine" / "process.json").unlink(missing_ok=True)
    (folder / "engine.json").unlink(missing_ok=True)
    return running
