"""What files say, and what is made from them: nothing is run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from lakehouse_engine.cli.shared import ENV, JSON, OWN, SPECS, asked, environment_of, report
from lakehouse_engine.errors import UsageError
from lakehouse_engine.request import Request


@click.command()
@SPECS
@ENV
@OWN
@click.option("--structure", is_flag=True, help="What the files alone tell, without Spark.")
@JSON
def validate(specs: tuple[Path, ...], env: str | None, own: bool, structure: bool, as_json: bool) -> None:
    """Check pipelines, contracts, templates, tests and environments: every error of every file at file:line.

    Touches nothing, and needs no service, no secret and no data. Spark says the types of all columns, on no rows.
    """
    request = Request("validate", specs, env, os.environ.copy())
    _answer(request, own=own, structure=structure, as_json=as_json)


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
@ENV
@JSON
def diff(old: Path, new: Path, env: str | None, as_json: bool) -> None:
    """Say, key by key, what becomes of tables when the files of OLD become those of NEW (files or folders).

    Exit status 1 when something is to be done: a start that is refused, or a table that nobody writes any more.
    """
    from lakehouse_engine import changes
    from lakehouse_engine.spec.loader import read

    environment = environment_of(env)
    found = changes.between(*(read([path], environment=environment) for path in (old, new)))
    click.echo(json.dumps([change.as_json() for change in found]) if as_json else
               "\n".join(change.text() for change in found) or "nothing differs")  # fmt: skip
    sys.exit(1 if any(change.todo for change in found) else 0)


@click.group("new")
def new_() -> None:
    """Write a pipeline that is right as it is, with a test that passes, to be changed from there."""


@new_.command()
@click.argument("name")
@click.option("--from", "source", required=True, metavar="LAYER.NAME", help="The pipeline whose rows are counted.")
@click.option("--stream", is_flag=True, help="By the minute, from the topic that the pipeline lands.")
@ENV
def metric(name: str, source: str, stream: bool, env: str | None) -> None:
    """A metric of a table: counts per slice of it, or per minute of its topic."""
    from lakehouse_engine import scaffold

    made = scaffold.metric(name, source, Path("pipelines"), environment_of(env), stream=stream)
    for file in made.write():
        report(f"written: {file}")
    click.echo(f"next: lakehouse test {made.pipeline}")


def _answer(request: Request, *, own: bool, structure: bool, as_json: bool) -> None:
    """Says what comes of looking; ``structure``: what the files alone tell."""
    if structure:
        from lakehouse_engine.validation import answer

        found = answer(request, Path.cwd(), None)
    else:  # what an engine answers needs none of that
        found = asked(request, own=own)
    if as_json:
        click.echo(json.dumps(found["json"]))
    else:
        click.echo(found["text"], err=found["status"] != 0)
    sys.exit(found["status"])


@click.command()
@SPECS
@ENV
@OWN
@click.option("--origins", is_flag=True, help="Also each value, with the file and line that it comes from.")
@click.option("--structure", is_flag=True, help="Without Spark, and so without the columns after each step.")
@JSON
def plan(specs: tuple[Path, ...], env: str | None, own: bool, origins: bool, structure: bool, as_json: bool) -> None:
    """Show what `run` would do: scans with their members, jobs in order, and the columns after each step."""
    request = Request("plan", specs, env, os.environ.copy(), origins=origins)
    _answer(request, own=own, structure=structure, as_json=as_json)


@click.command()
@SPECS
@ENV
@click.option("--format", "form", type=click.Choice(["text", "mermaid", "json"]), default="text", show_default=True,
              help="For people, for Markdown, for machines.")  # fmt: skip
def graph(specs: tuple[Path, ...], env: str | None, form: str) -> None:
    """Show what flows where: topics, tables, what is kept aside, copies in PostgreSQL, panels."""
    from lakehouse_engine import graph as graphs
    from lakehouse_engine.plan import compile_plan
    from lakehouse_engine.spec.loader import load

    loaded = load(list(specs) or [Path("pipelines")], environment=environment_of(env))
    found = graphs.graph(loaded, compile_plan(loaded))
    shown = {"text": lambda: graphs.text(found, loaded), "mermaid": lambda: graphs.mermaid(found),
             "json": lambda: json.dumps(found, indent=2)}  # fmt: skip
    click.echo(shown[form]())


@click.command()
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

    loaded = load(list(specs) or [Path("pipelines")], environment=environment_of(env))
    for where, files in ((folder, dashboards.rendered(loaded)), (beside, prometheus.rendered(loaded))):
        if checked:
            dashboards.check(where, files)
        else:
            dashboards.write(where, files)
        click.echo(f"{len(files)} files in {where} {'are as the pipelines say' if checked else 'written'}")


@click.command()
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


@click.command()
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
