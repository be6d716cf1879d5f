"""Runs jobs in a process that may be killed: ``run`` or ``serve`` a line on standard input, its exit status a line out.

What ``lakehouse run`` does, with Spark started once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lakehouse_engine.errors import LakehouseError
from lakehouse_engine.local.jars import engine_jars
from lakehouse_engine.log import Log
from lakehouse_engine.request import Request
from lakehouse_engine.runner import Runner, planned
from lakehouse_engine.spec.environment import load_environment

SPECS = (Path("pipelines/silver/user_events.yaml"), Path("pipelines/gold/daily_active_users.yaml"))


def main() -> None:
    def write(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    environment = load_environment(None, Path.cwd())
    session = Runner(environment, engine_jars, Log(write)).spark()
    print("ready", flush=True)
    for line in sys.stdin:
        plan, status = planned(SPECS, environment), 0
        runner = Runner(environment, tuple, Log(write), session=session)
        try:
            for command in line.split():
                status = status or runner.perform(plan, Request(command, SPECS))  # type: ignore[arg-type]
        except LakehouseError as error:
            runner.report.error(error)
            status = error.exit_status
        except Exception as error:
            write(f"{type(error).__name__}: {error}")
            status = 1
        finally:
            runner.close()
        print(status, flush=True)


if __name__ == "__main__":
    main()
