"""Up, down, up again: one stack a folder, nothing lost, nobody else touched."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from lakehouse_engine.errors import RunError
from lakehouse_engine.local import kafka, postgres, stack


def test_a_stack_lives_through_up_kill_heal_and_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = stack.up(root, report=said.append)
    file = root / ".lakehouse" / "services.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = json.loads(file.read_text())
    assert content == {
        "kafka": {"bootstrap_servers": first.bootstrap_servers},
        "postgres": {"dsn": first.dsn},
        "pids": dict(first.pids),
    }
    assert said[-1].startswith("ready")
    assert not any(first.dsn in line for line in said)
    assert stack.services(root) == first
    assert stack.health(root) == {"kafka": "running", "postgres": "running"}

    said.clear()
    assert stack.up(root, report=said.append) == first
    assert len(said) == 1
    assert said[0].startswith("already running")
    with pytest.raises(RunError) as raised:
        stack.up(root, kafka_port=1)
    assert raised.value.code == "STACK_OTHER_PORT"

    os.kill(first.pids["postgres"], signal.SIGKILL)
    wait(lambda: stack.health(root) == {"kafka": "running", "postgres": "dead"})
    with pytest.raises(RunError, match="postgres") as raised:
        stack.services(root)
    assert raised.value.code == "STACK_HALF_DEAD"

    healed = stack.up(root)
    assert healed.pids["kafka"] == first.pids["kafka"]
    assert healed.pids["postgres"] != first.pids["postgres"]
    assert (healed.bootstrap_servers, healed.dsn) == (first.bootstrap_servers, first.dsn)

    os.kill(healed.pids["kafka"], signal.SIGSTOP)
    monkeypatch.setattr(stack, "ANSWER_WITHIN", 1)
    try:
        assert stack.health(root)["kafka"] == "not answering"
        with pytest.raises(RunError, match="kafka") as raised:
            stack.up(root)
        assert raised.value.code == "STACK_NOT_ANSWERING"
    finally:
        os.kill(healed.pids["kafka"], signal.SIGCONT)
    monkeypatch.undo()

    kafka.ensure_topic(first.bootstrap_servers, "kept", partitions=1)
    producer = Producer({"bootstrap.servers": first.bootstrap_servers})
    producer.produce("kept", b"1")
    assert producer.flush(30) == 0

    assert stack.down(root)
    assert not stack.down(root)
    assert stack.services(root) is None
    assert stack.health(root) == {}
    assert kafka.answers(first.bootstrap_servers, 0.2) is None
    assert not postgres.answers(first.dsn)

    again = stack.up(root)
    assert (again.bootstrap_servers, again.dsn) == (first.bootstrap_servers, first.dsn)
    consumer = Consumer({"bootstrap.servers": again.bootstrap_servers, "group.id": "any", "enable.auto.commit": False})
    assert consumer.get_watermark_offsets(TopicPartition("kept", 0), timeout=30) == (0, 1)
    consumer.close()


def test_down_leaves_whoever_inherited_a_pid_alone(root: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for name in stack.NAMES:
            folder = root / ".lakehouse" / name
            folder.mkdir(parents=True)
            record = {"pid": stranger.pid, "started": "1", "mark": sys.executable}
            (folder / "process.json").write_text(json.dumps(record))
        assert not stack.down(root)
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n", timeout=10)
    assert stranger.returncode == 0


def test_a_stack_of_another_folder_is_not_touched(root: Path) -> None:
    other = root / "other"
    other.mkdir()
    assert not stack.down(other)
    assert stack.services(other) is None
    assert not (other / ".lakehouse").exists()


def test_two_ups_at_once_give_one_stack(root: Path) -> None:
    program = "import sys, pathlib, lakehouse_engine.local.stack as stack; print(stack.up(pathlib.Path(sys.argv[1])))"
    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(subprocess.run, [sys.executable, "-c", program, str(root)], capture_output=True, text=True)
            for _ in range(2)
        ]
    answers = [end.result() for end in ends]
    assert [answer.returncode for answer in answers] == [0, 0], answers
    assert answers[0].stdout == answers[1].stdout


def test_a_failure_of_one_service_leaves_neither_running(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(RunError) as raised:
        stack.up(root, kafka_port=other.getsockname()[1])
    assert raised.value.code == "PORT_IN_USE"
    assert stack.services(root) is None
    assert stack._running(root / ".lakehouse") == {}


def test_a_services_file_that_is_not_ours_is_said(root: Path) -> None:
    (root / ".lakehouse").mkdir()
    (root / ".lakehouse" / "services.json").write_text("{}")
    with pytest.raises(RunError, match="delete it") as raised:
        stack.services(root)
    assert raised.value.code == "STACK_UNREADABLE"


def test_the_folder_keeps_itself_out_of_git(root: Path) -> None:
    stack._prepared(root)
    assert (root / ".lakehouse" / ".gitignore").read_text() == "*\n"


def wait(condition: object, patience: float = 10.0) -> None:
    assert callable(condition)
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
