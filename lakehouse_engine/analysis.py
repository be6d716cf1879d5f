"""What Spark says of pipelines before anything runs: the type of each column after each step, on empty rows.

The walk is that of ``spec/columns.py``. Where that one knows what shows in the text of an expression, this one asks
Spark, over a relation without rows that has the columns of the step: once a step, and answers are kept. So nothing is
read, no table has to exist, and an expression that Spark refuses is a problem at its own line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lakehouse_engine import foreign, queries, sql
from lakehouse_engine.component import Unread
from lakehouse_engine.errors import PlanError, Problem, SpecError
from lakehouse_engine.sinks import Jdbc, Postgres
from lakehouse_engine.sinks.postgres import merged_type, pg_type
from lakehouse_engine.spec.columns import Walk
from lakehouse_engine.spec.environment import Environment
from lakehouse_engine.spec.loader import Read, Upstream
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import Columns, at, known_as, leaf
from lakehouse_engine.transforms import Aggregate, Dedupe, Explode, Filter, Sql, Transform, Window

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: a type, or why there is none: code and message
Answer = str | tuple[str, str]


@dataclass
class Spark:
    """A session that is asked for types, and what it has answered: the same question is asked once."""

    session: SparkSession
    #: queries sent
    queries: int = 0
    _known: dict[tuple[str, str, str], Answer] = field(default_factory=dict)
    _functions: list[str] = field(default_factory=list)

    def kinds(self, columns: Mapping[str, str], texts: Sequence[str], by: Sequence[str] = ()) -> list[Answer]:
        """The types of expressions over rows with these columns; of aggregates, over groups ``by`` columns."""
        group = ", ".join(map(sql.name, by))
        rows = _rows(columns)
        left = list(dict.fromkeys(text for text in texts if (rows, group, text) not in self._known))
        for part, answers in self._asked(rows, group, left):
            self._known |= {(rows, group, text): answer for text, answer in zip(part, answers, strict=True)}
        return [self._known[rows, group, text] for text in texts]

    def columns(self, query: str) -> Columns | tuple[str, str]:
        """Those of a whole query."""
        from pyspark.errors import PySparkException

        self.queries += 1
        try:
            return dict(self.session.sql(query).dtypes)
        except PySparkException as error:
            return self._refusal(error)

    def _asked(self, rows: str, group: str, texts: list[str]) -> Iterator[tuple[list[str], list[Answer]]]:
        """All at once; where Spark refuses, by halves, so that each wrong one is found."""
        from pyspark.errors import PySparkException

        if not texts:
            return
        chosen = ", ".join(f"{text} as x{index}" for index, text in enumerate(texts))
        self.queries += 1
        try:
            end = f" group by {group}" if group else ""
            yield texts, [kind for _, kind in self.session.sql(f"select {chosen} from {rows}{end}").dtypes]
        except PySparkException as error:
            if len(texts) == 1:
                yield texts, [self._refusal(error)]
                return
            half = len(texts) // 2
            yield from self._asked(rows, group, texts[:half])
            yield from self._asked(rows, group, texts[half:])

    def _refusal(self, error: Exception) -> tuple[str, str]:
        """Code and message. Spark's own first sentence, without its states and the place in a text nobody wrote."""
        text = " ".join(str(error).split("\n== SQL")[0].split("\n"))
        text = re.sub(r"\s*SQLSTATE: \w+.*$", "", text)
        text = re.sub(r";?\s*line \d+,? pos \d+.*$", "", text).strip()
        found = re.search(r"\[UNRESOLVED_ROUTINE\].*?routine `([^`]*)`", text)
        if not found:
            return "EXPRESSION_TYPE", text
        if not self._functions:
            self._functions = [row[0] for row in self.session.sql("show functions").collect()]
        close = get_close_matches(found[1].lower(), self._functions, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return "UNKNOWN_FUNCTION", f"Spark has no function {found[1]}{hint}"


def _rows(columns: Mapping[str, str]) -> str:
    """A relation without rows."""
    made = ", ".join(f"cast(null as {kind}) as {sql.name(name)}" for name, kind in columns.items() if kind)
    return f"(select {made or 'null as _'} where false)"


_sessions: WeakKeyDictionary[SparkSession, Spark] = WeakKeyDictionary()


def of(session: SparkSession) -> Spark:
    """What the session is asked through, with all that it has answered."""
    return _sessions.setdefault(session, Spark(session))


def require(session: SparkSession, specs: Sequence[PipelineSpec], environment: Environment | None) -> Analysed:
    """Raises ``SpecError`` with all that Spark refuses in these pipelines; nothing has been touched."""
    found = Read(tuple(specs), (), Upstream({spec.name: spec for spec in specs}, environment))
    analysed = analyse(of(session), found)
    if analysed.problems:
        raise SpecError(analysed.problems)
    return analysed


@dataclass(frozen=True)
class Analysed:
    """``after``: by pipeline, the place of each step and the columns after it, by name and type ('' unknown).

    ``results``: by pipeline, the columns that are stored; None where its source is not known.
    """

    problems: tuple[Problem, ...]
    after: Mapping[str, tuple[tuple[str, Columns], ...]]
    results: Mapping[str, Columns | None]
    #: by pipeline, the columns of its source
    sources: Mapping[str, Columns | None]


def analyse(spark: Spark, found: Read) -> Analysed:
    """All pipelines that were read, those that are wrong in part too: what is wrong there is skipped."""
    walks: dict[str, AnalysedWalk] = {}
    for spec in found.specs:
        AnalysedWalk(spec, found.upstream, spark=spark, walks=walks).result()
    asked = {spec.name: walks[spec.name] for spec in found.specs if spec.name in walks}
    problems = {problem for walk in asked.values() for problem in walk.problems}
    known = {(one.file, one.line, one.code) for one in found.problems}
    new = sorted(problem for problem in problems if (problem.file, problem.line, problem.code) not in known)
    return Analysed(tuple(new), {name: tuple(walk.after) for name, walk in asked.items()},
                    {name: walk.stored for name, walk in asked.items()},
                    {name: walk.read for name, walk in asked.items()})  # fmt: skip


class AnalysedWalk(Walk):
    """``walks``: of pipelines that have been walked through, by name; their tables are asked for once."""

    def __init__(self, spec: PipelineSpec, upstream: object, readers: frozenset[str] = frozenset(), *,
                 spark: Spark, walks: dict[str, AnalysedWalk], stream: bool = False) -> None:  # fmt: skip
        super().__init__(spec, upstream, readers, stream=stream)  # type: ignore[arg-type]
        self._spark, self._walks = spark, walks
        #: the columns that a measure is grouped by
        self._by: tuple[str, ...] = ()
        self.after: list[tuple[str, Columns]] = []
        self.read: Columns | None = None
        self.stored: Columns | None = None

    def _source(self) -> Columns | None:
        self.read = super()._source()
        return self.read

    def result(self) -> Columns | None:
        whole = not self._spec.below
        if whole and self._spec.name in self._walks:
            return self._walks[self._spec.name].stored
        if whole:
            self._walks[self._spec.name] = self
        self.stored = super().result()
        return self.stored

    def _stored(self, columns: Columns) -> Columns | None:
        kept = super()._stored(columns)
        if isinstance(self._spec.sink, Postgres) or self._spec.serve:
            self._fits_postgres(kept or {})
        for name, kind in (kept or {}).items() if isinstance(self._spec.sink, Jdbc) else ():
            if foreign.no_column(kind):
                self.problems.append(at(self._spec, "sink", "COLUMN_TYPE", f"{name} is {kind}, and no database has such"
                                        " columns: write to_json of it, or leave it out"))  # fmt: skip
        return kept

    def _other(self, spec: PipelineSpec, *, stream: bool = False) -> Walk:
        return AnalysedWalk(spec, self._upstream, self._readers, spark=self._spark, walks=self._walks, stream=stream)

    def _step(self, transform: Transform | Unread, columns: Columns | None, step: str) -> Columns | None:
        self._by = transform.by if isinstance(transform, Window | Aggregate) else ()
        if isinstance(transform, Sql) and columns is not None:
            made = super()._step(transform, columns, step)
            made = self._query(transform, columns, step) or made
        else:
            made = super()._step(transform, columns, step)
        if columns is not None and isinstance(transform, Filter):
            self._filters(transform.condition, columns, step)
        if columns is not None and isinstance(transform, Dedupe):
            order = ", ".join(transform.order_by) or "1"
            ranked = f"row_number() over (partition by {', '.join(map(sql.name, transform.keys))} order by {order})"
            self._types([ranked], columns, step, sql.columns(order) | {key.lower() for key in transform.keys})
        if columns is not None and isinstance(transform, Explode):
            kind = known_as(columns).get(transform.column.lower(), "")
            if kind and not kind.startswith("array<"):
                self.problems.append(at(self._spec, leaf(self._spec, step, transform.column), "COLUMN_TYPE",
                                        f"{transform.column} is {kind}; only an array has elements"))  # fmt: skip
        if made is not None:
            self.after.append((f"{self._spec.below}{step}", made))
        return made

    def _read(self, expressions: Iterable[str], columns: Columns, path: str) -> None:
        expressions = list(expressions)
        before = len(self.problems)
        super()._read(expressions, columns, path)
        if len(self.problems) == before:
            self._types(expressions, columns, path)

    def _types(self, texts: Sequence[str], columns: Columns, path: str, read: set[str] | None = None) -> None:
        """Says what Spark refuses. What reads a column of unknown type is not asked for."""
        for text, answer in self._answers(texts, columns, read):
            if isinstance(answer, tuple):
                place = leaf(self._spec, path, text)
                self.problems.append(at(self._spec, place, answer[0], f"`{self._shown(place, path, text)}`:"
                                         f" {answer[1]}"))  # fmt: skip

    def _shown(self, place: str, path: str, text: str) -> str:
        origin = self._spec.lines.get(place)
        return str(origin.value) if place != path and origin is not None and origin.value is not None else text

    def _answers(self, texts: Sequence[str], columns: Columns, read: set[str] | None = None
                 ) -> Iterator[tuple[str, Answer]]:  # fmt: skip
        known = known_as(columns)
        plain: list[str] = []
        groups: list[str] = []
        for text in texts:
            if text.lower() in known or not all(known.get(name) for name in (read or sql.columns(text))):
                continue
            (groups if read is None and sql.is_aggregate(text) else plain).append(text)
        if plain:
            yield from zip(plain, self._spark.kinds(columns, plain), strict=True)
        if groups and all(known.get(name.lower()) for name in self._by):
            yield from zip(groups, self._spark.kinds(columns, groups, self._by), strict=True)

    def _kind(self, text: str, columns: Columns) -> str:
        known = known_as(columns)
        if text.lower() in known:
            return known[text.lower()]
        answers = [answer for _, answer in self._answers([text], columns)]
        return answers[0] if answers and isinstance(answers[0], str) else ""

    def _filters(self, condition: str, columns: Columns, step: str) -> None:
        kind = self._kind(condition, columns)
        if kind not in ("", "boolean"):
            self.problems.append(at(self._spec, leaf(self._spec, step, condition), "COLUMN_TYPE", f"`{condition}` is"
                                     f" {kind}; a filter keeps the rows for which it is true"))  # fmt: skip

    def _query(self, step: Sql, columns: Columns, path: str) -> Columns | None:
        """The columns of a query over the rows so far and other tables, where those of all are known."""
        tables: dict[str, Columns] = {queries.INPUT: columns}
        for name in step.others:
            other = self._input(name, path)
            if other is None or not all(other.values()):
                return None
            tables[name] = other
        if not all(columns.values()):
            return None
        names = {name: f"analysed{index}" for index, name in enumerate(tables)}
        with_ = ", ".join(f"{names[name]} as {_rows(kinds)}" for name, kinds in tables.items())
        query = queries.placed(step.query, names).format(**{name: name for name in names.values()})
        answer = self._spark.columns(f"with {with_} select * from ({query})")
        if isinstance(answer, dict):
            return answer
        self.problems.append(at(self._spec, path, *answer))
        return None

    def _fits_postgres(self, columns: Columns) -> None:
        merges = self._spec.is_stream and any(isinstance(step, Window) for step in self._spec.transforms)
        for name, kind in columns.items():
            try:
                (merged_type if merges else pg_type)(kind or "string", "")
            except PlanError as error:
                said = error.message.replace("a column of", f"{name} is of")
                self.problems.append(at(self._spec, "serve" if self._spec.serve else "sink", error.code, said))
