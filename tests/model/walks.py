"""Schedules at random, six times as fast as hypothesis makes them; what breaks a law is shortened act by act.

``python -m tests.model.walks 20000`` looks for one, ``--off floors`` without a defence, ``--asked recreate`` with acts
that the engine is not made for; ``--keep FILE`` writes what it finds as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.model import stateworld
from tests.model.rules import ENGINE
from tests.model.stateful import StateRules
from tests.model.stateworld import StateWorld
from tests.model.world import ACTS, World

Act = list[str | int]
#: how often an act comes; those that are not here come when asked for
WEIGHTS = {"advance": 10.0, "produce": 8.0, "finish": 3.0, "run": 2.0, "crash": 1.0, "fail": 1.0, "tick": 1.0,
           "backfill": 1.0, "backup": 0.5, "restore": 0.5, "poison": 0.4, "blind": 0.4, "retain": 0.3, "partition": 0.2,
           "reset": 0.2, "latest": 0.2, "recreate": 0.2, "recreate_stopped": 0.2, "restore_table": 0.2}  # fmt: skip
ASKED = 0.3
LONG = 60


@dataclass(frozen=True)
class Broken:
    """A schedule, without what is not needed, and the law that it breaks."""

    schedule: list[Act]
    law: str
    walks: int


@dataclass(frozen=True)
class Like:
    """Of what kind schedules are: what makes their world by its rules, how often acts come, and their numbers."""

    world: Callable[[Any], Any] = World
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    sizes: Mapping[str, Sequence[int]] = field(default_factory=lambda: ACTS)


ANY = Like()
#: what can be done with the engine itself in a test: one partition, batches of three, no gaps, one delay
REPLAYED = Like(
    partial(World, partitions=1, limit=3),
    {"advance": 8.0, "produce": 6.0, "finish": 5.0, "run": 3.0, "crash": 2.0, "poison": 0.6, "backup": 0.5,
     "restore": 0.5}, {**ACTS, "produce": (1, 7, 18, 2), "run": (2, 32, 1), "advance": (4, 9, 1)})  # fmt: skip
#: a stream on Spark's state
STATE = Like(StateWorld, stateworld.WEIGHTS, stateworld.ACTS)
KINDS = {"": ANY, "replayed": REPLAYED, "state": STATE}


@dataclass
class Tried:
    walks: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (f"{self.walks:,} schedules, {self.steps:,} steps in {self.seconds:.1f} s:"
                f" {self.walks / self.seconds * 60:,.0f} schedules a minute, {self.steps / self.seconds:,.0f} steps/s")


def broken_by(schedule: Iterable[Sequence[Any]], rules: Any = ENGINE, like: Like = ANY) -> str | None:
    """The law that a schedule breaks."""
    world = like.world(rules)
    try:
        for name, *numbers in schedule:
            world.act(name, *numbers)
    except AssertionError as broken:
        return str(broken)
    return None


def walk(walks: int, rules: Any = ENGINE, asked: Sequence[str] = (), tried: Tried | None = None,
         first: int = 0, like: Like = ANY) -> Broken | None:  # fmt: skip
    """The first schedule of so many that breaks a law; the same ones each time. ``first``: the first one's number."""
    tried = Tried() if tried is None else tried
    began = time.perf_counter()
    weights = {**like.weights, **dict.fromkeys(asked, ASKED)}
    names, each = list(weights), list(weights.values())
    found = None
    for seed in range(first, first + walks):
        chance, world, schedule = random.Random(seed), like.world(rules), list[Act]()
        try:
            for name in chance.choices(names, each, k=LONG):
                numbers = [chance.randrange(size) for size in like.sizes[name]]
                schedule.append([name, *numbers])
                world.act(name, *numbers)
        except AssertionError as broken:
            found = (schedule, str(broken), seed)
        tried.walks += 1
        tried.steps += world.taken
        if found is not None:
            break
    tried.seconds += time.perf_counter() - began
    if found is None:
        return None
    short = shortened(found[0], rules, like)
    return Broken(short, broken_by(short, rules, like) or found[1], found[2] - first + 1)


def shortened(schedule: list[Act], rules: Any, like: Like = ANY) -> list[Act]:
    """Without the acts that it breaks a law without: halves first, then ever less."""
    size = max(len(schedule) // 2, 1)
    while size:
        at = 0
        while at < len(schedule):
            without = schedule[:at] + schedule[at + size :]
            if broken_by(without, rules, like) is not None:
                schedule = without
            else:
                at += size
        size //= 2
    return schedule


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.walks", description=__doc__)
    parser.add_argument("walks", type=int)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--off", action="append", default=[], help="a defence less (rules.py)")
    parser.add_argument("--on", action="append", default=[], help="a defence that the engine lacks")
    parser.add_argument("--asked", action="append", default=[], help="an act: " + ", ".join(set(ACTS) - set(WEIGHTS)))
    parser.add_argument("--kind", choices=KINDS, default="", help="for the engine itself, or Spark's state")
    parser.add_argument("--keep", type=Path, help="where to write the schedule")
    given = parser.parse_args(words)
    all_: Any = StateRules() if given.kind == "state" else ENGINE
    rules = replace(all_, **{**dict.fromkeys(given.off, False), **dict.fromkeys(given.on, True)})
    tried = Tried()
    found = walk(given.walks, rules, given.asked, tried, given.first, KINDS[given.kind])
    print(tried)
    if found is None:
        print("no law is broken")
        return 0
    print(f"after {found.walks:,} schedules: {found.law}")
    text = json.dumps({"off": given.off, "on": given.on, "law": found.law, "schedule": found.schedule})
    text = text.replace("[[", "[\n  [").replace("], [", "],\n  [").replace("]]", "]\n]")
    if given.keep:
        given.keep.write_text(text + "\n")
    print(text)
    return 1


if __name__ == "__main__":
    sys.exit(main())
