"""What becomes of a pipeline's table when its file is changed: from two specs, key by key. No Spark, no service.

The verdicts say what the engine does at the next start, which is not always what one wants: see ``VERDICTS``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from lakehouse_engine.errors import PlanError, SpecError
from lakehouse_engine.plan import fingerprint
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.sinks.postgres import pg_type
from lakehouse_engine.spec.check import output_columns
from lakehouse_engine.spec.loader import Read
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import Columns

Kind = Literal["nothing", "from_here", "recomputed", "mixes", "refused", "new", "gone"]
#: what each means; the last three ask for something to be done
VERDICTS: dict[Kind, str] = {
    "nothing": "the table stays as it is and goes on",
    "new": "a new pipeline, which begins at its source's start",
    "from_here": "takes effect from the next start on; rows that are there stay",
    "recomputed": "the next run computes the whole table anew",
    "gone": "its table stays, and nobody writes it any more",
    "mixes": "the next start goes on, with rows of before and of after in one table",
    "refused": "the next start, or its first batch, refuses it; nothing is written",
}
_TODO = ("gone", "mixes", "refused")
#: keys that only people, Airflow and what keeps tables in order read
_NOTHING = ("description", "airflow", "schedule", "panel", "maintain", "serve")


@dataclass(frozen=True, order=True)
class Change:
    """``path``: the key (``transforms[2].window``); ``before`` and ``after``: its value as JSON, None where there is
    none; ``verdict`` and why."""

    pipeline: str
    path: str
    verdict: Kind
    why: str
    before: str | None = None
    after: str | None = None

    @property
    def todo(self) -> bool:
        return self.verdict in _TODO

    def text(self) -> str:
        changed = f" {self.before or '(none)'} -> {self.after or '(none)'}" if self.before or self.after else ""
        return f"{self.pipeline}: {self.path}{changed}\n    {self.verdict}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(old: Sequence[PipelineSpec], new: Sequence[PipelineSpec], columns: Mapping[str, Columns | None],
            before: Mapping[str, Columns | None]) -> list[Change]:  # fmt: skip
    """All changes, by pipeline. ``columns`` and ``before``: what the tables of ``new`` and of ``old`` hold."""
    olds, news = {spec.name: spec for spec in old}, {spec.name: spec for spec in new}
    found = [Change(name, "", "gone", VERDICTS["gone"]) for name in olds.keys() - news.keys()]
    found += [Change(name, "", "new", VERDICTS["new"]) for name in news.keys() - olds.keys()]
    for name in olds.keys() & news.keys():
        found += changes(olds[name], news[name], before.get(name), columns.get(name))
    return sorted(found)


def between(old: Read, new: Read) -> list[Change]:
    """All changes from one reading of files to another. Raises ``SpecError`` with what is wrong in either."""
    problems = [*old.problems, *new.problems]
    if problems:
        raise SpecError(problems)
    tables = [{spec.name: output_columns(spec, side.upstream) for spec in side.specs} for side in (old, new)]
    return compare(old.specs, new.specs, tables[1], tables[0])


def changes(old: PipelineSpec, new: PipelineSpec, before: Columns | None, after: Columns | None) -> Iterator[Change]:
    """Of one pipeline; ``before`` and ``after``: the columns of its table, where they are known."""
    told = list(_keys(old, new))
    if old.is_stream != new.is_stream or old.sink.key != new.sink.key:
        why = "a stream and a job, or two stores, have no common progress: give the file a new name"
        yield from (Change(new.name, path, "refused" if path in ("sink", "trigger") else "mixes", why, was, now)
                    for path, was, now in told if path not in _NOTHING)  # fmt: skip
        return
    anew = not new.is_stream and fingerprint(old) != fingerprint(new)
    for path, was, now in told:
        head = path.partition(".")[0].partition("[")[0]
        if head in _NOTHING:
            yield Change(new.name, path, "nothing", _plainly(head), was, now)
        elif not new.is_stream:
            kind: Kind = "recomputed" if anew else "nothing"
            yield Change(new.name, path, kind, VERDICTS[kind], was, now)
        else:
            yield Change(new.name, path, *_of_a_stream(path, old, new), was, now)
    if new.is_stream and isinstance(new.sink, Postgres) and old.key_columns != new.key_columns:
        yield Change(new.name, "keys", "refused", "the table's rows are unique by other columns; give the file a new"
                     " name", _text(old.key_columns), _text(new.key_columns))  # fmt: skip
    if before is not None and after is not None:
        yield from _columns(new, before, after)


def _plainly(head: str) -> str:
    return "the next `lakehouse serve` makes the copy" if head == "serve" else VERDICTS["nothing"]


def _of_a_stream(path: str, old: PipelineSpec, new: PipelineSpec) -> tuple[Kind, str]:
    if path.startswith("source.start"):
        return "nothing", "start counts at the first start alone; positions are kept"
    if path.startswith("source.topic"):
        return "mixes", "the new topic is read from its start into the same table; for a table of it alone give the" \
                        " file a new name"  # fmt: skip
    if ".window" in path and path.rpartition(".")[2] in ("tumbling", "sliding", "session", "by", "measures"):
        return "mixes", "windows that are there stay as they were counted; for a table of the new ones alone give the" \
                        " file a new name"  # fmt: skip
    return "from_here", VERDICTS["from_here"]


def _columns(spec: PipelineSpec, before: Columns, after: Columns) -> Iterator[Change]:
    """What the table lacks for the result of a stream, or of a job into PostgreSQL. A job's Delta table is replaced."""
    if not spec.is_stream and isinstance(spec.sink, Delta):
        return
    for name, kind in after.items():
        if name not in before:
            why = f"the table has no column {name}; {_added(spec, name, kind)}"
            yield Change(spec.name, f"column {name}", "refused", why)
        elif kind and before[name] and kind != before[name]:
            why = "a column keeps its type; give the file or the column a new name"
            yield Change(spec.name, f"column {name}", "refused", why, before[name], kind)
    for name in before:
        if name not in after:
            yield Change(spec.name, f"column {name}", "from_here", "the column stays, empty in new rows")


