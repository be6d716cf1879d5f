"""From an event in Kafka to its number in the browser: real Kafka, Spark, PostgreSQL and Chromium.

Needs Debian's chromium. Prints the median and the longest of ``--events`` events, each sent when the one before it has
been seen, at another moment of the second each time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

from confluent_kafka import Producer
from playwright.sync_api import Page, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
LAKEHOUSE = [sys.executable, "-m", "lakehouse_engine.cli"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
#: the tile Total Events of the overview
VALUE = "document.querySelector('[data-panel=\"4\"] .value')?.dataset.value"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=30)
    count = parser.parse_args().events
    root = Path(tempfile.mkdtemp(prefix="lakehouse-page-"))
    root.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
    shutil.copytree(PROJECT / "pipelines", root / "pipelines")
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        made = subprocess.Popen([*LAKEHOUSE, *words], cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
        running.append(made)
        return made

    try:
        subprocess.run([*LAKEHOUSE, "up"], cwd=root, env=environment, check=True, stderr=subprocess.DEVNULL)
        subprocess.run([*LAKEHOUSE, "produce", "--rate", "0", "--events", "100"], cwd=root, env=environment, check=True)
        start("run", "pipelines/bronze", "pipelines/realtime")
        told = start("dashboard", "--port", "0").stderr
        assert told is not None
        address = re.search(r"http://[\d.:]+", told.readline())
        assert address is not None
        services = json.loads((root / ".lakehouse" / "services.json").read_text())
        producer = Producer({"bootstrap.servers": services["kafka"]["bootstrap_servers"], "linger.ms": 0})
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page()
            page.goto(address[0])
            wait(page, "100", 120)
            taken = [measure(producer, page, 100 + n) for n in range(1, count + 1)]
            browser.close()
        print(f"{count} events: median {statistics.median(taken):.2f} s, longest {max(taken):.2f} s")
        return 0
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.communicate(timeout=60)
        subprocess.run([*LAKEHOUSE, "down"], cwd=root, env=environment, check=False)
        shutil.rmtree(root, ignore_errors=True)


def measure(producer: Producer, page: Page, expected: int) -> float:
    """Seconds from sending one event until the page shows it."""
    time.sleep(0.37 * expected % 1)
    now = datetime.now(timezone.utc)
    event = {"event_id": uuid.uuid4().hex, "user_id": 1, "event_type": "click", "page": "/home", "source": "web",
             "timestamp": now.isoformat()}  # fmt: skip
    began = time.monotonic()
    producer.produce("user-events", json.dumps(event))
    producer.flush(10)
    wait(page, str(expected), 30)
    return time.monotonic() - began


def wait(page: Page, value: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while page.evaluate(VALUE) != value:
        if time.monotonic() > deadline:
            raise SystemExit(f"the page does not show {value} but {page.evaluate(VALUE)}")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
