"""Who may ask, and the command that serves."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lakehouse_engine.dashboard.access import COOKIE, is_loopback, token_of
from lakehouse_engine.errors import UsageError
from tests.dashboard.conftest import Served, serving
from tests.grafana.seed import Seed
from tests.platform import PROJECT

TOKEN = "a-token-of-twenty-four-c"
LOOPBACK = ("127.0.0.1", "127.0.0.1:8090", "localhost", "localhost:1", "[::1]", "[::1]:8090", "LOCALHOST")
ELSEWHERE = ("evil.example", "evil.example:8090", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1",
             "127.0.0.1@evil.example", "[::2]", "0.0.0.0")  # fmt: skip


@pytest.fixture(scope="module")
def guarded(seed: Seed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(seed.dsn, tmp_path_factory.mktemp("storage"), token=TOKEN) as made:
        yield made


def get(served: Served, path: str, **headers: str) -> httpx.Response:
    return httpx.get(served.url + path, headers=headers)


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_its_names_are_answered(host: str, served: Served) -> None:
    assert get(served, "/api/dashboards", host=host).status_code == 200


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("path", ["/", "/api/tables", "/healthz", "/static/app.css"])
def test_a_name_of_somebody_elses_is_not(host: str, path: str, served: Served) -> None:
    answer = get(served, path, host=host)
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "WRONG_HOST")


@pytest.mark.parametrize("path", ["/api/tables", "/api/pipelines", "/metrics", "/openapi.json", "/api/graph",
                                  "/api/dashboards/lakehouse-overview/panels", "/nothing",
                                  "/static/../api/tables"])  # fmt: skip
def test_without_the_token_there_is_nothing(path: str, guarded: Served) -> None:
    wrong = ({}, {"authorization": "Bearer " + TOKEN[:-1]}, {"authorization": f"Basic {TOKEN}"},
             {"authorization": TOKEN},
             {"authorization": "Bearer"}, {"cookie": f"{COOKIE}={TOKEN}"}, {"cookie": f"{COOKIE}="},
             {"authorization": "Bearer t\u00e9"})  # fmt: skip
    for headers in wrong:
        answer = httpx.get(guarded.url + path, headers={k: v.encode() for k, v in headers.items()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "TOKEN_REQUIRED"), headers
        assert answer.headers["www-authenticate"] == "Bearer"
    assert get(guarded, "/api/dashboards", authorization=f"Bearer {TOKEN}").status_code == 200


def test_health_without_the_token_is_one_word(guarded: Served) -> None:
    assert set(get(guarded, "/healthz").json()) == {"status"}
    assert get(guarded, "/healthz", authorization=f"Bearer {TOKEN}").json()["streams"] == 4


def test_a_browser_logs_in_once(guarded: Served) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        to = client.get("/pipelines", headers={"accept": "text/html"})
        assert (to.status_code, to.headers["location"]) == (303, "/login?next=/pipelines")
        assert 'type="password"' in client.get("/login").text
        refused = client.post("/login?next=/pipelines", data={"token": "wrong"})
        assert (refused.status_code, "That is not the token" in refused.text) == (401, True)
        assert COOKIE not in client.cookies
        taken = client.post("/login?next=/pipelines", data={"token": TOKEN})
        assert (taken.status_code, taken.headers["location"]) == (303, "/pipelines")
        cookie = taken.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie, "the cookie is not the token"
        assert client.get("/api/dashboards").status_code == 200
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example"):
        answer = httpx.post(f"{guarded.url}/login", params={"next": elsewhere}, data={"token": TOKEN})
        assert answer.headers["location"] == "/"
    assert httpx.post(f"{guarded.url}/login", content=b"x" * 5000).status_code == 413


@pytest.mark.parametrize("path", ["/", "/login.html", "/api/tables", "/static/js/main.js", "/nothing", "/healthz"])
def test_every_answer_allows_nothing_from_elsewhere(path: str, served: Served) -> None:
    headers = get(served, path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'; object-src 'none'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


def test_only_static_files_are_served(served: Served) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/js/../../access.py"):
        assert get(served, path).status_code == 404


def test_pages_name_nothing_from_elsewhere() -> None:
    static = PROJECT / "lakehouse_engine" / "dashboard" / "static"
    ours = [f for f in static.rglob("*.*") if f.suffix in (".html", ".css", ".js") and "vendor" not in f.parts]
    assert len(ours) > 10
    for file in ours:
        found = re.findall(r"https?://[^\s\"'`]+", file.read_text())
        assert set(found) <= {"http://www.w3.org/2000/svg"}, file
    version = (static / "vendor" / "uplot" / "VERSION").read_text()
    assert "1.6.32" in version
    assert "MIT" in (static / "vendor" / "uplot" / "LICENSE").read_text()


def test_every_file_of_the_pages_is_in_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    patterns = setup["options.package_data"]["lakehouse_engine"].split()
    package = PROJECT / "lakehouse_engine"
    files = [f for f in (package / "dashboard" / "static").rglob("*") if f.is_file()]
    assert len(files) > 20
    taken = {found for pattern in patterns for found in package.glob(pattern)}
    assert [file for file in files if file not in taken] == []


def test_loopback() -> None:
    assert all(is_loopback(h) for h in ("127.0.0.1", "127.8.0.1", "::1", "localhost"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_a_token_file_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / ".lakehouse" / "dashboard.token"
    token = token_of(file, make=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(token) >= 40
    assert token_of(file, make=True) == token
    file.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        token_of(file, make=True)
    assert token_of(file, make=False) == token, "a secret of a container"
    file.chmod(0o620)
    with pytest.raises(UsageError, match="chmod 600"):
        token_of(file, make=False)
    short = tmp_path / "short"
    short.write_text("short")
    short.chmod(0o600)
    for wrong in (short, tmp_path / "missing"):
        with pytest.raises(UsageError) as refused:
            token_of(wrong, make=False)
        assert refused.value.code == "TOKEN_FILE"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(seed: Seed, tmp_path: Path) -> Path:
    shutil.copytree(PROJECT / "pipelines", tmp_path / "pipelines")
    (tmp_path / ".lakehouse").mkdir()
    known = {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "postgres": {"dsn": seed.dsn}, "pids": {}}
    (tmp_path / ".lakehouse" / "services.json").write_text(json.dumps(known))
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "lakehouse_engine.cli", "dashboard", *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_until_it_is_interrupted(host: str, project: Path) -> None:
    process = command(project, "--port", "0", "--host", host)
    try:
        assert process.stderr is not None
        url = re.search(r"http://[\d.:]+", process.stderr.readline())
        assert url is not None
        address = url[0].replace("0.0.0.0", "127.0.0.1")
        headers = {}
        if host == "0.0.0.0":
            told = process.stderr.readline()
            token = (project / ".lakehouse" / "dashboard.token").read_text().strip()
            assert ".lakehouse/dashboard.token" in told
            assert token not in told
            assert _answer(f"{address}/api/dashboards").status_code == 401
            headers = {"authorization": f"Bearer {token}"}
        assert _answer(f"{address}/api/dashboards", **headers).status_code == 200
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=20)
        assert (process.returncode, out, rest) == (0, "", "stopped\n")
    finally:
        process.kill()
        process.wait()


def _answer(url: str, **headers: str) -> httpx.Response:
    deadline = time.monotonic() + 20
    while True:
        try:
            return httpx.get(url, headers=headers)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_is_in_its_way_is_one_line(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _, told = command(project, "--port", str(taken.getsockname()[1])).communicate(timeout=60)
        assert re.fullmatch(r"PORT_IN_USE: port \d+ is taken; choose another with --port, or 0 for any\n", told)
    (project / ".lakehouse" / "services.json").unlink()
    _, told = command(project).communicate(timeout=60)
    assert told.count("\n") == 1
    assert "STACK_DOWN" in told
    assert "lakehouse up" in told
