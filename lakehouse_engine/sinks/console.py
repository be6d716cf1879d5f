"""``console``: prints rows, for looking while you write a pipeline.

**Delivery guarantees**: none; nothing is stored, and a run always begins where ``start`` says.
"""

from __future__ import annotations

from lakehouse_engine.component import Component, Whole


class Console(Component):
    """Prints rows of each micro-batch or run."""

    #: so many at most
    rows: Whole = 20

    def target(self, pipeline: str) -> str:
        """What people call it."""
        return self.key
