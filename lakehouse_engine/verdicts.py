"""What becomes of a pipeline's table when its file is changed, key by key: one answer, for ``lakehouse diff`` and for
every start. No Spark, no service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

from lakehouse_engine.definitions import Definition

Kind = Literal["nothing", "from_here", "recomputed", "new_epoch", "refused", "new", "gone"]
#: what each means; the last three ask for something to be done
VERDICTS: dict[Kind, str] = {
    "nothing": "the table stays as it is and goes on",
    "new": "a new pipeline, which begins at its source's start",
    "from_here": "takes effect from the next start on; rows that are there stay",
    "recomputed": "the next run computes the whole table anew",
    "gone": "its table stays, and nobody writes it any more",
    "new_epoch": "the next start refuses it until `lakehouse reset` has begun a new epoch of the table",
    "refused": "the next start refuses it, and says what to do; nothing is written",
}
#: characters of a value that are shown
_LONG = 100
_TODO = ("gone", "new_epoch", "refused")
#: keys that only people, Airflow and what keeps tables in order read
_NOTHING = ("description", "airflow", "schedule", "panel", "maintain", "serve")
#: of a sink: what another epoch begins with
_LAYS_OUT = ("sink.mode", "sink.table", "sink.partition_by", "sink.valid_from")
_EVENT_TIME = (".watermark.column", ".watermark")


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

    @property
    def values(self) -> str:
        """Both as people read them; '' where neither is known."""
        one, other = (_short(value) if value else "(none)" for value in (self.before, self.after))
        return f" {one} -> {other}" if self.before or self.after else ""

    def text(self) -> str:
        return f"{self.pipeline}: {self.path}{self.values}\n    {self.verdict}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def changes(name: str, old: Definition, new: Definition) -> list[Change]:
    """Of one pipeline, by what its file said before and says now."""
    told = [one for one in _keys(old.file, new.file) if one[0] != "keys"]
    if old.sink != new.sink:
        why = f"its rows go to {new.sink} from its source's start on; those in {old.sink} stay, and nobody writes there"
        return [Change(name, path, "nothing" if _head(path) in _NOTHING else "new", why, was, now)
                for path, was, now in told]  # fmt: skip
    found = [Change(name, path, *_verdict(path, was, now, old, new), was, now) for path, was, now in told]
    if old.keys != new.keys and new.way in ("keyed", "windows", "sessions", "state"):
        found.append(Change(name, "keys", "new_epoch", "the table's rows are unique by other columns",
                            _text(old.keys), _text(new.keys)))  # fmt: skip
    return sorted(found)


def columns(name: str, now: Definition, was: Mapping[str, str], wanted: Mapping[str, str],
            ours: set[str] | None = None) -> Iterator[Change]:  # fmt: skip
    """What the table (``was``: its columns, by name and type, '' unknown) lacks for a result of ``wanted``.

    ``ours``: the columns of it that the pipeline has made; None: all. A job's Delta table is replaced with its columns.
    """
    if now.way == "computed" and now.sink == "delta":
        return
    for column, kind in wanted.items():
        if column not in was:
            yield Change(name, f"column {column}", "from_here", _added(now), None, kind or None)
        elif kind and was[column] and kind != was[column]:
            why = "a column keeps its type: give it another name, or begin a new epoch with lakehouse reset"
            yield Change(name, f"column {column}", "refused", why, was[column], kind)
    for column in was:
        if column in wanted or (ours is not None and column not in ours):
            continue
        if now.way in ("added", "computed"):
            yield Change(name, f"column {column}", "from_here", "the column stays, empty in new rows", was[column])
        else:
            drop = f"alter table {now.table} drop column {column}, or " if now.sink == "postgres" else ""
            yield Change(name, f"column {column}", "refused", "rows that are there would keep old values in it: do"
                         f" away with it by {drop}begin a new epoch with lakehouse reset", was[column])  # fmt: skip


def settled(found: list[Change]) -> list[Change]:
    """A new epoch has columns of its own: what is said of the table's is void then."""
    if not any(change.verdict == "new_epoch" for change in found):
        return sorted(found)
    why = "the table of the new epoch has the columns of the file"
    return sorted(replace(c, verdict="new_epoch", why=why) if c.path.startswith("column ") else c for c in found)


def _added(now: Definition) -> str:
    if now.way == "windows":
        return "added to the table; windows that have begun have none, until lakehouse backfill counts them anew"
    return "added to the table; rows that are there have none"


