"""The whole platform once, on real parts, ending in a reconciliation by plain Python. Cleans up after itself.

Starts Kafka and PostgreSQL in a folder of its own, sends live events (some repeated, late and malformed), runs bronze
and the real-time pipelines in one Spark application, then silver, gold and serve, prints the tables, and recounts
everything from the topic. Exits non-zero when one number is off. In the end it offers the dashboard: in a terminal it
asks, and with --keep what it started stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
LAKEHOUSE = [sys.executable, "-m", "lakehouse_engine.cli"]
TABLES = {
    "realtime.events_per_minute": "window_start, event_type",
    "realtime.logins_per_source": "window_start, source",
    "realtime.purchases_per_minute": "window_start",
    "gold.daily_active_users": "event_date",
    "gold.conversion_rate_daily": "event_date",
    "gold.events_per_source_daily": "event_date, source",
    "gold.purchases_per_page_daily": "event_date, page",
}


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=800.0, help="events per second")
    parser.add_argument("--share", type=float, default=0.05, help="of events each: repeated, late, malformed")
    parser.add_argument("--keep", action="store_true", help="leave Kafka, PostgreSQL and the data for the dashboard")
    options = parser.parse_args()
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="lakehouse-demo-"))
    root.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    streams: subprocess.Popen[bytes] | None = None
    kept = False

    def lakehouse(*words: str) -> None:
        subprocess.run([*LAKEHOUSE, *words], cwd=root, env=environment, check=True)

    try:
        shutil.copytree(PROJECT / "pipelines", root / "pipelines")
        say("a real Kafka broker and a real PostgreSQL")
        lakehouse("up")
        lakehouse("produce", "--rate", "0", "--events", "100", "--seed", "7")
        say("bronze and real-time pipelines, one Spark application, while events arrive")
        command = [*LAKEHOUSE, "run", "pipelines/bronze", "pipelines/realtime"]
        streams = subprocess.Popen(command, cwd=root, env=environment)
        settle(root, streams)  # late is what comes after others of its time have been counted: Spark must be up
        share = str(options.share)
        lakehouse("produce", "--rate", str(options.rate), "--events", str(options.events), "--seed", "42",
                  "--duplicates", share, "--late", share, "--malformed", share)  # fmt: skip
        say("waiting until the last event has been read")
        settle(root, streams)
        streams.send_signal(signal.SIGTERM)
        if streams.wait(timeout=60) != 0:
            print("the streams ended with an error", file=sys.stderr)
            return 1
        streams = None
        if not options.share <= 0 and not kept_aside(root):
            print("no row was late or none was quarantined: the demo shows less than it says", file=sys.stderr)
            return 1
        say("what came after: bronze to its end, then silver and gold")
        lakehouse("run", "--available-now", "pipelines")
        say("gold into PostgreSQL")
        lakehouse("serve", "pipelines/gold")
        show(root)
        say("status")
        lakehouse("status")
        say("reconciliation: everything counted again, from the topic, by plain Python")
        services = json.loads((root / ".lakehouse" / "services.json").read_text())
        code = subprocess.run([
            sys.executable, str(HERE / "reconcile.py"), "--bootstrap-servers", services["kafka"]["bootstrap_servers"],
            "--dsn", services["postgres"]["dsn"], "--storage", str(root / ".lakehouse" / "storage"),
            "--topic", "user-events",
        ]).returncode  # fmt: skip
        print(f"\n{'every number is right' if code == 0 else 'NUMBERS ARE OFF'}; {time.monotonic() - began:.0f} s")
        kept = options.keep
        if kept:
            say(f"kept in {root}; look at it there, and end it")
            print(f"  cd {root} && export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
            for words in ("dashboard", "run pipelines/bronze pipelines/realtime   # beside it: the streams go on",
                          "produce --rate 50", "down"):  # fmt: skip
                print(f"  lakehouse {words}")
        elif sys.stdin.isatty() and sys.stdout.isatty():
            if input("\nlook at it in the browser, with events that go on? [y/N] ").strip().lower() in ("y", "yes"):
                look(root, environment)
        else:
            print("to look at it in the browser: make demo KEEP=1")
        return code
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd[2:])} ended with status {error.returncode}", file=sys.stderr)
        return 1
    finally:
        if streams is not None and streams.poll() is None:
            streams.send_signal(signal.SIGTERM)
            try:
                streams.wait(timeout=60)
            except subprocess.TimeoutExpired:
                streams.kill()
        if not kept:
            subprocess.run([*LAKEHOUSE, "down"], cwd=root, env=environment, check=False)
            shutil.rmtree(root, ignore_errors=True)


def look(root: Path, environment: dict[str, str]) -> None:
    """Streams, events and the dashboard, until Ctrl-C or until the dashboard ends."""
    beside = [["run", "pipelines/bronze", "pipelines/realtime"], ["produce", "--rate", "50"]]
    # sessions of their own: Ctrl-C is for the dashboard, and these are ended after it
    running = [subprocess.Popen([*LAKEHOUSE, *words], cwd=root, env=environment, start_new_session=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for words in beside]  # fmt: skip
    dashboard = subprocess.Popen([*LAKEHOUSE, "dashboard", "--port", "0", "--open"], cwd=root, env=environment)
    try:
        dashboard.wait()
    except KeyboardInterrupt:
        dashboard.wait(timeout=20)
    finally:
        for process in [dashboard, *running]:
            process.send_signal(signal.SIGTERM)
        for process in [dashboard, *running]:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def settle(root: Path, streams: subprocess.Popen[bytes], limit: float = 120.0) -> None:
    """Waits until every real-time pipeline's ledger has reached the end of the topic."""
    import psycopg2
    from confluent_kafka import Consumer, TopicPartition

    services = json.loads((root / ".lakehouse" / "services.json").read_text())
    consumer = Consumer({"bootstrap.servers": services["kafka"]["bootstrap_servers"], "group.id": "demo"})
    ends = {p: consumer.get_watermark_offsets(TopicPartition("user-events", p))[1] for p in range(3)}
    consumer.close()
    connection = psycopg2.connect(services["postgres"]["dsn"])
    connection.autocommit = True
    deadline = time.monotonic() + limit
    with connection.cursor() as cursor:
        while True:
            cursor.execute("select to_regclass('lakehouse.positions') is not null")
            if cursor.fetchone()[0]:
                cursor.execute("select partition, min(next_offset), count(*) from lakehouse.positions group by 1")
                reached = {partition: offset for partition, offset, pipelines in cursor.fetchall() if pipelines == 3}
                if reached == ends:
                    break
            if streams.poll() is not None or time.monotonic() > deadline:
                raise subprocess.CalledProcessError(streams.poll() or 1, ["", "", "the streams"])
            time.sleep(0.2)
    connection.close()


def kept_aside(root: Path) -> bool:
    """Whether the live part had late and quarantined rows, as it must to show anything."""
    import psycopg2

    services = json.loads((root / ".lakehouse" / "services.json").read_text())
    connection = psycopg2.connect(services["postgres"]["dsn"])
    with connection, connection.cursor() as cursor:
        cursor.execute("select sum(late), sum(quarantined) from lakehouse.batches")
        late, quarantined = cursor.fetchone()
    connection.close()
    return bool(late and quarantined)


def show(root: Path, rows: int = 6) -> None:
    import psycopg2

    services = json.loads((root / ".lakehouse" / "services.json").read_text())
    connection = psycopg2.connect(services["postgres"]["dsn"])
    with connection, connection.cursor() as cursor:
        for table, order in TABLES.items():
            cursor.execute(f"select * from {table} order by {order} limit {rows}")
            heads = [column.name for column in cursor.description]
            lines = [[str(v)[:19] for v in row] for row in cursor.fetchall()]
            cursor.execute(f"select count(*) from {table}")
            say(f"{table} ({cursor.fetchone()[0]} rows)")
            widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
            for line in [heads, *lines]:
                print("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
