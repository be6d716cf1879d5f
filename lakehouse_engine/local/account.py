"""PostgreSQL refuses to run as root: the existing user it runs as instead, and a place that user can reach."""

from __future__ import annotations

import os
import pwd
import secrets
from pathlib import Path

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report
from lakehouse_engine.local.process import Account, run

# Where root may put what another user has to reach.
COMMON = Path("/var/lib/lakehouse-yaml")


def unprivileged() -> Account | None:
    """``nobody`` when we are root, else None: we run as ourselves. Raises POSTGRES_NO_USER; creates no user."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise RunError(
            "POSTGRES_NO_USER",
            "PostgreSQL refuses root, and there is no user `nobody` to run it as; run as a plain user",
        ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def owner(data: Path, account: Account | None) -> Account | None:
    """Who must run existing ``data``: its owner, who may be a plain user that worked here before root did."""
    if account is None or not data.exists() or data.stat().st_uid == 0:
        return account
    found = data.stat()
    return Account(f"{found.st_uid}", found.st_uid, found.st_gid)


def reaches(account: Account | None, folder: Path) -> bool:
    """Whether the account can enter ``folder``. Asked of the kernel: modes alone miss ACLs and mount options."""
    return account is None or run(["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)], account, Path("/")).returncode == 0


def home_for(folder: Path, remembered: str | None, account: Account | None, report: Report) -> Path:
    """``folder``, or one under COMMON when the account cannot enter it (root's home). Raises POSTGRES_NO_PLACE."""
    if remembered is not None:
        home = Path(remembered)
        if not home.is_dir():
            raise RunError(
                "POSTGRES_NO_PLACE",
                f"the database kept there is gone; bring it back, or delete {folder} to start with an empty one",
                where=remembered,
            )
        return home
    if (folder / "data").exists() or reaches(account, folder):
        return folder
    assert account is not None
    # Never the name of a folder that was here before: its data would have a password nobody knows.
    home = COMMON / f"{folder.parent.parent.name}-{secrets.token_hex(6)}"
    common_folder(home)
    if not reaches(account, home):
        raise RunError(
            "POSTGRES_NO_PLACE", f"user {account.name} can enter neither {folder} nor this; open it", where=str(home)
        )
    report(f"user {account.name}, who runs PostgreSQL for root, cannot enter {folder}: keeping its data in {home}")
    return home


def common_folder(folder: Path) -> None:
    """Create ``folder`` under COMMON: others may pass through, but not look around. Raises POSTGRES_NO_PLACE."""
    try:
        for part in (COMMON, folder):
            part.mkdir(parents=True, exist_ok=True)
            part.chmod(0o711)
    except OSError as error:
        raise RunError(
            "POSTGRES_NO_PLACE", f"cannot create it ({error.strerror}); run as a plain user", where=str(folder)
        ) from error
