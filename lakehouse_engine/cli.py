"""The command ``lakehouse``: one function a command, each a thin call into the engine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakehouse_engine.errors import LakehouseError, UsageError
from lakehouse_engine.request import Request, Span, metrics_address

if TYPE_CHECKING:
    from lakehouse_engine.plan import Plan
    from lakehouse_engine.spec.environment import Environment
    from lakehouse_engine.spec.pipeline import PipelineSpec

SPECS = click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
ENV = click.option("--env", "env", metavar="NAME", envvar="LAKEHOUSE_ENV",
                   help="environments/NAME.yaml; default: $LAKEHOUSE_ENV, else the embedded stack.")  # fmt: skip
OWN = click.option("--no-engine", "own", is_flag=True, help="Start Spark here even where an engine runs.")
JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


class _Commands(click.Group):
    """Turns errors into one line and an exit status."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except LakehouseError as error:
            if context.params.get("debug"):
                raise
            click.echo(str(error), err=True)
            sys.exit(error.exit_status)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="lakehouse-yaml")
def main(debug: bool) -> None:
    """Declarative streaming lakehouses on Apache Spark: one YAML file is one pipeline."""


def report(text: str) -> None:
    """Progress goes to standard error; results go to standard output."""
    click.echo(text, err=True)


@main.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write what containers need: random secrets and compose/.env; what is there stays."""
    from lakehouse_engine.local import initial

    written = initial.write(folder)
    for path in written.made:
        report(f"written: {path}")
    click.echo(f"{len(written.made)} files written, {len(written.kept)} were there; next: docker compose -f"
               f" {folder / 'compose' / 'compose.yaml'} up -d")  # fmt: skip


@main.command()
@click.option("--kafka-port", type=int)
@click.option("--postgres-port", type=int)
@click.option("--engine", "warm", is_flag=True, help="Also keep Spark started for jobs (2 GB of memory).")
def up(kafka_port: int | None, postgres_port: int | None, warm: bool) -> None:
    """Start a real Kafka broker and a real PostgreSQL under .lakehouse/."""
    from lakehouse_engine.local import classes, stack
    from lakehouse_engine.local import engine as local_engine

    classes.prepare(_engine_jars(), report)
    services = stack.up(Path.cwd(), kafka_port, postgres_port, report)
    if warm:
        local_engine.start(Path.cwd(), report)
    click.echo(f"Kafka on {services.bootstrap_servers}; PostgreSQL: see .lakehouse/services.json")


@main.command()
def down() -> None:
    """Stop what `up` started here; data stays."""
    from lakehouse_engine.local import engine as local_engine
    from lakehouse_engine.local import stack

    stopped = [local_engine.stop(Path.cwd(), report), stack.down(Path.cwd(), report)]
    click.echo("stopped" if any(stopped) else "nothing was running")


@main.group("airflow")
def airflow_() -> None:
    """Airflow on the embedded PostgreSQL, with its DAGs made from pipelines/."""


@airflow_.command("up")
def airflow_up() -> None:
    """Start Airflow, and the embedded stack if need be; `make airflow` builds what it needs."""
    from lakehouse_engine.local import airflow, stack

    services = stack.up(Path.cwd(), report=report)
    running = airflow.up(Path.cwd(), services.dsn, report=report)
    click.echo(f"Airflow on {running.url}; user admin, password in {running.passwords}")


@airflow_.command("down")
def airflow_down() -> None:
    """Stop Airflow and the tasks that it runs; the embedded stack stays."""
    from lakehouse_engine.local import airflow

    click.echo("stopped" if airflow.down(Path.cwd(), report) else "nothing was running")


@main.command()
@click.option("--dir", "folder", is_flag=True, help="The folder that holds them.")
@click.option("--list", "listed", is_flag=True, help="Comma-separated paths, as spark-submit --jars takes them.")
def jars(folder: bool, listed: bool) -> None:
    """Fetch the engine's jars once and say where they lie."""
    from lakehouse_engine.local import jars as local

    paths = local.engine_jars(report)
    if folder:
        click.echo(local.engine_dir())
    else:
        click.echo(("," if listed else "\n").join(map(str, paths)))


