"""What a run reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


def kafka_key(connection: str | None) -> str:
    """What the environment calls the connection of a source or a sink ``kafka``."""
    return "kafka" if connection is None else f"kafka.{connection}"


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

    ``jdbc``: databases of others, ``clusters``: brokers of other clusters than ``bootstrap_servers``, by name.
    """

    bootstrap_servers: str
    postgres_dsn: str | None
    storage: Path
    writer: str
    jdbc: Mapping[str, Database] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)

    def kafka(self, connection: str | None) -> str:
        """The brokers of the connection ``kafka.<name>``; without a name those of ``kafka``."""
        return self.bootstrap_servers if connection is None else self.clusters[connection]
