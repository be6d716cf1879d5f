"""A year of results and ledger, by formulas that plain Python knows as well. Tables as the engine makes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg2

from lakehouse_engine import ledger
from lakehouse_engine.sinks import postgres as sink
from lakehouse_engine.sinks.postgres import Merge

TYPES = ("login", "click", "purchase", "logout")
SOURCES = ("web", "mobile")
PAGES = tuple(f"/page{n}" for n in range(14))
STREAMS = ("realtime.events_per_minute", "realtime.logins_per_source", "realtime.purchases_per_minute")
#: a stream into Delta: its micro-batches are among the runs, which are kept for thirty days
LANDING = "bronze.user_events"
MINUTES, DAYS, BATCH, KEPT = 525_600, 400, 180, 14_400
#: hours since the copy was loaded; one was never loaded
SERVED = {"gold.conversion_rate_daily": 30.0, "gold.daily_active_users": 40.0, "gold.events_per_source_daily": 25.0}
#: pipeline, kind, outcome, minutes ago, code
RUNS = (("gold.daily_active_users", "serve", "failed", 90, "POSTGRES_UNREACHABLE"),
        ("gold.daily_active_users", "job", "nothing", 80, None),
        ("gold.daily_active_users", "serve", "nothing", 70, None),
        ("gold.events_per_source_daily", "job", "failed", 50, "CHECK_FAILED"),
        ("realtime.logins_per_source", "stream", "failed", 40, "KAFKA_UNREACHABLE"),
        ("silver.user_events", "job", "committed", 30, None))  # fmt: skip
#: seconds since the newest event of each partition was made, and whether the partition is idle
REACHED = {STREAMS[0]: [(30, False), (45, False), (7200, True)], STREAMS[1]: [(20, False), (900, False), (10, True)],
           STREAMS[2]: [(50, True), (300, True), (400, True)]}  # fmt: skip


def events(minute: int, kind: int) -> int | None:
    """Events of a type in a minute since 1970; None: no row."""
    return None if (minute + kind) % 11 == 0 else (minute * 7 + kind * 13) % 50


def logins(minute: int, source: int) -> int | None:
    return None if (minute + source) % 7 == 0 else (minute * 3 + source) % 20


def purchases(minute: int) -> int | None:
    return None if minute % 5 == 0 else minute % 9


def users(day: date) -> int:
    return 100 + day.toordinal() % 37


def bought(day: date, page: int) -> int:
    return (day.toordinal() * (page + 3)) % 23


def counters(batch: int, stream: int) -> dict[str, int]:
    """What became of a batch's rows; ``batch`` counts back from the newest, which is 0."""
    bad = 40 if stream == 1 and batch < 6 else batch % 2
    return {"quarantined": bad, "filtered": 3, "duplicate": 0, "late": (batch + stream) % 4, "counted": 100 + batch % 9}


def behind(batch: int) -> int:
    return batch % 50


def files(batch: int) -> int:
    return 10 + batch % 7


