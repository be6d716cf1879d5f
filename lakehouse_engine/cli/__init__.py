"""The command ``lakehouse``: one function a command, each a thin call into the engine.

A new command is a function in the module of its kind and its place in ``COMMANDS``, the order in which they are shown.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from lakehouse_engine.cli import change, files, look, run, stack
from lakehouse_engine.errors import LakehouseError

COMMANDS: tuple[click.Command, ...] = (
    stack.init, stack.up, stack.down, stack.airflow_, stack.jars, stack.produce,
    files.new_, files.validate, files.plan, files.graph, files.diff,
    run.run, run.serve, run.backfill, run.late, run.quarantine, change.reset, change.rename, run.maintain,
    look.show, look.history, stack.engine_, look.status, look.audit, look.tail,
    files.grafana, look.dashboard, files.schema, files.reference, run.preview, run.test,
)  # fmt: skip


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


for command in COMMANDS:
    main.add_command(command)
