"""Does what a page of documentation says: ``python -m tests.docs.steps PAGE FOLDER``.

A fenced block of yaml whose first line is ``# <path>`` is a file that a reader writes; a block of sh is what a reader
types, run by bash with ``-eu``. Any other block is only read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.yaml)\n")


@dataclass(frozen=True)
class Step:
    """``path``: the file that ``text`` becomes; None: ``text`` is run. ``line`` of the page."""

    line: int
    text: str
    path: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.path or self.text.splitlines()[0]}"


def steps(page: str) -> Iterator[Step]:
    for block in _FENCE.finditer(page):
        line, kind, text = page.count("\n", 0, block.start()) + 1, block[1], block[2]
        file = _FILE.match(text)
        if kind == "yaml" and file:
            yield Step(line, text, file[1])
        elif kind == "sh":
            yield Step(line, text)


def do(step: Step, folder: Path, timeout: float) -> str:
    """What it printed. Raises ``AssertionError`` with that when a command fails."""
    if step.path is not None:
        file = folder / step.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(step.text, encoding="utf-8")
        return ""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", step.text], cwd=folder, text=True, timeout=timeout,
                          env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.returncode == 0, f"{step} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def main(page: str, folder: str) -> None:
    for step in steps(Path(page).read_text(encoding="utf-8")):
        began = time.monotonic()
        print(f"== {step}", flush=True)
        print(do(step, Path(folder), 600), end="")
        print(f"   {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
