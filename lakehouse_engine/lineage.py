"""OpenLineage events of every run: START, RUNNING (streams), COMPLETE and FAIL, with what is read and written.

The extra ``lineage`` brings ``openlineage-python``; its own environment variables and ``openlineage.yml`` say where the
events go, and without any of them there are none. Best effort, like the journal: a thread of its own sends them, and
who receives them neither slows nor fails a run. Names follow OpenLineage's rules for datasets (spec/Naming.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from psycopg2.extensions import parse_dsn

from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.journal import Kind, Run, masked, secrets_of
from lakehouse_engine.progress import from_micros, now_micros
from lakehouse_engine.sinks import Delta, Files, Postgres, Sink
from lakehouse_engine.sinks import Kafka as Messages
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Parse

#: seconds between two RUNNING events of a stream, and that the end of a run waits for events on their way
EVERY, PATIENCE = 60.0, 5.0
_COLUMNS = """select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = to_regclass(%s)
  and attnum > 0 and not attisdropped order by attnum"""


def configured(root: Path) -> bool:
    """Whether somebody has said where events go."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").lower() in ("true", "1"):
        return False
    files = (root / "openlineage.yml", Path.home() / ".openlineage" / "openlineage.yml")
    named = any(name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or name.startswith("OPENLINEAGE__TRANSPORT")
                for name in os.environ)  # fmt: skip
    return named or any(file.is_file() for file in files)


@dataclass(frozen=True)
class Places:
    """Where a run's datasets are."""

    #: brokers by the connection's name
    clusters: Mapping[str | None, str]
    dsn: str | None
    storage: Path

    def kafka(self, part: Kafka | Messages) -> list[tuple[str, str]]:
        """Namespace and name of each topic; of several brokers the first stands for the cluster.

        Of a pattern it is the pattern: which topics match is known to who reads them.
        """
        at = f"kafka://{self.clusters.get(part.connection, '').split(',')[0].strip()}"
        names = (part.topic,) if isinstance(part, Messages) or part.topic else part.topics or (part.pattern,)
        return [(at, name) for name in names if name is not None]

    def delta(self, table: str) -> tuple[str, str]:
        return "file", str(delta_sink.table_path(self.storage, table))

    def postgres(self, table: str) -> tuple[str, str]:
        found = parse_dsn(self.dsn or "")
        at = f"postgres://{found.get('host', 'localhost')}:{found.get('port', '5432')}"
        return at, f"{found.get('dbname', '')}.{table}"


