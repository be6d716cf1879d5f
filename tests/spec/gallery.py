"""Reads and checks the gallery of wrong files. ``python -m tests.spec.gallery`` writes what is said now into it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.spec.environment import Environment, load_environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.testing import reader
from tests.spec.project import write

FOLDER = Path(__file__).parents[1] / "gallery"
_MARK = "#! "
_ELSEWHERE = re.compile(r"([\w./-]+\.yaml):(\d+): (.*)")


@dataclass(frozen=True)
class Case:
    """Files of the small project that are changed, and ``file:line: CODE: message`` of all that is then said."""

    title: str
    files: dict[str, str]
    expected: tuple[str, ...]


def read(path: Path) -> Iterator[Case]:
    for part in path.read_text(encoding="utf-8").split("\n=== ")[1:]:
        title, _, body = part.partition("\n")
        files: dict[str, str] = {}
        expected = []
        for section in f"\n{body}".split("\n--- ")[1:]:
            name, _, text = section.partition("\n")
            lines: list[str] = []
            for line in text.rstrip("\n").split("\n"):
                if not line.startswith(_MARK):
                    lines.append(line)
                elif elsewhere := _ELSEWHERE.fullmatch(line.removeprefix(_MARK)):
                    expected.append(f"{elsewhere[1]}:{elsewhere[2]}: {elsewhere[3]}")
                else:
                    expected.append(f"{name}:{len(lines)}: {line.removeprefix(_MARK)}")
            files[name] = "\n".join(lines) + "\n"
        yield Case(title, files, tuple(expected))


def said(case: Case, root: Path) -> list[str]:
    """``file:line: CODE: message`` of everything that is wrong with the project and the files of the case."""
    write(root / "pipelines", {n: t for n, t in case.files.items() if not n.startswith("environments/")})
    for name, text in case.files.items():
        if name.startswith("environments/"):
            (root / "environments").mkdir(exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
    problems: list[Problem] = []
    environment: Environment | None = None
    if (root / "environments").is_dir():
        try:
            environment = load_environment("wrong", root)
        except SpecError as error:
            problems += error.problems
    for read_all in (lambda: load([root / "pipelines"], environment=environment), lambda: reader.find([root])):
        try:
            read_all()
        except SpecError as error:
            problems += error.problems
    return [str(problem).replace(f"{root}/pipelines/", "") for problem in problems]


def written(path: Path) -> str:
    """The gallery with what is said now beside each line."""
    head = path.read_text(encoding="utf-8").split("\n=== ")[0].rstrip("\n")
    parts = [head]
    for case in read(path):
        with tempfile.TemporaryDirectory() as folder:
            found = said(case, Path(folder))
        text = [f"=== {case.title}"]
        for name, content in case.files.items():
            text.append(f"--- {name}")
            for number, line in enumerate(content.rstrip("\n").split("\n"), 1):
                text.append(line)
                text += [_MARK + one.split(": ", 1)[1] for one in found if one.startswith(f"{name}:{number}: ")]
        own = tuple(f"{name}:" for name in case.files)
        text += [_MARK + one for one in found if not one.startswith(own)]
        parts.append("\n".join(text))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for gallery in sorted(FOLDER.glob("*.txt")):
        gallery.write_text(written(gallery), encoding="utf-8")
