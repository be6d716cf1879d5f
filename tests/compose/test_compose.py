"""The containers' files without a container: valid, closed, bounded, and naming only what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lakehouse_engine.spec.environment import load_environment
from tests.compose.conftest import COMPOSE, declared, filled, services, tool
from tests.platform import PROJECT

#: where people put passwords by mistake
FILES = [
    path for path in (
        *(PROJECT / "compose").iterdir(), *(PROJECT / "grafana").rglob("*"), *(PROJECT / "environments").iterdir(),
        *(PROJECT / "airflow").rglob("*.py"), *(PROJECT / "deploy").rglob("*"), *(PROJECT / "prometheus").rglob("*"))
    if path.is_file() and path.suffix != ".pyc" and path.name != ".env"
]  # fmt: skip
#: programs of images that health checks and entry points start, and how we know that they are there
PROGRAMS = {
    "nc": "apache/kafka is Alpine, whose busybox has it",
    "/bin/sh": "every image here",
    "pg_isready": "postgres installs it with the server and has its folder on PATH",
    "wget": "busybox of Alpine (grafana/grafana) and of prom/busybox (prom/prometheus)",
    "postgres": "the command that the postgres image documents",
    "/opt/lakehouse/bin/python": "both images of compose/Dockerfile make this environment",
    "/opt/lakehouse/bin/lakehouse": "both images of compose/Dockerfile install the package there",
    "/lakehouse/compose/airflow.sh": "compose/Dockerfile copies it into the airflow image",
}
#: programs that the scripts call in an image that is not ours
CALLED = {
    "kafka.sh": {"sed": "busybox", "kafka-storage.sh": "Kafka's distribution", "kafka-server-start.sh": "the same"},
    "postgres.sh": {"psql": "comes with the server", "`cat": "coreutils", "mktemp": "coreutils"},
    "airflow.sh": {"cat": "coreutils", "airflow": "the command of apache/airflow"},
}
ONCE = {name for name, service in services().items() if service["restart"] != "unless-stopped"}


def without_name(tmp_path: Path, project: Path) -> list[str]:
    """docker-compose 1, which Debian has, knows every key here but `name`."""
    text = re.sub(r"^name: .*$", "", COMPOSE.read_text(), flags=re.MULTILINE)
    (tmp_path / "compose").mkdir()
    (tmp_path / "compose" / "compose.yaml").write_text(text)
    return ["--env-file", str(project / "compose" / ".env"), "-f", str(tmp_path / "compose" / "compose.yaml")]


def test_it_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_docker_compose_reads_it_and_every_variable_has_a_value(project: Path, tmp_path: Path) -> None:
    command = [tool("docker-compose", "docker-compose"), *without_name(tmp_path, project), "config"]
    read = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert (read.returncode, read.stderr) == (0, "")
    resolved = yaml.safe_load(read.stdout)["services"]
    assert resolved.keys() == services().keys()
    assert "$" not in read.stdout


def test_without_init_it_says_what_to_do(project: Path, tmp_path: Path) -> None:
    command = [tool("docker-compose", "docker-compose"), *without_name(tmp_path, project)[2:], "config"]
    read = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert read.returncode != 0
    assert "lakehouse init" in read.stderr


@pytest.mark.parametrize("name", services())
def test_a_service_is_bounded_watched_and_has_no_rights_to_spare(name: str) -> None:
    service = services()[name]
    assert "mem_limit" in service
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if service.get("read_only"):
        assert any(mount.startswith("/tmp:") and "exec" in mount.split(",") for mount in service["tmpfs"])
    # one that ends has no health; whoever needs it waits for its success
    waited = [other["depends_on"][name]["condition"] for other in services().values()
              if name in other.get("depends_on", {})]  # fmt: skip
    if name in ONCE:
        assert service["restart"] == "on-failure"
        assert set(waited) == {"service_completed_successfully"}
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert set(waited) <= {"service_healthy"}
    for other, how in service.get("depends_on", {}).items():
        assert other in services()
        assert how["condition"] in ("service_healthy", "service_completed_successfully")


@pytest.mark.parametrize("name", services())
def test_an_image_is_pinned_and_no_port_is_open_to_the_network(name: str) -> None:
    service = services()[name]
    tag = service["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), service["image"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), port
    assert service.get("network_mode", "service:airflow-scheduler") == "service:airflow-scheduler"
    assert set(service.get("networks", ())) <= declared("networks").keys()


@pytest.mark.parametrize("name", services())
def test_a_service_that_reads_secrets_runs_as_their_owner_and_none_runs_as_root(name: str) -> None:
    service = services()[name]
    if service.get("secrets"):
        assert service["user"].startswith("${LAKEHOUSE_UID:?")
    # as its image says, which is not root: appuser and nobody
    assert "user" in service or name in ("kafka", "prometheus")


def test_what_dockerfiles_start_from_is_pinned_and_they_end_as_a_plain_user() -> None:
    text = (PROJECT / "compose" / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases
    assert all(re.search(r":v?\d+\.\d+\.\d+", base) for base in bases), bases
    for stage in text.split("\nFROM ")[2:]:
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] == "$LAKEHOUSE_UID:0"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()}
    ignored = (PROJECT / "compose" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for path in copied:
        assert (PROJECT / path).exists(), path
        assert any(path == kept[1:] or path.startswith(f"{kept[1:]}/") for kept in ignored if kept[0] == "!"), path
    assert not any("secrets" in kept or ".env" in kept for kept in ignored if kept[0] == "!")


def test_every_mount_secret_and_volume_exists(project: Path) -> None:
    used = set()
    for service in services().values():
        for volume in service.get("volumes", ()):
            source, target = filled(volume, {}).split(":")[:2]
            if source.startswith("."):
                assert (COMPOSE.parent / source).resolve().exists(), volume
                assert volume.endswith(":ro"), volume
            else:
                assert source in declared("volumes"), volume
            assert target.startswith("/")
        used |= set(service.get("secrets", ()))
    assert used == declared("secrets").keys()
    for name, secret in declared("secrets").items():
        assert secret == {"file": f"./secrets/{name}"}
        assert (project / "compose" / secret["file"]).stat().st_size == 44
    # what Grafana's and the engine's files name is given to Grafana and to the engine
    datasource = (PROJECT / "grafana" / "provisioning" / "datasources" / "lakehouse.yaml").read_text()
    assert set(re.findall(r"/run/secrets/(\w+)", datasource)) <= set(services()["grafana"]["secrets"])
    assert set(re.findall(r"\$(LAKEHOUSE_\w+)", datasource)) <= services()["grafana"]["environment"].keys()
    found = load_environment("compose", PROJECT, {})
    assert found.connections.postgres is not None
    assert found.connections.postgres.password is not None
    assert found.connections.postgres.password.file == "/run/secrets/engine_password"
    for name in ("engine", "jobs", "airflow-scheduler"):
        assert "engine_password" in services()[name]["secrets"]
        assert f"storage:{found.storage}" in services()[name]["volumes"]


def test_every_host_that_is_named_is_a_service_and_reachable_from_there() -> None:
    found = load_environment("compose", PROJECT, {})
    assert found.connections.postgres is not None
    address = services()["grafana"]["environment"]["LAKEHOUSE_POSTGRES_ADDRESS"]
    airflow = (PROJECT / "compose" / "airflow.sh").read_text()
    (api,) = re.findall(r"AIRFLOW_API:-http://([\w.-]+):8080", airflow)
    (database,) = re.findall(r"POSTGRES_HOST:-([\w.-]+)\}", airflow)
    properties = (PROJECT / "compose" / "kafka.properties").read_text()
    (advertised,) = re.findall(r"^advertised.listeners=BROKER://(\S+)", properties, re.MULTILINE)
    assert advertised == found.kafka_bootstrap
    ((targets,),) = ([one["targets"] for one in yaml.safe_load((COMPOSE.parent / "targets.yaml").read_text())],)
    at = found.connections.postgres
    for source, target in (
        *((name, advertised) for name in ("engine", "producer", "topics")),
        *((name, f"{at.host}:{at.port}") for name in ("engine", "metrics", "airflow-scheduler")),
        ("grafana", address), *(("prometheus", target) for target in targets),
        *((name, f"{host}:") for name in services() if name.startswith("airflow") for host in (api, database)),
    ):  # fmt: skip
        host = target.partition(":")[0]
        assert host in services(), target
        assert set(services()[source]["networks"]) & set(services()[host]["networks"]), (source, target)
    # Kafka asks nobody who he is
    assert not services()["kafka"].get("ports")
    members = {name for name, service in services().items() if "events" in service.get("networks", ())}
    assert members == {"kafka", "topics", "producer", "engine"}


def test_what_starts_in_a_container_is_known_to_be_there() -> None:
    for name, service in services().items():
        words = [service.get("healthcheck", {}).get("test", ["CMD", "/bin/sh"])[1]]
        words += service.get("entrypoint", [])[:1]
        for word in words:
            assert word in PROGRAMS, f"{name}: {word}"
        for part in (*service.get("entrypoint", ()), *service.get("healthcheck", {}).get("test", ())):
            if part.startswith("/lakehouse/compose/"):
                file = part.rpartition("/")[2]
                mounted = any(volume.startswith(f"./{file}:") for volume in service.get("volumes", ()))
                copied = file in (PROJECT / "compose" / "Dockerfile").read_text() and "build" in service
                assert mounted or copied, f"{name}: {part}"
    for script in (PROJECT / "compose").glob("*.sh"):
        assert script.stat().st_mode & 0o111 == 0o111, script
        assert script.name in CALLED
        for program in CALLED[script.name]:
            assert re.search(rf"(^|[\s(/\"]|:-){re.escape(program)}\b", script.read_text(), re.MULTILINE), program


def test_shell_scripts_pass_shellcheck() -> None:
    scripts = sorted(map(str, (*(PROJECT / "compose").glob("*.sh"), *(PROJECT / "deploy").rglob("*.sh"))))
    command = [tool("shellcheck", "shellcheck"), "--shell=sh", *scripts]
    checked = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_file_holds_a_password_or_listens_to_the_network_from_a_host(path: Path) -> None:
    assert list(findings(path.read_text())) == []


KEY = r"(?:password|passwd|secret|secret_key|token|fernet_key)(?:__file|_file|_cmd)?"
#: what may stand where a secret's value would: a file, a command that reads one, a variable of Python
REFERENCE = re.compile(
    r"""$|["']?(\$__file\{)?/run/secrets/\w+|\{(file|secretName):|"?cat '\$secrets/|(true|false|null)\b|Path\(|\w+\)"""
)
WRONG = (
    re.compile(rf"(?i)\b{KEY}\s+'"),  # SQL
    re.compile(r"://[^\s:/@]+:(?!%s@)[^\s@/]+@"),  # an address with a password
    re.compile(r":latest\b|\b0\.0\.0\.0:\d+:"),
    re.compile(r"(?i)\b(admin|airflow|postgres|grafana)[:/](admin|airflow|postgres|grafana)\b"),
)
#: names of images, users with their roles (Airflow's form), folders
KNOWN = re.compile(r"grafana/grafana:\d|_USERS=admin:admin$|/etc/grafana|lib/grafana|/grafana/")


