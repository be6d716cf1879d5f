"""The embedded stack, Airflow on it, and what feeds it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click

from lakehouse_engine.cli.shared import ENV, JSON, engine_jars, environment_of, report
from lakehouse_engine.errors import UsageError


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Make a project in a new folder: an example stream and job with tests, environments, settings for editors.

    Where compose/compose.yaml is, it writes what containers need: random secrets and compose/.env. What is there stays.
    """
    from lakehouse_engine.local import initial, starter

    compose = folder / "compose" / "compose.yaml"
    if not compose.is_file() and not starter.is_project(folder):
        from lakehouse_engine import schema

        for path in starter.write(folder, schema.rendered()):
            report(f"written: {path}")
        there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
        click.echo(f"a project in {folder}; next: {there}lakehouse validate && lakehouse test")
        return
    written = initial.write(folder)
    for path in written.made:
        report(f"written: {path}")
    click.echo(f"{len(written.made)} files written, {len(written.kept)} were there; next: docker compose -f"
               f" {compose} up -d")  # fmt: skip


@click.command()
@click.option("--kafka-port", type=int)
@click.option("--postgres-port", type=int)
@click.option("--engine", "warm", is_flag=True, help="Also keep Spark started for jobs (2 GB of memory).")
def up(kafka_port: int | None, postgres_port: int | None, warm: bool) -> None:
    """Start a real Kafka broker and a real PostgreSQL under .lakehouse/."""
    from lakehouse_engine.local import classes, stack
    from lakehouse_engine.local import engine as local_engine

    classes.prepare(engine_jars(), report)
    services = stack.up(Path.cwd(), kafka_port, postgres_port, report)
    if warm:
        local_engine.start(Path.cwd(), report)
    click.echo(f"Kafka on {services.bootstrap_servers}; PostgreSQL: see .lakehouse/services.json")


@click.command()
def down() -> None:
    """Stop what `up` started here; data stays."""
    from lakehouse_engine.local import engine as local_engine
    from lakehouse_engine.local import stack

    stopped = [local_engine.stop(Path.cwd(), report), stack.down(Path.cwd(), report)]
    click.echo("stopped" if any(stopped) else "nothing was running")


@click.group("airflow")
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


@click.command()
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


@click.command()
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

    environment = environment_of(env)
    if rate is None:
        text = os.environ.get("EVENTS_PER_SECOND", "5")
        try:
            rate = float(text)
        except ValueError:
            raise UsageError("BAD_VALUE", f"EVENTS_PER_SECOND is {text!r}; it must be a number") from None
    summary = send(environment.kafka_bootstrap, topic, rate=rate or None, events=events, seed=seed,
                   duplicates=duplicates, late=late, malformed=malformed, report=report)  # fmt: skip
    click.echo(json.dumps(asdict(summary), default=str) if as_json else str(summary))


@click.command("engine")
@ENV
def engine_(env: str | None) -> None:
    """Keep Spark started and run jobs for the other commands, until stopped. `up --engine` does it for you."""
    from lakehouse_engine import engine

    engine.main(environment_of(env), Path.cwd(), engine_jars, report)
