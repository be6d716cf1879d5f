"""The protocol holds whatever happens and in whatever order, and every part of it is needed.

``make model`` tries many more schedules than ``make test``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.model import steps
from tests.model.machine import Protocol, explore
from tests.model.rules import DEFENCES, ENGINE, LACKING, Rules
from tests.model.stateful import StateRules
from tests.model.walks import STATE, Tried, broken_by, walk
from tests.model.world import ACTS

#: schedules that hypothesis tries; of walks ten times as many
EXAMPLES = int(os.environ.get("LAKEHOUSE_EXAMPLES", "120"))
STATE_DEFENCES = [defence.name for defence in fields(StateRules)]
LONG = "LAKEHOUSE_EXAMPLES" in os.environ
FOLDER = Path(__file__).parent / "schedules"


def schedule(name: str) -> tuple[list[Any], Rules]:
    """And the rules by which it was found, all defences on; ``on``: also what the engine lacks."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return found["schedule"], replace(ENGINE, **dict.fromkeys(found.get("on", []), True))


def test_no_schedule_that_hypothesis_tries_breaks_a_law() -> None:
    Protocol.tried[:] = [0, 0]
    began = time.perf_counter()
    explore(EXAMPLES)
    seconds = time.perf_counter() - began
    tried = Tried(*Protocol.tried, seconds)
    print(f"\nhypothesis: {tried}")
    assert tried.walks >= EXAMPLES


def test_no_schedule_at_random_breaks_a_law() -> None:
    tried = Tried()
    found = walk(EXAMPLES * (10 if LONG else 2), tried=tried)
    print(f"\nat random: {tried}")
    assert found is None, json.dumps(found.schedule) + found.law


@pytest.mark.parametrize("defence", sorted(DEFENCES))
def test_without_a_defence_a_schedule_breaks_a_law_and_with_it_none(defence: str) -> None:
    acts, rules = schedule(defence)
    assert broken_by(acts, replace(rules, **{defence: False})) is not None
    assert broken_by(acts, rules) is None


@pytest.mark.parametrize("defence", sorted(LACKING))
def test_what_the_engine_lacks_is_known_by_a_schedule(defence: str) -> None:
    acts, rules = schedule(f"lacking/{defence}")
    assert broken_by(acts, rules) is not None, f"{defence} holds by now: make it True in rules.py"
    assert broken_by(acts, replace(rules, **{defence: True})) is None


#: those that are found within a second
QUICK = ("close_by_next", "floors", "one_transaction", "savepoint", "watermark_before")


#: what takes hypothesis too long, or acts that it is not given; walks find it
RARE = {"aside_position", "claim_all", "history_of_topic", "left_by_commit", "new_partition_first", "restore_seen"}


@pytest.mark.parametrize("defence", sorted(DEFENCES - RARE) if LONG else QUICK)
def test_hypothesis_finds_what_breaks_a_law_without_a_defence(defence: str) -> None:
    with pytest.raises(AssertionError):
        explore(4000, replace(ENGINE, **{defence: False}), shrink=False)


@pytest.mark.parametrize("defence", sorted(DEFENCES - {"history_of_topic"}))
@pytest.mark.skipif(not LONG, reason="make model")
def test_a_walk_finds_what_breaks_a_law_without_a_defence(defence: str) -> None:
    assert walk(20_000, replace(ENGINE, **{defence: False})) is not None


def test_no_schedule_of_a_stream_on_sparks_state_breaks_a_law() -> None:
    tried = Tried()
    found = walk(EXAMPLES * (2 if LONG else 1), StateRules(), tried=tried, like=STATE)
    print(f"\nSpark's state: {tried}")
    assert found is None, json.dumps(found.schedule) + found.law


@pytest.mark.parametrize("defence", STATE_DEFENCES)
def test_without_a_defence_a_stream_on_sparks_state_breaks_a_law_and_with_it_none(defence: str) -> None:
    acts, _ = schedule(f"state/{defence}")
    assert broken_by(acts, replace(StateRules(), **{defence: False}), STATE) is not None
    assert broken_by(acts, StateRules(), STATE) is None


@pytest.mark.parametrize("step", steps.STEPS)
def test_a_step_is_a_function_of_the_engine(step: str) -> None:
    assert callable(steps.function(step))


def test_schedules_are_of_acts_and_one_for_each_defence() -> None:
    files = [*FOLDER.glob("*.json"), *FOLDER.glob("lacking/*.json")]
    assert {file.stem for file in files} >= DEFENCES | LACKING
    for file in files:
        for name, *numbers in json.loads(file.read_text())["schedule"]:
            assert len(numbers) == len(ACTS[name]), f"{file.name}: {name}"
