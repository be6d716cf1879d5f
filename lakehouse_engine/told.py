"""Who is told of what a runner does: the log, the journal, and, where they are asked for, metrics and lineage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakehouse_engine import journal, lineage
from lakehouse_engine.errors import RunError
from lakehouse_engine.journal import Journal, Kind, Run, See
from lakehouse_engine.log import Log
from lakehouse_engine.request import Request
from lakehouse_engine.spec.reached import reaching

if TYPE_CHECKING:
    from lakehouse_engine.plan import Plan
    from lakehouse_engine.spec.environment import Environment


class Told:
    """``open`` finds out who wants to know; ``began`` and ``see`` tell them; ``close`` waits for them a moment."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._watchers: list[See] = [log.see]
        self._journal: Journal | None = None
        self._lineage: lineage.Lineage | None = None
        self._endpoint: Any = None
        self._secrets: tuple[str, ...] = ()

    def open(self, plan: Plan, request: Request, environment: Environment, storage: Path) -> None:
        """Raises ``RunError`` PORT_IN_USE; and of the environment, what it says of Kafka when lineage is asked for."""
        dsn = self._postgres(environment)
        if dsn is not None:
            self._secrets = journal.secrets_of(dsn)
            self._journal = Journal(dsn, self._log)
            self._watchers.append(self._journal.see)
        if lineage.configured(Path.cwd()):
            named = {getattr(one, "connection", None) for spec in plan.specs for _, one in reaching(spec)
                     if one.key == "kafka"}  # fmt: skip
            clusters = {name: environment.kafka(name) for name in named}
            self._tell_lineage(plan, lineage.Places(clusters, dsn, storage))
        if request.metrics is not None:
            self._show_metrics(plan, *request.metrics)

    def _postgres(self, environment: Environment) -> str | None:
        """Runs are kept where there is a PostgreSQL; none is needed for what is landed in Delta."""
        try:
            return environment.postgres_dsn()
        except RunError as error:
            if error.code not in ("NO_CONNECTION", "STACK_DOWN"):
                self._log(f"lakehouse.runs is not written: {error}")
            return None

    def _tell_lineage(self, plan: Plan, places: lineage.Places) -> None:
        try:
            self._lineage = lineage.Lineage([*plan.specs, *plan.served], places, self._log)
        except ImportError:
            self._log("lineage is asked for and openlineage-python is not installed; install lakehouse-yaml[lineage]")
            return
        self._watchers.append(self._lineage.see)

    def _show_metrics(self, plan: Plan, host: str, port: int) -> None:
        from lakehouse_engine.metrics import Metrics

        metrics = Metrics()
        metrics.expect({member.name: scan.every for scan in plan.streams if not scan.ends
                        for member in scan.members})  # fmt: skip
        self._endpoint, port = metrics.serve(host, port)
        self._watchers.append(metrics.see)
        self._log(f"metrics at http://{host}:{port}/metrics")

    def progress(self, text: str) -> None:
        self._log.progress(text)

    def began(self, pipeline: str, kind: Kind) -> None:
        """A run begins; how it ends is told to ``see``."""
        if self._lineage is not None:
            self._lineage.began(pipeline, kind)

    def see(self, run: Run) -> None:
        """What has been done, or has failed."""
        shown = journal.without_secrets(run, self._secrets)
        for watcher in self._watchers:
            watcher(shown)

    def close(self) -> None:
        if self._lineage is not None:
            self._lineage.close()
        if self._journal is not None:
            self._journal.close()
        if self._endpoint is not None:
            self._endpoint.shutdown()
            self._endpoint.server_close()
