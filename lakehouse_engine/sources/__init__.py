"""Where rows come from. This list is explicit: a new source is its file, its test and a line here."""

from lakehouse_engine.sources.delta import Delta
from lakehouse_engine.sources.files import Files
from lakehouse_engine.sources.kafka import Kafka

SOURCES = {source.key: source for source in (Kafka, Delta, Files)}
LATER = {"jdbc", "rate"}
Source = Kafka | Delta | Files

__all__ = ["LATER", "SOURCES", "Delta", "Files", "Kafka", "Source"]
