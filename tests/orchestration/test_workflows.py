"""From files to workflows, without Airflow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from lakehouse_engine.errors import UsageError
from lakehouse_engine.orchestration import FROM, FULL, TO, Task, Workflow, engine, workflows
from tests.orchestration.conftest import LOGOUTS
from tests.platform import PROJECT

REFERENCE = "lakehouse_bronze_to_gold"
GOLD = {"silver_to_gold_dau", "silver_to_gold_conversion", "silver_to_gold_events_source",
        "silver_to_gold_purchases_page"}  # fmt: skip
EVIL = '"; touch x; $(touch x) `touch x` *'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(PROJECT / "pipelines", tmp_path / "pipelines")
    return tmp_path


def write(project: Path, name: str, text: str) -> None:
    file = project / "pipelines" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def made(project: Path, *command: str) -> dict[str, Workflow]:
    return {workflow.id: workflow for workflow in workflows(project, command or ("lakehouse",))}


def tasks(project: Path, workflow: str = REFERENCE, *command: str) -> dict[str, Task]:
    found = made(project, *command)[workflow].tasks
    assert len({task.id for task in found} | {task.layer for task in found}) == len(found) + len(
        {task.layer for task in found}
    ), "an id stands twice"
    return {task.id: task for task in found}


def test_the_reference_files_make_the_reference_workflow(project: Path) -> None:
    assert set(made(project)) == {REFERENCE, "lakehouse_maintenance"}
    workflow = made(project)[REFERENCE]
    assert (workflow.schedule, workflow.after, workflow.ranged) == ("@daily", (), True)
    found = tasks(project)
    assert {task.id: set(task.upstream) for task in found.values()} == {
        "bronze_to_silver": set(), **{name: {"bronze_to_silver"} for name in GOLD}, "gold_to_postgres": GOLD,
    }  # fmt: skip
    assert {task.id: task.layer for task in found.values()} == {
        "bronze_to_silver": "silver", **dict.fromkeys(GOLD, "gold"), "gold_to_postgres": "serving"}  # fmt: skip
    silver = found["bronze_to_silver"]
    assert (silver.inlets, silver.outlets) == (("bronze.user_events",), ("silver.user_events",))
    assert (silver.retries, silver.owner, silver.timeout, silver.error) == (2, "lakehouse", None, None)
    assert silver.docs.startswith("Events that passed every check, each once.")
    assert "Unique users per day." in workflow.docs
    assert found["gold_to_postgres"].command == (
        "exec lakehouse serve pipelines/gold/conversion_rate_daily.yaml pipelines/gold/daily_active_users.yaml"
        " pipelines/gold/events_per_source_daily.yaml pipelines/gold/purchases_per_page_daily.yaml")  # fmt: skip


def test_a_task_waits_for_all_that_its_job_reads(project: Path) -> None:
    shutil.rmtree(project / "pipelines")
    shutil.copytree(PROJECT / "examples" / "pipelines", project / "pipelines")
    found = tasks(project, "shop")
    assert {task.id: (set(task.upstream), task.inlets) for task in found.values() if len(task.inlets) > 1} == {
        "silver.movements": ({"silver.orders"}, ("silver.orders", "bronze.refunds")),
        "gold.net_turnover_daily": ({"silver.orders"}, ("silver.orders", "bronze.refunds")),
        "gold.top_orders_daily": ({"silver.orders", "silver.regions"}, ("silver.orders", "silver.regions")),
    }  # fmt: skip
    assert not any(task.error for task in found.values())


def test_a_new_file_is_a_new_task_under_its_own_name(project: Path) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + "serve: postgres\n"
          "airflow: {retries: 5, owner: web, timeout: 10 minutes}\n")  # fmt: skip
    task = tasks(project)["gold.logouts_daily"]
    assert task.upstream == ("bronze_to_silver",)
    assert (task.retries, task.owner, task.timeout) == (5, "web", timedelta(minutes=10))
    serving = tasks(project)["gold_to_postgres"]
    assert "gold.logouts_daily" in serving.upstream
    assert "pipelines/gold/logouts_daily.yaml" in serving.command
    assert (serving.retries, serving.owner) == (5, "lakehouse")


def test_every_table_of_a_job_is_maintained(project: Path) -> None:
    workflow = made(project)["lakehouse_maintenance"]
    assert (workflow.schedule, workflow.ranged) == ("@daily", False)
    assert {task.id: task.command for task in workflow.tasks} == {
        name: f"exec lakehouse maintain pipelines/{name.replace('.', '/')}.yaml --apply"
        for name in ("silver.user_events", "gold.conversion_rate_daily", "gold.daily_active_users",
                     "gold.events_per_source_daily", "gold.purchases_per_page_daily")}  # fmt: skip


@pytest.fixture
def said(project: Path) -> Path:
    """A command that says what it was called with."""
    script = project / "a command.py"
    script.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    return script


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["run", "SPEC"]),
        ({FROM: "2026-01-01", TO: "2026-01-31"}, ["backfill", "SPEC", "--from", "2026-01-01", "--to", "2026-01-31"]),
        ({FROM: "2026-01-01"}, ["backfill", "SPEC", "--from", "2026-01-01"]),
        ({FULL: "yes"}, ["backfill", "SPEC", "--full"]),
        ({TO: EVIL}, ["backfill", "SPEC", "--to", EVIL]),
    ],
)
def test_a_range_reaches_the_command_as_words_and_is_never_run(
    project: Path, said: Path, values: dict[str, str], words: list[str]
) -> None:
    task = tasks(project, REFERENCE, sys.executable, str(said))["bronze_to_silver"]
    ran = subprocess.run(["bash", "-c", task.command], cwd=project, text=True, capture_output=True, check=True,
                         env={FROM: "", TO: "", FULL: "", **values})  # fmt: skip
    assert json.loads(ran.stdout) == [word.replace("SPEC", "pipelines/silver/user_events.yaml") for word in words]
    assert not (project / "x").exists()


def test_the_engines_command_is_the_variables_else_the_projects_else_the_one_on_the_path(tmp_path: Path) -> None:
    assert engine(tmp_path, {}) == ("lakehouse",)
    own = tmp_path / ".venv" / "bin" / "lakehouse"
    own.parent.mkdir(parents=True)
    own.touch()
    assert engine(tmp_path, {"LAKEHOUSE_COMMAND": ""}) == (str(own),)
    assert engine(tmp_path, {"LAKEHOUSE_COMMAND": "'a b' -m lakehouse"}) == ("a b", "-m", "lakehouse")


def test_a_project_without_pipelines_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="LAKEHOUSE_PROJECT"):
        workflows(tmp_path, ())


# ---------------------------------------------------------------- files that are wrong


WRONG = [
    ("silver_to_gold_dau", "gold/daily_active_users.yaml", "  - agregate: {by: [event_date]}", "3: UNKNOWN_COMPONENT"),
    ("silver_to_gold_dau", "gold/daily_active_users.yaml", "  - filter: eventtype = 'x'", "3: UNKNOWN_COLUMN"),
    ("silver_to_gold_dau", "gold/daily_active_users.yaml", "  - filter: [", "8: YAML_SYNTAX"),
]


@pytest.mark.parametrize(("task_id", "file", "line", "expected"), WRONG)
def test_a_wrong_file_costs_its_own_task(project: Path, task_id: str, file: str, line: str, expected: str) -> None:
    path = project / "pipelines" / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "transforms:", line, *lines[4:]]) + "\n")
    found = tasks(project)
    error = found[task_id].error
    assert error is not None
    assert error.startswith(f"pipelines/{file}:")
    assert expected.partition(": ")[2] in error
    assert (found[task_id].layer, found[task_id].upstream, found[task_id].command) == ("gold", (), "")
    # what is right is served, and nothing waits for what is not
    assert [task.id for task in found.values() if task.error] == [task_id]
    assert set(found["gold_to_postgres"].upstream) == GOLD - {task_id}
    assert file not in found["gold_to_postgres"].command


def test_what_reads_the_table_of_a_wrong_file_waits_for_its_task(project: Path) -> None:
    write(project, "silver/user_events.yaml", "schedule: daily\nsource: [\nairflow: {task_id: bronze_to_silver}\n")
    found = tasks(project)
    assert "YAML_SYNTAX" in (found["bronze_to_silver"].error or "")
    assert all(found[name].upstream == ("bronze_to_silver",) and not found[name].error for name in GOLD)
    # nobody else has a clock: the file's own, as far as it can be read
    assert made(project)[REFERENCE].schedule == "@daily"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\x00", b"- a list\n", b"{", b"airflow: {task_id: not a name}\n"])
def test_a_file_that_tells_nothing_fails_under_its_name_in_the_default_dag(project: Path, text: bytes) -> None:
    (project / "pipelines" / "gold" / "nothing.yaml").write_bytes(text)
    error = tasks(project)["gold.nothing"].error
    assert (error or "").startswith("pipelines/gold/nothing.yaml:")


def test_a_wrong_file_stays_in_the_dag_it_names(project: Path) -> None:
    write(
        project,
        "gold/logouts_daily.yaml",
        LOGOUTS + "airflow: {dag: other, task_id: logouts}\nschedule: hourly\nnot: [",
    )
    assert set(tasks(project, "other")) == {"logouts"}
    assert made(project)["other"].schedule == "@hourly"
    assert not any(task.error for task in tasks(project).values())


def test_a_wrong_stream_is_no_task(project: Path) -> None:
    write(project, "realtime/logins_per_source.yaml", "trigger: {every: 1 second}\nsource: [")
    assert not any(task.error for task in tasks(project).values())


def test_a_stream_that_ends_is_a_task_before_the_jobs_that_read_its_table(project: Path) -> None:
    text = (project / "pipelines" / "bronze" / "user_events.yaml").read_text()
    endless = "trigger: {every: 10 seconds}"
    assert endless in text
    write(project, "bronze/user_events.yaml", text.replace(endless, "trigger: available_now\nschedule: daily"))
    silver = (project / "pipelines" / "silver" / "user_events.yaml").read_text()
    write(project, "silver/user_events.yaml", silver.replace("schedule: daily", "schedule: upstream"))
    found = tasks(project)
    assert found["bronze.user_events"].command == "exec lakehouse run pipelines/bronze/user_events.yaml"
    assert found["bronze_to_silver"].upstream == ("bronze.user_events",)


def test_wrong_defaults_fail_every_job_they_are_for(project: Path) -> None:
    write(project, "gold/defaults.yaml", "schedule: upstraem\n")
    found = tasks(project)
    assert {task.id for task in found.values() if task.error} == GOLD
    assert all("pipelines/gold/defaults.yaml:1: BAD_SCHEDULE" in (found[name].error or "") for name in GOLD)
    assert "gold_to_postgres" not in found


def test_a_copy_that_kept_its_task_id_fails_under_its_own_name(project: Path) -> None:
    text = (project / "pipelines" / "gold" / "daily_active_users.yaml").read_text()
    write(project, "gold/users_daily.yaml", text)
    found = tasks(project)
    assert "SAME_TASK" in (found["gold.users_daily"].error or "")
    assert found["silver_to_gold_dau"].error is None


@pytest.mark.parametrize("name", ["gold", "gold_to_postgres", "serving"])
def test_a_name_that_is_taken_by_what_is_added_is_refused(project: Path, name: str) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + f"airflow: {{task_id: {name}}}\n")
    assert "SAME_TASK" in (tasks(project)["gold.logouts_daily"].error or "")


def test_jobs_that_read_each_other_fail_both(project: Path) -> None:
    write(project, "gold/a.yaml", "source: gold.b\nsink: delta\n")
    write(project, "gold/b.yaml", "source: gold.a\nsink: delta\n")
    found = tasks(project)
    assert all("CYCLE" in (found[name].error or "") for name in ("gold.a", "gold.b"))
    assert found["silver_to_gold_dau"].error is None


# ---------------------------------------------------------------- clocks


def test_a_dag_whose_jobs_all_wait_runs_after_the_tables_of_another(project: Path) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + "airflow: {dag: logouts}\n")
    workflow = made(project)["logouts"]
    assert (workflow.schedule, workflow.after) == (None, ("silver.user_events",))
    assert [(task.id, task.upstream) for task in workflow.tasks] == [("gold.logouts_daily", ())]


def test_a_dag_goes_on_waiting_for_the_table_of_a_wrong_file(project: Path) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + "airflow: {dag: logouts}\n")
    write(project, "silver/user_events.yaml", "source: [")
    assert made(project)["logouts"].after == ("silver.user_events",)


def test_a_cron_line_and_by_hand(project: Path) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + 'schedule: "30 2 * * 1"\nairflow: {dag: logouts}\n')
    write(project, "gold/logins_daily.yaml", LOGOUTS + "schedule: manual\nairflow: {dag: logins}\n")
    found = made(project)
    assert [found[name].schedule for name in ("logouts", "logins")] == ["30 2 * * 1", None]


def test_two_clocks_in_one_dag_are_one_failing_task_that_says_so(project: Path) -> None:
    write(project, "gold/logouts_daily.yaml", LOGOUTS + "schedule: hourly\n")
    (task,) = tasks(project).values()
    assert task.error == ("pipelines/gold/logouts_daily.yaml:7: TWO_CLOCKS: gold.logouts_daily runs hourly and"
                          " silver.user_events daily; one DAG has one clock: give one of them another"
                          " airflow.dag")  # fmt: skip
    assert len(made(project)["lakehouse_maintenance"].tasks) == 6


def test_a_dag_without_a_clock_is_one_failing_task_that_says_so(project: Path) -> None:
    text = (project / "pipelines" / "silver" / "user_events.yaml").read_text()
    write(project, "silver/user_events.yaml", text.replace("schedule: daily", "schedule: upstream"))
    (task,) = tasks(project).values()
    assert "NO_CLOCK" in (task.error or "")
    assert made(project)[REFERENCE].schedule == "@daily"
