"""Compares rows as a test writes them with rows as a table holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

Found = Mapping[str, Any]
TOLERANCE = 1e-9
_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9}))?(Z|[+-]\d{2}:\d{2})?")


def moment(value: Any) -> datetime | None:
    """ISO text, in UTC unless it says otherwise, or a time; None for everything else."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in (None, 'Z') else zone}")
    except ValueError:
        return None
    return whole.astimezone(timezone.utc) + timedelta(microseconds=int((fraction or "0").ljust(6, "0")[:6]))


def same(expected: Any, actual: Any) -> bool:
    """Equal as a reader sees it: times in UTC, dates as ISO text, numbers to nine digits, whole numbers exactly."""
    if expected is None or actual is None:
        return expected is actual
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, list | tuple) or isinstance(actual, list | tuple):
        return (isinstance(expected, list | tuple) and isinstance(actual, list | tuple) and len(expected) == len(actual)
                and all(map(same, expected, actual)))  # fmt: skip
    if isinstance(expected, Mapping) or isinstance(actual, Mapping):
        return (isinstance(expected, Mapping) and isinstance(actual, Mapping) and expected.keys() == actual.keys()
                and all(same(expected[key], actual[key]) for key in expected))  # fmt: skip
    if isinstance(expected, int) and isinstance(actual, int):
        return expected == actual
    if isinstance(actual, int | float | Decimal):
        return _numbers(expected, actual)
    times = moment(expected), moment(actual)
    if times[0] is not None and times[1] is not None:
        return times[0] == times[1]
    return str(expected) == (actual.isoformat() if isinstance(actual, date) else str(actual))


def _numbers(expected: Any, actual: Any) -> bool:
    try:  # text: decimals keep their digits in quotes
        one, other = Decimal(str(expected)), Decimal(str(actual))
    except InvalidOperation:
        return False
    if not (one.is_finite() and other.is_finite()):
        return str(one) == str(other)
    return abs(one - other) <= Decimal(TOLERANCE) * max(Decimal(1), abs(one))


@dataclass(frozen=True)
class Difference:
    """Rows that were written in the test and not found, and the other way round.

    ``changed``: pairs of them that are most likely one row, the expected one first.
    """

    changed: Sequence[tuple[Found, Found]]
    missing: Sequence[Found]
    unexpected: Sequence[Found]


def difference(expected: Sequence[Found], actual: Sequence[Found]) -> Difference | None:
    """None when each expected row has one of its own that agrees in the columns it writes, and none is left."""
    fits = [[j for j, found in enumerate(actual) if _agrees(row, found)] for row in expected]
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        # rows may write different columns, so the first that fits is not always the right one (Kuhn's matching)
        for j in fits[row]:
            if j not in tried:
                tried.add(j)
                if j not in owner or place(owner[j], tried):
                    owner[j] = row
                    return True
        return False

    missing = [row for i, row in enumerate(expected) if not place(i, set())]
    left = [found for j, found in enumerate(actual) if j not in owner]
    if not missing and not left:
        return None
    written = [*dict.fromkeys(column for row in expected for column in row)]
    found = [_reduced(row, written) for row in left]
    pairs = sorted(_paired(missing, found))
    gone, new = {i for i, _ in pairs}, {j for _, j in pairs}
    return Difference([(missing[i], found[j]) for i, j in pairs],
                      [row for i, row in enumerate(missing) if i not in gone],
                      [row for j, row in enumerate(found) if j not in new])  # fmt: skip


def _agrees(expected: Found, actual: Found) -> bool:
    return all(column in actual and same(value, actual[column]) for column, value in expected.items())


def _paired(expected: Sequence[Found], actual: Sequence[Found]) -> Iterator[tuple[int, int]]:
    """The places of rows that agree in more columns than not, those that agree most first."""
    scores = sorted(((sum(column in found and same(value, found[column]) for column, value in row.items()) / len(row),
                      -i, -j) for i, row in enumerate(expected) if row for j, found in enumerate(actual)),
                    reverse=True)  # fmt: skip
    left, right = set[int](), set[int]()
    for score, i, j in scores:
        if score < 0.5 or -i in left or -j in right:
            continue
        left.add(-i)
        right.add(-j)
        yield -i, -j


def _reduced(row: Found, written: Sequence[str]) -> Found:
    """The columns that the test writes; where it writes none, all that a test may compare."""
    shown = [column for column in written if column in row]
    return {column: row[column] for column in shown} if shown else {k: v for k, v in row.items() if k != "updated_at"}


def shown(value: Any) -> str:
    """As the test file would write it, but for quotes."""
    return written(value, lambda leaf: plain_text(leaf) or '""')


def written(value: Any, leaf: Callable[[Any], str]) -> str:
    """A value in YAML's braces; ``leaf`` writes what is neither a map, a list, a switch nor nothing."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(inner, leaf)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(inner, leaf) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return leaf(value)


def plain_text(value: Any) -> str:
    """A single value without quotes: times in UTC, everything else as it calls itself."""
    time = moment(value)
    return time.isoformat().replace("+00:00", "Z") if time else str(value)
