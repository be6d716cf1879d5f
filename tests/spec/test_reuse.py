"""Templates, parameters and layered defaults: what a file takes over, what it replaces, where each value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakehouse_engine.errors import SpecError
from lakehouse_engine.explain import explain
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from tests.spec.project import JOB, LANDING, write

TEMPLATE = """\
params: {topic: null, contract: click, time: at, columns: [day]}
description: Lands ${topic}.
source: {kafka: {topic: "${prefix:-}${topic}"}}
transforms:
  - parse: ${contract}
  - derive: {day: "to_date(${time})"}
sink: {delta: {partition_by: "${columns}"}}
trigger: {every: 10 seconds}
airflow: {retries: 7, owner: landing}
"""
PROJECT = {"templates/landing.yaml": TEMPLATE, "bronze/more.yaml": "use: landing\nparams: {topic: more}\n"}


def loaded(root: Path, files: dict[str, str], environment: Environment | None = None) -> dict[str, PipelineSpec]:
    """The project below ``pipelines``, by name."""
    folder = write(root / "pipelines", files)
    return {spec.name: spec for spec in load([folder], environment=environment)}


def test_a_template_is_taken_whole_with_its_parameters(tmp_path: Path) -> None:
    spec = loaded(tmp_path, PROJECT)["bronze.more"]
    plain = LANDING.replace("clicks", "more") + "description: Lands more.\nairflow: {retries: 7, owner: landing}\n"
    same = loaded(tmp_path, {"bronze/more.yaml": plain})["bronze.more"]
    own = {"lines"}
    assert spec.model_dump(exclude=own) == same.model_dump(exclude=own)


def test_further_keys_replace_those_of_the_template_as_a_whole(tmp_path: Path) -> None:
    more = PROJECT["bronze/more.yaml"] + "sink: console\nairflow: {retries: 1}\ntransforms: [{parse: click}]\n"
    spec = loaded(tmp_path, {**PROJECT, "bronze/more.yaml": more})["bronze.more"]
    assert (spec.sink.key, len(spec.transforms)) == ("console", 1)
    assert (spec.airflow.retries, spec.airflow.owner) == (1, "lakehouse")


def test_a_schedule_of_the_file_excludes_the_trigger_of_its_template(tmp_path: Path) -> None:
    job = "params: {table: null}\n" + JOB.replace("bronze.clicks", "${table}").replace("schedule", "trigger")
    files = {"templates/job.yaml": job.replace("daily", "{every: 1 s}"),
             "silver/more.yaml": "use: job\nparams: {table: bronze.clicks}\nschedule: hourly\n"}  # fmt: skip
    spec = loaded(tmp_path, files)["silver.more"]
    assert (spec.trigger, spec.schedule) == (None, "hourly")


def test_a_parameter_comes_before_an_entry_of_vars_and_may_be_made_of_one(tmp_path: Path) -> None:
    more = "use: landing\nparams: {topic: \"${team}-more\", time: at}\n"
    values = Environment(storage="x", vars={"team": "web", "topic": "never", "prefix": "eu-"})
    spec = loaded(tmp_path, {**PROJECT, "bronze/more.yaml": more}, values)["bronze.more"]
    assert spec.source.model_dump()["topic"] == "eu-web-more"


def test_a_parameter_that_is_a_list_stays_one(tmp_path: Path) -> None:
    more = "use: landing\nparams:\n  topic: more\n  columns:\n    - day\n    - id\n"
    spec = loaded(tmp_path, {**PROJECT, "bronze/more.yaml": more})["bronze.more"]
    assert spec.sink.model_dump()["partition_by"] == ("day", "id")
    assert spec.where("sink.delta.partition_by[1]") == f"{tmp_path}/pipelines/bronze/more.yaml:6"


LAYERED = {
    "defaults.yaml": "schedule: manual\ndescription: Of all.\nairflow: {owner: all, retries: 5, dag: all}\n",
    "silver/defaults.yaml": "trigger: {every: 1 s}\nairflow: {owner: silver, retries: 4}\n"
                            "maintain: {log_after: 8 days}\n",
    "silver/clicks.yaml": JOB + "airflow: {retries: 1}\n",
}  # fmt: skip


def test_the_nearest_defaults_come_first_and_airflow_key_by_key(tmp_path: Path) -> None:
    found = loaded(tmp_path, LAYERED)
    spec = found["silver.clicks"]
    assert (spec.description, spec.schedule, spec.trigger) == ("Of all.", "daily", None)
    assert (spec.airflow.retries, spec.airflow.owner, spec.airflow.dag) == (1, "silver", "all")
    assert found["bronze.clicks"].airflow.owner == "all"
    assert spec.maintain.log_after == 8 * 86_400_000_000


def test_defaults_fill_what_file_and_template_lack(tmp_path: Path) -> None:
    template = TEMPLATE.replace("trigger: {every: 10 seconds}\n", "")
    files = {**PROJECT, "templates/landing.yaml": template, "bronze/defaults.yaml": "trigger: {every: 3 s}\n",
             "defaults.yaml": "description: Never.\n"}  # fmt: skip
    spec = loaded(tmp_path, files)["bronze.more"]
    assert spec.trigger is not None
    assert spec.trigger.every == 3_000_000
    assert spec.description == "Lands more."


def test_defaults_above_the_folder_of_pipelines_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("description: [wrong]\n")
    assert loaded(tmp_path, {})["bronze.clicks"].description == ""


def test_each_value_tells_the_file_and_line_that_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_TEST_OWNER", "me")
    files = {**PROJECT, "bronze/defaults.yaml": "maintain:\n  log_after: 9 days\n",
             "bronze/more.yaml": "use: landing\nparams:\n  topic: more\n"
                                 "airflow: {owner: \"${LAKEHOUSE_TEST_OWNER}\"}\n"}  # fmt: skip
    plan = compile_plan(list(loaded(tmp_path, files).values()))
    root = f"{tmp_path}/pipelines/"
    found = {one["path"]: (one["value"], f"{one['file']}:{one['line']}".removeprefix(root), [
        text.replace(root, "") for text in one["through"]])
        for one in explain(plan, origins=True)["origins"]["bronze.more"]}  # fmt: skip
    assert found["source.kafka.topic"] == (
        "more", "templates/landing.yaml:3", ["${prefix} of the environment", "${topic} of bronze/more.yaml:3"])
    assert found["transforms[0].parse"] == (
        "click", "templates/landing.yaml:1", ["as contract of templates/landing.yaml:5"])
    assert found["maintain.log_after"] == ("9 days", "bronze/defaults.yaml:2", [])
    assert found["airflow.owner"] == (
        "me", "bronze/more.yaml:4", ["${LAKEHOUSE_TEST_OWNER} of the process environment"])
    assert found["trigger.every"] == ("10 seconds", "templates/landing.yaml:8", [])
    assert "origins" not in explain(plan)


def test_a_secret_of_the_process_is_shown_by_no_error_and_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "hunter 2")
    wrong = LANDING.replace("topic: clicks", 'topic: "${A_TOKEN}"') + 'serve: "x ${A_TOKEN}"\n'
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, {"bronze/more.yaml": wrong})
    assert "hunter" not in str(caught.value)
    assert str(caught.value).count("***") == 2
    right = LANDING + 'description: "by ${A_TOKEN}"\n'
    described = explain(compile_plan([loaded(tmp_path, {"bronze/more.yaml": right})["bronze.more"]]), origins=True)
    assert "hunter" not in described.text()
    assert "${A_TOKEN} of the process environment" in described.text()
