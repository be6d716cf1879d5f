"""What runs, and what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lakehouse_engine.cli.shared import (
    ENV,
    JSON,
    SPECS,
    engine_jars,
    environment_of,
    name_of,
    names_of,
    plan_of,
    report,
)
from lakehouse_engine.errors import UsageError

if TYPE_CHECKING:
    from lakehouse_engine.spec.pipeline import PipelineSpec


@click.command()
@click.argument("table")
@click.option("--limit", default=20, show_default=True, help="Versions, newest first.")
@ENV
@JSON
def history(table: str, limit: int, env: str | None, as_json: bool) -> None:
    """Show the versions of a Delta table: LAYER.NAME, or its pipeline's file."""
    from lakehouse_engine import history as versions

    found = versions.read(Path(environment_of(env).storage), name_of(table), limit)
    click.echo(json.dumps(found) if as_json else versions.table(found))


@click.command()
@click.argument("table")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@ENV
@JSON
def show(table: str, rows: int, env: str | None, as_json: bool) -> None:
    """Show rows of a table: LAYER.NAME, a side table of it (LAYER.NAME__late), or its pipeline's file."""
    from lakehouse_engine import show as shown

    environment = environment_of(env)
    found = shown.read(name_of(table), environment, rows, lambda: engine_jars(report), report)
    click.echo(json.dumps(found.as_json()) if as_json else found.text())


@click.command()
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
    environment, pipelines = environment_of(env), Path("pipelines")
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


@click.command()
@click.argument("pipelines", nargs=-1)
@ENV
@JSON
def audit(pipelines: tuple[str, ...], env: str | None, as_json: bool) -> None:
    """Check that every record that streams have read is accounted for: LAYER.NAME or files; default: all.

    What a micro-batch read is what it counted, ranges follow each other, and what was kept aside is there. Exit status
    1 where that does not hold.
    """
    from lakehouse_engine import audit as audits

    found = audits.read(environment_of(env), [name_of(one) for one in pipelines])
    click.echo(json.dumps([one.as_json() for one in found]) if as_json else audits.text(found))
    if not all(one.ok for one in found):
        click.get_current_context().exit(1)


@click.command()
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

    environment = environment_of(env)
    entries = tails.Tail(environment.postgres_dsn(), names_of(plan_of(specs, env)), last).follow(once=once)
    with suppress(KeyboardInterrupt):
        for entry in islice(entries, limit):
            click.echo(json.dumps(tails.plain(entry)) if as_json else tails.line(entry))


@click.command()
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

    server.serve(specs or [Path("pipelines")], lambda: environment_of(env), Path.cwd(), host, port, token_file, show,
                 report)  # fmt: skip
