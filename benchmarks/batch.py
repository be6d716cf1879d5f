"""The six batch commands on a warm engine, by their own wall times: first run, again, 1% new, nothing new; and history.

``python benchmarks/batch.py six`` (1,000,000 events) and ``python benchmarks/batch.py history`` (365 days of 50,000
events against 10 days). Each works in a folder of its own and cleans up. Times are of the commands as a shell sees
them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LAKEHOUSE = [sys.executable, "-m", "lakehouse_engine.cli"]
SIX = [
    ("run", "pipelines/silver/user_events.yaml"),
    ("run", "pipelines/gold/daily_active_users.yaml"),
    ("run", "pipelines/gold/conversion_rate_daily.yaml"),
    ("run", "pipelines/gold/events_per_source_daily.yaml"),
    ("run", "pipelines/gold/purchases_per_page_daily.yaml"),
    ("serve", "pipelines/gold"),
]


def lakehouse(root: Path, *words: str) -> float:
    """Runs a command; its wall time in seconds."""
    began = time.monotonic()
    done = subprocess.run([*LAKEHOUSE, *words], cwd=root, env={**os.environ, "PYTHONPATH": str(PROJECT)},
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr[-3000:]}")
    return time.monotonic() - began


def six(root: Path, what: str) -> float:
    times = [lakehouse(root, *words) for words in SIX]
    print(f"{what:42} {sum(times):6.2f} s   {' '.join(f'{t:.2f}' for t in times)}", flush=True)
    return sum(times)


def forget(root: Path) -> None:
    """Silver, gold and the mirror as before the first run."""
    import psycopg2

    for layer in ("silver", "gold"):
        shutil.rmtree(root / ".lakehouse" / "storage" / layer, ignore_errors=True)
    dsn = json.loads((root / ".lakehouse" / "services.json").read_text())["postgres"]["dsn"]
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("drop schema if exists gold cascade; drop table if exists lakehouse.served")
    connection.close()


@contextmanager
def project() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="lakehouse-batch-"))
    root.chmod(0o755)
    shutil.copytree(PROJECT / "pipelines", root / "pipelines")
    try:
        yield root
    finally:
        lakehouse(root, "down")
        shutil.rmtree(root, ignore_errors=True)


def bench_six(events: int) -> None:
    with project() as root:
        lakehouse(root, "up")
        lakehouse(root, "produce", "--rate", "0", "--events", str(events), "--seed", "1", "--duplicates", "0.02")
        lakehouse(root, "run", "--available-now", "pipelines/bronze")
        lakehouse(root, "up", "--engine")
        six(root, f"{events:,} events, engine just started")
        for number in (1, 2, 3, 4, 5):
            forget(root)
            six(root, f"{events:,} events, warm, run {number}")
        for number in (1, 2, 3):
            lakehouse(root, "produce", "--rate", "0", "--events", str(events // 100), "--seed", str(number + 1))
            lakehouse(root, "run", "--available-now", "pipelines/bronze")
            six(root, f"1% new, warm, run {number}")
        six(root, "nothing new")
        check(root)


def check(root: Path) -> None:
    """Every number is right, counted again from the topic by plain Python."""
    services = json.loads((root / ".lakehouse" / "services.json").read_text())
    done = subprocess.run(
        [sys.executable, str(PROJECT / "demo" / "reconcile.py"), "--bootstrap-servers",
         services["kafka"]["bootstrap_servers"], "--dsn", services["postgres"]["dsn"], "--storage",
         str(root / ".lakehouse" / "storage"), "--topic", "user-events", "--only", "bronze", "gold"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)  # fmt: skip
    print(done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-500:])


def bench_history(per_day: int, days: list[int], new: int) -> None:
    for number in days:
        with project() as root:
            lakehouse(root, "up")
            fill(root, number, per_day)
            lakehouse(root, "up", "--engine")
            first = six(root, f"{number} days: everything")
            times = []
            for _ in range(5):
                touch(root, new)
                times.append(six(root, f"{number} days: {new:,} events of one day more"))
            median = statistics.median(times)
            print(f"{number} days: first {first:.1f} s, increment {median:.2f} s (median of 5), {crowd(root)} files at"
                  f" most in a partition, snapshot load {snapshot(root):.3f} s", flush=True)  # fmt: skip


def crowd(root: Path) -> int:
    """Most live files in a partition of any table, as ``lakehouse maintain`` counts them."""
    said = subprocess.run([*LAKEHOUSE, "maintain", "--no-engine", "pipelines"], cwd=root, text=True,
                          env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True).stderr  # fmt: skip
    return max(int(number) for number in re.findall(r"(\d+) at most", said))


def snapshot(root: Path) -> float:
    """Seconds from nothing to the list of silver's files, in a warm JVM; median of ten."""
    return statistics.median(json.loads(session(root, SNAPSHOT).splitlines()[-1])[-10:])


