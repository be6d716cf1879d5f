"""The kill matrix: about twenty of its cells. ``make faults`` runs all, ``python -m tests.faults.matrix`` also one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine.local.stack import Services
from tests.faults.holds import made_jar
from tests.faults.matrix import Group, Matrix, groups
from tests.faults.rig import Rig, rig
from tests.faults.steps import FAULTS, STEPS, SUBJECTS, Cell, cells, lacking

QUICK = [
    Cell("bronze", 11, "full"), Cell("realtime", 6, "full"),
    Cell("realtime", 7, "postgres"),
    Cell("bronze", 12, "broker"), Cell("realtime", 4, "broker"),
    Cell("bronze", 2, "kill"), Cell("bronze", 4, "kill"), Cell("bronze", 11, "kill"), Cell("bronze", 12, "kill"),
    Cell("realtime", 5, "kill"), Cell("realtime", 6, "kill"), Cell("realtime", 7, "kill"), Cell("realtime", 12, "kill"),
    Cell("bronze", 11, "stop"), Cell("realtime", 5, "stop"),
    Cell("gold", 11, "full"), Cell("gold", 7, "postgres"), Cell("gold", 11, "kill"),
]  # fmt: skip


class Rigs:
    """A lake for as many groups as leave it right."""

    def __init__(self, stack: Services, root: Path, spark: SparkSession, folder: Path) -> None:
        self._args, self._folder, self._made, self._number = (stack, root, spark, made_jar(folder)), folder, None, 0

    def rig(self) -> Rig:
        if self._made is None:
            self._number += 1
            self._made = rig(*self._args, self._folder / f"rig{self._number}", state=False)
            self._rig = self._made.__enter__()
        return self._rig

    def drop(self) -> None:
        if self._made is not None:
            made, self._made = self._made, None
            made.__exit__(None, None, None)


@pytest.fixture(scope="module")
def rigs(stack: Services, stack_root: Path, spark: SparkSession,
         tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:  # fmt: skip
    made = Rigs(stack, stack_root, spark, tmp_path_factory.mktemp("faults"))
    yield made
    made.drop()


@pytest.mark.parametrize("group", groups(QUICK), ids=lambda group: ",".join(map(str, group)))
def test_the_numbers_are_right_whatever_dies_at_this_step(rigs: Rigs, group: Group) -> None:
    matrix = Matrix()
    try:
        matrix.run(rigs.rig(), group)
        assert matrix.wrong == dict.fromkeys(group, ""), matrix.table()
    except BaseException:
        rigs.drop()
        raise


def test_what_there_is_no_cell_of_has_a_reason_and_the_quick_ones_exist() -> None:
    every = cells()
    assert {*QUICK} <= {*every}
    for subject in SUBJECTS:
        for step in STEPS:
            for fault in FAULTS:
                assert (lacking(subject, step, fault) is None) == (Cell(subject, step, fault) in every)
