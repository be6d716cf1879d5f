"""`lakehouse init DIR`: a project of one's own that runs with the installed package, away from this repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lakehouse_engine.cli import main
from tests.platform import PROJECT


def python(*words: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], cwd=cwd, text=True, capture_output=True, timeout=280,
                          env={**os.environ, "PYTHONPATH": str(path or "")})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What the wheel puts into an environment. Built from a copy: beside the sources, old files would get into it."""
    sources = tmp_path / "sources"
    shutil.copytree(PROJECT / "lakehouse_engine", sources / "lakehouse_engine")
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, sources)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    python(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(sources), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    python(*pip, "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    return tmp_path / "site"


def test_a_new_project_is_valid_and_its_tests_pass_with_the_installed_package(installed: Path, tmp_path: Path) -> None:
    found = python("-c", "import lakehouse_engine; print(lakehouse_engine.__file__)", cwd=tmp_path, path=installed)
    assert Path(found.stdout.strip()).is_relative_to(installed)
    command = ("-m", "lakehouse_engine.cli")
    said = python(*command, "init", "shop", cwd=tmp_path, path=installed).stdout
    assert said == "a project in shop; next: cd shop && lakehouse validate && lakehouse test\n"
    shop = tmp_path / "shop"
    assert python(*command, "validate", cwd=shop, path=installed).stdout == "3 pipelines are valid\n"
    assert python(*command, "schema", "--check", cwd=shop, path=installed).stdout
    tested = python(*command, "test", cwd=shop, path=installed).stdout
    assert re.search(r"^2 passed, 0 failed in", tested, re.MULTILINE), tested


def init(folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["init", str(folder)])
    return done.exit_code, done.output


def test_its_files_are_what_the_readme_and_an_editor_look_for(tmp_path: Path) -> None:
    assert init(tmp_path / "shop")[0] == 0
    shop = tmp_path / "shop"
    readme = (shop / "README.md").read_text()
    assert readme.startswith("# shop\n")
    for name in re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE):
        assert (shop / name).exists(), name
    schemas = json.loads((shop / ".vscode" / "settings.json").read_text())["yaml.schemas"]
    assert {path.removeprefix("./schema/") for path in schemas} == {path.name for path in (shop / "schema").iterdir()}
    assert ".lakehouse/" in (shop / ".gitignore").read_text().splitlines()
    for command in re.findall(r"^lakehouse (\w+)", readme, re.MULTILINE):
        assert command in main.commands


def test_a_repository_that_is_new_keeps_its_files_and_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("ours")
    assert init(tmp_path)[0] == 0
    assert (tmp_path / "README.md").read_text() == "ours"
    assert (tmp_path / "pipelines" / "gold").is_dir()
    again, said = init(tmp_path)
    assert (again, "PROJECT_MISSING" in said) == (2, True)

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    refused, said = init(other)
    assert (refused, said.strip()) == (2, f"{other}: FOLDER_IN_USE: thesis.tex is there already; name a new folder:"
                                          " lakehouse init NAME")  # fmt: skip
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
