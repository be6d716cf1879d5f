"""``lakehouse new metric``: what it writes is valid at once, and its test passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lakehouse_engine.cli import main
from lakehouse_engine.errors import UsageError
from lakehouse_engine.local import stack as local
from lakehouse_engine.local.jars import engine_jars
from lakehouse_engine.scaffold import metric
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.testing.reader import find
from lakehouse_engine.testing.suite import run
from tests.spec.project import CONTRACT, write

HERE = Environment(storage="unused")


def new(root: Path, *words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(main, ["new", "metric", *words], catch_exceptions=False)
    return f"{done.exit_code} {done.stdout}"


def test_what_is_written_is_valid_and_there_stays_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pipelines", {})
    assert new(tmp_path, "clicks_daily", "--from", "bronze.clicks", monkeypatch=monkeypatch).startswith("0 next: ")
    assert new(tmp_path, "clicks_now", "--from", "bronze.clicks", "--stream", monkeypatch=monkeypatch).startswith("0 ")
    made = {spec.name: spec for spec in load([Path("pipelines")])}
    assert made["gold.clicks_daily"].key_columns == ("day",)
    assert made["realtime.clicks_now"].key_columns == ("window_start",)
    assert len(find([Path("pipelines")])) == 2
    with pytest.raises(UsageError, match="FILE_THERE"):
        metric("clicks_daily", "bronze.clicks", Path("pipelines"), HERE, stream=False).write()


@pytest.mark.parametrize(("name", "source", "stream", "code"), [
    ("Clicks", "bronze.clicks", False, "BAD_NAME"),
    ("a__b", "bronze.clicks", False, "BAD_NAME"),
    ("fine", "bronze.missing", False, "MISSING_TABLE"),
    ("fine", "realtime.clicks", False, "MISSING_TABLE"),
    ("fine", "silver.clicks", True, "MISSING_TABLE"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused(name: str, source: str, stream: bool, code: str, tmp_path: Path) -> None:
    write(tmp_path, {})
    with pytest.raises(UsageError, match=code):
        metric(name, source, tmp_path, HERE, stream=stream)


def test_a_contract_whose_records_cannot_be_made_up_is_refused(tmp_path: Path) -> None:
    strict = CONTRACT.replace("id: {type: string}", 'id: {type: string, pattern: "^[0-9]{4}$"}')
    write(tmp_path, {"contracts/click.yaml": strict})
    with pytest.raises(UsageError, match=r"NO_EXAMPLE: .*pattern"):
        metric("fine", "bronze.clicks", tmp_path, HERE, stream=True)


def test_the_tests_that_are_written_pass(tmp_path: Path) -> None:
    write(tmp_path, {})
    made = [metric("clicks_daily", "silver.clicks", tmp_path, HERE, stream=False),
            metric("clicks_now", "bronze.clicks", tmp_path, HERE, stream=True)]  # fmt: skip
    files = [file.write()[0] for file in made]
    results = run(files, jars=engine_jars, stack=local, report=lambda _: None)
    assert [result.message for result in results] == ["", ""]
