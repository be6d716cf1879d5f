"""The reference says what the code says: every component, option and guarantee, with examples that are loaded."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lakehouse_engine import reference
from lakehouse_engine.checks import CHECKS
from lakehouse_engine.component import Component
from lakehouse_engine.errors import UsageError
from lakehouse_engine.schema import loosely_typed
from lakehouse_engine.sinks import SINKS
from lakehouse_engine.sources import SOURCES
from lakehouse_engine.spec import yaml
from lakehouse_engine.transforms import TRANSFORMS
from lakehouse_engine.validation import validate

ROOT = Path(__file__).parents[1]
KINDS = {"sources": SOURCES, "transforms": TRANSFORMS, "checks": CHECKS, "sinks": SINKS}
COMPONENTS = [(kind, key) for kind, known in KINDS.items() for key in known]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages(ROOT)


def test_the_pages_in_the_repository_are_as_the_code_says() -> None:
    reference.check(ROOT / "docs" / "reference", ROOT)


def test_a_stale_page_is_named(tmp_path: Path) -> None:
    reference.write(tmp_path, ROOT)
    (tmp_path / "sinks.md").write_text("old")
    with pytest.raises(UsageError, match=r": sinks\.md: ") as caught:
        reference.check(tmp_path, ROOT)
    assert caught.value.code == "STALE"


@pytest.mark.parametrize(("kind", "key"), COMPONENTS)
def test_a_component_is_documented_with_an_example(kind: str, key: str, pages: dict[str, str], tmp_path: Path) -> None:
    component: type[Component] = KINDS[kind][key]
    section = re.split(r"^## ", pages[f"{kind}.md"], flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{key}\n")]
    assert inspect.getdoc(component)
    assert inspect.getdoc(component) != inspect.getdoc(Component)
    assert not loosely_typed(component), "a type of an option has no shape for schema and reference"
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    assert not yaml.read(tmp_path / "example.yaml", "example.yaml").problems


@pytest.mark.parametrize(("kind", "key"), [one for one in COMPONENTS if one[0] in ("sources", "sinks")])
def test_a_source_and_a_sink_say_what_they_guarantee(kind: str, key: str, pages: dict[str, str]) -> None:
    (text,) = [part for part in pages[f"{kind}.md"].split("\n## ") if part.startswith(f"{key}\n")]
    assert "**Delivery guarantees**: " in text


@pytest.mark.parametrize("env", [None, "production"])
def test_the_examples_are_valid(env: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    assert validate([], env, Path.cwd()).problems == ()


def test_the_site_builds_without_a_dead_link_and_not_with_one(tmp_path: Path) -> None:
    for name in ("docs", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)  # type: ignore[operator]

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, text=True,
                              capture_output=True, timeout=120)  # fmt: skip

    done = build()
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    index = (tmp_path / "build" / "site" / "index.html").read_text()
    assert 'href="airflow.html"' in index
    with (tmp_path / "docs" / "editors.md").open("a") as file:
        file.write("\n[nowhere](nowhere.md)\n")
    done = build()
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
