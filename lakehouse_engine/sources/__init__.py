"""Where rows come from. This list is explicit: a new source is its file, its test and a line here."""

from lakehouse_engine.sources.delta import Delta
from lakehouse_engine.sources.files import Files
from lakehouse_engine.sources.kafka import Kafka
from lakehouse_engine.sources.rate import Rate

SOURCES = {source.key: source for source in (Kafka, Delta, Files, Rate)}
LATER = {"jdbc"}
Source = Kafka | Delta | Files | Rate
#: what may come as a stream
Streamed = Kafka | Delta | Rate

__all__ = ["LATER", "SOURCES", "Delta", "Files", "Kafka", "Rate", "Source", "Streamed"]