def findings(text: str) -> Iterator[str]:
    """Lines with a default or literal password, a `latest` tag or a port that is published to the network."""
    for line in text.splitlines():
        content = re.sub(r" password :'\w+';", "", line.split("  #")[0])  # psql's variable, read from a file
        values = re.findall(rf"(?i){KEY}[\"']?\s*(?::(?!-\}})|=)\s*(.*)$", content)
        literal = not all(REFERENCE.match(value.strip()) for value in values)
        if literal or any(wrong.search(KNOWN.sub("", content)) for wrong in WRONG):
            yield line


@pytest.mark.parametrize("wrong", [
    "GF_SECURITY_ADMIN_PASSWORD: admin", "      GF_SECURITY_ADMIN_PASSWORD: changeme  # later",
    "POSTGRES_PASSWORD=postgres", "create role engine login password 'engine';", "password = hunter2",
    "AIRFLOW__API__SECRET_KEY: abc", "sql_alchemy_conn: postgresql://airflow:airflow@postgres/airflow",
    "image: grafana/grafana:latest", 'ports: ["0.0.0.0:3000:3000"]', "  password: {value: x}", "# login: admin/admin",
    "_AIRFLOW_WWW_USER_PASSWORD: ${P:-airflow}", '      echo "${ADMIN_PASSWORD:-admin}"',
])  # fmt: skip
def test_the_search_for_passwords_finds_them(wrong: str) -> None:
    assert list(findings(wrong)) == [wrong]


