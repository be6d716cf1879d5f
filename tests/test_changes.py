"""A job over what changes in a table: merged, it is that table, whatever happens to the table and to the runs."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import jobs
from lakehouse_engine.errors import RunError
from lakehouse_engine.plan import Job, compile_plan
from lakehouse_engine.sinks import delta
from lakehouse_engine.spec.loader import load
from tests.lab import Lab

MIRROR = """
source: {delta: {table: silver.events, changes: true}}
transforms:
  - derive: {version: _version}
checks:
  - range: {n: {max: 50}}
keys: [day, id]
sink: {delta: {mode: upsert, order_by: [version], delete_when: _op = 'delete'}}
schedule: upstream
"""
MON, TUE = "2026-01-05", "2026-01-06"


class Mirrored(Lab):
    def together(self, name: str) -> Job:
        """As planned with all the other files."""
        plan = compile_plan(load([self.folder / "pipelines"]))
        return next(job for job in plan.jobs if job.name == name)

    def mirror(self, *, silver: bool = True) -> str:
        """Runs both; what the second one did."""
        if silver:
            jobs.run(self.spark, self.together("silver.events"), self.storage, None)
        return jobs.run(self.spark, self.together("gold.events"), self.storage, None).decision.kind

    def same(self) -> bool:
        ours = self.spark.read.format("delta").load(str(self.path("gold.events"))).drop("updated_at", "version")
        return sorted(map(tuple, ours.collect()), key=str) == self.rows("silver.events")


def test_what_changes_in_a_table_makes_the_same_table_each_change_once(spark: SparkSession, tmp_path: Path) -> None:
    lab = Mirrored(spark, tmp_path, gold=MIRROR)
    lab.append((1, MON, 1, 1), (2, MON, 2, 1), (3, TUE, 1, 1))
    lab.run("silver.events")
    with pytest.raises(RunError, match="run the pipeline that writes it together") as off:
        lab.run("gold.events")
    assert off.value.code == "CHANGES_OFF"

    assert lab.mirror() == "full"  # together, the one keeps for the other what changes
    assert lab.same()
    assert lab.mirror() == "nothing"
    before = {row["id"]: row["updated_at"] for row in lab.sql("select * from {}", "gold.events")}

    lab.append((4, MON, 2, 2))
    lab.correct(TUE, (3, TUE, 1, 1), (5, TUE, 5, 1), (9, TUE, 1, 99))  # the row that stays is written anew
    with mock.patch.object(delta, "merge", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        lab.mirror()
    assert [row[0] for row in lab.sql("select count(*) from {}", "gold.events__quarantine")] == [1]
    assert lab.mirror(silver=False) == "changes"
    assert [row[0] for row in lab.sql("select count(*) from {}", "gold.events__quarantine")] == [1]  # once
    lab.correct(TUE, (3, TUE, 1, 1), (5, TUE, 5, 1))
    assert lab.mirror() == "changes"
    assert lab.same()
    after = {row["id"]: row["updated_at"] for row in lab.sql("select * from {}", "gold.events")}
    assert {id: after[id] for id in before} == before

    lab.correct(TUE)
    assert lab.mirror() == "changes"
    assert lab.same()
    lab.sql("optimize {}", "silver.events")
    assert lab.mirror(silver=False) == "nothing"


def test_changes_that_are_gone_stop_the_run(spark: SparkSession, tmp_path: Path) -> None:
    lab = Mirrored(spark, tmp_path, gold=MIRROR)
    for day in (MON, TUE):
        lab.append((1, day, 1, 1))
        lab.mirror()
    for _ in range(2):
        lab.append((2, TUE, 1, 1))
        jobs.run(spark, lab.together("silver.events"), lab.storage, None, full=True)
    version = (lab.log("gold.events").record() or {})["sources"]["silver.events"]["version"]
    (lab.path("silver.events") / "_delta_log" / f"{version + 1:020d}.json").unlink()
    with pytest.raises(RunError, match=f"version {version + 1} of silver.events is no longer in its log") as gone:
        lab.mirror(silver=False)
    assert gone.value.code == "CHANGES_GONE"
