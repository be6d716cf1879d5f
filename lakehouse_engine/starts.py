"""What a start says of files that have changed: each key with what becomes of the table, and the way out of a refusal.

The file is held against what the sink says that its rows were made by (``definitions.py``), and the columns of the
result against those of the table. Nothing is written here: columns are added by the start itself, in the transaction in
which it takes the pipeline over, or in a commit before its first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lakehouse_engine import definitions, rename, verdicts
from lakehouse_engine.definitions import Definition
from lakehouse_engine.deltalog import DeltaLog
from lakehouse_engine.errors import Problem, SpecError
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks import delta as delta_sink
from lakehouse_engine.sinks import postgres as postgres_sink
from lakehouse_engine.spec.further import TO
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import Columns, at
from lakehouse_engine.verdicts import Change

Report = Callable[[str], None]
Dsn = Callable[[], str]


def compare(specs: Sequence[PipelineSpec], storage: Path, dsn: Dsn, report: Report) -> Mapping[str, Definition]:
    """Holds the files against what their tables were made by, which it returns, by pipeline, where that is known.

    ``report`` is told each key that has changed.

    Raises ``SpecError`` RENAME_UNFINISHED; NEW_EPOCH, CHANGE_REFUSED, all of them at once.
    """
    problems: list[Problem] = []
    by_name = {spec.name: spec for spec in specs}
    for name, old, new in rename.unfinished(storage, by_name):
        problems.append(at(by_name[name], "", "RENAME_UNFINISHED", f"{old} is being renamed to {new}; to finish it:"
                           f" lakehouse rename {old} {new}"))  # fmt: skip
    if problems:
        raise SpecError(problems)
    with _stores(specs, storage, dsn) as stores:
        held = stores.held(specs)
        for spec in specs:
            before = held.get(spec.name)
            if before is None:
                continue
            found = verdicts.changes(spec.name, before, definitions.of(spec))
            refused = any(change.verdict == "new_epoch" for change in found)
            problems += _told(spec, found, report, stores.span(spec, before) if refused else "")
    if problems:
        raise SpecError(problems)
    return held


def compare_columns(specs: Sequence[PipelineSpec], results: Mapping[str, Columns | None],
                    held: Mapping[str, Definition], storage: Path, dsn: Dsn, report: Report) -> None:  # fmt: skip
    """Holds the results, as Spark has analysed them, against the columns of the tables. ``held``: of ``compare``.

    Raises ``SpecError`` CHANGE_REFUSED, all of them at once.
    """
    problems: list[Problem] = []
    known = [spec for spec in specs if results.get(spec.name)]
    with _stores(known, storage, dsn) as stores:
        for spec in known:
            there = stores.columns(spec)
            if there is None:
                continue
            before, wanted = held.get(spec.name), _typed(spec, results[spec.name] or {})
            ours = set(before.columns) if before is not None else set[str]()
            now = definitions.of(spec)
            problems += _told(spec, list(verdicts.columns(spec.name, now, there, wanted, ours)), report)
    if problems:
        raise SpecError(problems)


def _told(spec: PipelineSpec, found: list[Change], report: Report, span: str = "") -> Iterator[Problem]:
    for change in found:
        code = {"new_epoch": "NEW_EPOCH", "refused": "CHANGE_REFUSED"}.get(change.verdict)
        if code is None:
            if TO not in spec.name:  # of a further sink the pipeline's own has said it
                report(change.text())
            continue
        way_out = f"; lakehouse reset {spec.file} begins a new epoch{span}" if code == "NEW_EPOCH" else ""
        derived = change.path.startswith("column ") or (change.path == "keys" and not spec.keys)
        path = "transforms" if derived else change.path
        yield at(spec, path, code, f"{spec.name}: {change.path}{change.values}: {change.why}{way_out}")


class _Stores:
    """What the sinks hold of some pipelines; ``cursor`` is there where one of them is PostgreSQL."""

    def __init__(self, storage: Path, cursor: Any) -> None:
        self._storage, self._cursor = storage, cursor

    def held(self, specs: Sequence[PipelineSpec]) -> dict[str, Definition]:
        """By what their tables were made."""
        known: dict[str, Definition] = {}
        if self._cursor is not None:
            known = definitions.held(self._cursor, [spec.name for spec in specs if isinstance(spec.sink, Postgres)])
        for spec in specs:
            if not isinstance(spec.sink, Postgres):
                found = (definitions.of_log(self._log(spec), spec.name) if isinstance(spec.sink, Delta) else
                         definitions.of_note(self._storage, spec.name))  # fmt: skip
                known |= {} if found is None else {spec.name: found}
        return known

    def _log(self, spec: PipelineSpec) -> DeltaLog:
        return DeltaLog(delta_sink.table_path(self._storage, spec.table))

    def columns(self, spec: PipelineSpec) -> dict[str, str] | None:
        """Of the pipeline's table, with the store's types; None where there is no table."""
        if isinstance(spec.sink, Postgres):
            return postgres_sink.columns_of(self._cursor, spec.table) or None
        return self._log(spec).columns() if isinstance(spec.sink, Delta) else None

    def span(self, spec: PipelineSpec, before: Definition) -> str:
        """The days that a new epoch has to fill, where the table tells."""
        days = postgres_sink.window_days(self._cursor, before.table) if isinstance(spec.sink, Postgres) else None
        return f"; then lakehouse backfill {spec.file} --from {days[0]} --to {days[1]} fills it" if days else ""


@contextmanager
def _stores(specs: Sequence[PipelineSpec], storage: Path, dsn: Dsn) -> Iterator[_Stores]:
    if not any(isinstance(spec.sink, Postgres) for spec in specs):
        yield _Stores(storage, None)
        return
    with closing(postgres_sink.connect(dsn())) as connection, connection, connection.cursor() as cursor:
        yield _Stores(storage, cursor)


def _typed(spec: PipelineSpec, columns: Columns) -> dict[str, str]:
    """With the types of the store; of those that are not known, or nested in Delta, ''."""
    if isinstance(spec.sink, Postgres):
        return {name: postgres_sink.pg_type(kind, "") if kind else "" for name, kind in columns.items()}
    return {name: "" if "<" in kind else kind for name, kind in columns.items()}


__all__ = ["compare", "compare_columns"]
