"""Where rows land. This list is explicit: a new sink is its file, its test and a line here."""

from lakehouse_engine.sinks.console import Console
from lakehouse_engine.sinks.delta import Delta
from lakehouse_engine.sinks.files import Files
from lakehouse_engine.sinks.kafka import Kafka
from lakehouse_engine.sinks.postgres import Postgres

SINKS = {sink.key: sink for sink in (Delta, Postgres, Kafka, Files, Console)}
LATER = {"jdbc"}
Sink = Delta | Postgres | Kafka | Files | Console

__all__ = ["LATER", "SINKS", "Console", "Delta", "Files", "Kafka", "Postgres", "Sink"]
