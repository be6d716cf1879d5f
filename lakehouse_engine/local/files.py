"""Where the embedded stack keeps what it fetches, and how it writes files that several processes share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lakehouse_engine.errors import RunError

Report = Callable[[str], None]


def silent(_text: str) -> None:
    """The report of a caller who wants none."""


def cache_dir() -> Path:
    """``$LAKEHOUSE_CACHE``, else ``~/.cache/lakehouse``, created. Raises CACHE_UNWRITABLE."""
    chosen = os.environ.get("LAKEHOUSE_CACHE")
    folder = Path(chosen).absolute() if chosen else _home() / ".cache" / "lakehouse"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            "CACHE_UNWRITABLE",
            f"cannot create the cache folder ({error.strerror}); set LAKEHOUSE_CACHE to a folder you may write",
            where=str(folder),
        ) from error
    return folder


def _home() -> Path:
    # HOME is unset or empty under some service managers, where Python would answer "/".
    if os.environ.get("HOME"):
        return Path(os.environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise RunError(
            "CACHE_UNWRITABLE", f"user {os.getuid()} has no home folder; set LAKEHOUSE_CACHE to a folder you may write"
        ) from error


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace ``path`` as a whole: a reader sees the old text or the new one, also after a power cut."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def locked(path: Path, *, deadline: float, busy: RunError, report: Report = silent) -> Iterator[None]:
    """Hold ``path`` against other processes; the kernel lets go of it when the holder dies. Raises ``busy``."""
    limit = time.monotonic() + deadline
    told = False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise busy from None
                if not told:
                    report(f"waiting for another process that holds {path.name}")
                    told = True
                time.sleep(0.05)
        yield
