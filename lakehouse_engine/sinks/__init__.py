"""Where rows land. This list is explicit: a new sink is its file, its test and a line here."""

from lakehouse_engine.sinks.console import Console
from lakehouse_engine.sinks.delta import Delta
from lakehouse_engine.sinks.files import Files
from lakehouse_engine.sinks.jdbc import Jdbc
from lakehouse_engine.sinks.kafka import Kafka
from lakehouse_engine.sinks.postgres import Postgres

SINKS = {sink.key: sink for sink in (Delta, Postgres, Jdbc, Kafka, Files, Console)}
LATER: set[str] = set()
Sink = Delta | Postgres | Jdbc | Kafka | Files | Console
#: they hold no ledger of ours: what they were given is noted in the storage
Unkept = Jdbc | Kafka | Files

__all__ = ["LATER", "SINKS", "Console", "Delta", "Files", "Jdbc", "Kafka", "Postgres", "Sink", "Unkept"]
