"""What a run reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Database:
    """A database of others: the environment's connection ``jdbc.<name>``."""

    name: str
    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Connections:
    """The broker, the database, the storage folder. ``writer`` names this process in the ledger.

    ``jdbc``: databases of others, by name.
    """

    bootstrap_servers: str
    postgres_dsn: str | None
    storage: Path
    writer: str
    jdbc: Mapping[str, Database] = field(default_factory=dict)