def _added(spec: PipelineSpec, name: str, kind: str) -> str:
    if not isinstance(spec.sink, Postgres):
        return "give the file a new name"
    try:
        type_ = pg_type(kind, "") if kind else "<type>"
    except PlanError:
        type_ = "<type>"
    return f"add it with: alter table {spec.sink.table or spec.name} add column {name} {type_}"


def _keys(old: PipelineSpec, new: PipelineSpec) -> Iterator[tuple[str, str | None, str | None]]:
    """Path, value before and value after, of each key that differs."""
    one, two = _plain(old), _plain(new)
    for key in dict.fromkeys((*one, *two)):
        if key in ("transforms", "checks"):
            yield from _list(key, one.get(key, []), two.get(key, []))
        else:
            yield from _differ(key, one.get(key), two.get(key))


def _plain(spec: PipelineSpec) -> dict[str, Any]:
    aside: dict[str, Any] = {**dict.fromkeys(("file", "lines", "complete", "below", "name"), True),
                             "contracts": {"__all__": {"file"}}}  # fmt: skip
    made: dict[str, Any] = json.loads(spec.model_dump_json(exclude=aside, exclude_defaults=True))
    made["source"] = {"": spec.source.key, **json.loads(spec.source.model_dump_json(by_alias=True))}
    made["sink"] = {"": spec.sink.key, **json.loads(spec.sink.model_dump_json(by_alias=True))}
    for key, steps in (("transforms", spec.transforms), ("checks", spec.checks)):
        made[key] = [(one.key, json.loads(one.model_dump_json(by_alias=True))) for one in steps]
    return made


def _list(key: str, one: list[Any], two: list[Any]) -> Iterator[tuple[str, str | None, str | None]]:
    texts = [[json.dumps(item) for item in side] for side in (one, two)]
    for tag, a, b, c, d in SequenceMatcher(None, texts[0], texts[1], autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        olds, news = one[a:b], two[c:d]
        if [name for name, _ in olds] == [name for name, _ in news]:
            for index, ((name, was), (_, now)) in enumerate(zip(olds, news, strict=True), start=c):
                yield from _differ(f"{key}[{index}].{name}", was, now)
            continue
        yield from ((f"{key}[{index}].{name}", _text(was), None) for index, (name, was) in enumerate(olds, start=a))
        yield from ((f"{key}[{index}].{name}", None, _text(now)) for index, (name, now) in enumerate(news, start=c))


def _differ(path: str, was: Any, now: Any) -> Iterator[tuple[str, str | None, str | None]]:
    if was == now:
        return
    if isinstance(was, dict) and isinstance(now, dict) and path.count(".") < 2:
        for key in dict.fromkeys((*was, *now)):
            yield from _differ(f"{path}.{key}" if key else path, was.get(key), now.get(key))
        return
    yield path, _text(was), _text(now)


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
