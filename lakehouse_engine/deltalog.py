"""A Delta table's log read as plain JSON: which version, what changed since, what the last commit of ours said.

No Spark and no pyarrow: this is what decides "nothing new" before anything is started. Only the JSON commits are read;
what they no longer hold (cleaned up, or compacted away) is answered with None, and the caller runs in full.
Source of the format: the Delta protocol, "Delta Log Entries".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """What happened between two versions. ``slices`` are values of the partition column (None: the null slice)."""

    slices: frozenset[str | None]


class DeltaLog:
    """The log of the table at ``path`` (a local folder)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path / "_delta_log"

    def versions(self) -> list[int]:
        """Versions whose JSON commit is there, in order."""
        if not self._folder.is_dir():
            return []
        names = (re.fullmatch(r"(\d{20})\.json", entry.name) for entry in self._folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def version(self) -> int | None:
        """The newest version; None when there is no table."""
        versions = self.versions()
        return versions[-1] if versions else None

    def actions(self, version: int) -> Iterator[dict[str, Any]]:
        with (self._folder / f"{version:020d}.json").open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)

    def record(self) -> dict[str, Any] | None:
        """The newest record of ours with the ``version`` it stands in; None when no readable commit has one."""
        for version in reversed(self.versions()):
            found = self.record_of(version)
            if found is not None:
                return {**found, "version": version}
        return None

    def record_of(self, version: int) -> dict[str, Any] | None:
        """The record in one commit's ``userMetadata``; None for a commit that is not ours."""
        for action in self.actions(version):
            text = action.get("commitInfo", {}).get("userMetadata")
            if text:
                try:
                    stored = json.loads(text)
                except ValueError:
                    return None  # somebody else's note
                return stored if isinstance(stored, dict) and "pipeline" in stored else None
        return None

    def table_id(self) -> str | None:
        """The table's id from the newest metadata action that the JSON commits still hold."""
        found = self.metadata()
        return found["id"] if found else None

    def metadata(self) -> dict[str, Any] | None:
        """The newest metadata action: ``id``, ``partitionColumns``, ``schemaString``."""
        for version in reversed(self.versions()):
            for action in self.actions(version):
                if "metaData" in action:
                    metadata: dict[str, Any] = action["metaData"]
                    return metadata
        return None

    def columns(self) -> dict[str, str] | None:
        """Column names and Spark types of a table whose metadata can be read ('' for a nested type)."""
        metadata = self.metadata()
        if metadata is None:
            return None
        fields = json.loads(metadata["schemaString"])["fields"]
        return {f["name"]: _spark(f["type"]) for f in fields}

    def changed(self, since: int, column: str) -> Change | None:
        """The slices that commits after ``since`` touched, by ``add`` and ``remove`` with ``dataChange``.

        None when that cannot be told: commits are gone, the table was replaced, or it is not partitioned by ``column``.
        """
        versions = self.versions()
        newest = versions[-1] if versions else -1
        wanted = range(since + 1, newest + 1)
        if since > newest:
            return None  # another table, or an older state of it
        if not set(wanted) <= set(versions):
            return None
        slices: set[str | None] = set()
        for version in wanted:
            for action in self.actions(version):
                if "metaData" in action or "protocol" in action:
                    return None
                for kind in ("add", "remove"):
                    file = action.get(kind)
                    if file is None or not file.get("dataChange", True):
                        continue
                    values = file.get("partitionValues")
                    if values is None or column not in values:
                        return None
                    slices.add(values[column])
        return Change(frozenset(slices))


def _spark(kind: Any) -> str:
    if not isinstance(kind, str):
        return ""
    return {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}.get(kind, kind)
