"""What computes and writes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from lakehouse_engine.cli.shared import ENV, JSON, OWN, SPECS, engine_jars, environment_of, name_of, perform, report
from lakehouse_engine.errors import UsageError
from lakehouse_engine.request import Request, Span, metrics_address


@click.command()
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
    perform(Request("run", specs, env, os.environ.copy(), available_now=available_now, metrics=metrics,
                     json_log=json_log), own=own or metrics is not None)  # fmt: skip


@click.command()
@SPECS
@ENV
@OWN
def serve(specs: tuple[Path, ...], env: str | None, own: bool) -> None:
    """Load gold into PostgreSQL, one transaction a table."""
    perform(Request("serve", specs, env, os.environ.copy()), own=own)


@click.command()
@SPECS
@click.option("--from", "first", metavar="VALUE", help="The first slice, e.g. 2026-01-01.")
@click.option("--to", "last", metavar="VALUE", help="The last slice, included.")
@click.option("--full", is_flag=True, help="Every slice there is.")
@ENV
@OWN
def backfill(
    specs: tuple[Path, ...], first: str | None, last: str | None, full: bool, env: str | None, own: bool
) -> None:
    """Recompute slices of jobs, and closed windows of stopped streams by days of event time, a commit each.

    The same command again goes on where it was interrupted.
    """
    if not specs:
        raise UsageError("BAD_RANGE", "name the pipelines to fill back")
    span = Span(first or None, last or None, full)
    perform(Request("backfill", specs, env, os.environ.copy(), span=span), own=own)


@click.group()
def late() -> None:
    """Look at rows that came after their window had closed, and count them in it."""


@late.command("show")
@click.argument("table")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@ENV
@JSON
def late_show(table: str, rows: int, env: str | None, as_json: bool) -> None:
    """Show the late rows of a pipeline, with the windows that they missed: LAYER.NAME, or its file."""
    _show_aside(table, "late", rows, env, as_json)


@late.command("apply")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@ENV
@OWN
def late_apply(specs: tuple[Path, ...], env: str | None, own: bool) -> None:
    """Count anew the closed windows of the days that lack late rows, and only of those, as `lakehouse backfill` does.

    The stream must not run meanwhile. `applied_at` says which rows were counted.
    """
    perform(Request("backfill", specs, env, os.environ.copy(), span=Span(late=True)), own=own)


@click.group()
def quarantine() -> None:
    """Look at what was refused, and judge it again after a contract or a check was mended."""


@quarantine.command("show")
@click.argument("table")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@ENV
@JSON
def quarantine_show(table: str, rows: int, env: str | None, as_json: bool) -> None:
    """Show what is kept aside of a pipeline, with every reason: LAYER.NAME, or its file; the newest first."""
    _show_aside(table, "quarantine", rows, env, as_json)


def _show_aside(table: str, side: str, rows: int, env: str | None, as_json: bool) -> None:
    from lakehouse_engine import show as shown

    found = shown.read(f"{name_of(table)}__{side}", environment_of(env), rows, lambda: engine_jars(report), report)
    click.echo(json.dumps(found.as_json()) if as_json else found.text())


@quarantine.command("replay")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@ENV
@OWN
def quarantine_replay(specs: tuple[Path, ...], env: str | None, own: bool) -> None:
    """Judge it again by the files as they are now; what passes is added to the table, each record once.

    The stream must not run meanwhile. Windows are counted anew by `lakehouse backfill`, jobs by their next run.
    """
    perform(Request("replay", specs, env, os.environ.copy()), own=own)


@click.command()
@SPECS
@ENV
@OWN
@click.option("--apply", is_flag=True, help="Do it; otherwise only say what would be done.")
def maintain(specs: tuple[Path, ...], env: str | None, own: bool, apply: bool) -> None:
    """Compact, order, checkpoint and vacuum Delta tables, as each pipeline's `maintain` says."""
    perform(Request("maintain", specs, env, os.environ.copy(), apply=apply), own=own)


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--input", "inputs", multiple=True, required=True, metavar="[NAME=]FILE", help="Rows, a JSON value a"
              " line: of the pipeline's source, or of another input or table that it reads.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), metavar="ROWS", help="Rows of the source in a micro-batch, or run;"
              " otherwise all.")  # fmt: skip
@click.option("--now", metavar="TIME", help="The clock of the source; otherwise its greatest event time.")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many of a table.")
@ENV
@JSON
def preview(spec: Path, inputs: tuple[str, ...], batch: int | None, now: str | None, rows: int, env: str | None,
            as_json: bool) -> None:  # fmt: skip
    """Show the rows that a pipeline would write for the rows of files, and which it keeps aside and why.

    No service has to run and no table is touched: what the pipeline needs starts in a temporary folder.
    """
    from lakehouse_engine.local import stack
    from lakehouse_engine.testing.bench import opened
    from lakehouse_engine.testing.cases import SOURCE
    from lakehouse_engine.testing.preview import preview as previewed
    from lakehouse_engine.testing.values import moment

    clock = moment(now) if now else None
    if now and clock is None:
        raise UsageError("BAD_VALUE", f"--now is a time like 2026-01-01T10:00:00Z, not {now}")
    files: dict[str, Path] = {}
    for given in inputs:
        name, named, file = given.partition("=")
        name, file = (name, file) if named else (SOURCE, given)
        if name in files:
            raise UsageError("BAD_VALUE", f"--input {name} is given twice")
        if not Path(file).is_file():
            raise UsageError("FILE_MISSING", f"--input: there is no file {file}")
        files[name] = Path(file)
    environment = environment_of(env)
    with opened(engine_jars, stack, report) as bench:
        found = previewed(bench, spec, files, environment, size=batch, now=clock, limit=rows)
    for name in found.empty:
        report(f"{name}: no rows, for no --input names it")
    click.echo(json.dumps(found.as_json()) if as_json else found.text())


@click.command()
@SPECS
@click.option("-k", "words", multiple=True, metavar="TEXT", help="Only tests with this in their name or file; again: or"
              " this.")  # fmt: skip
@click.option("--update", is_flag=True, help="Write what there is over what tests expect, in their files.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also as JUnit's XML.")
@JSON
def test(specs: tuple[Path, ...], words: tuple[str, ...], update: bool, junit: Path | None, as_json: bool) -> None:
    """Run the YAML tests beside pipelines, on real Spark, Kafka and PostgreSQL."""
    from lakehouse_engine.local import stack
    from lakehouse_engine.testing import junit as xml
    from lakehouse_engine.testing.suite import run as run_tests
    from lakehouse_engine.testing.suite import updated

    began = time.monotonic()
    results = run_tests(list(specs or [Path("pipelines")]), jars=engine_jars, stack=stack, report=report,
                        words=words)  # fmt: skip
    if junit is not None:
        xml.write(junit, results, time.monotonic() - began)
    if update:
        results, files = updated(results)
        for file, count in files.items():
            report(f"{file}: {count} expectations rewritten; look at the difference before you keep it")
    failed = [result for result in results if not result.passed]
    if as_json:
        click.echo(json.dumps([result.as_json() for result in results]))
    else:
        for result in results:
            click.echo(result.text(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        seconds = time.monotonic() - began
        click.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed in {seconds:.0f} s")
    sys.exit(1 if failed or not results else 0)
