"""One warm Spark for many commands: relayed, refused, killed on either side; and commands that do without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from demo.reconcile import reconcile
from tests.platform import PROJECT, Platform

SILVER, GOLD = "pipelines/silver", "pipelines/gold"


def address(lake: Platform) -> Path:
    return lake.folder / ".lakehouse" / "engine.json"


def ran(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def right(lake: Platform) -> bool:
    checks = reconcile(lake.bootstrap_servers, lake.dsn, lake.storage, lake.topic, ("gold",))
    assert checks
    return all(check.ok for check in checks)


def in_the_middle(lake: Platform) -> subprocess.Popen[str]:
    """A first run of silver whose engine has begun to compute."""
    client = subprocess.Popen(lake.command("run", SILVER), cwd=lake.folder, env=lake.environment, text=True,
                              stderr=subprocess.PIPE)  # fmt: skip
    assert client.stderr is not None
    assert "silver.user_events: full" in client.stderr.readline()
    return client


def test_commands_share_the_engine_and_whoever_is_killed_the_numbers_are_right(lake: Platform) -> None:
    lake.produce(100_000, seed=1, duplicates=0.1)
    ran(lake.lakehouse("run", "--available-now", "pipelines/bronze"))
    engine = lake.start("engine")
    lake.until(address(lake).exists, "the engine takes requests")
    assert address(lake).stat().st_mode & 0o777 == 0o600

    # a command that is killed takes its work along, and the next one does it
    client = in_the_middle(lake)
    client.kill()
    client.communicate(timeout=30)
    for words in (("run", SILVER), ("run", GOLD), ("serve", GOLD)):
        assert "starting Spark" not in ran(lake.lakehouse(*words))
    assert right(lake)
    assert "nothing new" in ran(lake.lakehouse("run", SILVER, GOLD))

    # an error is the engine's own, with its place and exit status
    backfill = lake.lakehouse("backfill", f"{SILVER}/user_events.yaml", "--from", "some day")
    assert (backfill.returncode, "BAD_RANGE" in backfill.stderr) == (1, True)
    assert "1 slices" in ran(lake.lakehouse("backfill", f"{GOLD}/daily_active_users.yaml", "--full"))
    wrong = lake.folder / "pipelines" / "gold" / "wrong.yaml"
    wrong.write_text("source: silver.user_events\nsink: detla\n")
    refused = lake.lakehouse("run", "pipelines/gold/wrong.yaml")
    assert (refused.returncode, refused.stderr.partition(" ")[0]) == (2, "pipelines/gold/wrong.yaml:2:")
    wrong.unlink()

    # it says what Spark refuses, and answers without a Spark of the command's own
    wrong.write_text("source: silver.user_events\ntransforms: [{filter: uper(page)}]\nsink: delta\nschedule: daily\n")
    refused = lake.lakehouse("validate", "pipelines/gold")
    assert (refused.returncode, "wrong.yaml:2: UNKNOWN_FUNCTION" in refused.stderr) == (2, True)
    wrong.unlink()
    planned = lake.lakehouse("plan", GOLD)
    assert "aggregate: + dau_count bigint" in planned.stdout
    assert "starting Spark" not in refused.stderr + planned.stderr

    # files take values from the environment variables of the command, not from the engine's
    daily = lake.folder / "pipelines" / "gold" / "daily_active_users.yaml"
    text = daily.read_text()
    daily.write_text(text.replace("Unique users per day.", "${WHAT_IT_IS}"))
    unset = lake.lakehouse("run", GOLD)
    assert (unset.returncode, "UNSET_VARIABLE" in unset.stderr) == (2, True)
    lake.variables["WHAT_IT_IS"] = "users"
    assert "starting Spark" not in ran(lake.lakehouse("run", GOLD))
    daily.write_text(text)

    # somebody without the token; a second engine; a command of another state of the code
    found = json.loads(address(lake).read_text())
    with pytest.raises((AuthenticationError, ConnectionError, EOFError)):
        Client(("127.0.0.1", found["port"]), authkey=b"guess").recv()
    second = lake.lakehouse("engine")
    assert (second.returncode, "LOCKED" in second.stderr) == (1, True)
    code = ("import sys; from lakehouse_engine import client; client.code_digest = lambda: 'older'\n"
            f"from lakehouse_engine.cli import main; sys.argv = ['lakehouse', 'run', {SILVER!r}]; main()")  # fmt: skip
    other = subprocess.run([sys.executable, "-c", code], cwd=lake.folder, env=lake.environment, text=True,
                           capture_output=True, timeout=120)  # fmt: skip
    assert "the engine runs other code than this command" in ran(other)

    # the engine is killed in the middle: the command says so, and the next one does without
    shutil.rmtree(lake.storage / "silver")
    client = in_the_middle(lake)
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wait(30)
    assert "ENGINE_DIED" in client.communicate(timeout=30)[1]
    assert client.returncode == 1
    alone = ran(lake.lakehouse("run", SILVER, GOLD))
    assert "the engine does not answer" in alone
    assert "starting Spark" in alone
    ran(lake.lakehouse("serve", "--no-engine", GOLD))
    assert right(lake)


def test_nothing_of_it_needs_pyspark_until_there_is_work() -> None:
    assert "pyspark" not in imported("lakehouse_engine.engine", "lakehouse_engine.cli")
    # a command that an engine serves costs the standard library and click
    assert not {"pydantic", "yaml", "sqlglot", "psycopg2"} & imported("lakehouse_engine.client", "lakehouse_engine.cli")


def imported(*modules: str) -> set[str]:
    """What importing these brings along."""
    code = f"import sys, {', '.join(modules)}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
