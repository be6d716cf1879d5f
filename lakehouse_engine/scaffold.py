"""``lakehouse new``: a pipeline that is right as it is written, with a test that passes, to be changed from there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakehouse_engine.component import TABLE, is_name
from lakehouse_engine.contract import Field
from lakehouse_engine.errors import UsageError
from lakehouse_engine.sinks import Delta
from lakehouse_engine.sources import Kafka
from lakehouse_engine.spec.check import output_columns
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import Upstream, load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import Parse

#: a value of each type, as JSON and YAML write it
_VALUES: dict[str, Any] = {
    "string": "a", "bigint": 1, "int": 1, "smallint": 1, "tinyint": 1, "double": 1.5, "float": 1.5, "boolean": True,
    "timestamp": "2026-01-01T10:00:05Z", "date": "2026-01-01"}  # fmt: skip
#: what the engine puts into a test's rows itself
_PLACE = {"_topic", "_partition", "_offset", "_timestamp", "updated_at", "_extra"}


@dataclass(frozen=True)
class Made:
    """A pipeline's text and its test's, for ``pipelines/<layer>/<name>.yaml`` and beside it."""

    pipeline: Path
    text: str
    test: str

    def write(self) -> list[Path]:
        """Raises ``UsageError`` FILE_THERE."""
        files = {self.pipeline: self.text, self.pipeline.with_suffix(".test.yaml"): self.test}
        for file in files:
            if file.exists():
                raise UsageError("FILE_THERE", "there is such a file already; it stays as it is", where=str(file))
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return list(files)


def metric(name: str, source: str, root: Path, environment: Environment, *, stream: bool) -> Made:
    """Counts of ``source``, a pipeline's table: per slice of it, or (``stream``) per minute of the topic it is made of.

    ``name``: ``<layer>.<name>``, or a name in ``gold`` (of a stream: ``realtime``). ``root``: the folder of pipelines.
    Raises ``UsageError`` BAD_NAME, MISSING_TABLE, NO_EXAMPLE; ``SpecError`` for a source that is wrong itself.
    """
    full = name if "." in name else f"{'realtime' if stream else 'gold'}.{name}"
    if not TABLE.fullmatch(full) or not all(map(is_name, full.split("."))):
        raise UsageError("BAD_NAME", f"{name} is no name of a pipeline: <layer>.<name>, of a-z, 0-9 and single _")
    layer, _, short = full.partition(".")
    above, _, table = source.partition(".")
    file = root / above / f"{table}.yaml"
    if not file.is_file():
        raise UsageError("MISSING_TABLE", f"no pipeline here writes {source}; --from takes <layer>.<name>")
    (spec,) = load([file], environment=environment)
    text, test = _stream(spec) if stream else _job(spec, environment)
    return Made(root / layer / f"{short}.yaml", text, test)


def _job(spec: PipelineSpec, environment: Environment) -> tuple[str, str]:
    sink = spec.sink
    columns = output_columns(spec, Upstream({spec.name: spec}, environment))
    if not isinstance(sink, Delta) or columns is None:
        raise UsageError("MISSING_TABLE", f"{spec.name} writes no Delta table whose columns are known; a metric of a"
                         " stream: --stream")  # fmt: skip
    slices = sink.replace_by or next(iter(sink.partition_by), None)
    by, into = (f"[{slices}]", f"{{delta: {{replace_by: {slices}}}}}") if slices else ("[]", "delta")
    text = (f"description: Rows of {spec.name}{f' by {slices}' if slices else ''}.\nsource: {spec.name}\ntransforms:\n"
            f"  - aggregate: {{by: {by}, measures: {{row_count: count(*)}}}}\nsink: {into}\nserve: postgres\n"
            "schedule: upstream\n")  # fmt: skip
    row = {n: _VALUES[kind] for n, kind in columns.items() if kind in _VALUES and n not in _PLACE}
    found = {slices: row.get(slices), "row_count": 2} if slices and slices in row else {"row_count": 2}
    return text, _test("rows are counted", row, [[{}, {}]], [found])


def _stream(spec: PipelineSpec) -> tuple[str, str]:
    source, parse = spec.source, next((t for t in spec.transforms if isinstance(t, Parse)), None)
    if not isinstance(source, Kafka) or parse is None or parse.contract is None or parse.into is not None:
        raise UsageError("MISSING_TABLE", f"{spec.name} does not land a topic with a contract; --stream reads that")
    contract = spec.contracts[parse.contract]
    time = next((field.name for field in contract.fields if field.kind == "timestamp" and field.required), None)
    if time is None:
        raise UsageError("NO_EXAMPLE", f"{contract.name} requires no timestamp, which windows need")
    history = f", history: {spec.name}" if spec.lands else ""
    connection = f", connection: {source.connection}" if source.connection else ""
    which = next(key for key in ("topic", "topics", "pattern") if getattr(source, key) is not None)
    text = (f"description: Events of {source.origin} per minute.\n"
            f"source: {{kafka: {{{which}: {json.dumps(getattr(source, which))}{connection}{history}}}}}\ntransforms:\n"
            f"  - parse: {contract.name}\n  - watermark: {{column: {time}, delay: 2 minutes}}\n"
            "  - window: {tumbling: 1 minute, measures: {event_count: count(*)}}\n"
            "sink: postgres\ntrigger: {every: 1 second}\n")  # fmt: skip
    row = {field.name: _example(field) for field in contract.fields if field.required}
    reasons = contract.judge(json.dumps(row).encode())
    if reasons:
        raise UsageError("NO_EXAMPLE", f"no record that keeps {contract.name} is found ({reasons[0]}); write the files"
                         " by hand, e.g. from pipelines/realtime")  # fmt: skip
    later = {time: "2026-01-01T10:01:05Z"}
    return text, _test("events are counted by the minute", row, [[{}, {}], [later]], [
        {"window_start": "2026-01-01T10:00:00Z", "event_count": 2},
        {"window_start": "2026-01-01T10:01:00Z", "event_count": 1}])  # fmt: skip


def _example(field: Field) -> Any:
    if field.enum:
        return field.enum[0]
    if field.kind == "object":
        return {part.name: _example(part) for part in field.fields if part.required}
    if field.kind == "array" and field.element is not None:
        return [_example(field.element)] * (field.min_items or 0)
    if field.kind in ("map", "any"):
        return {}
    if field.kind == "string":
        return "a" * max(field.min_length or 1, 1)
    value = _VALUES[field.spark_type]
    if field.kind in ("integer", "number"):
        for bound in (field.minimum, field.exclusive_minimum):
            value = value if bound is None or value > bound else bound + (1 if field.kind == "integer" else 0.5)
    return value


def _test(name: str, row: Mapping[str, Any], batches: list[list[Mapping[str, Any]]],
          rows: list[Mapping[str, Any]]) -> str:  # fmt: skip
    sent = "".join(f"    - {_flow(batch)}\n" for batch in batches)
    expected = "".join(f"      - {_flow(one)}\n" for one in rows)
    return f"- name: {name}\n  defaults: {_flow(row)}\n  batches:\n{sent}  expect:\n    rows:\n{expected}"


def _flow(value: Any) -> str:
    """YAML on one line: JSON with plain keys."""
    return re.sub(r'"([A-Za-z_][A-Za-z0-9_]*)": ', r"\1: ", json.dumps(value, ensure_ascii=False))