def _head(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _verdict(path: str, was: str | None, now: str | None, old: Definition, new: Definition) -> tuple[Kind, str]:
    head = _head(path)
    if head in _NOTHING:
        return "nothing", "the next `lakehouse serve` makes the copy" if head == "serve" else VERDICTS["nothing"]
    if head == "further":
        return "from_here", "each sink has a ledger of its own; a new one begins where a new pipeline would"
    if old.way != new.way and path.startswith(("trigger", "sink", "transforms", "source")):
        return "new_epoch", f"rows that are {_WAYS[old.way]} and rows that are {_WAYS[new.way]} have no common progress"
    if new.way == "computed":
        kind: Kind = "nothing" if old.fingerprint == new.fingerprint and new.sink == "delta" else "recomputed"
        return kind, VERDICTS[kind]
    if path.startswith("source.start"):
        return "nothing", "start counts at the first start alone; positions are kept"
    if path.startswith("sink.cluster_by"):
        return "nothing", "a table that is there keeps its layout; lakehouse maintain puts it in order"
    if path in _LAYS_OUT or (path == "sink.order_by" and "delete_when" in old.file["sink"]):
        return "new_epoch", "the table that is there was laid out by the other"
    if new.way == "state":
        return _of_state(path, old, new)
    if path in _NAMES and _overlap(old.file["source"], new.file["source"]):
        return "from_here", "topics that are new are read from their start, with rows late that are older than the" \
                            " watermark; others go on where they stand"  # fmt: skip
    if path in _OTHERS:
        if new.way in ("windows", "sessions"):
            return "new_epoch", "windows that are there were counted from the other"
        return "from_here", "it is read from its start, and its rows join those that are there"
    if new.way in ("windows", "sessions"):
        return _of_windows(path, was, now, new)
    return "from_here", VERDICTS["from_here"]


#: which topics are read
_NAMES = ("source.topic", "source.topics", "source.pattern")


def _overlap(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two sources kafka have topics in common; of two patterns nobody knows, and they may."""

    def named(source: Mapping[str, Any]) -> set[str]:
        return {*source.get("topics", ()), *([source["topic"]] if "topic" in source else [])}

    def matched(source: Mapping[str, Any], names: set[str]) -> bool:
        return "pattern" in source and any(re.fullmatch(source["pattern"], name) for name in names)

    if was.get("connection") != now.get("connection"):
        return False
    both = "pattern" in was and "pattern" in now
    return both or bool(named(was) & named(now)) or matched(was, named(now)) or matched(now, named(was))


#: what is read is another
_OTHERS = ("source", "source.topic", "source.topics", "source.pattern", "source.connection", "source.table",
           "source.changes")  # fmt: skip
_WAYS = {"added": "added", "keyed": "merged by keys", "windows": "merged into windows",
         "sessions": "merged into sessions", "state": "made by Spark's state",
         "computed": "computed anew by each run"}  # fmt: skip


def _of_state(path: str, old: Definition, new: Definition) -> tuple[Kind, str]:
    if old.state != new.state and path.startswith(("source", "inputs", "transforms", "contracts")):
        return "new_epoch", "Spark's state was made by the steps before"
    return "from_here", VERDICTS["from_here"]


def _of_windows(path: str, was: str | None, now: str | None, new: Definition) -> tuple[Kind, str]:
    if path.endswith(".window.measures") and new.way == "windows":
        before, after = json.loads(was or "{}"), json.loads(now or "{}")
        if all(after.get(measure, text) == text for measure, text in before.items()):
            return "from_here", "measures that are new or gone: see their columns"
    if ".window." in path or path.endswith(".window"):
        return "new_epoch", "windows that are there were counted in another way"
    if path.endswith(_EVENT_TIME) and not path.endswith((".delay", ".max_ahead")):
        return "new_epoch", "windows that are there were counted by another time"
    if path.startswith(("transforms", "checks", "contracts", "inputs")):
        return "from_here", "takes effect from the next start on; windows that are open then have rows of before," \
                            " until lakehouse backfill counts them anew"  # fmt: skip
    return "from_here", VERDICTS["from_here"]


def _keys(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    """Path, value before and value after, of each key that differs."""
    for key in dict.fromkeys((*one, *two)):
        if key in ("transforms", "checks"):
            yield from _list(key, one.get(key, []), two.get(key, []))
        else:
            yield from _differ(key, one.get(key), two.get(key))


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


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
