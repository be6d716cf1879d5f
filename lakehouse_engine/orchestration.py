"""From pipeline files to what a scheduler has to know: DAGs, tasks, edges and commands. Knows no scheduler itself.

The jobs become one workflow for each value of ``airflow.dag``, and one workflow maintains all their tables. A file that
is wrong costs its own task alone, which fails with the validator's message; what does not read its table runs.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lakehouse_engine.errors import Problem, SpecError, UsageError
from lakehouse_engine.sinks import Delta
from lakehouse_engine.spec.loader import files, is_schedule, load
from lakehouse_engine.spec.pipeline import MAINTENANCE, SERVING_LAYER, SERVING_TASK, Airflow, PipelineSpec
from lakehouse_engine.spec.reuse import assemble

#: the environment variables that carry a date range into a task's command; all empty: the ordinary run
FROM, TO, FULL = "LAKEHOUSE_FROM", "LAKEHOUSE_TO", "LAKEHOUSE_FULL"
_CLOCKS = {"daily": "@daily", "hourly": "@hourly", "weekly": "@weekly", "manual": None}
_DEFAULTS = Airflow()


@dataclass(frozen=True)
class Task:
    """One command and its place. ``inlets`` and ``outlets`` are Delta tables, ``upstream`` ids of the same workflow.

    With ``error`` set the task fails with that text and runs nothing.
    """

    id: str
    layer: str
    command: str = ""
    upstream: tuple[str, ...] = ()
    inlets: tuple[str, ...] = ()
    outlets: tuple[str, ...] = ()
    retries: int = 0
    owner: str = _DEFAULTS.owner
    timeout: timedelta | None = None
    docs: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A DAG. ``schedule``: ``@daily``, a cron line, or None: by hand, or after an update of all tables in ``after``.

    ``ranged``: its commands read ``FROM``, ``TO`` and ``FULL``.
    """

    id: str
    tasks: tuple[Task, ...]
    schedule: str | None
    after: tuple[str, ...] = ()
    ranged: bool = True
    docs: str = ""


@dataclass(frozen=True)
class _Broken:
    """A file that is wrong: what can still be told of it, and the validator's lines."""

    name: str
    dag: str
    task_id: str
    schedule: str
    error: str

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]


