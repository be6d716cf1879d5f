"""``lakehouse diff``: a change of each key, and what the engine makes of it at the next start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lakehouse_engine.changes import Change, between
from lakehouse_engine.cli import main
from lakehouse_engine.spec.loader import read
from tests.spec.project import JOB, LANDING, STREAM, changed, write

TUMBLING = "- window: {tumbling: 1 minute, by: [id], measures: {n: count(*)}}"


def window(text: str) -> str:
    return STREAM.replace(TUMBLING, f"- window: {text}")


#: the changed file, its text, and path and verdict of all that is then said
MUTATIONS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("a description", "realtime", f"description: other\n{STREAM}", [("description", "nothing")]),
    ("a panel", "realtime", f"{STREAM}panel: {{title: x}}\n", [("panel", "nothing")]),
    ("a trigger", "realtime", STREAM.replace("1 second", "2 seconds"), [("trigger.every", "from_here")]),
    ("a filter", "realtime", STREAM.replace("amount > 0", "amount > 1"),
     [("transforms[2].filter.condition", "from_here")]),
    ("a delay", "realtime", STREAM.replace("delay: 2", "delay: 3"), [("transforms[1].watermark.delay", "from_here")]),
    ("a check", "bronze", f"{LANDING}checks: [{{not_null: [id]}}]\n", [("checks[0].not_null", "from_here")]),
    ("a topic more", "realtime", STREAM.replace("topic: clicks, history: bronze.clicks", "topics: [clicks, views]"),
     [("source.history", "from_here"), ("source.topic", "from_here"), ("source.topics", "from_here")]),
    ("other topics", "realtime", STREAM.replace("topic: clicks, history: bronze.clicks", "topics: [views]"),
     [("source.history", "from_here"), ("source.topic", "new_epoch"), ("source.topics", "new_epoch")]),
    ("another cluster", "realtime", STREAM.replace("topic: clicks, history: bronze.clicks",
                                                   "topic: clicks, connection: eu"),
     [("source.connection", "new_epoch"), ("source.history", "from_here")]),
    ("a start", "realtime", STREAM.replace("topic: clicks,", "topic: clicks, start: latest,"),
     [("source.start", "nothing")]),
    ("a window's size", "realtime", window("{tumbling: 5 minutes, by: [id], measures: {n: count(*)}}"),
     [("transforms[3].window.tumbling", "new_epoch")]),
    ("a measure more", "realtime", window("{tumbling: 1 minute, by: [id], measures: {n: count(*), s: sum(amount)}}"),
     [("column s", "from_here"), ("transforms[3].window.measures", "from_here")]),
    ("a measure less", "realtime", window("{tumbling: 1 minute, by: [id], measures: {m: count(*)}}"),
     [("column m", "from_here"), ("column n", "refused"), ("transforms[3].window.measures", "from_here")]),
    ("a key less", "realtime", window("{tumbling: 1 minute, measures: {n: count(*)}}"),
     [("column id", "new_epoch"), ("keys", "new_epoch"), ("transforms[3].window.by", "new_epoch")]),
    ("a column of a landing", "bronze", LANDING.replace("{day: to_date(at)}", "{day: to_date(at), b: 1}"),
     [("column b", "from_here"), ("transforms[1].derive.columns", "from_here")]),
    ("a column's type", "bronze", LANDING.replace("to_date(at)", "string(at)"),
     [("column day", "refused"), ("transforms[1].derive.columns", "from_here")]),
    ("a job's measure", "silver", JOB.replace("n: count(*)", "n: count(*), m: max(at)"),
     [("transforms[1].aggregate.measures", "recomputed")]),
    ("a job's schedule", "silver", JOB.replace("daily", "hourly"), [("schedule", "nothing")]),
    ("a job's check", "silver", JOB.replace("- not_null: [day]", "- not_null: [n]"),
     [("checks[0].not_null.columns", "recomputed")]),
]  # fmt: skip


def differences(tmp_path: Path, layer: str, text: str) -> list[Change]:
    old, new = write(tmp_path / "old", {}), write(tmp_path / "new", {f"{layer}/clicks.yaml": text})
    return between(read([old / layer]), read([new / layer]))


@pytest.mark.parametrize(("layer", "text", "expected"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS])
def test_a_change_of(layer: str, text: str, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert [(change.path, change.verdict) for change in differences(tmp_path, layer, text)] == expected


def test_the_same_files_do_not_differ(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", {}), write(tmp_path / "new", {"silver/clicks.yaml": f"# why\n{JOB}"})
    assert between(read([old]), read([new])) == []


def test_a_new_column_of_a_table_of_rows_is_added(tmp_path: Path) -> None:
    text = changed(changed(STREAM, "- window", ""), "sink", "sink: {postgres: {table: live.clicks}}")
    old = write(tmp_path / "old", {"realtime/clicks.yaml": text})
    new = write(tmp_path / "new", {"realtime/clicks.yaml": changed(text, "- filter", "  - derive: {d: to_date(at)}")})
    (found,) = [c for c in between(read([old / "realtime"]), read([new / "realtime"])) if c.path == "column d"]
    assert (found.verdict, found.after) == ("from_here", "date")


def test_files_that_come_and_go(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", {"gold/a.yaml": JOB}), write(tmp_path / "new", {"gold/b.yaml": JOB})
    found = between(read([old]), read([new]))
    assert [(change.pipeline, change.verdict) for change in found] == [("gold.a", "gone"), ("gold.b", "new")]


def test_the_command_says_by_its_status_whether_something_is_to_be_done(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {})
    calm = write(tmp_path / "calm", {"realtime/clicks.yaml": STREAM.replace("1 second", "2 seconds")})
    wild = write(tmp_path / "wild", {"realtime/clicks.yaml": STREAM.replace("tumbling: 1", "tumbling: 5")})
    said = [CliRunner().invoke(main, ["diff", str(old), str(new), "--json"]) for new in (old, calm, wild)]
    assert [done.exit_code for done in said] == [0, 0, 1]
    assert [[one["verdict"] for one in json.loads(done.stdout)] for done in said] == [[], ["from_here"], ["new_epoch"]]
    words = CliRunner().invoke(main, ["diff", str(old), str(wild)]).stdout
    assert words.startswith("realtime.clicks: transforms[3].window.tumbling 60000000 -> 300000000\n    new_epoch: ")
