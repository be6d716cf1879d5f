"""What a run reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Connections:
    """The broker, the database, the storage folder. ``writer`` names this process in the ledger."""

    bootstrap_servers: str
    postgres_dsn: str | None
    storage: Path
    writer: str
