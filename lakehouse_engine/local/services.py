"""``services.json``: how to reach the running stack, for this program and for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import write_atomically


@dataclass(frozen=True)
class Services:
    """How to reach a running stack. ``dsn`` holds the password and is therefore not printed."""

    bootstrap_servers: str
    dsn: str = field(repr=False)
    pids: Mapping[str, int] = field(default_factory=dict)


def shown(dsn: str) -> str:
    return dsn.rpartition("@")[2].partition("/")[0]


def write(folder: Path, known: Services) -> None:
    content = {
        "kafka": {"bootstrap_servers": known.bootstrap_servers},
        "postgres": {"dsn": known.dsn},
        "pids": dict(known.pids),
    }
    write_atomically(folder / "services.json", json.dumps(content, indent=2) + "\n", 0o600)


def read(folder: Path) -> Services | None:
    file = folder / "services.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Services(content["kafka"]["bootstrap_servers"], content["postgres"]["dsn"], content["pids"])
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(
            "STACK_UNREADABLE", "not written by us; delete it, then `lakehouse up`", where=str(file)
        ) from error
    except PermissionError as error:
        raise RunError("NOT_YOURS", "belongs to another user; work as that one", where=str(file)) from error
