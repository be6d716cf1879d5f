"""What changes what is kept of pipelines: a new epoch, another name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lakehouse_engine.cli.shared import ENV, SPECS, engine_jars, environment_of, name_of, report
from lakehouse_engine.errors import UsageError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lakehouse_engine.spec.environment import Environment
    from lakehouse_engine.spec.pipeline import PipelineSpec


@click.command()
@SPECS
@click.option("--yes", "confirmed", is_flag=True, help="Do it; otherwise only say what would be done.")
@ENV
def reset(specs: tuple[Path, ...], confirmed: bool, env: str | None) -> None:
    """Begin a new epoch of pipelines that do not run: their tables are set aside, and the next run begins anew.

    What a start refuses with NEW_EPOCH is safe then. The tables of the old epoch stay, in a schema or folder of its
    own (layer__epoch1.name), until you drop them.
    """
    from lakehouse_engine import epochs
    from lakehouse_engine.spec.loader import load

    if not specs:
        raise UsageError("BAD_VALUE", "name the pipelines that are to begin anew")
    environment = environment_of(env)
    found = load(list(specs), environment=environment)
    done = epochs.reset(found, Path(environment.storage).resolve(), _dsn(found, environment), apply=confirmed)
    click.echo("\n".join(one.text() for one in done))
    if not confirmed:
        report("nothing was changed; say --yes")


@click.command()
@click.argument("old")
@click.argument("new")
@ENV
def rename(old: str, new: str, env: str | None) -> None:
    """Give a pipeline that does not run another name (LAYER.NAME, both): its file and all that is kept under the old.

    The same command again finishes one that was interrupted.
    """
    from lakehouse_engine import session
    from lakehouse_engine.component import is_name
    from lakehouse_engine.rename import Renamed
    from lakehouse_engine.spec.loader import load

    environment = environment_of(env)
    files = {name: Path("pipelines", *name.split(".")).with_suffix(".yaml") for name in (name_of(old), name_of(new))}
    file = next((file for file in files.values() if file.is_file()), None)
    parts = name_of(new).split(".")
    if file is None or len(parts) != 2 or not all(map(is_name, parts)):
        code, what = ("UNKNOWN_PIPELINE", f"there is no {files[name_of(old)]}") if file is None else (
            "BAD_NAME", f"{new} is no name of a pipeline: layer.name, of a-z, 0-9 and _")  # fmt: skip
        raise UsageError(code, what)
    spec = load([file], environment=environment)[0]
    started: list[SparkSession] = []

    def spark() -> SparkSession:
        if not started:
            report("starting Spark")
            started.append(session.start("lakehouse", jars=engine_jars(), settings=environment.spark))
        return started[0]

    try:
        Renamed(spec, name_of(old), name_of(new), Path(environment.storage).resolve()).run(
            _dsn([spec], environment), spark, click.echo)  # fmt: skip
    finally:
        for one in started:
            one.stop()
    for line in _readers(name_of(old)):
        report(f"still says {name_of(old)}: {line}")


def _dsn(specs: Sequence[PipelineSpec], environment: Environment) -> str | None:
    """Of the PostgreSQL where one of the pipelines has something."""
    from lakehouse_engine.sinks import Postgres

    stored = any(spec.serve or any(isinstance(sink, Postgres) for sink in spec.sinks) for spec in specs)
    return environment.postgres_dsn() if stored else None


def _readers(name: str) -> list[str]:
    """``file:line`` of what names the pipeline in other files."""
    word = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.])")
    return [f"{file}:{number}: {line.strip()}" for file in sorted(Path("pipelines").rglob("*.yaml"))
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
            if word.search(line)]  # fmt: skip
