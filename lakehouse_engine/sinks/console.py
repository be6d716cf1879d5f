"""``console``: prints rows, for looking while you write a pipeline.

**Delivery guarantees**: none; nothing is stored, and a run always begins where ``start`` says.
"""

from __future__ import annotations

from lakehouse_engine.component import Component


class Console(Component):
    """Prints up to ``rows`` rows of each micro-batch or run."""

    rows: int = 20
