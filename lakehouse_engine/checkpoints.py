"""The checkpoint of a query whose state is Spark's. There it is the truth: never thrown away, and never guessed.

``<storage>/_checkpoints/<pipeline>``. Beside Spark's own files lies ``lakehouse.json``: who it belongs to, by which
steps its state was made, and an id that every commit of the sink carries with its batch. So a start can tell whether
the two belong together, before anything is touched. Spark writes ``offsets/N``, runs batch N, whose end is the sink's
commit, and then writes ``commits/N``: the sink stands where the last of these does, or one batch further.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import PlanError

_FILE = "lakehouse.json"


@dataclass(frozen=True)
class Held:
    """What the sink says of its last batch: the checkpoint's id and Spark's number of the batch, from 0."""

    checkpoint: str
    batch: int


@dataclass(frozen=True)
class Made:
    """By what a checkpoint was made. ``steps``: the text of each by its place; ``topics``: id by input and topic."""

    pipeline: str
    epoch: int
    steps: Mapping[str, str]
    topics: Mapping[str, str]
    spark: str
    id: str = ""


class Checkpoint:
    """``reset``: what to do to begin anew, in words; every refusal names it."""

    def __init__(self, folder: Path, where: str, reset: str) -> None:
        self.folder, self._where, self._reset = folder, where, reset

    def open(self, wanted: Made, held: Held | None) -> Made:
        """The checkpoint as it is there, or a new one. Nothing has been changed when this raises.

        Raises ``PlanError`` CHECKPOINT_LOST, CHECKPOINT_REPLACED, CHECKPOINT_UNREADABLE, SINK_BEHIND, STATE_DIFFERS.
        """
        if not (self.folder / _FILE).exists():
            if held is not None:
                raise self._refused("CHECKPOINT_LOST", f"the checkpoint {self.folder} is gone, and with it the state;"
                                    f" the table holds its batches up to {held.batch}")  # fmt: skip
            if self._batches("commits"):
                raise self._refused("CHECKPOINT_UNREADABLE", f"{self.folder} does not say whose it is ({_FILE} is"
                                    " missing)")  # fmt: skip
            return self._new(wanted)
        made = Made(**self._json(self.folder / _FILE))
        if held is None and made.epoch < wanted.epoch:
            return self._new(wanted)  # of an epoch that was ended
        if held is None:
            if self._batches("commits"):
                raise self._refused("SINK_BEHIND", "the table holds nothing of what the checkpoint has counted already")
            return self._new(wanted)
        if held.checkpoint != made.id:
            raise self._refused("CHECKPOINT_REPLACED", "the table was written with another checkpoint than"
                                f" {self.folder}")  # fmt: skip
        self._fits(made, wanted)
        self._stands(held.batch)
        return made

    def scratch(self, wanted: Made) -> Made:
        """A new one, whatever is there: for a sink that keeps nothing."""
        return self._new(wanted)

    def watermark_before(self, batch: int) -> int | None:
        """The watermark (microseconds) by which a batch calls rows late: that of the batch before."""
        if batch == 0:
            return None
        millis = int(self._offsets(batch - 1).get("batchWatermarkMs", 0))
        return millis * 1000 or None

    def _new(self, wanted: Made) -> Made:
        shutil.rmtree(self.folder, ignore_errors=True)
        made = Made(**{**asdict(wanted), "id": uuid.uuid4().hex})
        self.folder.mkdir(parents=True)
        part = self.folder / f"{_FILE}.part"
        part.write_text(json.dumps(asdict(made), indent=1))
        part.rename(self.folder / _FILE)
        return made

    def _fits(self, made: Made, wanted: Made) -> None:
        """The state was made by the steps that are there now, from the topics that are there now."""
        for place in (*wanted.steps, *made.steps):
            if wanted.steps.get(place) != made.steps.get(place):
                what = "is gone" if place not in wanted.steps else "has changed" if place in made.steps else "is new"
                raise self._refused("STATE_DIFFERS", f"{place} {what}, and the state was made by the steps before")
        for name, topic_id in wanted.topics.items():
            if made.topics.get(name) != topic_id:
                raise self._refused("STATE_DIFFERS", f"{name} was deleted and made anew: positions of the old one mean"
                                    " nothing there")  # fmt: skip
        if made.spark != wanted.spark:
            raise self._refused("STATE_DIFFERS", f"the state was written by Spark {made.spark}, and this is"
                                f" {wanted.spark}")  # fmt: skip

    def _stands(self, batch: int) -> None:
        """Spark will go on after, or repeat, exactly the batch that the sink holds."""
        if not (self.folder / "metadata").exists():
            raise self._refused("CHECKPOINT_UNREADABLE", f"{self.folder}/metadata is missing")
        self._json(self.folder / "metadata")
        last = max(self._batches("commits"), default=-1)
        if batch < last:
            raise self._refused("SINK_BEHIND", f"the table holds batches up to {batch}, and the checkpoint has counted"
                                f" {last}: was the table restored?")  # fmt: skip
        if batch > last + 1 or batch not in self._batches("offsets"):
            raise self._refused("CHECKPOINT_REPLACED", f"the table holds batches up to {batch}, and the checkpoint"
                                f" knows {last}: was it restored?")  # fmt: skip
        for number in {last, batch} - {-1}:
            self._offsets(number)
        if last >= 0:
            self._lines(self.folder / "commits" / str(last))

    def _offsets(self, batch: int) -> dict[str, Any]:
        found: dict[str, Any] = self._lines(self.folder / "offsets" / str(batch))[0]
        return found

    def _batches(self, kind: str) -> list[int]:
        folder = self.folder / kind
        return [int(file.name) for file in folder.iterdir() if file.name.isdecimal()] if folder.is_dir() else []

    def _lines(self, file: Path) -> list[Any]:
        """The JSON lines after the version that such a file begins with."""
        try:
            version, *lines = file.read_text().splitlines()
            found = [None if line == "-" else json.loads(line) for line in lines]  # a source without offset
        except (OSError, ValueError) as error:
            raise self._unreadable(file) from error
        if not version.startswith("v") or not found or found[0] is None:
            raise self._unreadable(file)
        return found

    def _json(self, file: Path) -> Any:
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise self._unreadable(file) from error

    def _unreadable(self, file: Path) -> PlanError:
        return self._refused("CHECKPOINT_UNREADABLE", f"{file} cannot be read: it is torn")

    def _refused(self, code: str, message: str) -> PlanError:
        return PlanError(code, f"{message}. Nothing was changed; to begin anew: {self._reset}", where=self._where)
