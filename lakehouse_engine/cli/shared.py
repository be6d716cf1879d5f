"""What commands share: options, where progress goes, and who performs a request."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.request import Request

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lakehouse_engine.plan import Plan
    from lakehouse_engine.spec.environment import Environment

SPECS = click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
ENV = click.option("--env", "env", metavar="NAME", envvar="LAKEHOUSE_ENV",
                   help="environments/NAME.yaml; default: $LAKEHOUSE_ENV, else the embedded stack.")  # fmt: skip
OWN = click.option("--no-engine", "own", is_flag=True, help="Start Spark here even where an engine runs.")
JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def report(text: str) -> None:
    """Progress goes to standard error; results go to standard output."""
    click.echo(text, err=True)


def name_of(table: str) -> str:
    """``layer.name`` of a table that may be given as its pipeline's file."""
    file = Path(table)
    return f"{file.resolve().parent.name}.{file.stem}" if file.suffix == ".yaml" else table


def perform(request: Request, *, own: bool) -> None:
    """Has this project's engine do it, where one runs and ``own`` is not asked for; else does it here."""
    from lakehouse_engine import client

    request = replace(request, json_log=request.json_log or os.environ.get("LAKEHOUSE_LOG") == "json")
    try:
        code = None if own else client.hand_over(request, Path.cwd(), report)
        if code is None:
            code = _run_here(request)
    except LakehouseError as error:
        if not request.json_log or click.get_current_context().find_root().params.get("debug"):
            raise
        from lakehouse_engine.log import Log

        Log(report, as_json=True).error(error)
        code = error.exit_status
    sys.exit(code)


def asked(request: Request, *, own: bool) -> dict[str, Any]:
    """What ``validation.answer`` says: of this project's engine where one runs, else of a Spark that is started."""
    from lakehouse_engine import client

    answer: dict[str, Any] | None = None if own else client.hand_over(request, Path.cwd(), report)
    if answer is not None:
        return answer
    from lakehouse_engine import session
    from lakehouse_engine.validation import answer as found

    started: list[SparkSession] = []

    def spark() -> SparkSession:
        if not started:
            report("starting Spark")
            jars = engine_jars()
            started.append(session.start("lakehouse", jars=jars, settings=environment_of(request.env).spark))
        return started[0]

    try:
        return found(request, Path.cwd(), spark)
    finally:
        for one in started:
            one.stop()


def _run_here(request: Request) -> int:
    from lakehouse_engine.log import Log
    from lakehouse_engine.runner import Runner

    log = Log(report, as_json=request.json_log)
    runner = Runner(environment_of(request.env), lambda: engine_jars(log), log)
    try:
        return runner.perform(plan_of(request.specs, request.env), request)
    finally:
        runner.close()


def engine_jars(say: Callable[[str], None] = report) -> list[Path]:
    """The jars, with a Java that can run them in the environment."""
    from lakehouse_engine.local import jars, java

    os.environ.update(java.find_java().environment())
    return jars.engine_jars(say)


def environment_of(env: str | None) -> Environment:
    from lakehouse_engine.spec.environment import load_environment

    return load_environment(env, Path.cwd())


def plan_of(specs: Sequence[Path], env: str | None) -> Plan:
    from lakehouse_engine.runner import planned

    return planned(specs, environment_of(env))


def names_of(plan: Plan) -> list[str]:
    return sorted(spec.name for spec in plan.specs)
