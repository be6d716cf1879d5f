"""What `lakehouse init` writes before containers can start: .env, and a random secret for each name in compose.yaml.
(A project in a new folder is ``starter.py``.)

Compose hands a secret's file into a container as it is, with its owner and its mode. The files are their owner's alone,
and the containers that read them run as that owner: ``LAKEHOUSE_UID`` in ``.env``.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lakehouse_engine.errors import RunError, UsageError
from lakehouse_engine.local.files import write_atomically

#: who owns the files when root writes them: PostgreSQL refuses to run as root, and nothing else should
UNPRIVILEGED = 10001
_OWNER = re.compile(r"^(LAKEHOUSE_UID=)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """Files that were made, and files that were there and stay as they are."""

    made: tuple[Path, ...]
    kept: tuple[Path, ...]


def write(root: Path) -> Written:
    """Writes what is missing below ``root``; changes the contents of nothing that is there.

    Raises ``UsageError`` PROJECT_MISSING, ``RunError`` SECRET_EMPTY, SECRET_OWNER.
    """
    compose = root / "compose" / "compose.yaml"
    if not compose.is_file():
        raise UsageError("PROJECT_MISSING", "this is a project without compose/compose.yaml, so there is nothing to"
                         " make; lakehouse init NAME makes a new one", where=str(root))
    declared: Mapping[str, Mapping[str, str]] = yaml.safe_load(compose.read_text(encoding="utf-8")).get("secrets", {})
    files = [compose.parent / one["file"] for one in declared.values()]
    settings, example = compose.with_name(".env"), compose.with_name("env.example")
    owner = _owner(settings)
    made: list[Path] = []
    kept: list[Path] = []
    for path in files:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            _give(path.parent, owner)
        path.parent.chmod(0o700)
        (made if _created(path, owner) else kept).append(path)
    if settings.exists():
        kept.append(settings)
    else:
        write_atomically(settings, _OWNER.sub(rf"\g<1>{owner}", example.read_text(encoding="utf-8")))
        made.append(settings)
    return Written(tuple(made), tuple(kept))


def random_secret() -> str:
    """256 random bits, as Airflow's Fernet wants its key; no character of it means anything to a shell or to Grafana,
    which expands a dollar sign."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _owner(settings: Path) -> int:
    """The user whom ``.env`` names, else the one we are, else, for root, one without rights."""
    if settings.exists():
        found = _OWNER.search(settings.read_text(encoding="utf-8"))
        if found is None or not found[2].strip().isdigit() or int(found[2]) == 0:
            raise RunError("SECRET_OWNER", "LAKEHOUSE_UID must be the number of a user other than root: who owns the"
                           " files in compose/secrets", where=str(settings))  # fmt: skip
        return int(found[2])
    return os.getuid() or UNPRIVILEGED


def _created(path: Path, owner: int) -> bool:
    """Whether the secret was made here; one that was there only becomes its owner's alone."""
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                # No line break at the end: not every reader takes it off.
                file.write(random_secret())
                file.flush()
                os.fsync(file.fileno())
            _give(Path(temporary), owner)
            # Unlike a rename this never replaces what somebody else has written meanwhile.
            os.link(temporary, path)
            return True
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    if not path.stat().st_size:
        raise RunError("SECRET_EMPTY", "the file is empty; delete it and run this again", where=str(path))
    _give(path, owner)
    path.chmod(0o600)
    return False


def _give(path: Path, owner: int) -> None:
    if path.stat().st_uid == owner:
        return
    try:
        os.chown(path, owner, -1)
    except PermissionError:
        raise RunError("SECRET_OWNER", f"belongs to user {path.stat().st_uid}, and compose/.env says LAKEHOUSE_UID="
                       f"{owner}: the containers could not read it", where=str(path)) from None  # fmt: skip