def engine(project: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The words of the engine's command: ``$LAKEHOUSE_COMMAND``, else the project's own, else the one on the PATH."""
    if environment.get("LAKEHOUSE_COMMAND"):
        return tuple(shlex.split(environment["LAKEHOUSE_COMMAND"]))
    own = project / ".venv" / "bin" / "lakehouse"
    return (str(own),) if own.exists() else ("lakehouse",)


def workflows(project: Path, command: Sequence[str]) -> tuple[Workflow, ...]:
    """The workflows of ``<project>/pipelines``, by id. ``command`` runs the engine with the project as its folder.

    Raises ``UsageError`` PROJECT_MISSING.
    """
    folder = project / "pipelines"
    if not folder.is_dir():
        raise UsageError("PROJECT_MISSING", "no folder pipelines is here; set LAKEHOUSE_PROJECT", where=str(project))
    specs, broken = _read(folder)
    jobs = [spec for spec in specs if not spec.is_stream or spec.ends]
    words = _Words(project, command)
    dags: dict[str, tuple[list[PipelineSpec], list[_Broken]]] = defaultdict(lambda: ([], []))
    for job in jobs:
        dags[job.airflow.dag][0].append(job)
    for one in broken:
        dags[one.dag][1].append(one)
    writers = {one.name: one.dag for one in broken} | {job.name: job.airflow.dag for job in jobs}
    made = []
    for name in sorted(dags):
        elsewhere = {table for table, dag in writers.items() if dag != name}
        made.append(_workflow(name, *dags[name], elsewhere, words))
    return (*made, *_maintenance([spec for spec in jobs if not spec.is_stream], words))


@dataclass(frozen=True)
class _Words:
    """Makes commands; nothing of a run's parameters enters their text."""

    project: Path
    engine: Sequence[str]

    def file(self, spec: PipelineSpec) -> str:
        return Path(spec.file).relative_to(self.project).as_posix()

    def plain(self, verb: str, specs: Iterable[PipelineSpec], *options: str) -> str:
        return shlex.join([*self.engine, verb, *map(self.file, specs), *options])

    def run(self, spec: PipelineSpec) -> str:
        if spec.is_stream:
            return f"exec {self.plain('run', [spec])}"
        backfill = self.plain("backfill", [spec])
        options = f'${{{FROM}:+--from "${FROM}"}} ${{{TO}:+--to "${TO}"}} ${{{FULL}:+--full}}'
        return (f'if [ -n "${FROM}${TO}${FULL}" ]; then exec {backfill} {options}; fi\n'
                f"exec {self.plain('run', [spec])}")  # fmt: skip


def _workflow(
    name: str, jobs: Sequence[PipelineSpec], broken: Sequence[_Broken], elsewhere: Collection[str], words: _Words
) -> Workflow:
    schedule, after, error = _clock(jobs, broken, elsewhere)
    if error:
        error = error.replace(f"{words.project}/", "")
        return Workflow(name, (Task("clock", "schedule", docs=error, error=error),), schedule, docs=error)
    layers = {SERVING_LAYER, *(job.layer for job in jobs), *(one.layer for one in broken)}
    taken = layers | {SERVING_TASK, *(job.task_id for job in jobs)}
    failing = []
    for one in broken:
        failing.append(_failing(one, taken))
        taken.add(failing[-1].id)
    ids = {one.name: task.id for one, task in zip(broken, failing, strict=True)}
    ids |= {job.name: job.task_id for job in jobs}
    tasks = [*failing, *(_job(job, ids, words) for job in jobs)]
    tasks += _serving([job for job in jobs if job.serve], words)
    described = [f"- `{task.id}`: {task.docs.splitlines()[0]}" for task in tasks if task.docs]
    docs = "\n".join(["The jobs of `pipelines/`, each made from its file.", "", *described])
    return Workflow(name, tuple(tasks), schedule, after, docs=docs)


def _job(job: PipelineSpec, ids: Mapping[str, str], words: _Words) -> Task:
    return Task(
        job.task_id, job.layer, words.run(job),
        upstream=tuple(ids[table] for table in job.reads if table in ids),
        inlets=job.reads, outlets=(job.name,) if isinstance(job.sink, Delta) else (),
        retries=job.airflow.retries, owner=job.airflow.owner, timeout=_timeout(job),
        docs=f"{job.description}\n\n`{words.file(job)}`".strip(),
    )  # fmt: skip


def _serving(served: Sequence[PipelineSpec], words: _Words) -> list[Task]:
    if not served:
        return []
    owners = {job.airflow.owner for job in served}
    return [Task(
        SERVING_TASK, SERVING_LAYER, "exec " + words.plain("serve", served),
        upstream=tuple(job.task_id for job in served), inlets=tuple(job.name for job in served),
        retries=max(job.airflow.retries for job in served),
        owner=owners.pop() if len(owners) == 1 else _DEFAULTS.owner,
        docs="Copies of gold in PostgreSQL, one transaction a table.",
    )]  # fmt: skip


def _maintenance(jobs: Sequence[PipelineSpec], words: _Words) -> list[Workflow]:
    tasks = [
        Task(job.name, job.layer, "exec " + words.plain("maintain", [job], "--apply"), inlets=(job.name,),
             retries=job.airflow.retries, owner=job.airflow.owner, docs=f"Maintains the table `{job.name}`.")
        for job in jobs if isinstance(job.sink, Delta)
    ]  # fmt: skip
    docs = "Maintains the Delta tables that jobs write; a stream maintains its own."
    return [Workflow(MAINTENANCE, tuple(tasks), "@daily", ranged=False, docs=docs)] if tasks else []


def _failing(one: _Broken, taken: Collection[str]) -> Task:
    """Waits for nothing: what is wrong with a file is known at once."""
    # A copied file may bear the name of the one it was copied from.
    names = (one.task_id, one.name, *(f"{one.name}_{number}" for number in range(2, len(taken) + 3)))
    task_id = next(name for name in names if name not in taken)
    return Task(task_id, one.layer, docs=f"The file is wrong:\n\n```\n{one.error}\n```", error=one.error)


def _clock(
    jobs: Sequence[PipelineSpec], broken: Sequence[_Broken], elsewhere: Collection[str]
) -> tuple[str | None, tuple[str, ...], str | None]:
    """(schedule, tables to wait for, what is wrong). A DAG that is wrong runs daily: somebody has to see it.

    ``elsewhere``: tables that other DAGs write.
    """
    clocks: dict[str, PipelineSpec] = {}
    for job in jobs:
        if job.schedule and job.schedule != "upstream":
            clocks.setdefault(job.schedule, job)
    if len(clocks) == 1:
        (schedule,) = clocks
        return _CLOCKS.get(schedule, schedule), (), None
    if clocks:
        (first, one), (second, other), *_ = clocks.items()
        return "@daily", (), (f"{one.where('schedule')}: TWO_CLOCKS: {one.name} runs {first} and {other.name} {second};"
                              " one DAG has one clock: give one of them another airflow.dag")  # fmt: skip
    after = tuple(sorted({table for job in jobs for table in job.reads} & set(elsewhere)))
    if after:
        return None, after, None
    if broken:  # the clock may have been theirs
        return _CLOCKS.get(broken[0].schedule, broken[0].schedule), (), None
    return "@daily", (), (f"{jobs[0].where('schedule')}: NO_CLOCK: every job of this DAG waits for its inputs, and"
                          " no other DAG writes them; give one of them a schedule")  # fmt: skip


def _timeout(job: PipelineSpec) -> timedelta | None:
    return None if job.airflow.timeout is None else timedelta(microseconds=job.airflow.timeout)


# ---------------------------------------------------------------- files that are wrong


def _read(folder: Path) -> tuple[tuple[PipelineSpec, ...], list[_Broken]]:
    """What is right in the folder, by name, and the jobs that are not."""
    good = list(files(folder, []))
    wrong: dict[Path, list[Problem]] = {}
    while True:
        try:
            specs = load(good)
            break
        except SpecError as error:
            # One file's error may also stand in its defaults or its contract; then ask each file alone.
            found = _by_file(error.problems, good) or {file: own for file in good if (own := _alone(file))}
            if not found:
                raise
            wrong |= found
            good = [file for file in good if file not in found]
    broken = [_broken(file, problems, folder.parent) for file, problems in sorted(wrong.items())]
    return specs, [one for one in broken if one is not None]


def _by_file(problems: Iterable[Problem], known: Sequence[Path]) -> dict[Path, list[Problem]]:
    found: dict[Path, list[Problem]] = {}
    for problem in problems:
        if Path(problem.file) in known:
            found.setdefault(Path(problem.file), []).append(problem)
    return found


def _alone(file: Path) -> list[Problem]:
    try:
        load([file])
    except SpecError as error:
        return list(error.problems)
    return []


def _broken(file: Path, problems: Sequence[Problem], project: Path) -> _Broken | None:
    """None for a stream, which is no scheduler's."""
    content = _leniently(file)
    if "trigger" in content and "schedule" not in content:
        return None
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{file.parent.name}.{file.stem}")
    airflow = content.get("airflow")
    try:
        said = Airflow.model_validate({
            key: value for key, value in (airflow if isinstance(airflow, dict) else {}).items()
            if key in ("dag", "task_id")})  # fmt: skip
    except ValueError:
        said = _DEFAULTS
    schedule = content.get("schedule")
    error = "\n".join(str(problem).replace(f"{project}/", "") for problem in problems)
    return _Broken(
        name, _DEFAULTS.dag if said.dag == MAINTENANCE else said.dag, said.task_id or name,
        schedule if isinstance(schedule, str) and is_schedule(schedule) and schedule != "upstream" else "daily", error,
    )  # fmt: skip


def _leniently(file: Path) -> dict[str, Any]:
    """What the file, its template and its defaults say of the keys that place a job, however wrong the rest is."""
    content = assemble(file, str(file), {}, {}).value
    if content is not None:
        return content
    found = _keys(file)
    defaults = assemble(file, str(file), {}, {}, given={key: found[key] for key in found})
    return defaults.value or found


def _keys(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    # not YAML: what its lines look like
    text = re.sub(r"#.*", "", text)
    found: dict[str, Any] = dict(re.findall(r"^(trigger|schedule) *: *[\"']?(.*?)[\"']? *$", text, re.M))
    airflow = dict(re.findall(r"\b(dag|task_id) *: *[\"']?([\w.-]+)", text))
    return {**found, "airflow": airflow} if airflow else found
