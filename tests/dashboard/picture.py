"""A lakehouse that is nice to look at: a day of events that rise and fall, and a ledger that is up to date."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg2

from tests.grafana.seed import SOURCES, STREAMS, TYPES, tables

PAGES = ("/products", "/cart", "/checkout", "/home", "/search", "/offers", "/account", "/help")


def pleasant(dsn: str, storage: Path) -> None:
    storage.mkdir(parents=True, exist_ok=True)
    today = datetime.now(timezone.utc).date()
    # one wave a few hours long, a shorter one, and a jitter that the minute decides
    wave = "1 + 0.35 * sin(extract(epoch from m) / 5400) + 0.18 * sin(extract(epoch from m) / 700 + k)" \
           " + 0.16 * ((hashtext(m::text || k) %% 100) / 100.0)"  # fmt: skip
    minutes = "generate_series(date_trunc('minute', now()) - interval '1 day', now(), '1 minute') m"
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        tables(cursor)
        for table, names, size in (("events_per_minute", TYPES, "(array[90,420,60,70])[k+1]"),
                                   ("logins_per_source", SOURCES, "(array[55, 35])[k + 1]")):  # fmt: skip
            cursor.execute(f"insert into realtime.{table} select m, (%s::text[])[k + 1], ({size} * ({wave}))::int,"
                           f" now() from {minutes}, generate_series(1, {len(names)}) n, lateral (select n - 1) v (k)",
                           (list(names),))  # fmt: skip
        cursor.execute(f"insert into realtime.purchases_per_minute select m, (60 * ({wave}))::int, now()"
                       f" from {minutes}, (values (2)) as v (k)", ())  # fmt: skip
        for back in range(1, 40):
            day = today - timedelta(days=back)
            users = 41_000 + 2_600 * (day.weekday() < 5) - 90 * back + 700 * (day.toordinal() % 5)
            cursor.execute("insert into gold.daily_active_users values (%s, %s, now())", (day, users))
            cursor.execute("insert into gold.conversion_rate_daily values (%s, %s, %s, %s, now())",
                           (day, 0.118 + 0.006 * (day.toordinal() % 4), users // 6, users))  # fmt: skip
            for place, page in enumerate(PAGES):
                cursor.execute("insert into gold.purchases_per_page_daily values (%s, %s, %s, now())",
                               (day, page, int(5200 / (place + 1.3)) + day.toordinal() % 97))  # fmt: skip
        for number, stream in enumerate(STREAMS):
            cursor.execute(
                "insert into lakehouse.batches select %s, 1, row_number() over (order by m), m - (0.25 + 0.25 * (%s"
                " + 1) / 3 + (hashtext(m::text) %% 100) / 800.0) * interval '1 s', m, 't', '{}', m - interval '123 s',"
                " greatest(0, hashtext(m::text) %% 4 - 1), 0, 0, greatest(0, hashtext(m::text || 'l') %% 5 - 2),"
                " (110 * (1 + 0.3 * sin(extract(epoch from m) / 1300) + 0.1 * (hashtext(m::text || %s) %% 10) / 10"
                " ))::int, '{}', greatest(0, hashtext(m::text) %% 9 - 5)"
                " from generate_series(now() - interval '90 min', now(), '10 s') m",
                (stream, number, stream))  # fmt: skip
            for partition in range(3):
                cursor.execute("insert into lakehouse.positions values (%s, 1, 't', %s, 'user-events', 10,"
                               " now() - interval '1.4 s', false, now(), 'w')", (stream, partition))  # fmt: skip
            cursor.execute(f"insert into {stream}__late (arrived_at, batch_id, step, event_time, watermark, origin,"
                           " partition, \"offset\", row) select now() - n * interval '41 s', 540 - n * 4,"
                           " 'transforms[1].watermark', now() - interval '9 min' - n * interval '47 s',"
                           " now() - interval '2 min' - n * interval '41 s', 'user-events', n % 3, 81200 - n * 37,"
                           " jsonb_build_object('event_type', 'click', 'page', '/search', 'user_id', 4000 + n * 17)"
                           " from generate_series(1, 20) n")  # fmt: skip
            cursor.execute(f"insert into {stream}__quarantine (quarantined_at, batch_id, step, reasons, origin,"
                           " partition, \"offset\", value) select now() - n * interval '97 s', 540 - n * 9,"
                           " 'transforms[1].watermark', array['timestamp: too far ahead'], 'user-events', n % 3,"
                           " 81000 - n * 53, convert_to(json_build_object('event_id', md5(n::text), 'user_id', 900"
                           " + n * 3, 'timestamp', '2031-01-01T00:00:00Z')::text, 'utf8')"
                           " from generate_series(1, 20) n")  # fmt: skip
        cursor.execute(
            "insert into lakehouse.runs (pipeline, kind, started_at, ended_at, outcome, version, rows, behind,"
            " quarantined, filtered, duplicate, late, counted, files, bytes) select 'bronze.user_events', 'batch',"
            " m - interval '0.9 s', m, 'committed', 1, 112, 0, 2, 0, 0, 0, 110, 40, 9000000 from"
            " generate_series(now() - interval '90 min', now(), '10 s') m"
        )
        for ago, name in enumerate(("silver.user_events", "gold.conversion_rate_daily", "gold.daily_active_users",
                                    "gold.events_per_source_daily", "gold.purchases_per_page_daily")):  # fmt: skip
            cursor.execute("insert into lakehouse.runs (pipeline, kind, started_at, ended_at, outcome, version, rows,"
                           " files, bytes) select %s, 'job', t - interval '6 s', t, 'committed', 38, 39, 40, 120000"
                           " from (values (now() - %s * interval '1 min')) v (t)", (name, 70 - ago))  # fmt: skip
        for hours, name in enumerate(("conversion_rate_daily", "daily_active_users", "events_per_source_daily",
                                      "purchases_per_page_daily")):  # fmt: skip
            cursor.execute("insert into lakehouse.served (pipeline, version, served_at, rows) values (%s, 38,"
                           " now() - %s * interval '1 min', 39)", (f"gold.{name}", 63 + hours))  # fmt: skip
