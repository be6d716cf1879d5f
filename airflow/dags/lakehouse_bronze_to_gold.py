"""The project's DAGs: one for each value of ``airflow.dag`` in its pipeline files, and one that maintains their tables.

What they hold is decided by ``lakehouse_engine.orchestration``; here it becomes Airflow's. ``LAKEHOUSE_PROJECT`` names
the folder of ``pipelines/`` (default: two above this file's), ``LAKEHOUSE_COMMAND`` the engine's command (default: the
project's ``.venv/bin/lakehouse``, else ``lakehouse``). Tasks run it in the project's folder.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset, Param, TaskGroup
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lakehouse_engine.orchestration import FROM, FULL, TO, Task, Workflow, engine, workflows

PROJECT = Path(os.environ.get("LAKEHOUSE_PROJECT") or Path(__file__).parents[2]).resolve()
#: exit status of a wrong file or call: the same again will not help
REFUSED = 2
RANGE = {
    "from": Param(None, type=["null", "string"], format="date", title="From", description="--from of a backfill"),
    "to": Param(None, type=["null", "string"], format="date", title="To", description="--to of a backfill"),
    "full": Param(False, type="boolean", title="Full", description="Recompute everything, whatever has changed"),
}
#: parameters reach a command as its environment, never as its text
ENVIRONMENT = {
    FROM: "{{ params['from'] or '' }}",
    TO: "{{ params['to'] or '' }}",
    FULL: "{{ 'yes' if params['full'] else '' }}",
}


class LakehouseOperator(BashOperator):
    """Runs the engine's command in a process group of its own, which ends with the task."""

    template_fields = ("env",)

    def __init__(self, *, error: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.error = error

    def execute(self, context: Any) -> Any:
        if self.error:
            raise AirflowFailException(self.error)
        try:
            return super().execute(context)
        except AirflowException as failure:
            if self.subprocess_hook.sub_process.returncode == REFUSED:
                raise AirflowFailException("refused: what the command says above is to be mended first") from failure
            raise


def build(workflow: Workflow) -> DAG:
    schedule = [Asset(table) for table in workflow.after] or workflow.schedule
    # No start date: the first run is the next one due, not at once the one before.
    with DAG(
        workflow.id, schedule=schedule, catchup=False, max_active_runs=1, params=RANGE if workflow.ranged else {},
        doc_md=workflow.docs, tags=["lakehouse"],
    ) as dag:  # fmt: skip
        layers = dict.fromkeys(task.layer for task in workflow.tasks)
        groups = {layer: TaskGroup(layer, prefix_group_id=False) for layer in layers}
        made = {task.id: operator(task, groups[task.layer], workflow.ranged) for task in workflow.tasks}
        for task in workflow.tasks:
            made[task.id].set_upstream([made[name] for name in task.upstream])
    return dag


def operator(task: Task, group: TaskGroup, ranged: bool) -> LakehouseOperator:
    return LakehouseOperator(
        task_id=task.id, task_group=group, bash_command=task.command, error=task.error, cwd=str(PROJECT),
        env=ENVIRONMENT if ranged else {}, append_env=True, do_xcom_push=False, skip_on_exit_code=None,
        inlets=[Asset(table) for table in task.inlets], outlets=[Asset(table) for table in task.outlets],
        owner=task.owner, doc_md=task.docs, execution_timeout=task.timeout,
        retries=task.retries, retry_delay=timedelta(seconds=30), retry_exponential_backoff=2,
        max_retry_delay=timedelta(minutes=15),
    )  # fmt: skip


for workflow in workflows(PROJECT, engine(PROJECT, os.environ)):
    globals()[workflow.id] = build(workflow)
