"""The ledger of sinks that can hold none, a topic or a folder: what was written, noted in the storage afterwards.

So a crash between the two writes the last part again: at least once. One file a sink, replaced as a whole:
``<storage>/_ledger/<name>.json`` holds the record that a Delta commit would have in ``userMetadata``; the name is the
branch's, ``<pipeline>><target>``, as in a URL.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lakehouse_engine.errors import RunError

#: characters of a file's name before its ending
MOST = 240


def read(storage: Path, name: str) -> dict[str, Any] | None:
    """What was noted last; None before. Raises ``RunError`` LEDGER_DAMAGED."""
    path = place(storage, name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError("LEDGER_DAMAGED", f"{path} cannot be read; take it away to write everything once more",
                       where=name)  # fmt: skip
    return found


def write(storage: Path, name: str, record: str) -> None:
    """Notes the record (JSON); it is on the disk when this returns."""
    path = place(storage, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(record)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def place(storage: Path, name: str) -> Path:
    """No two names share a file; of a name that no file can have, a digest takes the place of its end."""
    text = quote(name, safe="")
    if len(text) > MOST:
        text = f"{text[: MOST - 33]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return storage / "_ledger" / f"{text}.json"
