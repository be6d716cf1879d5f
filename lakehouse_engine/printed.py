"""Tables as plain lines, as wide as they need to be: for pipes and logs, and for terminals that scroll."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

#: no table is wider
_WIDTH = 400


def lines(table: Table) -> list[str]:
    """Without colours, without blanks at the end, and without empty lines."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
