"""The runner as spark-submit's script: the package not installed, jars handed over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from lakehouse_engine.local.jars import engine_dir, engine_jars
from tests.platform import PROJECT, Platform
from tests.test_platform import off, ran

SUBMIT = str(Path(sysconfig.get_path("scripts")) / "spark-submit")


def submit(lake: Platform, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in lake.environment.items() if key != "PYTHONPATH"}
    environment["PYSPARK_PYTHON"] = sys.executable
    return subprocess.run([SUBMIT, "--master", "local[2]", *words[:4], str(script), *words[4:]], cwd=lake.folder,
                          env=environment, text=True, capture_output=True, timeout=180)  # fmt: skip


def test_spark_submit_runs_a_stream_from_a_copy_of_the_package(lake: Platform, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "lakehouse_engine", tmp_path / "copy" / "lakehouse_engine")
    script = tmp_path / "copy" / "lakehouse_engine" / "runner.py"
    lake.produce(3000, seed=1, malformed=0.05)
    jars = ",".join(map(str, engine_jars()))
    done = submit(lake, script, "--driver-class-path", f"{engine_dir()}/*", "--jars", jars,
                  "pipelines/bronze/user_events.yaml", "--available-now", "--metrics-port", "0",
                  "--json-log")  # fmt: skip
    ran(done)
    said = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith('{"time"')]
    assert [line["pipeline"] for line in said if line["kind"] == "batch"] == ["bronze.user_events"]
    assert any(line.get("message", "").startswith("metrics at http://127.0.0.1:") for line in said)
    assert off(lake, "bronze") == []


def test_without_the_jars_the_line_to_use_is_printed(lake: Platform) -> None:
    lake.produce(10)
    result = submit(lake, PROJECT / "lakehouse_engine" / "runner.py", "--conf", "spark.ui.enabled=false", "--conf",
                    "spark.app.name=x", "pipelines/bronze/user_events.yaml", "--available-now")  # fmt: skip
    assert result.returncode == 1
    said = result.stdout + result.stderr  # spark-submit relays what its script says to standard output
    lines = [line for line in said.splitlines() if line.startswith("MISSING_JARS")]
    assert len(lines) == 1, said[-3000:]
    assert '--driver-class-path "$(lakehouse jars --dir)/*" --jars "$(lakehouse jars --list)"' in lines[0]
    assert "Traceback" not in said
