"""Where services and storage are: a wrong file is refused with a code, and a secret is never a value in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn

from lakehouse_engine.connections import Database
from lakehouse_engine.errors import RunError, SpecError, UsageError
from lakehouse_engine.spec.environment import Environment, load_environment

GOOD = """\
storage: /srv/lake
connections:
  kafka: {bootstrap_servers: "broker:9092"}
  postgres: {host: db, database: lake, user: engine, password: {env: LAKEHOUSE_TEST_PASSWORD}, tls: verify-full}
vars: {least: 0.02, prefix: prod-}
spark: {spark.sql.shuffle.partitions: 8, spark.ui.enabled: true}
"""


def environment(root: Path, text: str, name: str = "production") -> Environment:
    folder = root / "environments"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return load_environment(name, root)


def test_an_environment_is_what_its_file_says(tmp_path: Path) -> None:
    found = environment(tmp_path, GOOD)
    assert (found.name, found.storage, found.kafka_bootstrap) == ("production", "/srv/lake", "broker:9092")
    assert found.vars == {"least": 0.02, "prefix": "prod-"}
    assert found.spark == {"spark.sql.shuffle.partitions": "8", "spark.ui.enabled": "true"}


def test_a_secret_is_read_from_the_environment_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment(tmp_path, GOOD)
    monkeypatch.setenv("LAKEHOUSE_TEST_PASSWORD", "it's 'secret' \\ host=elsewhere")
    assert parse_dsn(found.postgres_dsn()) == {
        "host": "db", "port": "5432", "dbname": "lake", "user": "engine", "sslmode": "verify-full",
        "password": "it's 'secret' \\ host=elsewhere"}  # fmt: skip
    assert "secret" not in f"{found!r} {found}"


def test_databases_of_others_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = '  jdbc.crm: {url: "jdbc:postgresql://crm/crm", user: reader, password: {env: LAKEHOUSE_TEST_PASSWORD}}\n'
    found = environment(tmp_path, GOOD.replace("vars:", f'{more}  jdbc.dwh: {{url: "jdbc:x:y"}}\nvars:'))
    monkeypatch.setenv("LAKEHOUSE_TEST_PASSWORD", "s3cret")
    crm = found.jdbc("crm")
    assert (crm.url, crm.user, crm.password) == ("jdbc:postgresql://crm/crm", "reader", "s3cret")
    assert "s3cret" not in repr(crm)
    assert found.jdbc("dwh") == Database("dwh", "jdbc:x:y")
    with pytest.raises(RunError) as caught:
        found.jdbc("other")
    assert (caught.value.code, caught.value.where) == ("NO_CONNECTION", "connection jdbc.other")


def test_a_secret_in_a_file_ends_before_its_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" s3cret \n")
    found = environment(tmp_path, GOOD.replace("{env: LAKEHOUSE_TEST_PASSWORD}", f"{{file: {tmp_path}/password}}"))
    assert parse_dsn(found.postgres_dsn())["password"] == " s3cret "


@pytest.mark.parametrize("reference", ["{env: LAKEHOUSE_TEST_UNSET}", "{file: /nowhere/password}"])
def test_a_secret_that_is_not_there_is_named_where_it_is_needed(tmp_path: Path, reference: str) -> None:
    found = environment(tmp_path, GOOD.replace("{env: LAKEHOUSE_TEST_PASSWORD}", reference))
    with pytest.raises(RunError) as caught:
        found.postgres_dsn()
    assert (caught.value.code, caught.value.where) == ("SECRET_MISSING", "connection postgres")


WRONG = [
    ("a literal password", "{env: LAKEHOUSE_TEST_PASSWORD}", "hunter2", "LITERAL_SECRET"),
    ("a quoted password", "{env: LAKEHOUSE_TEST_PASSWORD}", '"12345"', "LITERAL_SECRET"),
    ("a numeric password", "{env: LAKEHOUSE_TEST_PASSWORD}", "12345", "LITERAL_SECRET"),
    ("a secret of nothing", "{env: LAKEHOUSE_TEST_PASSWORD}", "{}", "LITERAL_SECRET"),
    ("two secrets in one", "{env: LAKEHOUSE_TEST_PASSWORD}", "{env: A, file: b}", "LITERAL_SECRET"),
    ("a storage of a later version", "/srv/lake", "s3a://lake", "NOT_YET"),
    ("no storage", "storage: /srv/lake", "", "MISSING_KEY"),
    ("a key that is not known", "vars:", "vrs:", "UNKNOWN_KEY"),
    ("a connection that is not known", "kafka:", "kafak:", "UNKNOWN_KEY"),
    ("a port that is none", "host: db", "host: db, port: many", "BAD_VALUE"),
    ("a kind of TLS that is none", "verify-full", "perhaps", "BAD_VALUE"),
    ("a key twice", "vars:", "storage: /other\nvars:", "DUPLICATE_KEY"),
    ("settings that are no map", "{spark.sql.shuffle.partitions: 8, spark.ui.enabled: true}", "5", "BAD_VALUE"),
    ("a setting that is a list", "shuffle.partitions: 8", "shuffle.partitions: [8]", "BAD_VALUE"),
    ("no YAML", "{least: 0.02, prefix: prod-}", "{least: [}", "YAML_SYNTAX"),
]


@pytest.mark.parametrize(("old", "new", "code"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_environment_is_refused_with_a_code(tmp_path: Path, old: str, new: str, code: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        environment(tmp_path, GOOD.replace(old, new))
    assert [(p.file, p.code) for p in caught.value.problems] == [("environments/production.yaml", code)]


def test_a_literal_password_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        environment(tmp_path, GOOD.replace("{env: LAKEHOUSE_TEST_PASSWORD}", "hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("text", "code"), [("", "YAML_SYNTAX"), ("- a\n", "BAD_VALUE"), ("text\n", "BAD_VALUE")])
def test_an_environment_that_is_no_map_is_refused(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        environment(tmp_path, text)
    assert [p.code for p in caught.value.problems] == [code]


def test_what_is_wrong_in_an_environment_is_said_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        environment(tmp_path, GOOD.replace("host: db", "host: db, port: many").replace("vars:", "vrs:"))
    assert [(p.line, p.code) for p in caught.value.problems] == [(4, "BAD_VALUE"), (5, "UNKNOWN_KEY")]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kafka": {}}', '{"kafka": 5, "postgres": null}'])
def test_a_damaged_file_of_the_embedded_stack_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lakehouse").mkdir()
    (tmp_path / ".lakehouse" / "services.json").write_text(text)
    with pytest.raises(RunError) as caught:
        load_environment(None, tmp_path)
    assert caught.value.code == "STACK_DOWN"
    assert str(tmp_path / ".lakehouse" / "services.json") in caught.value.where


@pytest.mark.parametrize("name", ["missing", "../production", "Production", ""])
def test_an_environment_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, name: str) -> None:
    environment(tmp_path, GOOD)
    with pytest.raises(UsageError, match="there are: production") as caught:
        load_environment(name, tmp_path)
    assert caught.value.code == "ENVIRONMENT_MISSING"


def test_clusters_have_names_and_the_one_without_is_kafka(tmp_path: Path) -> None:
    found = environment(tmp_path, GOOD.replace("vars:", '  kafka.eu: {bootstrap_servers: "eu:9092"}\nvars:'))
    assert (found.kafka(None), found.kafka("eu"), found.named) == ("broker:9092", "eu:9092", {"kafka.eu"})
    with pytest.raises(RunError) as caught:
        found.kafka("us")
    assert (caught.value.code, caught.value.where) == ("NO_CONNECTION", "connection kafka.us")


def test_a_service_without_a_connection_is_named(tmp_path: Path) -> None:
    found = environment(tmp_path, "storage: x\n")
    for read in (lambda: found.kafka_bootstrap, found.postgres_dsn):
        with pytest.raises(RunError) as caught:
            read()
        assert caught.value.code == "NO_CONNECTION"


def test_without_a_name_it_is_the_embedded_stack(tmp_path: Path) -> None:
    folder = tmp_path / ".lakehouse"
    folder.mkdir()
    services = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "postgres": {"dsn": "postgresql://u:hidden@127.0.0.1:2/x"},
    }
    (folder / "services.json").write_text(json.dumps(services))
    found = load_environment(None, tmp_path)
    assert (found.storage, found.kafka_bootstrap) == (str(folder / "storage"), "127.0.0.1:1")
    assert found.postgres_dsn() == "postgresql://u:hidden@127.0.0.1:2/x"
    assert "hidden" not in repr(found)


def test_an_embedded_stack_that_was_not_started_has_a_storage_and_no_services(tmp_path: Path) -> None:
    found = load_environment(None, tmp_path)
    assert found.storage == str(tmp_path / ".lakehouse" / "storage")
    with pytest.raises(RunError) as caught:
        _ = found.kafka_bootstrap
    assert caught.value.code == "STACK_DOWN"


def test_environment_variables_are_filled_in_with_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD
    for there, here in (("/srv/lake", "${LAKEHOUSE_TEST_ROOT:-/srv/lake}/x"), ("prefix: prod-", 'prefix: "$${prod}"'),
                        ("host: db,", 'host: db, port: "${LAKEHOUSE_TEST_PORT:-5433}",')):  # fmt: skip
        text = text.replace(there, here)
    found = environment(tmp_path, text)
    assert (found.storage, found.vars["prefix"]) == ("/srv/lake/x", "${prod}")
    assert found.connections.postgres is not None
    assert found.connections.postgres.port == 5433
    monkeypatch.setenv("LAKEHOUSE_TEST_ROOT", "/elsewhere")
    assert environment(tmp_path, text).storage == "/elsewhere/x"


def test_a_variable_without_a_value_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        environment(tmp_path, GOOD.replace("host: db", 'host: "${LAKEHOUSE_TEST_UNSET}"'))
    (problem,) = refused.value.problems
    assert (problem.file, problem.line, problem.code) == ("environments/production.yaml", 4, "UNSET_VARIABLE")


def test_lakehouse_env_names_the_environment_of_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from lakehouse_engine.cli import main

    monkeypatch.chdir(tmp_path)
    for command in ("validate", "plan", "run", "serve", "status", "engine", "produce", "maintain"):
        asked = CliRunner().invoke(main, [command], env={"LAKEHOUSE_ENV": "nowhere"})
        assert (asked.exit_code, "there is no environments/nowhere.yaml" in asked.output) == (2, True), command