@dataclass(frozen=True)
class Seed:
    dsn: str
    #: the last full minute, and the moment of the newest batch
    now: datetime

    @property
    def minute(self) -> int:
        return int(self.now.timestamp()) // 60

    @property
    def yesterday(self) -> date:
        return self.now.date() - timedelta(days=1)

    def committed(self, batch: int) -> datetime:
        return self.now - timedelta(seconds=BATCH * batch)

    def run(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(text, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def tables(cursor: Any) -> None:
    """Empty, as streams and ``serve`` make them."""
    cursor.execute(ledger.DDL)
    for name, by, measure in (("events_per_minute", {"event_type": "text"}, "event_count"),
                              ("logins_per_source", {"source": "text"}, "login_count"),
                              ("purchases_per_minute", {}, "purchase_count")):  # fmt: skip
        sink.ensure_schema(cursor, f"realtime.{name}")
        keys = {"window_start": "timestamptz", **by}
        Merge(f"realtime.{name}", keys, {measure: ("count", "bigint")}).ensure(cursor, name)
    for name, columns in (("daily_active_users", {"dau_count": "bigint"}),
                          ("conversion_rate_daily", {"conversion_rate": "double precision", "total_purchases": "bigint",
                                                     "dau_count": "bigint"}),
                          ("events_per_source_daily", {"source": "text", "event_count": "bigint"}),
                          ("purchases_per_page_daily", {"page": "text", "purchase_count": "bigint"})):  # fmt: skip
        table = f"gold.{name}"
        sink.ensure_schema(cursor, table)
        sink.ensure_table(cursor, table, {"event_date": "date", **columns, "updated_at": "timestamptz"}, [], table)
        sink.ensure_index(cursor, table, "event_date")


def fill(dsn: str, reader: Path) -> Seed:
    """A year up to this minute; gold up to yesterday. The reader's role is made before the tables."""
    now = datetime.now(timezone.utc).replace(second=0, microsecond=0)
    seed = Seed(dsn, now)
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'")
        cursor.execute(reader.read_text())
        tables(cursor)
        minutes = f"generate_series({seed.minute - MINUTES + 1}, {seed.minute}) m"
        cursor.execute(
            f"insert into realtime.events_per_minute select to_timestamp(m * 60), (%s::text[])[k + 1],"
            f" (m * 7 + k * 13) %% 50, now() from {minutes}, generate_series(0, 3) k where (m + k) %% 11 <> 0",
            (list(TYPES),))  # fmt: skip
        cursor.execute(
            f"insert into realtime.logins_per_source select to_timestamp(m * 60), (%s::text[])[k + 1],"
            f" (m * 3 + k) %% 20, now() from {minutes}, generate_series(0, 1) k where (m + k) %% 7 <> 0",
            (list(SOURCES),))  # fmt: skip
        cursor.execute(f"insert into realtime.purchases_per_minute select to_timestamp(m * 60), m % 9, now()"
                       f" from {minutes} where m % 5 <> 0")  # fmt: skip
        for day in (seed.yesterday - timedelta(days=n) for n in range(DAYS)):
            cursor.execute("insert into gold.daily_active_users values (%s, %s, now())", (day, users(day)))
            cursor.execute("insert into gold.conversion_rate_daily values (%s, %s, %s, %s, now())",
                           (day, users(day) / 1000, users(day) * 2, users(day)))  # fmt: skip
            for number, page in enumerate(PAGES):
                cursor.execute("insert into gold.purchases_per_page_daily values (%s, %s, %s, now())",
                               (day, page, bought(day, number)))  # fmt: skip
        _ledger(cursor, seed)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("vacuum analyze")  # which PostgreSQL does by itself, some time after so many rows
    connection.close()
    return seed


def _ledger(cursor: Any, seed: Seed) -> None:
    total = MINUTES * 60 // BATCH
    for stream, name in enumerate(STREAMS):
        bad = f"case when {stream} = 1 and b < 6 then 40 else b % 2 end"
        cursor.execute(  # in the order of time, as the engine appends
            f"insert into lakehouse.batches select '{name}', 1, {total} - b, c - (b % 4) * interval '300 ms', c, 'new',"
            f" '{{}}', c - (120 + b % 5) * interval '1 second', {bad}, 3, 0, (b + {stream}) % 4, 100 + b % 9, '{{}}',"
            " b % 50"
            f" from generate_series(0, {total - 1}) b, lateral (select timestamptz '{seed.now.isoformat()}'"
            f" - b * interval '{BATCH} seconds' as c) at order by b desc")  # fmt: skip
        for partition, (age, idle) in enumerate(REACHED[name]):
            cursor.execute("insert into lakehouse.positions values (%s, 1, 'new', %s, 't', 10, %s, %s, now(), 'w')",
                           (name, partition, seed.now - timedelta(seconds=age), idle))  # fmt: skip
        # the topic was made anew a year ago: what the old one had reached says nothing any more
        cursor.execute("insert into lakehouse.positions values (%s, 1, 'old', 0, 't', 10, %s, false, now(), 'w')",
                       (name, seed.now - timedelta(days=365)))  # fmt: skip
    number = len(STREAMS)
    cursor.execute(
        "insert into lakehouse.runs (pipeline, kind, started_at, ended_at, outcome, version, rows, behind, quarantined,"
        f" filtered, duplicate, late, counted, files, bytes) select '{LANDING}', 'batch', c - (b % 4) * interval"
        f" '300 ms', c, 'committed', {KEPT} - b, 100 + b % 9, b % 50, b % 2, 3, 0, (b + {number}) % 4, 100 + b % 9,"
        f" 10 + b % 7, 1000 * (10 + b % 7) from generate_series(0, {KEPT - 1}) b, lateral (select timestamptz"
        f" '{seed.now.isoformat()}' - b * interval '{BATCH} seconds' as c) at order by b desc")  # fmt: skip
    for name, kind, outcome, minutes, code in RUNS:
        at = seed.now - timedelta(minutes=minutes)
        cursor.execute(
            "insert into lakehouse.runs (pipeline, kind, started_at, ended_at, outcome, code, message, version, rows,"
            " files, bytes) values (%s, %s, %s, %s, %s, %s, %s, 3, 5, 2, 999)",
            (name, kind, at - timedelta(seconds=4), at, outcome, code, code and "it did not work"))  # fmt: skip
    for name, hours in SERVED.items():
        cursor.execute("insert into lakehouse.served (pipeline, version, served_at, rows) values (%s, 7, %s, 400)",
                       (name, seed.now - timedelta(hours=hours)))  # fmt: skip
