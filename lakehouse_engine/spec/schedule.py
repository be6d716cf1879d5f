"""When a job runs: a word, or a cron line of five fields."""

from __future__ import annotations

import re

SCHEDULES = ("daily", "hourly", "weekly", "manual", "upstream")
#: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday)
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_PART = r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([1-9][0-9]?))?"
#: what can be told of a cron line without counting: five fields of the right characters
SHAPE = r"^\s*" + r"\s+".join([r"[0-9*/,-]+"] * len(_CRON)) + r"\s*$"


def is_schedule(value: object) -> bool:
    return isinstance(value, str) and (value in SCHEDULES or _is_cron(value))


def _is_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) == len(_CRON) and all(map(_is_cron_field, fields, _CRON))


def _is_cron_field(text: str, bounds: tuple[int, int]) -> bool:
    """``*``, a number, a range or a list of those, each with ``/step`` or without."""
    for part in text.split(","):
        match = re.fullmatch(_PART, part)
        if match is None:
            return False
        ends = [int(end) for end in match.group(1, 2) if end is not None]
        if ends != sorted(ends) or any(not bounds[0] <= end <= bounds[1] for end in ends):
            return False
    return True
