"""What the sink ``files`` does in an object store, where nothing can be renamed as a whole.

A job adds the new files and then takes the old ones away: who reads between the two sees both. A run that ends there is
mended by the next, which takes away all that it finds. A stream moves its files to their names one by one; those of a
micro-batch that was not noted are taken away when it begins.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import unquote

from lakehouse_engine import remote

#: in a folder of ours: which pipeline writes it
OWNER = "_lakehouse.json"
#: a file of a stream: which micro-batch wrote it
BATCH = re.compile(r"batch-([0-9]{9,})-[0-9]+")
#: writes the rows below a URL
Save = Callable[[str], None]


def said(url: str, where: str) -> Mapping[str, Any] | None:
    """What the folder says of itself; None where there is nothing in it.

    Raises ``RunError`` MISSING_JAR, FILES_UNREACHABLE.
    """
    text = remote.text(f"{url}/{OWNER}", where)
    if text is None:
        return {} if remote.listed(url, where) else None
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def say(url: str, owner: Mapping[str, Any], where: str) -> None:
    remote.write(f"{url}/{OWNER}", json.dumps(owner), where)


def replace(save: Save, url: str, where: str, folders: Collection[str] | None) -> None:
    """The rows take the place of all, or of those in the first ``folders`` (``day=2026-01-01``)."""
    before = remote.listed(url, where)
    save(url)
    for path, file in before.items():
        if folders is None or unquote(path.partition("/")[0]) in folders:
            remote.delete(file.place, where)


def batches(url: str, where: str) -> dict[str, int]:
    """The files of a stream, with the numbers of their micro-batches."""
    named = {file.place: BATCH.match(file.place.rpartition("/")[2]) for file in remote.listed(url, where).values()}
    return {place: int(found[1]) for place, found in named.items() if found}


def add(save: Save, url: str, where: str, batch: int) -> None:
    """Adds the files of a micro-batch."""
    new = f"{url}/.new-{uuid.uuid4().hex[:8]}"
    try:
        save(new)
        for number, (path, file) in enumerate(remote.listed(new, where).items()):
            above, _, name = path.rpartition("/")
            to = "/".join(filter(None, (url, above, f"batch-{batch:09}-{number}{name[name.index('.') :]}")))
            remote.move(file.place, to, where)
    finally:
        remote.delete(new, where)
