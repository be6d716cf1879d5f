"""``jdbc``: a table of a database that is not ours, through Spark's own writer.

**Delivery guarantees**: at least once. A stream adds each micro-batch in one transaction, and notes in the storage how
far that was; after a crash between the two the batch is there twice. A job empties the table and fills it in a second
transaction; who reads between the two finds it empty. After a crash there the next run fills it. The table is made
where there is none, with the types that Spark chooses; one that is there keeps its own. A second writer is not noticed.
"""

from __future__ import annotations

from lakehouse_engine.component import Component, ConnectionName
from lakehouse_engine.foreign import ForeignTable


class Jdbc(Component):
    """A table of another database."""

    #: of the environment: ``dwh`` is its connection ``jdbc.dwh``
    connection: ConnectionName
    #: as the database calls it, e.g. ``public.events``
    table: ForeignTable

    def target(self, pipeline: str) -> str:
        """The table."""
        return self.table
