"""``lakehouse graph``: what flows where, from the files alone, in three forms that say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lakehouse_engine.cli import main
from lakehouse_engine.graph import graph, mermaid, text
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.loader import load
from tests.spec.project import JOB, STREAM, changed, write

PIPELINES = Path(__file__).parents[1] / "pipelines"


def drawn(root: Path) -> tuple[dict[str, Any], str]:
    specs = load([root])
    found = graph(specs, compile_plan(specs))
    return found, text(found, specs)


def edges(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(edge["from"], edge["to"], edge["kind"]) for edge in found["edges"]}


def test_it_leads_from_topics_to_panels_with_what_is_kept_aside() -> None:
    found, words = drawn(PIPELINES)
    assert {("topic:user-events", "delta:bronze.user_events", "stream"),
            ("delta:bronze.user_events", "aside:bronze.user_events__quarantine", "quarantine"),
            ("delta:bronze.user_events", "delta:silver.user_events", "job"),
            ("postgres:realtime.events_per_minute", "aside:realtime.events_per_minute__late", "late"),
            ("delta:gold.daily_active_users", "postgres:gold.daily_active_users", "serve"),
            ("postgres:gold.daily_active_users", "panel:gold.daily_active_users:DAU", "panel"),
            } <= edges(found)  # fmt: skip
    lines = words.splitlines()
    assert lines[0] == "user-events  topic"
    assert "│  └─ silver.user_events  Delta, daily" in lines
    assert "│     │     └─ DAU  panel" in lines


def test_each_topic_of_several_is_told_for_itself_and_a_pattern_as_it_is(tmp_path: Path) -> None:
    several = STREAM.replace("topic: clicks, history: bronze.clicks", "topics: [clicks, views], connection: eu")
    shops = several.replace("topics: [clicks, views]", "pattern: shop.*")
    found, _ = drawn(write(tmp_path, {"realtime/both.yaml": several, "realtime/shops.yaml": shops}))
    assert {(f"topic:eu:{name}", f"postgres:realtime.{to}", "stream") for name, to in (
        ("clicks", "both"), ("views", "both"), ("/shop.*/", "shops"))} <= edges(found)  # fmt: skip


def test_every_node_stands_once_in_the_tree_and_every_edge_in_the_chart() -> None:
    found, words = drawn(PIPELINES)
    assert len(words.splitlines()) == len(found["nodes"])
    chart = mermaid(found)
    assert len(re.findall(r"^  n\d+ (?:-->|-\.->)", chart, re.MULTILINE)) == len(found["edges"])
    assert len(re.findall(r"^  n\d+[\[({]", chart, re.MULTILINE)) == len(found["nodes"])


def test_a_table_that_is_read_beside_the_source_is_told_beside_it(tmp_path: Path) -> None:
    checked = changed(JOB, "- not_null", "  - relationship: {day: gold.days.day}")
    days = JOB.replace("schedule: daily", "schedule: weekly")
    found, words = drawn(write(tmp_path, {"silver/clicks.yaml": checked, "gold/days.yaml": days}))
    assert ("delta:gold.days", "delta:silver.clicks", "check") in edges(found)
    assert "silver.clicks  Delta, daily  (also: check gold.days)" in words


def test_what_a_step_reads_beside_the_source_is_an_input(tmp_path: Path) -> None:
    stream = changed(STREAM, "- filter", "  - lookup: {from: silver.days, keys: {id: name}, take: [n]}")
    days = JOB.replace("  - dedupe: {keys: [day, id], order_by: [at]}", "  - derive: {name: id}").replace(
        "by: [day]", "by: [name, day]")  # fmt: skip
    found, words = drawn(write(tmp_path, {"realtime/clicks.yaml": stream, "silver/days.yaml": days}))
    assert ("delta:silver.days", "postgres:realtime.clicks", "input") in edges(found)
    assert "realtime.clicks  PostgreSQL, every 1 second  (also: input silver.days)" in words


def test_a_pipeline_that_keeps_nothing_aside_has_no_such_table(tmp_path: Path) -> None:
    bare = changed(JOB, "- not_null", "  - not_null: [day]\n    on_fail: warn")
    found, _ = drawn(write(tmp_path, {"silver/clicks.yaml": bare}))
    aside = {node["title"] for node in found["nodes"] if node["kind"] == "aside"}
    assert "silver.clicks__quarantine" not in aside
    assert "bronze.clicks__quarantine" in aside


def test_a_title_cannot_break_the_chart(tmp_path: Path) -> None:
    panel = f'{STREAM}panel: {{title: "a \\"b\\" <i>", type: table}}\n'
    found, _ = drawn(write(tmp_path, {"realtime/clicks.yaml": panel}))
    (line,) = [line for line in mermaid(found).splitlines() if "panel" in line]
    assert line.count('"') == 2
    assert "<i>" not in line


def test_the_command_has_three_forms(tmp_path: Path) -> None:
    root = str(write(tmp_path, {}))
    said = {form: CliRunner().invoke(main, ["graph", root, "--format", form]) for form in ("text", "mermaid", "json")}
    assert {result.exit_code for result in said.values()} == {0}
    assert said["mermaid"].stdout.startswith("flowchart LR\n")
    assert edges(json.loads(said["json"].stdout)) == edges(drawn(tmp_path)[0])