@main.command()
@click.option(
    "--rate", type=float, help="Events per second; 0: as fast as possible.  [default: $EVENTS_PER_SECOND or 5]"
)
@click.option("--events", type=int, help="Stop after so many.")
@click.option("--seed", type=int, help="Repeatable events.")
@click.option("--topic", default="user-events", show_default=True)
@click.option("--duplicates", type=click.FloatRange(0, 1), default=0.0, help="Share of exact repetitions.")
@click.option(
    "--late", type=click.FloatRange(0, 1), default=0.0, help="Share of events older than window and watermark."
)
@click.option("--malformed", type=click.FloatRange(0, 1), default=0.0, help="Share of records that break the contract.")
@ENV
@JSON
def produce(rate: float | None, events: int | None, seed: int | None, topic: str, duplicates: float, late: float,
            malformed: float, env: str | None, as_json: bool) -> None:  # fmt: skip
    """Send user events to Kafka."""
    from dataclasses import asdict

    from lakehouse_engine.local.producer import produce as send

    environment = _environment(env)
    if rate is None:
        text = os.environ.get("EVENTS_PER_SECOND", "5")
        try:
            rate = float(text)
        except ValueError:
            raise UsageError("BAD_VALUE", f"EVENTS_PER_SECOND is {text!r}; it must be a number") from None
    summary = send(environment.kafka_bootstrap, topic, rate=rate or None, events=events, seed=seed,
                   duplicates=duplicates, late=late, malformed=malformed, report=report)  # fmt: skip
    click.echo(json.dumps(asdict(summary), default=str) if as_json else str(summary))


@main.command()
@SPECS
@ENV
@click.option("--structure", is_flag=True, help="What the files alone tell, never Spark (all there is so far).")
@JSON
def validate(specs: tuple[Path, ...], env: str | None, structure: bool, as_json: bool) -> None:
    """Check pipelines, contracts, templates, tests and environments: every error of every file at file:line.

    Touches nothing, and needs no service, no secret and no data.
    """
    from lakehouse_engine.errors import SpecError
    from lakehouse_engine.validation import validate as judge

    verdict = judge(specs, env, Path.cwd())
    if as_json:
        click.echo(json.dumps(verdict.as_json()))
    elif verdict.problems:
        raise SpecError(verdict.problems)
    else:
        click.echo(f"{len(verdict.pipelines)} pipelines are valid")
    sys.exit(SpecError.exit_status if verdict.problems else 0)


@main.command()
@SPECS
@ENV
@click.option("--origins", is_flag=True, help="Also each value, with the file and line that it comes from.")
@JSON
def plan(specs: tuple[Path, ...], env: str | None, origins: bool, as_json: bool) -> None:
    """Show what `run` would do: scans with their members, and jobs in order."""
    from lakehouse_engine.explain import explain

    described = explain(_plan(specs, env), origins=origins)
    click.echo(json.dumps(described, indent=2) if as_json else described.text())


@main.command()
@SPECS
@ENV
@OWN
@click.option("--available-now", is_flag=True, help="Streams read what is there and end; then jobs run.")
@click.option("--metrics-port", type=int, help="Show metrics to Prometheus on this port; 0 takes a free one.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where the port listens.")
@click.option("--json-log", is_flag=True, help="One JSON object a line on standard error; also LAKEHOUSE_LOG=json.")
def run(specs: tuple[Path, ...], env: str | None, own: bool, available_now: bool, metrics_port: int | None,
        metrics_host: str, json_log: bool) -> None:  # fmt: skip
    """Run pipelines: streams in one Spark application, jobs in the order of what they read."""
    metrics = metrics_address(metrics_host, metrics_port)
    _perform(Request("run", specs, env, os.environ.copy(), available_now=available_now, metrics=metrics,
                     json_log=json_log), own=own or metrics is not None)  # fmt: skip


@main.command()
@SPECS
@ENV
@OWN
def serve(specs: tuple[Path, ...], env: str | None, own: bool) -> None:
    """Load gold into PostgreSQL, one transaction a table."""
    _perform(Request("serve", specs, env, os.environ.copy()), own=own)


@main.command()
@SPECS
@click.option("--from", "first", metavar="VALUE", help="The first slice, e.g. 2026-01-01.")
@click.option("--to", "last", metavar="VALUE", help="The last slice, included.")
@click.option("--full", is_flag=True, help="Every slice there is.")
@ENV
@OWN
def backfill(
    specs: tuple[Path, ...], first: str | None, last: str | None, full: bool, env: str | None, own: bool
) -> None:
    """Recompute slices of jobs, a commit each; the same command again goes on where it was interrupted."""
    if not specs:
        raise UsageError("BAD_RANGE", "name the pipelines to fill back")
    span = Span(first or None, last or None, full)
    _perform(Request("backfill", specs, env, os.environ.copy(), span=span), own=own)


