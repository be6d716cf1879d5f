"""compose.yaml as data, and a project whose secrets `lakehouse init` has written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.orchestration.conftest import airflow_venv
from tests.platform import PROJECT

__all__ = ["airflow_venv"]  # a fixture of tests/orchestration

COMPOSE = PROJECT / "compose" / "compose.yaml"
Service = dict[str, Any]


def services() -> dict[str, Service]:
    found: dict[str, Service] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def declared(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())[kind]
    return found


def filled(text: str, variables: dict[str, str]) -> str:
    """``${NAME:-default}`` as Compose fills it in."""
    return re.sub(r"\$\{([A-Z_]+)(?::-([^}]*))?\}", lambda m: variables.get(m[1], m[2]), text)


def init(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lakehouse_engine.cli", "init", *words]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(PROJECT)}, text=True,
                          capture_output=True, timeout=60)  # fmt: skip


def tool(name: str, package: str) -> str:
    """A program of the system; its package is installed by .ci/run."""
    found = shutil.which(name)
    if found is None:
        assert "CI" not in os.environ, f"Debian's package {package} is missing"
        pytest.skip(f"Debian's package {package} is not installed")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    (folder / "compose").mkdir()
    for name in ("compose.yaml", "env.example"):
        shutil.copy(PROJECT / "compose" / name, folder / "compose" / name)
    made = init(folder)
    assert made.returncode == 0, made.stderr
    return folder
