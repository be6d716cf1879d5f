"""``lakehouse validate``: all files at once, in text and JSON, quickly and without Spark."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lakehouse_engine.validation import validate
from tests.spec.project import LANDING, changed, write

PROJECT = Path(__file__).parents[1]
HEAVY = ("pyspark", "py4j", "delta", "confluent_kafka", "pandas", "numpy")
#: seconds of the processor, which a busy machine stretches less than those of the clock
BOUNDS = {"--help": 0.5, "validate --structure": 1.0, "plan --structure": 1.0, "graph": 0.5, "schema --check": 1.5,
          "validate --structure pipelines/gold/daily_active_users.yaml": 0.5}  # fmt: skip


def command(*words: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lakehouse_engine.cli", *words], cwd=cwd, text=True, timeout=60,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip


def cpu() -> float:
    """What the processes that this one has waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", list(BOUNDS))
def test_a_command_that_only_looks_at_files_is_quick_and_never_imports_spark(words: str) -> None:
    program = (
        "import sys, lakehouse_engine.cli as c\n"
        f"sys.argv = ['lakehouse', *{words.split()!r}]\n"
        "try:\n    c.main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"print('HEAVY', sorted({set(HEAVY)!r} & set(sys.modules)))"
    )
    best = float("inf")
    for _ in range(3):
        began = cpu()
        done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, text=True, capture_output=True, timeout=60)
        best = min(best, cpu() - began)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert best < BOUNDS[words] * 1.5, f"{words}: {best:.2f} s"


def test_problems_are_json_with_file_line_code_and_message(tmp_path: Path) -> None:
    write(tmp_path / "pipelines", {"bronze/clicks.yaml": changed(LANDING, "trigger", "trigger: {every: soon}")})
    done = command("validate", "--structure", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"valid": False, "pipelines": [], "problems": [
        {"file": "pipelines/bronze/clicks.yaml", "line": 6, "code": "BAD_DURATION",
         "message": "'soon' is not a duration; write e.g. 2 minutes or 30s", "path": "trigger.every"}]}  # fmt: skip


def test_the_reference_platform_is_valid_in_json(tmp_path: Path) -> None:
    found = json.loads(command("validate", "--structure", "--json").stdout)
    assert found["valid"]
    assert len(found["pipelines"]) == 9
    assert not found["problems"]


def test_an_environment_a_test_and_a_pipeline_are_wrong_at_once(tmp_path: Path) -> None:
    tests = "- nam: x\n  batches: []\n  expect: {rows: []}\n"
    write(tmp_path / "pipelines", {"bronze/clicks.yaml": changed(LANDING, "- parse", "  - parse: clik"),
                                   "bronze/clicks.test.yaml": tests})  # fmt: skip
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "production.yaml").write_text("storge: x\n")
    verdict = validate([tmp_path / "pipelines"], None, tmp_path, {})
    assert [(Path(p.file).name, p.code) for p in verdict.problems] == [
        ("clicks.test.yaml", "UNKNOWN_KEY"), ("clicks.yaml", "MISSING_CONTRACT"), ("production.yaml", "UNKNOWN_KEY")]