def test_every_knob_is_in_the_example_and_does_something() -> None:
    text = COMPOSE.read_text()
    named = set(re.findall(r"\$\{([A-Z_]+)", text))
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (PROJECT / "compose" / "env.example").read_text(), re.MULTILINE))
    assert example.keys() == named
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    assert {name: value for name, value in example.items() if name != "LAKEHOUSE_UID"} == defaults


def test_the_commands_are_words_of_the_command_line() -> None:
    for name in ("engine", "producer", "jobs"):
        words = services()[name]["command"]
        command = [sys.executable, "-m", "lakehouse_engine.cli", words[0], "--help"]
        asked = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=60)
        assert asked.returncode == 0, shlex.join(words)
        for path in (word for word in words if word.startswith("pipelines")):
            assert (PROJECT / path).is_dir()


def test_prometheus_takes_its_configuration_as_it_is_mounted(tmp_path: Path) -> None:
    for volume in services()["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if target.startswith("/etc/prometheus/"):
            (tmp_path / Path(target).name).write_text((COMPOSE.parent / source).read_text())
    command = [tool("promtool", "prometheus"), "check", "config", str(tmp_path / "prometheus.yaml")]
    checked = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ports = dict(target.split(":") for target in yaml.safe_load((tmp_path / "targets.yaml").read_text())[0]["targets"])
    command = services()["engine"]["command"]
    assert command[command.index("--metrics-port") + 1] == ports["engine"]
    assert ports["metrics"] in (PROJECT / "compose" / "metrics.py").read_text()
