"""Where rows come from. This list is explicit: a new source is its file, its test and a line here."""

from lakehouse_engine.sources.delta import Delta
from lakehouse_engine.sources.files import Files
from lakehouse_engine.sources.jdbc import Jdbc
from lakehouse_engine.sources.kafka import Kafka
from lakehouse_engine.sources.rate import Rate

SOURCES = {source.key: source for source in (Kafka, Delta, Files, Jdbc, Rate)}
LATER: set[str] = set()
Source = Kafka | Delta | Files | Jdbc | Rate
#: what may come as a stream
Streamed = Kafka | Delta | Rate | Files
#: their rows are judged by the contract that they name
Judged = Files | Jdbc

__all__ = ["LATER", "SOURCES", "Delta", "Files", "Jdbc", "Judged", "Kafka", "Rate", "Source", "Streamed"]
