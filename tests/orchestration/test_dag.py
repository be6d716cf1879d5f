"""The DAG file in Airflow's own environment, without its services."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestration.conftest import DAG, DAGS
from tests.platform import PROJECT, Platform
from tests.test_platform import off, ran

pytestmark = pytest.mark.timeout(900)
Command = Callable[..., "subprocess.CompletedProcess[str]"]
PARSE = """
import json, runpy, sys, time, warnings
import airflow.sdk, airflow.providers.standard.operators.bash
warnings.simplefilter("error")
before = time.perf_counter(), time.process_time()
made = runpy.run_path(sys.argv[1])
print(json.dumps({
    "wall": time.perf_counter() - before[0], "cpu": time.process_time() - before[1],
    "pyspark": "pyspark" in sys.modules,
    "tasks": {name: sorted(dag.task_ids) for name, dag in made.items() if isinstance(dag, airflow.sdk.DAG)}}))
"""


def test_the_file_is_parsed_in_a_moment_without_spark_and_without_a_warning(airflow_venv: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "LAKEHOUSE_PROJECT": str(PROJECT)}
    parsed = []
    for _ in range(3):  # the least of three: what else the machine does is not the file's doing
        run = subprocess.run([str(airflow_venv / "bin" / "python"), "-c", PARSE, str(DAGS / f"{DAG}.py")], text=True,
                             env=environment, capture_output=True)  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        parsed.append(json.loads(run.stdout.splitlines()[-1]))
    assert not any(one["pyspark"] for one in parsed)
    assert parsed[0]["tasks"] == {
        DAG: ["bronze_to_silver", "gold_to_postgres", "silver_to_gold_conversion", "silver_to_gold_dau",
              "silver_to_gold_events_source", "silver_to_gold_purchases_page"],
        "lakehouse_maintenance": ["gold.conversion_rate_daily", "gold.daily_active_users",
                                  "gold.events_per_source_daily", "gold.purchases_per_page_daily",
                                  "silver.user_events"]}  # fmt: skip
    assert min(one["cpu"] for one in parsed) < 0.3, parsed


def test_the_reference_dag_on_a_warm_engine_fills_gold_with_the_right_numbers(
    lake: Platform, airflow_command: Command
) -> None:
    lake.produce(3000, seed=1, duplicates=0.05, malformed=0.02)
    ran(lake.lakehouse("run", "--available-now", "pipelines/bronze"))
    engine = lake.start("engine")
    address = lake.folder / ".lakehouse" / "engine.json"
    lake.until(address.exists, "the engine takes requests")
    result = airflow_command(lake.folder, "dags", "test", DAG)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "starting Spark" not in result.stdout
    assert lake.log(engine).count("silver.user_events: full") == 1
    assert off(lake, "gold") == []
    engine.terminate()
    assert engine.wait(60) == 0, lake.log(engine)
    assert not address.exists()


SLOW = """\
source: bronze.clicks
sink: delta
schedule: daily
airflow: {timeout: 3 seconds, retries: 0}
"""
REFUSED = """\
source: bronze.clicks
sink: delta
schedule: daily
airflow: {retries: 3}
"""
ENGINE = """\
case "$2" in
  *slow*) sleep 600 & echo $! $$ > pids; wait ;;
  *) echo "$@" >> calls; echo "refused by the engine"; exit 2 ;;
esac
"""


def test_a_task_over_its_time_takes_its_command_along_and_a_refused_one_is_not_tried_again(
    tmp_path: Path, airflow_command: Command
) -> None:
    silver = tmp_path / "pipelines" / "silver"
    silver.mkdir(parents=True)
    (silver / "slow.yaml").write_text(SLOW)
    (silver / "refused.yaml").write_text(REFUSED)
    (tmp_path / "engine.sh").write_text(ENGINE)
    result = airflow_command(tmp_path, "dags", "test", DAG, LAKEHOUSE_COMMAND=f"bash '{tmp_path}/engine.sh'")
    assert (tmp_path / "calls").read_text() == "run pipelines/silver/refused.yaml\n", result.stdout[-3000:]
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()
             and "(sleep) Z" not in Path(f"/proc/{pid}/stat").read_text()]  # fmt: skip
    assert alive == []
