"""What a user gets wrong around the files: one line with a code, soon, and nothing written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.platform import Platform


def services(lake: Platform) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((lake.folder / ".lakehouse" / "services.json").read_text())
    return found


def unreachable_broker(lake: Platform) -> None:
    changed = services(lake) | {"kafka": {"bootstrap_servers": "127.0.0.1:1"}}
    (lake.folder / ".lakehouse" / "services.json").write_text(json.dumps(changed))


def unreachable_database(lake: Platform) -> None:
    changed = services(lake) | {"postgres": {"dsn": "postgresql://u:p@127.0.0.1:1/x"}}
    (lake.folder / ".lakehouse" / "services.json").write_text(json.dumps(changed))


def wrong_password(lake: Platform) -> None:
    scheme, _, rest = lake.dsn.partition("://")
    user, _, host = rest.partition(":")[0], None, rest.partition("@")[2]
    changed = services(lake) | {"postgres": {"dsn": f"{scheme}://{user}:wrong@{host}"}}
    (lake.folder / ".lakehouse" / "services.json").write_text(json.dumps(changed))


def no_stack(lake: Platform) -> None:
    (lake.folder / ".lakehouse" / "services.json").unlink()


def missing_topic(lake: Platform) -> None:
    for file in (lake.folder / "pipelines").rglob("*.yaml"):
        file.write_text(file.read_text().replace(f"topic: {lake.topic}", "topic: nowhere"))


def written(lake: Platform) -> dict[str, int]:
    """Every table's number of rows, without the ledger where it is empty; that a run failed may stand in it."""
    return {name: count for name, count in lake.counts().items()
            if name != "lakehouse.runs" and (count or not name.startswith("lakehouse."))}  # fmt: skip


@pytest.mark.parametrize(
    ("breaks", "words", "code", "where", "status"),
    [
        (unreachable_broker, ["run", "pipelines/realtime"], "KAFKA_UNREACHABLE", "connection kafka", 1),
        (unreachable_database, ["run", "pipelines/realtime"], "POSTGRES_UNREACHABLE", "connection postgres", 1),
        (wrong_password, ["run", "pipelines/realtime"], "POSTGRES_REFUSED", "connection postgres", 1),
        (no_stack, ["run", "pipelines/realtime"], "STACK_DOWN", "connection kafka", 1),
        (missing_topic, ["run", "pipelines/realtime"], "MISSING_TOPIC", "connection kafka", 1),
        (lambda lake: None, ["run", "pipelines/silver"], "MISSING_TABLE", "pipelines/silver/user_events.yaml:2", 1),
        (lambda lake: None, ["serve", "pipelines/gold"], "MISSING_TABLE", "pipelines/gold/", 1),
        (lambda lake: None, ["run", "pipelines/nowhere.yaml"], "FILE_MISSING", "pipelines/nowhere.yaml", 2),
        (lambda lake: None, ["run", "--env", "moon", "pipelines"], "ENVIRONMENT_MISSING", "", 2),
    ],
)  # fmt: skip
def test_a_wrong_surrounding_is_one_line_within_15_seconds(
    lake: Platform, breaks: Callable[[Platform], None], words: list[str], code: str, where: str, status: int
) -> None:
    before = lake.versions(), lake.counts()
    breaks(lake)
    began = time.monotonic()
    result = lake.lakehouse(*words, timeout=30)
    assert time.monotonic() - began < 15
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if code in line]
    assert lines, result.stderr
    assert where in lines[0]
    assert "Traceback" not in result.stderr
    assert "wrong@" not in result.stderr  # the password is never shown
    assert lake.versions() == before[0]
    assert written(lake) == before[1]


def test_a_wrong_file_stops_the_run_before_anything_is_touched(lake: Platform) -> None:
    file = lake.folder / "pipelines" / "realtime" / "logins_per_source.yaml"
    file.write_text(file.read_text().replace("event_type = 'login'", "event_typ = 'login'"))
    result = lake.lakehouse("run", "--available-now", "pipelines")
    assert result.returncode == 2
    assert result.stderr.startswith("pipelines/realtime/logins_per_source.yaml:6: UNKNOWN_COLUMN")
    assert "did you mean event_type?" in result.stderr
    assert lake.versions() == {}
    assert lake.counts() == {}


def test_a_wrong_type_is_found_before_the_first_batch(lake: Platform) -> None:
    file = lake.folder / "pipelines" / "realtime" / "logins_per_source.yaml"
    file.write_text(file.read_text().replace("event_type = 'login'", "array(event_type) = 1"))
    lake.produce(100)
    result = lake.lakehouse("run", "--available-now", "pipelines/realtime")
    assert result.returncode == 2
    assert "pipelines/realtime/logins_per_source.yaml:6: EXPRESSION_TYPE" in result.stderr
    assert written(lake) == {}
    told = lake.query("select distinct pipeline, kind, code from lakehouse.runs where pipeline like '%%logins%%'")
    assert told == [("realtime.logins_per_source", "stream", "EXPRESSION_TYPE")]
