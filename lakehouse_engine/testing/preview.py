"""What a pipeline would write for the rows of files: its own plan, run as its tests are, on services that end with it.

One file for each input, a JSON value a line. An object is a row; to a topic other text goes as it is and ``null`` is a
tombstone, so that what a contract refuses can be seen as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from lakehouse_engine.database import plain
from lakehouse_engine.errors import Problem, SpecError, UsageError
from lakehouse_engine.show import Shown
from lakehouse_engine.sinks import Console
from lakehouse_engine.sources import Files, Kafka, Source
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.testing import subject
from lakehouse_engine.testing.bench import Bench
from lakehouse_engine.testing.cases import SOURCE, Batch, Case, Expect, Row, did_you_mean
from lakehouse_engine.testing.execute import Walk, prepared
from lakehouse_engine.testing.target import Found, Target

#: of a row that is kept aside, what tells why; its own fields stand in the file
_WHY = {"late": ("step", "event_time", "watermark", "missed"), "quarantined": ("step", "reasons")}


@dataclass(frozen=True)
class Given(Case):
    """Rows of files. A batch is a map; its row ``.batches[0].source[3]`` has a line in the file of ``source``."""

    files: Mapping[str, Path] = field(default_factory=dict)
    careful: ClassVar[bool] = True

    def problem(self, path: str, code: str, message: str) -> Problem:
        found = re.match(r"\.batches\[\d+\]\.(.+)\[\d+\]", path)
        file = str(self.files[found[1]]) if found else self.file
        return Problem(file, self.line(path), code, message, path.rpartition("]")[2].lstrip("."))


@dataclass(frozen=True)
class Aside:
    """A row that was not counted. ``at``: its file and line, where they are known."""

    kind: str
    at: str
    why: Mapping[str, Any]

    def text(self) -> str:
        said = [f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
                for name, value in self.why.items()]  # fmt: skip
        return f"{self.at or 'a row'}: {self.kind}: {', '.join(said)}"


@dataclass(frozen=True)
class Preview:
    """``tables``: the rows by table, as they would be stored; ``empty``: inputs that no file was given for."""

    pipeline: str
    tables: Sequence[Shown]
    aside: Sequence[Aside]
    empty: Sequence[str]

    def text(self) -> str:
        """For people."""
        return "\n".join([*(table.text() for table in self.tables), *(one.text() for one in self.aside)])

    def as_json(self) -> dict[str, Any]:
        """``tables`` by name, each with ``rows`` and ``more``; ``late`` and ``quarantined``: rows with ``at``."""
        kinds = {kind: [{"at": one.at, **one.why} for one in self.aside if one.kind == kind] for kind in _WHY}
        tables = {one.table: {"rows": one.as_json()["rows"], "more": one.more} for one in self.tables}
        return {"pipeline": self.pipeline, "tables": tables, **kinds, "empty": list(self.empty)}


def preview(bench: Bench, pipeline: Path, files: Mapping[str, Path], environment: Environment, *,
            size: int | None = None, now: datetime | None = None, limit: int = 20) -> Preview:  # fmt: skip
    """Runs the pipeline once on the rows of ``files``, which are by input (``source`` for its own).

    ``size``: rows of the source in a micro-batch, or run; None: all. ``now``: the clock of the source, else its
    greatest event time. Raises ``SpecError``, for the pipeline and for rows at their lines, and ``UsageError``
    UNKNOWN_INPUT.
    """
    at_first = Given(str(pipeline), str(pipeline), pipeline, "", {}, (), Expect(), vars=environment.vars)
    spec = _alone(subject.loaded(at_first))
    case = _given(at_first, spec, files, size, now)
    with prepared(bench, case, spec, bench.storage()) as (walk, target):
        for _ in walk.batches(target):
            pass
        aside = list(_aside(case, walk, target))
        tables = [_shown(sink.key, name, target.named(name), limit) for name, sink in subject.sinks(spec).items()
                  if not isinstance(sink, Console)]  # fmt: skip
    return Preview(spec.name, tables, aside, [name for name in subject.sources(spec) if name not in files])


def _alone(spec: PipelineSpec) -> PipelineSpec:
    """The pipeline as the one that keeps what its contract refuses: no other runs beside it."""
    if isinstance(spec.source, Kafka):
        return spec.model_copy(update={"source": spec.source.model_copy(update={"history": None})})
    return spec


def _given(case: Given, spec: PipelineSpec, files: Mapping[str, Path], size: int | None,
           now: datetime | None) -> Given:  # fmt: skip
    sources = subject.sources(spec)
    for name in files:
        if name not in sources:
            _unknown(spec, name, list(sources))
    problems: list[Problem] = []
    read = {name: list(_read(file, sources[name], problems)) for name, file in files.items()}
    if problems:
        raise SpecError(problems)
    own = read.pop(SOURCE, [])
    step = size or max(len(own), 1)
    parts = [{SOURCE: own[start : start + step]} for start in range(0, max(len(own), 1), step)]
    parts[0] |= read
    batches: list[Batch] = []
    lines: dict[str, int] = {}
    for number, part in enumerate(parts):
        for name, rows in part.items():
            lines[f".batches[{number}].{name}"] = 1
            lines |= {f".batches[{number}].{name}[{index}]": line for index, (line, _) in enumerate(rows)}
        batches.append({name: tuple(row for _, row in rows) for name, rows in part.items()})
    return Given(case.name, case.file, case.pipeline, "", lines, tuple(batches), Expect(), vars=case.vars, now=now,
                 files=files)  # fmt: skip


def _unknown(spec: PipelineSpec, name: str, known: Sequence[str]) -> NoReturn:
    raise UsageError("UNKNOWN_INPUT", f"{spec.name} has no input {name}; {did_you_mean(name, known)}")


def _read(file: Path, source: Source, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    """Line and row; lines of blanks are none."""
    as_text = isinstance(source, Kafka) or (isinstance(source, Files) and source.format == "json")
    with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text:
                continue
            value, wrong = _parsed(text)
            if isinstance(value, dict) or (value is None and isinstance(source, Kafka)):
                yield number, value
            elif as_text:
                yield number, text
            else:
                problems.append(Problem(str(file), number, "BAD_VALUE", f"this is no row of a table: {wrong}"))


def _parsed(text: str) -> tuple[Any, str]:
    """The value, itself where it is no JSON; and what is wrong with one that is no object."""
    try:
        return json.loads(text, parse_constant=_no_json), "a row is an object, {...}"
    except ValueError as error:
        return text, str(error)


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _shown(store: str, name: str, rows: Sequence[Found], limit: int) -> Shown:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    found = sorted(([plain(row.get(column)) for column in columns] for row in rows), key=_order)
    return Shown(name, store, columns, found[:limit], len(found) > limit)


def _order(row: Sequence[Any]) -> list[tuple[bool, float, str]]:
    """Numbers by value, everything else as text; nothing last."""
    return [(value is None, value if isinstance(value, int | float) else 0.0, str(value)) for value in row]


def _aside(case: Given, walk: Walk, target: Target) -> Iterator[Aside]:
    """In the order of the files, as far as rows know where they come from: the offset in the input of their origin."""
    origins = {getattr(source, "topic", None) or getattr(source, "table", None): name
               for name, source in [*walk.sources.items()][::-1]}  # fmt: skip
    places = {name: [f"{file}:{case.line(f'.batches[{number}].{name}[{index}]')}"
                     for number, batch in enumerate(case.batches) for index in range(len(batch.get(name, ())))]
              for name, file in case.files.items()}  # fmt: skip
    found: list[tuple[bool, str, int, Aside]] = []
    for kind, columns in _WHY.items():
        for row in target.aside(kind):
            offset = row.get("offset")
            there = places.get(origins.get(row.get("origin"), ""), [])
            at = there[offset] if isinstance(offset, int) and offset < len(there) else ""
            why = {column: plain(row[column]) for column in columns if row.get(column) not in (None, [])}
            found.append((not at, at.rpartition(":")[0], offset or 0, Aside(kind, at, why)))
    yield from (one[-1] for one in sorted(found, key=lambda one: one[:-1]))
