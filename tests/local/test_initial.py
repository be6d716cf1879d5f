"""`lakehouse init`: secrets that nobody can guess or read, written once."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lakehouse_engine.errors import RunError, UsageError
from lakehouse_engine.local.initial import UNPRIVILEGED, random_secret, write
from tests.platform import PROJECT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "compose").mkdir()
    for name in ("compose.yaml", "env.example"):
        shutil.copy(PROJECT / "compose" / name, tmp_path / "compose" / name)
    return tmp_path


def contents(project: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in (project / "compose").rglob("*") if path.is_file()}


def test_each_secret_of_compose_yaml_is_random_and_its_owners_alone(project: Path) -> None:
    written = write(project)
    declared = yaml.safe_load((project / "compose" / "compose.yaml").read_text())["secrets"]
    folder = project / "compose" / "secrets"
    assert {path.name for path in folder.iterdir()} == declared.keys()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    owner = os.getuid() or UNPRIVILEGED
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_uid == owner
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    values = [path.read_text() for path in folder.iterdir()]
    assert len(set(values)) == len(values) == len(written.made) - 1
    assert f"LAKEHOUSE_UID={owner}\n" in (project / "compose" / ".env").read_text()
    assert not set(values) & set((project / "compose" / ".env").read_text().split())


def test_no_character_means_anything_to_grafana_a_shell_or_an_address() -> None:
    assert all(set(random_secret()) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")
               for _ in range(50))  # fmt: skip


def test_a_second_time_changes_nothing_and_what_is_missing_is_added(project: Path) -> None:
    write(project)
    before = contents(project)
    assert write(project).made == ()
    assert contents(project) == before
    lost = project / "compose" / "secrets" / "engine_password"
    lost.unlink()
    assert write(project).made == (lost,)
    after = contents(project)
    assert after.pop(lost) != before.pop(lost)
    assert after == before


def test_a_secret_of_ones_own_is_kept_and_closed(project: Path) -> None:
    write(project)
    own = project / "compose" / "secrets" / "engine_password"
    own.write_text("chosen by hand")
    own.chmod(0o644)
    write(project)
    assert (own.read_text(), stat.S_IMODE(own.stat().st_mode)) == ("chosen by hand", 0o600)
    own.write_text("")
    with pytest.raises(RunError) as refused:
        write(project)
    assert refused.value.code == "SECRET_EMPTY"


@pytest.mark.parametrize("owner", ["0", "", "root"])
def test_containers_do_not_run_as_root(project: Path, owner: str) -> None:
    (project / "compose" / ".env").write_text(f"LAKEHOUSE_UID={owner}\n")
    with pytest.raises(RunError) as refused:
        write(project)
    assert refused.value.code == "SECRET_OWNER"
    assert not (project / "compose" / "secrets").exists()


def test_elsewhere_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        write(tmp_path)
    assert refused.value.code == "PROJECT_MISSING"


def test_the_command_takes_a_folder_and_prints_no_secret(project: Path) -> None:
    command = [sys.executable, "-m", "lakehouse_engine.cli", "init", str(project)]
    ran = subprocess.run(command, text=True, capture_output=True, timeout=60, cwd=PROJECT)
    assert ran.returncode == 0, ran.stderr
    assert f"docker compose -f {project}/compose/compose.yaml up -d" in ran.stdout
    for path in (project / "compose" / "secrets").iterdir():
        assert path.read_text() not in ran.stdout + ran.stderr


def test_git_ignores_what_it_writes() -> None:
    for path in ("compose/secrets/engine_password", "compose/.env"):
        ignored = subprocess.run(["git", "check-ignore", path], cwd=PROJECT, text=True, capture_output=True, timeout=60)
        assert ignored.stdout == f"{path}\n"
