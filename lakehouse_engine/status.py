"""What each pipeline has read, counted and kept aside, from the ledgers: PostgreSQL's and the Delta commits'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.progress import COUNTERS
from lakehouse_engine.sinks import postgres as postgres_sink

if TYPE_CHECKING:
    from pathlib import Path

    from lakehouse_engine.spec.environment import Environment


def read(environment: Environment) -> list[dict[str, Any]]:
    """One entry a pipeline: ``pipeline``, ``store``, ``batches``, ``last_commit``, ``watermark`` and the counters."""
    from pathlib import Path

    found = _delta(Path(environment.storage))
    connection = postgres_sink.connect(environment.postgres_dsn())
    try:
        with connection, connection.cursor() as cursor:
            found += _postgres(cursor)
    finally:
        connection.close()
    return sorted(found, key=lambda entry: str(entry["pipeline"]))


def _postgres(cursor: Any) -> list[dict[str, Any]]:
    cursor.execute("select to_regclass('lakehouse.batches') is not null")
    if not cursor.fetchone()[0]:
        return []
    sums = ", ".join(f"sum({name})::bigint" for name in COUNTERS)
    cursor.execute(
        f"select pipeline, count(*), max(committed_at), max(watermark), {sums} from lakehouse.batches group by 1"
    )
    names = ("pipeline", "batches", "last_commit", "watermark", *COUNTERS)
    return [{**dict(zip(names, row, strict=True)), "store": "postgres"} for row in cursor.fetchall()]


def _delta(storage: Path) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(storage.glob("[a-z]*/*/_delta_log")):
        log = DeltaLog(folder.parent)
        entry: dict[str, Any] = {"store": "delta", "batches": 0, "last_commit": None, "watermark": None}
        for version in log.versions():
            record = log.record_of(version)
            if record is None or record.get("repeats") or folder.parent.name.endswith("__quarantine"):
                continue
            entry["pipeline"] = record["pipeline"]
            entry["batches"] += 1
            entry["last_commit"] = record["started_at"]
            stream = record["kind"] == "stream"
            for name in COUNTERS:  # a stream's batches add up; a job's last run says what its table holds
                value = record["counters"].get(name, 0)
                entry[name] = entry.get(name, 0) + value if stream else value
        if entry["batches"]:
            found.append(entry)
    return found


def table(entries: list[dict[str, Any]]) -> str:
    """The entries for people."""
    heads = ["pipeline", "store", "batches", "last_commit", "watermark", *COUNTERS]
    lines = [[_cell(entry.get(head)) for head in heads] for entry in entries]
    widths = [max([len(head), *(len(line[i]) for line in lines)]) for i, head in enumerate(heads)]
    numbers = {"batches", *COUNTERS}

    def shown(cells: list[str]) -> str:
        return "  ".join(c.rjust(w) if h in numbers else c.ljust(w)
                         for c, w, h in zip(cells, widths, heads, strict=True)).rstrip()  # fmt: skip

    return "\n".join([shown(heads), *map(shown, lines)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)[:19]
