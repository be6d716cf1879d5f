"""What is lost beside a process: its checkpoint, in part or whole. What dies is in ``test_matrix.py``."""

from __future__ import annotations

import shutil

from pyspark.sql import SparkSession

from tests.faults.rig import performed
from tests.platform import Platform
from tests.test_platform import off


def test_a_lost_checkpoint_is_no_loss_and_no_question(lake: Platform, spark: SparkSession) -> None:
    def run() -> None:
        folders = [lake.folder / "pipelines" / layer for layer in ("bronze", "realtime")]
        assert performed(lake, spark, "run", folders, lake.storage) == 0
        assert off(lake, "realtime", "bronze") == []

    lake.produce(2000, seed=1)
    run()
    checkpoints = lake.storage / "_checkpoints"
    commits = sorted(checkpoints.glob("*/commits/[0-9]*"))
    assert commits
    for file in commits:
        file.unlink()
    lake.produce(2000, seed=2)
    run()
    for file in [*checkpoints.glob("*/offsets/[0-9]*"), *checkpoints.glob("*/commits/[0-9]*")]:
        file.unlink()  # the same number would begin anew, with more records
    lake.produce(2000, seed=3)
    run()
    shutil.rmtree(checkpoints)
    lake.produce(2000, seed=4)
    run()
