"""Where rows land. This list is explicit: a new sink is its file, its test and a line here."""

from lakehouse_engine.sinks.console import Console
from lakehouse_engine.sinks.delta import Delta
from lakehouse_engine.sinks.postgres import Postgres

SINKS = {sink.key: sink for sink in (Delta, Postgres, Console)}
LATER = {"kafka", "jdbc", "files"}
Sink = Delta | Postgres | Console

__all__ = ["LATER", "SINKS", "Console", "Delta", "Postgres", "Sink"]
