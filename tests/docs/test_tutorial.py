"""The tutorial does what it says, from its first line to its last."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.steps import Step, do, steps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """The reference platform as a reader of the tutorial has it."""
    folder = tmp_path / "clone"
    folder.mkdir(mode=0o755)
    for name in ("pipelines", "environments"):
        shutil.copytree(ROOT / name, folder / name)
    try:
        yield folder
    finally:
        subprocess.run([str(Path(sys.executable).with_name("lakehouse")), "down"], cwd=folder, timeout=60,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)  # fmt: skip


def test_a_page_is_files_to_write_and_commands_to_run() -> None:
    page = "a\n\n```yaml\n# p/x.yaml\na: 1\n```\n\n```sh\nls\n```\n```yaml\nb: 2\n```\n```text\nno\n```\n"
    assert list(steps(page)) == [Step(3, "# p/x.yaml\na: 1\n", "p/x.yaml"), Step(8, "ls\n")]


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="line 7: echo why; exit 3 ended with 3:\nwhy"):
        do(Step(7, "echo why; exit 3"), tmp_path, 10)


@pytest.mark.timeout(600)
def test_every_step_of_the_tutorial_works(project: Path) -> None:
    said = {step.line: do(step, project, 300) for step in steps(PAGE)}
    whole = "\n".join(said.values())
    assert "3 of 3" in whole or whole.count("passed") >= 3
