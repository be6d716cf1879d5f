"""``jdbc``: a table of a database that is not ours, for jobs.

Columns: those of the contract. Each row is judged as ``parse`` judges the JSON that it would be: one that does not keep
the contract is quarantined with its text and every reason. Columns that the contract does not name are not read, unless
it allows no others. A column without a value is a field that is not there.

**Delivery guarantees**: a run reads the table once, by one query, so it sees it as it was at one moment. Databases do
not tell what has changed since: each run computes its whole result anew. A row that is changed and changed back between
two runs is not seen.
"""

from __future__ import annotations

from lakehouse_engine.component import Component, ConnectionName
from lakehouse_engine.contract import ContractName
from lakehouse_engine.foreign import ForeignTable

#: the columns of what is read, before the contract
COLUMNS = {"_value": "binary"}


class Jdbc(Component):
    """A table of another database, for jobs."""

    #: of the environment: ``crm`` is its connection ``jdbc.crm``
    connection: ConnectionName
    #: as the database calls it, e.g. ``public.customers``
    table: ForeignTable
    #: the name of a file in ``pipelines/contracts/``
    contract: ContractName

    @property
    def origin(self) -> str:
        """What people call it."""
        return f"{self.connection}.{self.table}"
