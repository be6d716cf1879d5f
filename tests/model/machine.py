"""The world under hypothesis: which act comes next, and with which numbers, is its choice; what it finds is shortened.

What it finds stands in the failure as JSON, ready for ``tests/model/schedules``.
"""

from __future__ import annotations

import json
from functools import partial
from math import prod
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.model.rules import ENGINE, Rules
from tests.model.world import ACTS, World


def _one(*names: str) -> Any:
    """A strategy of one of the acts. One number stands for all of an act: drawing is what takes the time."""
    return st.one_of(*(st.integers(0, prod(ACTS[name]) - 1).map(partial(_act, name)) for name in names))


def _act(name: str, number: int) -> tuple[str, list[int]]:
    numbers = []
    for size in ACTS[name]:
        number, rest = divmod(number, size)
        numbers.append(rest)
    return name, numbers


class Protocol(RuleBasedStateMachine):
    """``defences``: those that stand."""

    defences: ClassVar[Rules] = ENGINE
    #: schedules and steps that were tried
    tried: ClassVar[list[int]] = [0, 0]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.defences)
        self.schedule: list[list[str | int]] = []

    def act(self, act: tuple[str, list[int]]) -> None:
        name, numbers = act
        self.schedule.append([name, *numbers])
        try:
            self.world.act(name, *numbers)
        except AssertionError as broken:
            lines = "\n ".join(json.dumps(one) for one in self.schedule)
            raise AssertionError(f"{broken}\n {lines}") from None

    def teardown(self) -> None:
        Protocol.tried[0] += 1
        Protocol.tried[1] += self.world.taken

    @property
    def alive(self) -> int:
        return len(self.world.alive)

    @initialize(one=_one("produce"), other=_one("produce"), run=_one("run"))
    def begin(self, one: Any, other: Any, run: Any) -> None:
        for act in (one, other, run):
            self.act(act)

    @rule(act=_one("produce"), more=_one("produce"))
    def produce(self, act: Any, more: Any) -> None:
        self.act(act)
        self.act(more)

    @precondition(lambda self: self.alive < 3)
    @rule(act=_one("run"))
    def run(self, act: Any) -> None:
        self.act(act)

    @precondition(lambda self: self.alive)
    @rule(act=_one("advance"))
    def advance(self, act: Any) -> None:
        self.act(act)

    @precondition(lambda self: self.alive)
    @rule(act=_one("advance"), other=_one("advance"))
    def interleave(self, act: Any, other: Any) -> None:
        self.act(act)
        self.act(other)

    @precondition(lambda self: self.alive)
    @rule(act=_one("finish"))
    def finish(self, act: Any) -> None:
        self.act(act)

    @precondition(lambda self: self.alive)
    @rule(act=_one("crash", "fail"))
    def die(self, act: Any) -> None:
        self.act(act)

    @rule(act=_one("tick", "backup", "restore", "poison", "blind", "reset"))
    def befall(self, act: Any) -> None:
        self.act(act)

    @rule(act=_one("partition", "retain", "recreate", "recreate_stopped", "latest", "restore_table"))
    def topic(self, act: Any) -> None:
        self.act(act)

    @precondition(lambda self: self.alive < 3 and self.world.database.held.positions)
    @rule(act=_one("backfill"))
    def backfill(self, act: Any) -> None:
        self.act(act)


def explore(examples: int, rules: Rules = ENGINE, *, steps: int = 40, shrink: bool = True) -> None:
    """Raises ``AssertionError`` with the schedule that breaks a law. The same examples each time."""
    made = type("Protocol", (Protocol,), {"defences": rules})
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    run_state_machine_as_test(made, settings=settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        phases=phases, suppress_health_check=list(HealthCheck), print_blob=False,
        report_multiple_bugs=False))  # fmt: skip
