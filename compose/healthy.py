"""``healthy.py metrics | jobs | producer | airflow PART`` ends with 0 where the service does its work, and else with 1.

Each asks for the work itself rather than for a process. Containers and their variables: compose.yaml.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

ENV = os.environ.get("LAKEHOUSE_ENV", "compose")


def metrics() -> bool:
    """The runner, or who reads the ledger, answers as it does to Prometheus."""
    with urllib.request.urlopen(f"http://127.0.0.1:{os.environ.get('METRICS_PORT', '9464')}/metrics", timeout=5) as got:
        return b"lakehouse_" in got.read()


def jobs() -> bool:
    """The warm engine proves that it holds its token."""
    from lakehouse_engine import client

    return client.answers(client.address(Path.cwd(), ENV))


def producer() -> bool:
    """The topic's newest record is not older than a minute, or than what ten events take at the rate asked for."""
    from confluent_kafka import Consumer, TopicPartition

    from lakehouse_engine.spec.environment import load_environment

    topic = os.environ.get("KAFKA_TOPIC", "user-events")
    rate = float(os.environ.get("EVENTS_PER_SECOND", "5"))
    since = int((time.time() - max(60.0, 10 / rate if rate else 0.0)) * 1000)
    bootstrap = load_environment(ENV, Path.cwd()).kafka_bootstrap
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "healthy", "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        found = consumer.offsets_for_times([TopicPartition(topic, number, since) for number in partitions], timeout=5)
        # -1, the end: no record as young as that
        return any(one.offset >= 0 for one in found)
    finally:
        consumer.close()


def airflow(part: str) -> bool:
    """The API server knows of a recent heartbeat of ``part``."""
    address = f"{os.environ.get('AIRFLOW_API', 'http://airflow:8080')}/api/v2/monitor/health"
    with urllib.request.urlopen(address, timeout=5) as answer:
        return bool(json.load(answer)[part]["status"] == "healthy")


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    well = {"metrics": metrics, "jobs": jobs, "producer": producer, "airflow": airflow}[what](*words)
    sys.exit(0 if well else 1)
