"""Jars come by lock file, and nothing unverified gets on a class path."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import ivy, jars


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine's jars in a cache of their own."""
    kept = jars.engine_jars()
    monkeypatch.setenv("LAKEHOUSE_CACHE", str(tmp_path))
    folder = jars.engine_dir()
    folder.mkdir()
    for jar in kept:
        shutil.copy2(jar, folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching fails the test."""
    monkeypatch.setattr(jars, "fetch", lambda *_arguments: pytest.fail("asked for the network"))


def test_lock_files_name_each_jar_once_with_a_full_checksum() -> None:
    for name, count in (("engine", 13), ("broker", 46)):
        listed = jars.read_lock(name)
        assert len({jar.file for jar in listed}) == len(listed) == count
        assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) >= 0 for jar in listed)


def test_engine_folder_holds_exactly_the_locked_jars() -> None:
    found = jars.engine_jars()
    assert sorted(found) == sorted(jars.engine_dir().glob("*"))
    assert [path.name for path in found] == [jar.file for jar in jars.read_lock("engine")]


@pytest.mark.usefixtures("offline")
def test_known_jars_are_not_hashed_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars.engine_jars()
    monkeypatch.setattr(jars, "_verify", lambda jar, _path: pytest.fail(f"hashed {jar.file}"))
    began = time.perf_counter()
    assert len(jars.engine_jars()) == 13
    assert time.perf_counter() - began < 0.05


@pytest.mark.usefixtures("offline")
def test_a_jar_with_a_wrong_checksum_is_refused_by_name(copied: Path) -> None:
    jars.engine_jars()
    victim = next(copied.glob("postgresql-*.jar"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    os.utime(victim, (1, 1))
    with pytest.raises(RunError, match=victim.name) as raised:
        jars.engine_jars()
    assert raised.value.code == "JAR_CHECKSUM"
    assert "\n" not in str(raised.value)


def test_a_fetched_jar_with_a_wrong_checksum_never_reaches_the_cache(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = next(copied.glob("commons-pool2-*.jar"))
    victim.unlink()
    monkeypatch.setattr(jars, "fetch", lambda _jars, scratch, _report: Path(scratch, victim.name).write_bytes(b"other"))
    with pytest.raises(RunError, match=victim.name) as raised:
        jars.engine_jars()
    assert raised.value.code == "JAR_CHECKSUM"
    assert not victim.exists()


def test_only_a_missing_jar_is_fetched(copied: Path) -> None:
    victim, kept = sorted(copied.glob("*.jar"))[:2]
    before = kept.stat().st_mtime_ns
    victim.unlink()
    said: list[str] = []
    jars.engine_jars(said.append)
    assert victim.exists()
    assert kept.stat().st_mtime_ns == before
    assert said
    assert said[0].startswith("fetching 1 jars")


@pytest.mark.usefixtures("offline")
def test_a_stranger_on_the_class_path_is_refused(copied: Path) -> None:
    (copied / "stranger-1.0.jar").write_bytes(b"")
    with pytest.raises(RunError, match=r"stranger-1\.0\.jar") as raised:
        jars.engine_jars()
    assert raised.value.code == "JAR_UNEXPECTED"


def test_an_unreachable_repository_is_tried_again_and_then_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEHOUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("LAKEHOUSE_MAVEN", (tmp_path / "nothing").as_uri())
    monkeypatch.setattr(ivy.time, "sleep", lambda _seconds: None)
    said: list[str] = []
    with pytest.raises(RunError, match="in 3 tries") as raised:
        jars.engine_jars(said.append)
    assert raised.value.code == "JARS_UNREACHABLE"
    assert len([line for line in said if "failed" in line]) == 2
    assert not list(jars.engine_dir().glob("*"))
