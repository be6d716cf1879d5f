"""How long ``lakehouse test`` takes: the reference platform's tests, repeated until there are so many.

``python benchmarks/yaml_tests.py [50]``. Starting and stopping Spark, Kafka and PostgreSQL is part of the time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"^- name: ", re.MULTILINE)


def multiplied(pipelines: Path, wanted: int) -> int:
    """Repeats the tests of each file, in turn, under names of their own; returns how many there are."""
    files = {file: file.read_text() for file in sorted(pipelines.rglob("*.test.yaml"))}
    made = dict.fromkeys(files, "")
    count = turn = 0
    while count < wanted:
        for file, text in files.items():
            if count < wanted:
                made[file] += NAME.sub(f"- name: {turn} ", text) + "\n"
                count += len(NAME.findall(text))
        turn += 1
    for file, text in made.items():
        if text:
            file.write_text(text)
        else:
            file.unlink()
    return count


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        pipelines = Path(shutil.copytree(PROJECT / "pipelines", Path(folder, "pipelines")))
        count = multiplied(pipelines, wanted)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "lakehouse_engine.cli", "test"], cwd=folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        seconds = time.monotonic() - began
    print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("passed")))
    print(f"{count} tests: {seconds:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
