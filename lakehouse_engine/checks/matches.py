"""``matches``: a text column matches a pattern somewhere. ``matches: {page: "^/"}``.

The pattern is a regular expression of Java's, found anywhere in the text: anchor it with ``^`` and ``$``. What Python's
``re`` cannot read either is refused before anything starts.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from lakehouse_engine import sql
from lakehouse_engine.checks.row import RowCheck
from lakehouse_engine.component import Column

#: what Java's patterns have and Python's lack, and its nearest equal
_JAVA = ((re.compile(r"\\[pP]\{[A-Za-z]+\}"), "x"), (re.compile(r"\\z"), r"\\Z"), (re.compile(r"\\h"), r"\\s"))


def _readable(pattern: str) -> str:
    text = pattern
    for theirs, ours in _JAVA:
        text = theirs.sub(ours, text)
    try:
        re.compile(text)
    except re.error as error:
        raise PydanticCustomError("BAD_PATTERN", "{pattern} is not a regular expression: {reason}",
                                  {"pattern": repr(pattern), "reason": str(error)}) from None  # fmt: skip
    return pattern


class Matches(RowCheck):
    """One rule a column."""

    #: for each column the pattern that its text matches
    patterns: dict[Column, Annotated[str, AfterValidator(_readable)]]

    @classmethod
    def short(cls, value: object) -> object:
        return {"patterns": value}

    def rules(self) -> list[tuple[str, str]]:
        return [(f"matches({column})", f"{column} rlike {sql.string(pattern)}")
                for column, pattern in self.patterns.items()]  # fmt: skip
