"""Schedules that the model has found, done to the engine itself; what it leaves in its stores breaks no law.

Under ``make faults`` each runs once more without the defence that it needs, and then one is broken.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import aside, ledger, progress, streams
from lakehouse_engine.local.stack import Services
from tests.faults.replayed import watched
from tests.faults.replaylab import Lab
from tests.model.walks import REPLAYED

#: under ``make faults``
LONG = "LAKEHOUSE_KILLS" in os.environ
FOLDER = Path(__file__).parents[1] / "model" / "schedules" / "replayed"
SCHEDULES = sorted(file.stem for file in FOLDER.glob("*.json"))


def schedule(name: str) -> list[Any]:
    found: list[Any] = json.loads((FOLDER / f"{name}.json").read_text())["schedule"]
    return found


def replayed(spark: SparkSession, stack: Services, dsn: str, folder: Path, patch: pytest.MonkeyPatch,
             acts: Sequence[Any]) -> Lab:  # fmt: skip
    lab = Lab(spark, stack, dsn, folder)
    with watched(patch, lab):
        for act, *numbers in acts:
            lab.act(act, *numbers)
    return lab


@pytest.mark.parametrize("name", SCHEDULES if LONG else SCHEDULES[:2])
def test_a_schedule_of_the_model_breaks_no_law_in_the_engine(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lab = replayed(spark, stack, database, tmp_path, monkeypatch, schedule(name))
    lab.hold()
    said = {word for process in lab.processes for word in (process.ended, *process.said)}
    assert said >= REACHES[name], said


#: what has to have happened for the schedule to say something
REACHES = {
    "killed_between_quarantine_and_rows": {"KILLED"},
    "member_fails_behind_another": {"KILLED", "detached realtime.updates"},
    "zombie_and_restore": {"FENCED"},
}


def _without(patch: pytest.MonkeyPatch, name: str) -> None:
    """Turns the schedule's defence off in the engine."""
    if name == "killed_between_quarantine_and_rows":
        patch.setattr(aside, "replace", lambda record, **_: record)
    elif name == "member_fails_behind_another":
        take_out = streams._Windows.take_out

        def forgotten(windows: Any, names: Any) -> None:
            take_out(windows, names)
            windows._left.clear()

        patch.setattr(streams._Windows, "take_out", forgotten)
    else:
        compared = "\n  and p.next_offset = v.before and p.writer = v.writer"
        assert compared in progress._MOVE
        patch.setattr(progress, "_MOVE", progress._MOVE.replace(compared, ""))
        unique = ",\n  primary key (pipeline, epoch, batch_id)"
        assert unique in ledger.DDL
        patch.setattr(ledger, "DDL", ledger.DDL.replace(unique, ""))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.skipif(not LONG, reason="make faults")
def test_without_its_defence_the_same_schedule_breaks_a_law_in_the_engine(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _without(monkeypatch, name)
    with pytest.raises(AssertionError, match=r"realtime|landing"):
        replayed(spark, stack, database, tmp_path, monkeypatch, schedule(name)).hold()


@pytest.mark.parametrize("seed", range(int(os.environ.get("LAKEHOUSE_KILLS", "0")) // 2))
def test_a_walk_breaks_no_law_in_the_engine(
    spark: SparkSession, stack: Services, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    names = chance.choices(list(REPLAYED.weights), list(REPLAYED.weights.values()), k=40)
    acts = [[name, *(chance.randrange(size) for size in REPLAYED.sizes[name])] for name in names]
    print(json.dumps(acts))
    replayed(spark, stack, database, tmp_path, monkeypatch, acts).hold()