@main.command()
@SPECS
@ENV
@OWN
@click.option("--apply", is_flag=True, help="Do it; otherwise only say what would be done.")
def maintain(specs: tuple[Path, ...], env: str | None, own: bool, apply: bool) -> None:
    """Compact, order, checkpoint and vacuum Delta tables, as each pipeline's `maintain` says."""
    _perform(Request("maintain", specs, env, os.environ.copy(), apply=apply), own=own)


@main.command()
@click.argument("table")
@click.option("--limit", default=20, show_default=True, help="Versions, newest first.")
@ENV
@JSON
def history(table: str, limit: int, env: str | None, as_json: bool) -> None:
    """Show the versions of a Delta table: LAYER.NAME, or its pipeline's file."""
    from lakehouse_engine import history as versions

    if table.endswith(".yaml"):
        table = f"{Path(table).resolve().parent.name}.{Path(table).stem}"
    found = versions.read(Path(_environment(env).storage), table, limit)
    click.echo(json.dumps(found) if as_json else versions.table(found))


@main.command("engine")
@ENV
def engine_(env: str | None) -> None:
    """Keep Spark started and run jobs for the other commands, until stopped. `up --engine` does it for you."""
    from lakehouse_engine import engine

    engine.main(_environment(env), Path.cwd(), _engine_jars, report)


@main.command()
@ENV
@JSON
@click.option("--watch", is_flag=True, help="Keep the table on the terminal, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds, with --watch.")
def status(env: str | None, as_json: bool, watch: bool, every: float) -> None:
    """How each pipeline stands, and what it has read, counted and kept aside."""
    from lakehouse_engine import status as states
    from lakehouse_engine.errors import SpecError
    from lakehouse_engine.spec.loader import load

    if watch and as_json:
        raise UsageError("BAD_VALUE", "--watch is for people and --json for machines; take one of them")
    environment, pipelines = _environment(env), Path("pipelines")
    specs: Sequence[PipelineSpec] = ()
    try:
        specs = load([pipelines], environment=environment) if pipelines.is_dir() else ()
    except SpecError:
        report("a file in pipelines/ is wrong (lakehouse validate says which): states are told from commits alone")
    if watch:
        states.watch(environment, specs, every)
        return
    found = states.read(environment, specs)
    click.echo(json.dumps(found, default=str) if as_json else states.text(found))


@main.command()
@SPECS
@ENV
@JSON
@click.option("--last", type=click.IntRange(min=0), default=10, show_default=True, help="Begin with so many of each.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many.")
@click.option("--once", is_flag=True, help="End with what is there.")
def tail(specs: tuple[Path, ...], env: str | None, as_json: bool, last: int, limit: int | None, once: bool) -> None:
    """Follow micro-batches, runs and failures of pipelines as they commit, until Ctrl-C."""
    from contextlib import suppress
    from itertools import islice

    from lakehouse_engine import tail as tails

    environment = _environment(env)
    entries = tails.Tail(environment.postgres_dsn(), _names(_plan(specs, env)), last).follow(once=once)
    with suppress(KeyboardInterrupt):
        for entry in islice(entries, limit):
            click.echo(json.dumps(tails.plain(entry)) if as_json else tails.line(entry))


@main.command()
@SPECS
@ENV
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("grafana"), show_default=True)
@click.option("--prometheus", "beside", type=click.Path(path_type=Path), default=Path("prometheus"), show_default=True)
@click.option("--check", "checked", is_flag=True, help="Write nothing; fail when a file is not as it would be written.")
def grafana(specs: tuple[Path, ...], env: str | None, folder: Path, beside: Path, checked: bool) -> None:
    """Write Grafana's dashboards and alert rules, and Prometheus' rules, as the pipelines and their panels say."""
    from lakehouse_engine import grafana as dashboards
    from lakehouse_engine import prometheus
    from lakehouse_engine.spec.loader import load

    loaded = load(list(specs) or [Path("pipelines")], environment=_environment(env))
    for where, files in ((folder, dashboards.rendered(loaded)), (beside, prometheus.rendered(loaded))):
        if checked:
            dashboards.check(where, files)
        else:
            dashboards.write(where, files)
        click.echo(f"{len(files)} files in {where} {'are as the pipelines say' if checked else 'written'}")


