"""Creates the topic of user events unless it is there: KAFKA_PARTITIONS (3), KAFKA_RETENTION_HOURS (24)."""

from __future__ import annotations

import os
from pathlib import Path

from lakehouse_engine.local.kafka import ensure_topic
from lakehouse_engine.spec.environment import load_environment

topic = os.environ.get("KAFKA_TOPIC", "user-events")
made = ensure_topic(
    load_environment(os.environ.get("LAKEHOUSE_ENV"), Path.cwd()).kafka_bootstrap,
    topic,
    partitions=int(os.environ.get("KAFKA_PARTITIONS", "3")),
    retention_ms=int(os.environ.get("KAFKA_RETENTION_HOURS", "24")) * 60 * 60 * 1000,
)
print(f"topic {topic} has {made} partitions")
