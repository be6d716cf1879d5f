"""Databases of others: what is read of a table, at one moment, and what is said where it cannot be."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from psycopg2.extensions import parse_dsn
from pyspark.sql import DataFrame, SparkSession

from lakehouse_engine import foreign
from lakehouse_engine.connections import Database
from lakehouse_engine.contract import Contract
from lakehouse_engine.contract.file import build
from lakehouse_engine.errors import LakehouseError, SpecError
from lakehouse_engine.log import Log
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.runner import Runner
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load

CONTRACT = """
type: object
required: [id, name]
properties:
  id: {type: integer}
  name: {type: string}
  share: {type: number}
  member: {type: boolean}
  born: {type: string, format: date}
  seen: {type: string, format: date-time}
"""
TABLE = """
create table "Customers" (id bigint, "Name" text, share numeric(9,3), member boolean, born date, seen timestamptz,
  secret text);
insert into "Customers" values (1, 'Ada "A"', 1.250, true, '1990-02-28', '2026-03-29T01:30:00.123456+02', 'x'),
  (2, 'Zoë', null, null, null, null, 'y');
create view people as select * from "Customers";
create table nameless (id bigint)
"""


def execute(dsn: str, text: str) -> None:
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(text)


def contract(**changed: Any) -> Contract:
    return build("person", "person.yaml", yaml.safe_load(CONTRACT), {}).model_copy(update=changed)


def said(frame: DataFrame) -> list[dict[str, Any]]:
    return sorted((json.loads(bytes(row[0])) for row in frame.collect()), key=lambda row: row["id"])


def test_rows_are_those_of_one_moment_and_of_the_contracts_columns(
    spark: SparkSession, database: str
) -> None:
    execute(database, TABLE)
    at = Environment(storage="lake", embedded={"jdbc.crm": database}).jdbc("crm")
    frame = foreign.read(spark, at, "public.people", contract(), "x.yaml:1")
    execute(database, """delete from "Customers" where id = 1; insert into "Customers" values (3, 'late')""")
    assert said(frame) == [
        {"id": 1, "name": 'Ada "A"', "share": 1.25, "member": True, "born": "1990-02-28",
         "seen": "2026-03-28T23:30:00.123456Z"},
        {"id": 2, "name": "Zoë"}]  # fmt: skip
    closed = foreign.read(spark, at, "people", contract(closed=True), "x.yaml:1")
    assert [row.get("secret") for row in said(closed)] == ["y", None]


def test_what_cannot_be_reached_or_read_is_said_in_a_line_without_the_password(
    spark: SparkSession, database: str
) -> None:
    execute(database, TABLE)
    at = Environment(storage="lake", embedded={"jdbc.crm": database}).jdbc("crm")
    nowhere = f"jdbc:postgresql://127.0.0.1:9/{parse_dsn(database)['dbname']}"
    for where, table, code, words in [
        (at, "nobody", "JDBC_FAILED", 'nobody of connection jdbc.crm: ERROR: relation "nobody" does not exist'),
        (at, "nameless", "TABLE_DIFFERS", "nameless has no column name, which the contract person requires"),
        (Database("crm", nowhere, "x", "canary"), "people", "JDBC_FAILED", "refused"),
        (Database("crm", at.url, at.user, "canary"), "people", "JDBC_FAILED", "password authentication failed"),
        (Database("crm", "jdbc:other://db/crm", "x", "canary"), "people", "MISSING_JAR", "jdbc:other:"),
    ]:
        with pytest.raises(LakehouseError) as refused:
            foreign.read(spark, where, table, contract(), "x.yaml:1")
        assert (refused.value.code, refused.value.where) == (code, "x.yaml:1")
        assert words in refused.value.message
        assert "canary" not in f"{refused.value.message} {where!r}"
        assert "\n" not in refused.value.message


def test_a_connection_that_the_environment_lacks_is_said_before_anything_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "pipelines" / "silver" / "people.yaml"
    contracts = tmp_path / "pipelines" / "contracts"
    for folder in (file.parent, contracts):
        folder.mkdir(parents=True)
    (contracts / "person.yaml").write_text(CONTRACT)
    file.write_text("source: {jdbc: {connection: crm, table: people, contract: person}}\n"
                    "sink: {jdbc: {connection: dwh, table: people}}\nschedule: daily\n")  # fmt: skip
    dwh = {"jdbc.dwh": "postgresql://u:p@127.0.0.1:9/d"}
    runner = Runner(Environment(storage=str(tmp_path / "lake"), embedded=dwh), tuple, Log(lambda _: None))
    with pytest.raises(SpecError) as refused:
        runner.run(compile_plan(load([file])), available_now=False)
    assert [str(one) for one in refused.value.problems] == [
        f"{file}:1: NO_CONNECTION: the embedded stack has no connection jdbc.crm; did you mean jdbc.dwh?"]
    assert not (tmp_path / "lake").exists()
