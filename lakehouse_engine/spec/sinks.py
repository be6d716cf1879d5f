"""Which sinks may stand beside a pipeline's table."""

from __future__ import annotations

from collections.abc import Iterator

from lakehouse_engine.component import Unread, is_name
from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Console, Delta, Kafka, Postgres, Unkept
from lakehouse_engine.sinks import Files as Folder
from lakehouse_engine.sources import Files
from lakehouse_engine.sources import Kafka as Topics
from lakehouse_engine.spec import further
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at, some_unread
from lakehouse_engine.spec.streaming import needs_state


def further_sinks_fit(spec: PipelineSpec) -> Iterator[Problem]:
    """They name what they write, and there is a way to give each what it lacks."""
    if isinstance(spec.sink, Unkept) and spec.is_stream and (_windowed(spec) or needs_state(spec)):
        instead = "put a table of postgres before it, which holds them: sink: [postgres, kafka: {topic: ...}]"
        instead = instead if spec.sink.key == Kafka.key else "postgres takes them"
        yield at(spec, "sink", "NOT_YET", f"windows into {spec.sink.key} alone come with a later version; {instead}")
    names = {spec.table}
    for number, one in enumerate(spec.further, 1):
        sink, place = one.sink, f"sink[{number}]"
        name = sink.target(spec.name)
        named = not isinstance(sink, Unread) and not (isinstance(sink, Delta | Postgres) and sink.table is None)
        deletes = isinstance(sink, Delta) and sink.mode == "delete"
        if named and name in names and not deletes:
            yield at(spec, place, "SAME_TABLE", f"another sink of this pipeline is {name}: ledgers, metrics and tests"
                     " tell sinks apart by their names")  # fmt: skip
        names |= {name} if named else set()
        if isinstance(sink, Delta | Postgres) and sink.table is None:
            yield at(spec, place, "MISSING_KEY", "table is missing: the first sink is the pipeline's table, another one"
                     " names its own")  # fmt: skip
        if isinstance(sink, Delta) and named:
            yield from _table(spec, sink, place)
        if not isinstance(sink, Unread) and not some_unread(spec):
            yield from _fed(spec, sink.key, place)


def _table(spec: PipelineSpec, sink: Delta, place: str) -> Iterator[Problem]:
    """A further table of Delta."""
    if not all(map(is_name, (sink.table or "").split("."))):
        yield at(spec, f"{place}.delta.table", "BAD_NAME", f"{sink.table!r} is not a table's name: <layer>.<name>, each"
                 " of a-z, 0-9 and _, no __, at most 48 characters")  # fmt: skip
    if sink.mode == "delete":
        yield at(spec, place, "ILLEGAL_SINK", "who asks for rows to be deleted is a pipeline of its own, whose table"
                 " holds what it has asked for")  # fmt: skip
    for option in ("mode", "replace_by") if not spec.is_stream else ():
        if getattr(sink, option) not in (None, "replace", "append", getattr(spec.sink, option, None)):
            yield at(spec, f"{place}.delta.{option}", "ILLEGAL_MODE", "a job's further table is a copy of its own, and"
                     f" follows what changes there: leave {option} out")  # fmt: skip


def what_is_read_is_not_written(spec: PipelineSpec) -> Iterator[Problem]:
    """Its messages, or its files, would come back to it for ever."""
    for number, sink in enumerate(spec.sinks):
        read = [spec.source, *(one.source for one in spec.inputs.values())]
        if isinstance(sink, Kafka) and any(isinstance(one, Topics) and one.connection == sink.connection
                                           and one.reads(sink.topic) for one in read):  # fmt: skip
            yield at(spec, further.place(number), "SAME_TABLE", f"{sink.topic} is what the pipeline"
                     " reads: its messages would come back to it for ever")  # fmt: skip
        for one in read:
            if isinstance(sink, Folder) and isinstance(one, Files) and _within(one.path, sink.path):
                yield at(spec, further.place(number), "SAME_TABLE", f"{sink.path} is in what the pipeline reads,"
                         f" {one.path}, or holds it: its own files would come back to it for ever")  # fmt: skip


def _within(read: str, written: str) -> bool:
    """Whether one of the two folders is in the other; of a pattern none is but the one that it is in."""
    return f"{read}/".startswith(f"{written}/") or f"{written}/".startswith(f"{read}/")


def _windowed(spec: PipelineSpec) -> bool:
    return any(step.key == "window" for step in spec.transforms)


def _fed(spec: PipelineSpec, key: str, place: str) -> Iterator[Problem]:
    if spec.is_stream and needs_state(spec):
        yield at(spec, place, "NOT_YET", "a second sink of a stream whose state is Spark's comes with a later version")
    elif spec.is_stream and _windowed(spec):
        if key == Kafka.key and isinstance(spec.sink, Postgres):
            return
        yield at(spec, place, "NOT_YET", f"windows into {key} beside {spec.sink.key} come with a later version")
    elif not spec.is_stream and key == Console.key:
        yield at(spec, place, "ILLEGAL_SINK", "a job prints its result where console is its only sink")
    elif not spec.is_stream and not (isinstance(spec.sink, Delta) and spec.sink.mode in (None, "replace")):
        yield at(spec, place, "NOT_YET", "a job whose table is one of delta, with mode replace, can have further sinks:"
                 " they are brought to its version; others come with a later version")  # fmt: skip
    elif isinstance(spec.sink, Console):
        yield at(spec, place, "ILLEGAL_SINK", "console keeps nothing; put it after the sink that is the pipeline's"
                 " table")  # fmt: skip