SNAPSHOT = """
import json, time
path, log, times = os.path.abspath(".lakehouse/storage/silver/user_events"), spark._jvm.org.apache.spark.sql.delta.DeltaLog, []
for _ in range(20):
    log.clearCache()
    began = time.monotonic()
    log.forTable(spark._jsparkSession, path).update(False, spark._jvm.scala.Option.empty(), spark._jvm.scala.Option.empty()).allFiles().count()
    times.append(time.monotonic() - began)
print(json.dumps(times))
"""  # noqa: E501


def session(root: Path, script: str) -> str:
    """Runs a script on a Spark session of its own; what it printed."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PRELUDE + script], cwd=root, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    print(f"  (a session of {time.monotonic() - began:.0f} s)", flush=True)
    return done.stdout


PRELUDE = """
import os
from lakehouse_engine.local import jars, java
os.environ.update(java.find_java().environment())
from lakehouse_engine import session
spark = session.start("rows", jars=jars.engine_jars())
def rows(first, count, start, days):
    return spark.range(first, first + count).selectExpr(
        "uuid() as event_id", "cast(pow(rand(), 2) * 5000 as bigint) as user_id",
        "element_at(array('click', 'click', 'login', 'purchase', 'logout'), cast(id % 5 + 1 as int)) as event_type",
        "element_at(array('/home', '/cart', '/checkout', '/products'), cast(id % 4 + 1 as int)) as page",
        f"timestampadd(SECOND, cast(id % 86400 as int), timestampadd(DAY, cast(id % {days} as int), timestamp'{start}')) as timestamp",
        "if(id % 3 = 0, 'web', 'mobile') as source", "'user-events' as _topic", "cast(0 as int) as _partition",
        "id as _offset", "current_timestamp() as _timestamp").withColumn("event_date", __import__("pyspark").sql.functions.to_date("timestamp"))
def append(frame):
    frame = frame.select("event_id", "user_id", "event_type", "page", "timestamp", "source", "event_date", "_topic", "_partition", "_offset", "_timestamp")
    frame.write.format("delta").mode("append").partitionBy("event_date").save(".lakehouse/storage/bronze/user_events")
"""  # noqa: E501


def fill(root: Path, days: int, per_day: int) -> None:
    session(root, f"append(rows(0, {days * per_day}, '2025-01-01', {days}).repartition(2, 'event_date'))\n")


def touch(root: Path, new: int) -> None:
    session(root, f"append(rows(10**9, {new}, '2025-01-05', 1).coalesce(1))\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["six", "history"])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--per-day", type=int, default=50_000)
    parser.add_argument("--days", type=int, nargs="+", default=[10, 365])
    parser.add_argument("--new", type=int, default=500, help="events that come to one day before each increment")
    chosen = parser.parse_args()
    if chosen.what == "six":
        bench_six(chosen.events)
    else:
        bench_history(chosen.per_day, chosen.days, chosen.new)