class Lineage:
    """``began`` and ``see`` are told of runs; ``report`` once that events do not arrive."""

    def __init__(self, specs: Sequence[PipelineSpec], places: Places, report: Callable[[str], None]) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from openlineage.client import OpenLineageClient

        self._client: Any = OpenLineageClient()
        self._specs = {spec.name: spec for spec in specs}
        self._places, self._report = places, report
        self._open: dict[tuple[str, Kind], str] = {}
        self._told: dict[str, float] = {}  # when a stream last said that it runs
        self._waiting: SimpleQueue[tuple[str, str, Kind, str, int, Run | None] | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send_on, name="lineage", daemon=True)
        self._sender.start()
        self._failed = False
        self._namespace = os.environ.get("OPENLINEAGE_NAMESPACE", "lakehouse")
        try:
            self._producer = f"urn:lakehouse-yaml:{version('lakehouse-yaml')}"
        except PackageNotFoundError:  # run as a script
            self._producer = "urn:lakehouse-yaml:source"

    def began(self, pipeline: str, kind: Kind, at: int | None = None) -> None:
        """A run starts; for a stream ``kind`` is stream until it ends."""
        from openlineage.client.uuid import generate_new_uuid

        self._open[pipeline, kind] = str(generate_new_uuid())
        self._send("START", pipeline, kind, at or now_micros(), None)

    def see(self, run: Run) -> None:
        if run.kind == "batch":
            if (run.pipeline, "stream") not in self._open:
                self.began(run.pipeline, "stream", run.started_at)
            now = time.monotonic()
            if now - self._told.get(run.pipeline, -EVERY) >= EVERY:
                self._told[run.pipeline] = now
                self._send("RUNNING", run.pipeline, "stream", run.ended_at, run)
            return
        if run.outcome == "nothing":
            return
        if (run.pipeline, run.kind) not in self._open:
            self.began(run.pipeline, run.kind, run.started_at)
        self._send("FAIL" if run.outcome == "failed" else "COMPLETE", run.pipeline, run.kind, run.ended_at, run)
        del self._open[run.pipeline, run.kind]

    def close(self) -> None:
        """Streams that still run have come to their end."""
        for pipeline, kind in list(self._open):
            self._send("COMPLETE" if kind == "stream" else "ABORT", pipeline, kind, now_micros(), None)
        self._open.clear()
        self._waiting.put(None)
        self._sender.join(PATIENCE)

    def _send(self, state: str, pipeline: str, kind: Kind, at: int, run: Run | None) -> None:
        if pipeline in self._specs:
            self._waiting.put((state, pipeline, kind, self._open[pipeline, kind], at, run))

    def _send_on(self) -> None:
        while (one := self._waiting.get()) is not None:
            try:
                self._client.emit(self._event(*one))
            except Exception as error:  # whatever a transport raises
                if not self._failed:
                    lines = str(error).strip().splitlines()
                    self._report(f"lineage events do not arrive: {masked(lines[0] if lines else type(error).__name__)}")
                self._failed = True
        self._client.close(PATIENCE)

    def _event(self, state: str, pipeline: str, kind: Kind, run_id: str, at: int, run: Run | None) -> Any:
        from openlineage.client import event_v2 as events
        from openlineage.client.facet_v2 import documentation_job, error_message_run, job_type_job

        spec = self._specs[pipeline]
        moment = from_micros(at)
        assert moment is not None
        processing = "STREAMING" if kind == "stream" else "BATCH"
        job = events.Job(self._namespace, f"{pipeline}.serve" if kind == "serve" else pipeline, facets={
            "jobType": job_type_job.JobTypeJobFacet(processing, "LAKEHOUSE", kind.upper(), producer=self._producer),
            **({"documentation": documentation_job.DocumentationJobFacet(spec.description.strip(),
                                                                         producer=self._producer)}
               if spec.description else {}),
        })  # fmt: skip
        facets: dict[str, Any] = {}
        if run is not None and run.outcome == "failed":
            message = masked(f"{run.code}: {run.message}", secrets_of(self._places.dsn))
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "Python", producer=self._producer)
        return events.RunEvent(
            eventType=events.RunState[state], eventTime=moment.isoformat(), producer=self._producer,
            run=events.Run(run_id, facets=facets), job=job, inputs=self._inputs(spec, kind),
            outputs=self._outputs(spec, kind, run if state == "COMPLETE" else None))  # fmt: skip

    def _inputs(self, spec: PipelineSpec, kind: Kind) -> list[Any]:
        """The source first, then what else it reads."""
        from openlineage.client.event_v2 import InputDataset

        if kind == "serve":
            return [InputDataset(*self._places.delta(spec.name), facets=self._delta_facets(spec.name))]
        found = []
        for part in (spec, *map(spec.part, spec.inputs)):
            if isinstance(part.source, Kafka):
                parse = next((t for t in part.transforms if isinstance(t, Parse)), None)
                contract = part.contracts.get(parse.reads_by) if parse is not None else None
                fields = contract.columns if contract is not None else {}
                places = self._places.kafka(part.source)
                found += [InputDataset(*place, facets=self._schema(fields)) for place in places]
        return found + [InputDataset(*self._places.delta(table), facets=self._delta_facets(table))
                        for table in spec.reads]  # fmt: skip

    def _outputs(self, spec: PipelineSpec, kind: Kind, run: Run | None) -> list[Any]:
        from openlineage.client.event_v2 import OutputDataset
        from openlineage.client.facet_v2 import output_statistics_output_dataset

        table = spec.postgres_table if kind == "serve" or isinstance(spec.sink, Postgres) else None
        place: tuple[str, str] | None
        if table is not None:
            place, facets = self._places.postgres(table), self._schema(self._columns(table))
        elif isinstance(spec.sink, Delta):
            place = self._places.delta(spec.name)
            facets = self._delta_facets(spec.name, run.version if run else None)
        else:
            place, facets = self._place(spec, spec.sink), {}
            if place is None:
                return []
        written: dict[str, Any] = {}
        if run is not None and run.rows is not None:
            written["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=run.rows, producer=self._producer)  # fmt: skip
        others = [self._place(spec, sink) for sink in spec.sinks[1:] if kind != "serve"]
        return [OutputDataset(*place, outputFacets=written, facets=facets),
                *(OutputDataset(*one) for one in others if one is not None)]  # fmt: skip

    def _place(self, spec: PipelineSpec, sink: Sink) -> tuple[str, str] | None:
        """Where a sink writes; None for the console."""
        if isinstance(sink, Messages):
            return self._places.kafka(sink)[0]
        if isinstance(sink, Files):
            return "file", str(Path(sink.path).resolve())
        return self._places.postgres(sink.target(spec.name)) if isinstance(sink, Postgres) else None

    def _delta_facets(self, table: str, version: int | None = None) -> dict[str, Any]:
        from openlineage.client.facet_v2 import dataset_version_dataset

        columns = DeltaLog(delta_sink.table_path(self._places.storage, table)).columns() or {}
        facets = self._schema(columns)
        if version is not None:
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(str(version),
                                                                                   producer=self._producer)  # fmt: skip
        return facets

    def _columns(self, table: str) -> dict[str, str]:
        """Of a table in PostgreSQL; none before it is made."""
        if self._places.dsn is None:
            return {}
        with closing(postgres_sink.connect(self._places.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(_COLUMNS, (".".join(f'"{part}"' for part in table.split(".")),))
            return dict(cursor.fetchall())

    def _schema(self, columns: Any) -> dict[str, Any]:
        from openlineage.client.facet_v2 import schema_dataset as schema

        if not columns:
            return {}
        fields = [schema.SchemaDatasetFacetFields(name, kind or None) for name, kind in columns.items()]
        return {"schema": schema.SchemaDatasetFacet(fields, producer=self._producer)}
