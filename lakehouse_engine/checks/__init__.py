"""Data-quality rules, in dbt's vocabulary. This list is explicit: a new check is its file, its test and a line here.

Row checks (``row.py``) judge one row, and stand under ``checks`` or in a ``check`` step; table checks (``table.py``)
judge a whole result.
"""

from __future__ import annotations

from typing import Any

from lakehouse_engine.checks.accepted_values import AcceptedValues
from lakehouse_engine.checks.expression import ExpressionCheck
from lakehouse_engine.checks.freshness import Freshness
from lakehouse_engine.checks.matches import Matches
from lakehouse_engine.checks.not_null import NotNull
from lakehouse_engine.checks.range import Range
from lakehouse_engine.checks.relationship import Relationship, related
from lakehouse_engine.checks.row import RowCheck, Share, judge
from lakehouse_engine.checks.row_count import RowCount
from lakehouse_engine.checks.table import TableCheck
from lakehouse_engine.checks.unique import Unique

Check = (
    NotNull | AcceptedValues | Range | Matches | ExpressionCheck | Relationship | Unique | RowCount | Freshness
)  # fmt: skip
CHECKS: dict[str, Any] = {
    c.key: c for c in (NotNull, AcceptedValues, Range, Matches, ExpressionCheck, Relationship, Unique, RowCount,
                       Freshness)}  # fmt: skip
LATER: set[str] = set()
COMMON = {"name", "on_fail", "tolerance", "where"}

__all__ = ["CHECKS", "COMMON", "LATER", "AcceptedValues", "Check", "ExpressionCheck", "Freshness", "Matches", "NotNull",
           "Range", "Relationship", "RowCheck", "RowCount", "Share", "TableCheck", "Unique", "judge",
           "related"]  # fmt: skip
