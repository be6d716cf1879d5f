"""Which columns of the other side ``lookup`` and ``join`` add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def taken(take: Mapping[str, str] | None, keys: Mapping[str, str], theirs: Iterable[str],
          without: Iterable[str] = ()) -> dict[str, str]:  # fmt: skip
    """New name to theirs: ``take``, or all of theirs that are no keys and do not begin with ``_``."""
    if take is not None:
        return dict(take)
    left = {name.lower() for name in (*keys.values(), *without)}
    return {name: name for name in theirs if not name.startswith("_") and name.lower() not in left}
