"""The table of hazards in docs/reliability.md names tests and switches that are there."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

from tests.model.rules import DEFENCES
from tests.model.stateful import StateRules

TESTS = Path(__file__).parents[1]
SWITCHES = "faults/test_switches.py"


def rows() -> dict[str, list[str]]:
    """By number: hazard, defence, proof, switch."""
    page = (TESTS.parent / "docs" / "reliability.md").read_text()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()
             if re.match(r"\| H\d+ \|", line)]  # fmt: skip
    return {number: rest for number, *rest in found}


def defined_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_hazard_has_its_row() -> None:
    assert [*rows()] == [f"H{number}" for number in range(1, 36)]
    assert {len(row) for row in rows().values()} == {4}


def test_each_test_and_switch_that_is_named_is_there() -> None:
    switches = DEFENCES | {field.name for field in fields(StateRules)}
    wrong, named = [], set[str]()
    for number, (_, _, proof, switch) in rows().items():
        for text in re.findall(r"`([^`]*test_[^`]*)`", f"{proof} {switch}"):
            file, _, name = text.rpartition("::")
            named.add(name)
            if name not in defined_in(file or SWITCHES):
                wrong.append(f"{number}: {text}")
        wrong += [f"{number}: model: {name}" for name in re.findall(r"model: (\w+)", switch) if name not in switches]
        if not (proof == "-" or "::test_" in proof):
            wrong.append(f"{number}: no proof")
    assert wrong == []
    assert defined_in(SWITCHES) - named == {"_without", "lab"}
