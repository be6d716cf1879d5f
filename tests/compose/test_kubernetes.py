"""The example for Kubernetes, without a cluster: shapes, names that must agree, and the image's entry point.

Not here: the custom resource's own schema (its pods are checked as pods), scheduling, an operator's doings.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lakehouse_engine.spec.environment import load_environment
from tests.platform import PROJECT

FOLDER = PROJECT / "deploy" / "kubernetes"
RUNNER = "local:///opt/lakehouse/lib/python3.11/site-packages/lakehouse_engine/runner.py"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def application() -> dict[str, Any]:
    found: dict[str, Any] = documents("sparkapplication.yaml")[0]["spec"]
    return found


def as_pod(part: str) -> dict[str, Any]:
    """What the operator makes of one half of the application, as far as Kubernetes itself knows it."""
    spec = application()
    half = spec[part]
    container = {"name": part, "image": spec["image"], **{k: half[k] for k in ("volumeMounts", "securityContext")}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": part},
            "spec": {"containers": [container], "volumes": spec["volumes"],
                     "securityContext": half["podSecurityContext"]}}  # fmt: skip


@pytest.mark.parametrize(
    "document", [*documents("lakehouse.yaml"), *documents("driver.yaml"), as_pod("driver"), as_pod("executor")],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")  # fmt: skip
def test_resources_are_as_kubernetes_knows_them(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_wrong_resource_is_noticed() -> None:
    wrong = as_pod("driver")
    wrong["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_names_and_paths_agree(tmp_path: Path) -> None:
    by_kind = {document["kind"]: document for document in documents("lakehouse.yaml")}
    spec, submit = application(), (FOLDER / "submit.sh").read_text()
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for kind, name in (("PersistentVolumeClaim", volumes["storage"]["persistentVolumeClaim"]["claimName"]),
                       ("ConfigMap", volumes["environments"]["configMap"]["name"]),
                       ("ServiceAccount", spec["driver"]["serviceAccount"])):  # fmt: skip
        assert by_kind[kind]["metadata"]["name"] == name
    assert spec["image"] in (PROJECT / "compose" / "compose.yaml").read_text()

    # the environment is one, and what it names is mounted
    text = by_kind["ConfigMap"]["data"]["kubernetes.yaml"]
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "kubernetes.yaml").write_text(text)
    found = load_environment("kubernetes", tmp_path, {})
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["driver"]["volumeMounts"]}
    assert mounts[found.storage] == "storage"
    assert found.connections.postgres is not None
    assert found.connections.postgres.password is not None
    assert mounts[str(Path(found.connections.postgres.password.file or "").parent)] == "secrets"
    assert mounts["/lakehouse/environments"] == "environments"

    # both ways start the same, from what the image has
    dockerfile = (PROJECT / "compose" / "Dockerfile").read_text()
    assert spec["mainApplicationFile"] == RUNNER
    assert "/opt/lakehouse/jars" in dockerfile
    assert RUNNER in submit
    assert " ".join(spec["arguments"]) in submit
    for key, value in spec["sparkConf"].items():
        assert re.search(rf"--conf '?{re.escape(f'{key}={value}')}(['\s])", submit), key
    pod = documents("driver.yaml")[0]["spec"]
    assert [v for v in spec["volumes"] if v["name"] != "storage"] == pod["volumes"]
    assert f"sparkVersion: {re.findall('pyspark==(.*)', (PROJECT / 'setup.cfg').read_text())[0]}" in (
        FOLDER / "sparkapplication.yaml").read_text()  # fmt: skip


def entry_point(tmp_path: Path, *words: str, **variables: str) -> list[str]:
    """What the image's entry point starts, and with which words."""
    for program in ("bin/java", "lakehouse", "spark-submit"):
        path = tmp_path / program
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\necho "$0"\nfor word in "$@"; do echo "$word"; done\n')
        path.chmod(0o755)
    ran = subprocess.run([str(FOLDER / "entrypoint.sh"), *words], text=True, capture_output=True, timeout=30, env={
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "JAVA_HOME": str(tmp_path), **variables})  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.replace(f"{tmp_path}/", "").splitlines()


def test_the_entry_point_starts_the_command_a_driver_or_an_executor(tmp_path: Path) -> None:
    assert entry_point(tmp_path, "run", "a b") == ["lakehouse", "run", "a b"]
    driver = entry_point(tmp_path, "driver", "--properties-file", "x", RUNNER, SPARK_DRIVER_BIND_ADDRESS="10.0.0.1")
    assert driver[0] == "spark-submit"
    assert driver[-5:] == ["--deploy-mode", "client", "--properties-file", "x", RUNNER]
    assert "spark.driver.bindAddress=10.0.0.1" in driver
    said = {"DRIVER_URL": "spark://d", "EXECUTOR_ID": "1", "EXECUTOR_CORES": "1", "APPLICATION_ID": "app",
            "EXECUTOR_POD_IP": "10.0.0.2", "RESOURCE_PROFILE_ID": "0", "EXECUTOR_POD_NAME": "pod",
            "EXECUTOR_MEMORY": "1g", "HOME": "/spark", "CLASSPATH": "/opt/lakehouse/jars/*",
            "JAVA_OPT_10": "-Dlast=*", "JAVA_OPT_2": "-Dsecond=a b", "JAVA_OPT_0": "-Dfirst=x"}  # fmt: skip
    executor = entry_point(tmp_path, "executor", **{f"SPARK_{key}": value for key, value in said.items()})
    assert executor[:8] == ["bin/java", "-Dfirst=x", "-Dsecond=a b", "-Dlast=*", "-Xms1g", "-Xmx1g", "-cp",
                            "/opt/lakehouse/jars/*:/spark/jars/*"]  # fmt: skip
    assert executor[8].endswith("KubernetesExecutorBackend")
    assert executor[9:] == ["--driver-url", "spark://d", "--executor-id", "1", "--cores", "1", "--app-id", "app",
                            "--hostname", "10.0.0.2", "--resourceProfileId", "0", "--podName", "pod"]  # fmt: skip