@main.command()
@SPECS
@ENV
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other than loopback asks for a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0: any free one.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Ask for this token, on loopback as well."
              "  [default elsewhere: .lakehouse/dashboard.token]")  # fmt: skip
@click.option("--open", "show", is_flag=True, help="Open the browser.")
def dashboard(
    specs: tuple[Path, ...], env: str | None, host: str, port: int, token_file: Path | None, show: bool
) -> None:
    """Show the dashboards, the pipelines and the tables in a browser; also a read-only API."""
    from lakehouse_engine.dashboard import server

    server.serve(specs or [Path("pipelines")], lambda: _environment(env), Path.cwd(), host, port, token_file, show,
                 report)  # fmt: skip


@main.command()
@click.option("--write", "written", type=click.Path(path_type=Path), metavar="DIR", help="Write them into a folder.")
@click.option("--check", "checked", type=click.Path(path_type=Path), is_flag=False, flag_value=Path("schema"),
              metavar="[DIR]", help="Fail when a file of the folder is not as it would be written.  [default: schema]")
@click.argument("name", required=False)
def schema(written: Path | None, checked: Path | None, name: str | None) -> None:
    """JSON Schemas for editors; without an option the one NAMEd (pipeline, environment, contract, test, ...)."""
    from lakehouse_engine import schema as schemas

    if written:
        schemas.write(written)
        click.echo(f"{len(schemas.rendered())} schemas in {written}")
    elif checked:
        schemas.check(checked)
        click.echo(f"the schemas in {checked} are as the models say")
    else:
        texts = schemas.rendered()
        file = f"{name or 'pipeline'}.json"
        if file not in texts:
            known = ", ".join(one.removesuffix(".json") for one in texts)
            raise UsageError("UNKNOWN_SCHEMA", f"there is no schema {name}; there are {known}")
        click.echo(texts[file], nl=False)


@main.command()
@click.option("--write", "written", is_flag=True, help="Write the pages.")
@click.option("--check", "checked", is_flag=True, help="Fail when a page is not as it would be written.")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("docs/reference"), show_default=True)
def reference(written: bool, checked: bool, folder: Path) -> None:
    """The reference of all components and files, made from the code that reads them."""
    from lakehouse_engine import reference as pages

    if written:
        click.echo(f"{pages.write(folder, Path.cwd())} pages in {folder}")
    elif checked:
        pages.check(folder, Path.cwd())
        click.echo(f"the pages in {folder} are as the code says")
    else:
        click.echo("\n".join(pages.pages(Path.cwd()).values()))


@main.command()
@SPECS
@JSON
def test(specs: tuple[Path, ...], as_json: bool) -> None:
    """Run the YAML tests beside pipelines, on real Spark, Kafka and PostgreSQL."""
    from lakehouse_engine.local import jars as local
    from lakehouse_engine.local import stack
    from lakehouse_engine.testing import run as run_tests

    began = time.monotonic()
    results = run_tests(list(specs or [Path("pipelines")]), jars=local.engine_jars, stack=stack, report=report)
    failed = [result for result in results if not result.passed]
    if as_json:
        click.echo(json.dumps([vars(result) for result in results], default=str))
    else:
        for result in results:
            click.echo(str(result))
        seconds = time.monotonic() - began
        click.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed in {seconds:.0f} s")
    sys.exit(1 if failed or not results else 0)


def _perform(request: Request, *, own: bool) -> None:
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


def _run_here(request: Request) -> int:
    from lakehouse_engine.log import Log
    from lakehouse_engine.runner import Runner

    log = Log(report, as_json=request.json_log)
    runner = Runner(_environment(request.env), lambda: _engine_jars(log), log)
    try:
        return runner.perform(_plan(request.specs, request.env), request)
    finally:
        runner.close()


def _engine_jars(say: Callable[[str], None] = report) -> list[Path]:
    """The jars, with a Java that can run them in the environment."""
    from lakehouse_engine.local import jars, java

    os.environ.update(java.find_java().environment())
    return jars.engine_jars(say)


def _environment(env: str | None) -> Environment:
    from lakehouse_engine.spec.environment import load_environment

    return load_environment(env, Path.cwd())


def _plan(specs: Sequence[Path], env: str | None) -> Plan:
    from lakehouse_engine.runner import planned

    return planned(specs, _environment(env))


def _names(plan: Plan) -> list[str]:
    return sorted([m.name for scan in plan.scans for m in scan.members] + [job.name for job in plan.jobs])


if __name__ == "__main__":
    main()
