"""``lakehouse history``: the versions of a table, from its log alone. Each can be read with the source's ``as_of``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import RunError
from lakehouse_engine.sinks import delta as delta_sink

HEADS = ("version", "time", "operation", "rows", "slices", "read", "reason")


def read(storage: Path, table: str, limit: int) -> list[dict[str, Any]]:
    """The newest ``limit`` versions that the log still holds, newest first. Raises ``RunError`` MISSING_TABLE.

    ``rows`` written; ``slices`` replaced (None: all); ``read``: the versions of its sources.
    """
    log = DeltaLog(delta_sink.table_path(storage, table))
    versions = log.versions()
    if not versions:
        raise RunError("MISSING_TABLE", f"there is no table {table} yet", where=str(log.path))
    found = []
    for version in list(reversed(versions))[:limit]:
        info, record = log.info(version), log.record_of(version) or {}
        rows = info.get("operationMetrics", {}).get("numOutputRows")
        ours = not record.get("repeats")
        found.append({
            "version": version,
            "time": datetime.fromtimestamp(info.get("timestamp", 0) / 1000, timezone.utc).isoformat(timespec="seconds"),
            "operation": info.get("operation"), "rows": None if rows is None else int(rows),
            "slices": record.get("slices") if ours else None,
            "read": {name: at.get("version") for name, at in record.get("sources", {}).items()} if ours else {},
            "reason": record.get("reason") if ours else None, "pipeline": record.get("pipeline"),
        })  # fmt: skip
    return found


def table(entries: list[dict[str, Any]]) -> str:
    """The entries for people."""
    lines = [[_cell(entry[head]) for head in HEADS] for entry in entries]
    widths = [max(len(head), *(len(line[i]) for line in lines)) for i, head in enumerate(HEADS)]
    shown = [HEADS, *lines]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in shown)


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}@{version}" for name, version in value.items())
    if isinstance(value, list):
        text = ", ".join(map(str, value[:3]))
        return text if len(value) <= 3 else f"{text} and {len(value) - 3} more"
    return f"{value:,}" if isinstance(value, int) else str(value)
