"""A Delta table's log read as plain JSON: which version, what changed since, what the last commit of ours said.

No Spark and no pyarrow: this is what decides "nothing new" before anything is started. Only the JSON commits and their
checksum files are read; what they no longer tell (cleaned up, or compacted away) is answered with None and a reason,
and the caller runs in full. Source of the format: the Delta protocol, "Delta Log Entries" and "Version Checksum File".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote

#: what makes two metadata actions describe the same rows; the rest (properties, description) does not touch them
_SHAPE = ("id", "schemaString", "partitionColumns")


@dataclass(frozen=True)
class Change:
    """What happened between two versions: the values of one column whose rows may differ, as the log writes them.

    ``slices`` None: the log does not tell, and ``reason`` says why. A None among them is the slice of nulls.
    ``added``: the data files that hold the difference when rows were only added, with their sizes in bytes, by path
    below the table; None when rows may have gone, or when a file holds rows that are not the table's.
    """

    slices: frozenset[str | None] | None
    reason: str = ""
    added: Mapping[str, int] | None = None


class Standing(TypedDict):
    """A table's newest version, its live files and their bytes; None where that is not known."""

    version: int | None
    files: int | None
    bytes: int | None


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

    def version_at(self, moment: datetime) -> int | None:
        """The newest version that was there at ``moment``, by the commits' file times, as Delta itself tells it."""
        found = None
        for version in self.versions():
            written = (self._folder / f"{version:020d}.json").stat().st_mtime
            if datetime.fromtimestamp(written, timezone.utc) > moment:
                break
            found = version
        return found

    def actions(self, version: int) -> Iterator[dict[str, Any]]:
        with (self._folder / f"{version:020d}.json").open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)

    def info(self, version: int) -> dict[str, Any]:
        """The commit's own account of itself: operation, metrics, time in milliseconds; empty when it has none."""
        return next((a["commitInfo"] for a in self.actions(version) if "commitInfo" in a), {})

    def commit_id(self, version: int) -> str | None:
        """What tells this very commit from another one with its number (a restored copy of the table written on)."""
        if not (self._folder / f"{version:020d}.json").exists():
            return None
        found = self.info(version).get("txnId")
        return str(found) if found else None

    def record(self) -> dict[str, Any] | None:
        """The newest record of ours with the ``version`` it stands in; None when no readable commit has one.

        After a RESTORE that of the version which it went back to: the rows of later ones are not there any more.
        """
        versions = self.versions()
        while versions:
            version = versions.pop()
            info = self.info(version)
            if info.get("operation") == "RESTORE":
                back_to = self._restored(info)
                versions = [one for one in versions if back_to is not None and one <= back_to]
                continue
            found = _record(info)
            if found is not None:
                return {**found, "version": version}
        return None

    def _restored(self, info: Mapping[str, Any]) -> int | None:
        """The version that a RESTORE went back to; by a time, whose zone is not said, that of UTC."""
        said = info.get("operationParameters", {})
        if str(said.get("version")).isdecimal():
            return int(said["version"])
        try:
            moment = datetime.fromisoformat(str(said.get("timestamp")).strip('"'))
        except ValueError:
            return None
        return self.version_at(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc))

    def record_of(self, version: int) -> dict[str, Any] | None:
        """The record in one commit's ``userMetadata``; None for a commit that is not ours."""
        return _record(self.info(version))

    def table_id(self) -> str | None:
        """The table's id; None when the log no longer holds it."""
        found = self.metadata()
        return found["id"] if found else None

    def metadata(self, until: int | None = None) -> dict[str, Any] | None:
        """The metadata as of version ``until`` (newest): ``id``, ``partitionColumns``, ``schemaString``.

        From the version's checksum file, else the newest metadata action that the JSON commits still hold.
        """
        return self._newest("metadata", "metaData", until)

    def _newest(self, name: str, action: str, until: int | None) -> dict[str, Any] | None:
        """What ``name`` is in the checksum file of version ``until``, else the last ``action`` of that kind."""
        for version in reversed(self.versions()):
            if until is not None and version > until:
                continue
            found = self._checksum(version).get(name)
            if found is None:
                found = next((a[action] for a in self.actions(version) if action in a), None)
            if found is not None:
                newest: dict[str, Any] = found
                return newest
        return None

    def _checksum(self, version: int) -> dict[str, Any]:
        """A version's ``.crc``: written beside each commit, but nobody promises that it is there, or whole."""
        try:
            found = json.loads((self._folder / f"{version:020d}.crc").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def size(self, version: int) -> tuple[int, int] | None:
        """The table's live files at ``version`` and their bytes, by its checksum file; None where that is not there."""
        found = self._checksum(version)
        files, size = found.get("numFiles"), found.get("tableSizeBytes")
        return None if files is None or size is None else (int(files), int(size))

    def standing(self) -> Standing:
        """How the table stands now: what is told of a commit."""
        version = self.version()
        files, size = (self.size(version) if version is not None else None) or (None, None)
        return Standing(version=version, files=files, bytes=size)

    def columns(self) -> dict[str, str] | None:
        """Column names and Spark types of a table whose metadata can be read ('' for a nested type)."""
        metadata = self.metadata()
        if metadata is None:
            return None
        fields = json.loads(metadata["schemaString"])["fields"]
        return {f["name"]: _spark(f["type"]) for f in fields}

    def changed(self, since: int, column: str, until: int | None = None) -> Change:
        """The slices of ``column`` that commits after ``since`` (to ``until``, else the newest) touched.

        A slice is touched by ``add`` and ``remove`` with ``dataChange``: the column is a partition column, or the
        commit is a job's that names the slices it replaced. Compactions touch nothing.
        """
        versions = self.versions()
        newest = (versions[-1] if versions else -1) if until is None else until
        if since > newest:
            return Change(None, f"it has gone back to version {newest}")
        there = set(versions)
        slices: set[str | None] = set()
        added: dict[str, int] | None = {}
        for version in range(since + 1, newest + 1):
            if version not in there:
                return Change(None, f"version {version} is no longer in its log")
            found = self._touched(version, column)
            if found.slices is None:
                return found
            slices |= found.slices
            again = added is None or found.added is None or not added.keys().isdisjoint(found.added)
            added = None if again else {**(added or {}), **(found.added or {})}
        return Change(frozenset(slices), added=added)

    def _touched(self, version: int, column: str) -> Change:
        files: list[dict[str, Any]] = []
        added: dict[str, int] | None = {}
        named: frozenset[str | None] | None = None
        for action in self.actions(version):
            if "protocol" in action and action["protocol"] != self._newest("protocol", "protocol", version - 1):
                return Change(None, f"version {version} changes its protocol")
            if "metaData" in action and not self._same_shape(action["metaData"], version):
                return Change(None, f"version {version} changes its schema or its partitions")
            if "commitInfo" in action:
                record = _record(action["commitInfo"]) or {}
                if record.get("slice_by") == column and record.get("slices") is not None:
                    named = frozenset(record["slices"])
            file = _changed_file(action)
            if file is not None:
                files.append(file)
                path = unquote(file["path"])
                whole = "add" in action and "deletionVector" not in file and added is not None and path not in added
                added = {**(added or {}), path: int(file["size"])} if whole else None
        if not files:
            return Change(frozenset(), added={})
        if named is not None:
            return Change(named, added=added)
        values = [file.get("partitionValues") or {} for file in files]
        if any(column not in value for value in values):
            return Change(None, f"version {version} does not say which {column} it changed")
        return Change(frozenset(value[column] for value in values), added=added)

    def changed_after(self, version: int) -> int | None:
        """The newest commit after ``version`` that may have changed rows; compactions, whoever made them, do not."""
        return next((v for v in reversed(self.versions()) if v > version and self.changes_rows(v)), None)

    def _same_shape(self, metadata: dict[str, Any], version: int) -> bool:
        before = self.metadata(until=version - 1)
        return before is not None and all(before.get(key) == metadata.get(key) for key in _SHAPE)

    def changes_rows(self, version: int) -> bool:
        """Whether the commit may have changed what the table holds, or what its columns are."""
        for action in self.actions(version):
            if "metaData" in action and not self._same_shape(action["metaData"], version):
                return True
            if _changed_file(action) is not None:
                return True
        return False

    def rewrites(self, version: int) -> bool:
        """Whether the commit takes rows away that were there; compactions do not."""
        return any("remove" in action and _changed_file(action) is not None for action in self.actions(version))

    def overwrites(self, version: int) -> bool:
        """Whether it wrote rows in place of others, as a job does: those that stay are deleted and inserted."""
        info = self.info(version)
        mode = info.get("operationParameters", {}).get("mode")
        return bool(info.get("operation") == "WRITE" and mode == "Overwrite")


def _changed_file(action: dict[str, Any]) -> dict[str, Any] | None:
    """The file that the action adds or removes, unless it only moves rows about."""
    file = action.get("add") or action.get("remove")
    return file if file is not None and file.get("dataChange", True) else None


def _record(info: dict[str, Any]) -> dict[str, Any] | None:
    text = info.get("userMetadata")
    if not text:
        return None
    try:
        stored = json.loads(text)
    except ValueError:
        return None  # somebody else's note
    return stored if isinstance(stored, dict) and "pipeline" in stored else None


def _spark(kind: Any) -> str:
    if not isinstance(kind, str):
        return ""
    return {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}.get(kind, kind)
