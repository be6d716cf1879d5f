"""Gold in PostgreSQL: the part that changed, in one transaction, read back and compared; readers see all or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import epochs, serving
from lakehouse_engine.errors import RunError
from lakehouse_engine.serving import Served
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sinks.postgres import Part
from tests.lab import Lab

MON, TUE, WED = "2026-01-05", "2026-01-06", "2026-01-07"


class Mirror:
    def __init__(self, lab: Lab, dsn: str) -> None:
        self.lab, self.dsn = lab, dsn

    def serve(self) -> list[Served]:
        spec = self.lab.job("gold.events").spec
        stale = serving.stale([serving.served(spec)], self.lab.storage, self.dsn)
        return [serving.load(self.lab.spark, item, self.lab.storage, self.dsn) for item in stale]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[tuple[Any, ...]]:
        return sorted(self.query("select day, users, most from gold.events"), key=str)


@pytest.fixture
def mirror(spark: SparkSession, tmp_path: Path, database: str) -> Iterator[Mirror]:
    """Three days of gold (one of them null), loaded."""
    lab = Lab(spark, tmp_path)
    lab.append((1, MON, 1, 1), (2, TUE, 1, 1), (3, None, 1, 1))
    lab.run()
    made = Mirror(lab, database)
    assert made.serve() == [Served(3, 3, "first load")]
    yield made
    assert made.rows() == lab.rows("gold.events")


def test_only_the_slices_that_changed_are_replaced(mirror: Mirror) -> None:
    before = dict(mirror.query("select day, ctid::text || xmin::text from gold.events"))
    mirror.lab.append((4, TUE, 9, 1), (5, None, 9, 1), (6, WED, 9, 1))
    mirror.lab.run()
    assert mirror.serve() == [Served(3, 4, "3 of day changed")]
    after = dict(mirror.query("select day, ctid::text || xmin::text from gold.events"))
    assert [day for day in before if before[day] == after[day]] == [min(d for d in before if d)]
    assert mirror.serve() == []


def test_a_slice_that_vanished_vanishes_here(mirror: Mirror) -> None:
    mirror.lab.correct(TUE)
    mirror.lab.run()
    assert mirror.serve() == [Served(0, 2, "1 of day changed")]


def test_several_versions_are_one_load(mirror: Mirror) -> None:
    for number in range(3):
        mirror.lab.append((10 + number, MON, 10 + number, 1))
        mirror.lab.run()
    assert mirror.serve() == [Served(1, 3, "1 of day changed")]


def test_a_copy_begins_a_new_epoch_with_its_table(mirror: Mirror) -> None:
    (done,) = epochs.reset([mirror.lab.job("gold.events").spec], mirror.lab.storage, mirror.dsn, apply=True)
    assert done.moves == (("gold.events", "gold__epoch1.events"),) * 2  # in either store
    assert mirror.query("select to_regclass('gold.events')") == [(None,)]
    mirror.lab.run("gold.events")
    assert mirror.serve() == [Served(3, 3, "first load")]
    assert mirror.query("select count(*) from gold__epoch1.events") == [(3,)]


def test_a_copy_changed_by_hand_is_loaded_in_whole(mirror: Mirror) -> None:
    mirror.query("delete from gold.events where day = '2026-01-05'")
    mirror.lab.append((4, TUE, 9, 1))
    mirror.lab.run()
    assert mirror.serve() == [Served(3, 3, "the copy had been changed by another hand")]


def test_a_commit_of_somebody_else_loads_everything(mirror: Mirror) -> None:
    mirror.lab.sql("update {} set users = 7 where day = '2026-01-05'", "gold.events")
    (done,) = mirror.serve()
    assert (done.rows, done.total) == (3, 3)
    assert "does not say which day" in done.reason


def test_a_compaction_loads_nothing(mirror: Mirror) -> None:
    mirror.lab.append((4, TUE, 9, 1))
    mirror.lab.run()
    mirror.serve()
    mirror.lab.sql("optimize {}", "gold.events")
    assert all(done.rows == 0 for done in mirror.serve())


def test_what_postgres_stored_is_compared_with_what_was_sent(mirror: Mirror) -> None:
    mirror.query("create function meddle() returns trigger language plpgsql as"
                 " $$ begin new.users := new.users + 1; return new; end $$")  # fmt: skip
    mirror.query("create trigger meddle before insert on gold.events for each row execute function meddle()")
    mirror.lab.append((4, TUE, 9, 1))
    mirror.lab.run()
    before = mirror.rows()
    with pytest.raises(RunError) as error:
        mirror.serve()
    assert error.value.code == "MIRROR_DIFFERS"
    assert mirror.rows() == before
    mirror.query("drop trigger meddle on gold.events")
    assert mirror.serve() == [Served(1, 3, "1 of day changed")]


def test_a_reader_sees_a_day_whole_or_not_at_all(mirror: Mirror, spark: SparkSession) -> None:
    """A table of 2,000 rows a day is replaced over and over, with one value in all rows of a version."""
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()

    def read() -> None:
        with closing(psycopg2.connect(mirror.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not stop.is_set():
                    cursor.execute("select count(*), count(distinct v) from gold.big where day = '2026-01-05'")
                    seen.add(cursor.fetchone())  # type: ignore[arg-type]

    def write(value: int) -> None:
        frame = spark.range(2000).selectExpr("date'2026-01-05' as day", "id", f"{value} as v")
        with closing(postgres_sink.connect(mirror.dsn)) as connection, connection, connection.cursor() as cursor:
            postgres_sink.load(cursor, "gold.big", frame, "here", Part("day", (MON,)))

    write(0)
    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 6):
        write(value)
    stop.set()
    reader.join(20)
    assert seen == {(2000, 1)}


def test_values_of_every_type_come_back_as_they_were_sent(spark: SparkSession, database: str) -> None:
    frame = spark.sql(r"""select * from values
      (1Y, 2S, 3, 4L, 1.5D, cast(0.1 as float), true, 'a\tb\\n', timestamp'2026-03-08 02:30:00.123456',
       date'1969-12-31', X'00ff', 12.50BD, cast('NaN' as double)),
      (null, null, null, null, null, null, null, null, null, null, null, null, null) as t (a,b,c,d,e,f,g,h,i,j,k,l,m)
      """)
    with closing(postgres_sink.connect(database)) as connection, connection, connection.cursor() as cursor:
        assert postgres_sink.load(cursor, "gold.types", frame, "here").rows == 2
        cursor.execute("select i::text, h, k, l from gold.types where a is not null")
        time, text, raw, number = cursor.fetchone() or ()
    assert (time, text, bytes(raw), str(number)) == ("2026-03-08 02:30:00.123456+00", "a\tb\\n", b"\x00\xff", "12.50")


def test_nested_values_come_back_as_they_were_sent(spark: SparkSession, database: str) -> None:
    """Arrays of single values are PostgreSQL's; the rest is jsonb, which writes numbers and keys in its own way."""
    frame = spark.sql(r"""select * from values
      (1, array('a\"\tb', null, ''), array(1L, null), array(true, null), array(date'1969-12-31'),
       named_struct('z', 1e22D, 'a', cast(null as int), 'at', timestamp'2026-03-08 02:30:00.123456'),
       map('k', 1.50BD), array(named_struct('x', 0.1D)), parse_json('{"b": [1.0, 1e2, "5"], "a": null}')),
      (2, null, null, null, null, null, null, null, null) as t (id, s, n, f, d, o, m, a, v)""")
    with closing(postgres_sink.connect(database)) as connection, connection, connection.cursor() as cursor:
        assert postgres_sink.load(cursor, "gold.nested", frame, "here").rows == 2
        cursor.execute("select s, n, f, d::text, o, m, a, v from gold.nested order by id")
        rows = cursor.fetchall()
        kinds = postgres_sink.columns_of(cursor, "gold.nested")
    assert rows == [(['a"\tb', None, ""], [1, None], [True, None], "{1969-12-31}",
                     {"z": 1e22, "at": "2026-03-08T02:30:00.123456Z"}, {"k": 1.5}, [{"x": 0.1}],
                     {"a": None, "b": [1, 100.0, "5"]}), (None,) * 8]  # fmt: skip
    assert list(kinds.values()) == ["integer", "text[]", "bigint[]", "boolean[]", "date[]", *["jsonb"] * 4]
