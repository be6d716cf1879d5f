"""The pipeline that a test is of: its spec with the test's values, and the names that the test may give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.sinks import Sink, Unkept
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.sources import Delta, Source
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.testing.cases import EXPECT, SOURCE, Case, did_you_mean


def loaded(case: Case, storage: str = ".") -> PipelineSpec:
    """The pipeline as the test fixes it. Raises ``SpecError``."""
    environment = Environment(storage=storage, vars=dict(case.vars))
    return load([case.pipeline], environment=environment, params=case.params)[0]


def sources(spec: PipelineSpec) -> dict[str, Source]:
    """What the pipeline reads by the names that a test gives rows to: ``source``, its inputs, the tables it names."""
    tables: dict[str, Source] = {table: Delta(table=table) for table in spec.reads}
    return {SOURCE: spec.source, **{name: one.source for name, one in spec.inputs.items()}, **tables}


def sinks(spec: PipelineSpec) -> dict[str, Sink]:
    """What the pipeline writes, by table or topic: its own first."""
    return {sink.target(spec.name): sink for sink in spec.sinks}


def problems(cases: Sequence[Case]) -> Iterator[Problem]:
    """Names in tests that their pipelines do not have; nothing of a pipeline that cannot be read."""
    specs: dict[str, PipelineSpec | None] = {}
    for case in cases:
        if case.params and not _has_template(case):
            yield case.problem(".params", "MISSING_TEMPLATE", "the pipeline uses no template that takes params")
            continue
        named = {".inputs": [*case.inputs], ".tables": [*case.tables], ".expect": [*case.expect.others]}
        batches = [(number, name) for number, batch in enumerate(case.batches) for name in batch if name != SOURCE]
        if not any(named.values()) and not batches:
            continue
        key = repr((str(case.pipeline), sorted(case.vars.items()), sorted(case.params.items())))
        if key not in specs:
            specs[key] = _readable(case)
        spec = specs[key]
        if spec is None:
            continue
        read, written = sources(spec), sinks(spec)
        stored = [spec.name if isinstance(sink, Unkept) else table for table, sink in written.items()]
        sides = [f"{table}__{side}" for table in stored for side in postgres_sink.SIDES]
        for path, name in [(".inputs", name) for name in named[".inputs"]] + [
                (case.batch_path(number, ""), name) for number, name in batches]:  # fmt: skip
            if name not in read:
                yield case.problem(f"{path.rstrip('.')}.{name}", "UNKNOWN_INPUT", f"the pipeline has no input {name};"
                               f" {did_you_mean(name, list(read))}")  # fmt: skip
        for name in named[".tables"]:
            if name not in written:
                yield case.problem(f".tables.{name}", "UNKNOWN_TARGET", f"the pipeline does not write {name};"
                               f" {did_you_mean(name, list(written))}")  # fmt: skip
        for name in named[".expect"]:
            if name not in written and name not in sides:
                yield case.problem(f".expect.{name}", "UNKNOWN_TARGET", f"{name} is unknown;"
                               f" {did_you_mean(name, [*EXPECT, *written, *sides])}")  # fmt: skip


def _readable(case: Case) -> PipelineSpec | None:
    try:
        return loaded(case)
    except SpecError:
        return None  # said where pipelines are judged, or expected by the test


def _has_template(case: Case) -> bool:
    value = yaml.read(case.pipeline, str(case.pipeline)).value if case.pipeline.is_file() else None
    return not isinstance(value, Mapping) or "use" in value
