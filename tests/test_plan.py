"""The plan says what will run: who shares a scan, what a job may recompute alone, and in which order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lakehouse_engine.plan import compile_plan, fingerprint
from lakehouse_engine.spec.loader import load
from lakehouse_engine.spec.pipeline import PipelineSpec
from tests.spec.project import JOB, LANDING, STREAM, changed, spec, write

PIPELINES = Path(__file__).parents[1] / "pipelines"


def scans(root: Path, files: dict[str, str]) -> dict[str, list[str]]:
    """The project with ``files``: scan to members."""
    return {s.name: [m.name for m in s.members] for s in compile_plan(load([write(root, files)])).scans}


def test_the_reference_platform_is_two_scans_and_five_jobs() -> None:
    plan = compile_plan(load([PIPELINES]))
    assert {scan.name: (scan.every, len(scan.members)) for scan in plan.scans} == {
        "user-events@bronze.user_events": (10_000_000, 1),
        "user-events@realtime.events_per_minute": (1_000_000, 3),
    }
    assert [(job.name, job.source, job.slice_by, job.local) for job in plan.jobs] == [
        ("silver.user_events", "bronze.user_events", "event_date", True),
        ("gold.conversion_rate_daily", "silver.user_events", "event_date", True),
        ("gold.daily_active_users", "silver.user_events", "event_date", True),
        ("gold.events_per_source_daily", "silver.user_events", "event_date", True),
        ("gold.purchases_per_page_daily", "silver.user_events", "event_date", True),
    ]
    assert [served.name for served in plan.served] == [job.name for job in plan.jobs if job.name.startswith("gold")]


def test_streams_of_the_same_source_and_trigger_share_a_scan_history_aside(tmp_path: Path) -> None:
    without = STREAM.replace(", history: bronze.clicks", "")
    assert scans(tmp_path, {"realtime/alone.yaml": without, "realtime/zebra.yaml": STREAM}) == {
        "clicks@bronze.clicks": ["bronze.clicks"],
        "clicks@realtime.alone": ["realtime.alone", "realtime.clicks", "realtime.zebra"],
    }


APART = [
    ("trigger", STREAM.replace("every: 1 second", "every: 2 seconds")),
    ("start", STREAM.replace("topic: clicks,", "topic: clicks, start: latest,")),
    ("batch size", STREAM.replace("topic: clicks,", "topic: clicks, max_per_trigger: 5,")),
    ("topic", STREAM.replace("topic: clicks, history: bronze.clicks", "topic: views")),
    ("cluster", STREAM.replace("topic: clicks, history: bronze.clicks", "topic: clicks, connection: eu")),
    ("keeping of positions", changed(changed(STREAM, "- window", ""), "sink", "sink: console")),
]


@pytest.mark.parametrize("text", [a[1] for a in APART], ids=[a[0] for a in APART])
def test_a_stream_has_a_scan_of_its_own_with_another(text: str, tmp_path: Path) -> None:
    found = scans(tmp_path, {"realtime/apart.yaml": text})
    assert ["realtime.apart"] in found.values()
    assert ["realtime.clicks"] in found.values()


def test_one_second_is_the_same_trigger_however_it_is_written(tmp_path: Path) -> None:
    same = STREAM.replace("every: 1 second", "every: 1000ms")
    assert ["realtime.clicks", "realtime.same"] in scans(tmp_path, {"realtime/same.yaml": same}).values()


def test_a_scan_is_named_after_its_topic_and_its_least_member_whatever_the_order_of_files(tmp_path: Path) -> None:
    specs = list(load([write(tmp_path, {"realtime/a.yaml": STREAM, "realtime/b.yaml": STREAM})]))
    expected = compile_plan(specs)
    assert [scan.name for scan in expected.scans] == ["clicks@realtime.a", "clicks@bronze.clicks"]
    for seed in range(5):
        random.Random(seed).shuffle(specs)
        assert compile_plan(specs) == expected


def test_rows_that_parse_refuses_are_kept_by_the_pipeline_that_lands_the_topic(tmp_path: Path) -> None:
    other = STREAM.replace("topic: clicks, history: bronze.clicks", "topic: views")
    plan = compile_plan(load([write(tmp_path, {"realtime/other.yaml": other})]))
    keeps = {member.name: member.keeps for scan in plan.scans for member in scan.members}
    assert "transforms[0].parse" in keeps["bronze.clicks"]
    assert "transforms[0].parse" not in keeps["realtime.clicks"]
    assert "transforms[0].parse" in keeps["realtime.other"]
    assert "transforms[1].watermark" in keeps["realtime.clicks"]


def test_a_second_table_of_the_topic_does_not_take_what_is_refused_from_the_first(tmp_path: Path) -> None:
    """Each would leave it to the other, and nobody kept it."""
    apart = LANDING.replace("topic: clicks", "topic: clicks, history: bronze.clicks")
    files = {"realtime/apart.yaml": apart, "bronze/again.yaml": LANDING}
    plan = compile_plan(load([write(tmp_path, files)]))
    keeps = {member.name: member.keeps for scan in plan.scans for member in scan.members}
    assert {name for name, places in keeps.items() if "transforms[0].parse" in places} == {
        "bronze.again", "bronze.clicks"}  # fmt: skip


def test_a_member_writes_the_table_that_its_sink_names(tmp_path: Path) -> None:
    named = STREAM.replace("sink: postgres", "sink: {postgres: {table: live.clicks}}")
    (scan,) = compile_plan([spec(tmp_path, "realtime.named", named)]).scans
    assert (scan.members[0].name, scan.members[0].table) == ("realtime.named", "live.clicks")


LOCAL = [
    ("nothing", "- dedupe", "  - dedupe: [day, id]", True, "every step keeps day"),
    ("a filter", "- dedupe", "  - filter: amount > 0", True, "every step keeps day"),
    ("a derived column", "- dedupe", "  - derive: {twice: amount * 2}", True, "every step keeps day"),
    ("a select that passes it on", "- dedupe", "  - select: [id, day]", True, "every step keeps day"),
    ("no slices", "sink", "sink: delta", False, "the sink has no replace_by"),
    ("a derived slice", "- dedupe", "  - derive: {day: to_date(at)}", False, "transforms[0].derive computes day"),
    ("a selected slice", "- dedupe", '  - select: ["to_date(at) as day"]', False,
     "transforms[0].select does not pass day on as it is"),
    ("a renamed slice", "- dedupe", '  - select: ["at as day", "day as id"]', False,
     "transforms[0].select does not pass day on as it is"),
    ("a dedupe across slices", "- dedupe", "  - dedupe: [id]", False,
     "transforms[0].dedupe does not have day among its keys"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "new", "local", "reason"), [c[1:] for c in LOCAL], ids=[c[0] for c in LOCAL])
def test_a_job_is_local_when_its_slice_reaches_every_key_unchanged(
    line: str, new: str, local: bool, reason: str, tmp_path: Path
) -> None:
    (job,) = compile_plan([spec(tmp_path, "silver.clicks", changed(JOB, line, new))]).jobs
    assert (job.local, job.reason) == (local, reason)


def test_an_aggregate_without_the_slice_is_not_local(tmp_path: Path) -> None:
    # replace_by must be a column of the result, so the slice is the name of a measure here
    text = JOB.replace("by: [day], measures: {n: count(*)}", "by: [id], measures: {day: max(day)}")
    (job,) = compile_plan([spec(tmp_path, "silver.clicks", text)]).jobs
    assert (job.local, job.reason) == (False, "transforms[1].aggregate does not group by day")


def test_a_job_comes_after_what_it_reads_and_otherwise_by_name(tmp_path: Path) -> None:
    def reads(table: str) -> str:
        return f"source: {table}\nsink: delta\nschedule: daily\n"

    files = {"gold/a.yaml": reads("silver.z"), "silver/z.yaml": reads("silver.y"),
             "silver/y.yaml": reads("bronze.clicks"),
             "gold/b.yaml": reads("gold.a"), "gold/c.yaml": reads("somewhere.else")}  # fmt: skip
    specs = list(load([write(tmp_path, files)]))
    expected = ["silver.y", "silver.z", "gold.a", "gold.b", "gold.c", "silver.clicks"]
    for seed in range(5):
        random.Random(seed).shuffle(specs)
        assert [job.name for job in compile_plan(specs).jobs] == expected


KEYS = [
    ("a window's start and by", STREAM, ("window_start", "id")),
    ("an aggregate's by", JOB, ("day",)),
    ("a dedupe's keys", changed(changed(JOB, "- aggregate", ""), "- not_null", ""), ("day", "id")),
    ("a later filter leaves them", JOB.replace("checks:", "  - filter: n > 1\nchecks:"), ("day",)),
    ("a select voids them", JOB.replace("checks:", "  - select: [day, n]\nchecks:"), ()),
    ("keys say it", f"{JOB}keys: [n]\n", ("n",)),
    ("rows as they are", LANDING, ()),
]


@pytest.mark.parametrize(("text", "keys"), [k[1:] for k in KEYS], ids=[k[0] for k in KEYS])
def test_the_keys_of_a_result_are_what_its_last_step_says(text: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    assert spec(tmp_path, "made.up", text).key_columns == keys


@pytest.fixture
def job(tmp_path: Path) -> PipelineSpec:
    return spec(tmp_path, "silver.clicks", JOB)


SAME = [
    ("its description", f"description: other\n{JOB}"),
    ("its schedule", changed(JOB, "schedule", "schedule: hourly")),
    ("its place in Airflow", f"{JOB}airflow: {{dag: other}}\n"),
    ("a copy for readers", f"{JOB}serve: postgres\n"),
    ("a comment and a line", f"# why\n\n{JOB}"),
    ("another way to write it", JOB.replace("source: bronze.clicks", "source: {delta: {table: bronze.clicks}}")),
]


@pytest.mark.parametrize("text", [s[1] for s in SAME], ids=[s[0] for s in SAME])
def test_the_fingerprint_stays_with(job: PipelineSpec, text: str, tmp_path: Path) -> None:
    assert fingerprint(spec(tmp_path, "silver.clicks", text)) == fingerprint(job)


OTHER = [
    ("its source", changed(JOB, "source", "source: bronze.more")),
    ("a key", JOB.replace("keys: [day, id]", "keys: [id, day]")),
    ("an order", JOB.replace("order_by: [at]", "order_by: [amount]")),
    ("a measure", JOB.replace("count(*)", "count(id)")),
    ("a step", changed(JOB, "- dedupe", "")),
    ("a check", changed(JOB, "- not_null", "  - not_null: [n]")),
    ("its sink", changed(JOB, "sink", "sink: {delta: {replace_by: day, partition_by: [day]}}")),
]


@pytest.mark.parametrize("text", [o[1] for o in OTHER], ids=[o[0] for o in OTHER])
def test_the_fingerprint_changes_with(job: PipelineSpec, text: str, tmp_path: Path) -> None:
    write(tmp_path, {"bronze/more.yaml": LANDING.replace("topic: clicks", "topic: more")})
    assert fingerprint(spec(tmp_path, "silver.clicks", text)) != fingerprint(job)


def test_the_fingerprint_changes_with_the_contract_that_rows_are_read_by(tmp_path: Path) -> None:
    before = fingerprint(spec(tmp_path, "bronze.clicks", LANDING))
    contract = tmp_path / "contracts" / "click.yaml"
    contract.write_text(contract.read_text().replace("required: [id, at]", "required: [id]"))
    (after,) = load([tmp_path / "bronze"])
    assert fingerprint(after) != before
