"""The gallery of wrong files: each is refused with exactly the errors that stand beside its lines, without a service.

A gallery holds cases (``=== title``) of files (``--- path``, below ``pipelines`` of the small project of project.py). A
line that begins with ``#!`` is what is said of the line above it; it is no part of the file. ``python -m
tests.spec.gallery`` writes what is said now into the galleries, to be read before it is kept.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lakehouse_engine
from tests.spec.gallery import FOLDER, Case, read, said

CASES = [(path.stem, case) for path in sorted(FOLDER.glob("*.txt")) for case in read(path)]
PACKAGE = Path(lakehouse_engine.__file__).parent
#: where codes of wrong files come from
SOURCES = ["component.py", "contract/*.py", "sql.py", "testing/reader.py", "testing/subject.py",
           *(f"{part}/*.py" for part in ("spec", "sources", "transforms", "checks"))]  # fmt: skip
#: said by a run, or of a path that is no file; the loader's own tests have the latter
ELSEWHERE = {"SECRET_MISSING", "NO_CONNECTION", "STACK_DOWN", "ENVIRONMENT_MISSING", "KAFKA_UNREACHABLE",
             "MISSING_TOPIC", "DATA_LOST", "POSITION_BEYOND_TOPIC", "UNREADABLE", "NO_PIPELINES", "NO_TESTS",
             "CHECK_FAILED", "UNKNOWN_TOPIC", "MISSING_FILES", "TOPIC_RECREATED", "MISSING_JAR",
             "TABLE_RECREATED", "POSITION_BEYOND_TABLE", "ROWS_REWRITTEN", "CHANGES_OFF", "CHANGES_GONE",
             "TABLE_DIFFERS", "STREAM_FAILED", "FILE_CHANGED", "LIST_LOST", "FILES_UNREACHABLE"}  # fmt: skip


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{name}: {case.title}" for name, case in CASES])
def test_a_wrong_file_is_refused_with_what_stands_beside_its_lines(case: Case, tmp_path: Path) -> None:
    assert case.expected
    assert sorted(said(case, tmp_path)) == sorted(case.expected)


def test_the_gallery_holds_sixty_wrong_files_and_more() -> None:
    assert len({(name, case.title, file) for name, case in CASES for file in case.files}) >= 60


def test_every_code_that_a_file_can_be_refused_with_is_in_the_gallery() -> None:
    codes = {code for pattern in SOURCES for file in PACKAGE.glob(pattern)
             for code in re.findall(r'"([A-Z]+(?:_[A-Z]+)+|UNBALANCED|CYCLE)"', file.read_text())}  # fmt: skip
    shown = {line.split(": ")[1] for _, case in CASES for line in case.expected}
    constants = {code for code in codes if (PACKAGE / "spec" / "pipeline.py").read_text().count(f"{code}\",")}
    assert codes - shown - ELSEWHERE - constants == set()


def test_every_message_says_how_to_go_on_and_none_shows_what_is_inside() -> None:
    """No class of a library, no repr of Python, no bare restatement of a type's name."""
    for _, case in CASES:
        for line in case.expected:
            assert not re.search(r"<class|Input should|\bNoneType\b|\bdict\b|Traceback|pydantic|sqlglot", line), line
