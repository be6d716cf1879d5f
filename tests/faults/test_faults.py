"""What dies, and what the numbers say afterwards. More kills with ``make faults``."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.platform import Platform
from tests.test_platform import off, produce_in_background, ran

KILLS = int(os.environ.get("LAKEHOUSE_KILLS", "2"))
STREAMS = ("run", "pipelines/bronze", "pipelines/realtime")


def grown(lake: Platform, batches: int) -> bool:
    return lake.batches() >= batches


@pytest.mark.timeout(1800)
def test_kill_9_in_mid_stream_loses_and_doubles_nothing(lake: Platform) -> None:
    stop = threading.Event()
    producing = produce_in_background(lake, stop)
    try:
        for number in range(KILLS):
            before = lake.batches()
            process = lake.start(*STREAMS)
            # between 1 and 4 batches of three pipelines on, so that the kill falls at different places
            lake.until(lambda b=before, n=number: grown(lake, b + 3 * (1 + n % 4)), f"run {number} commits")  # type: ignore[misc]
            assert process.poll() is None, lake.log(process)
            lake.kill(process)
    finally:
        stop.set()
        producing.join(60)
    ran(lake.lakehouse(*STREAMS, "--available-now"))
    assert off(lake, "realtime", "bronze") == []


def test_a_lost_checkpoint_is_no_loss_and_no_question(lake: Platform) -> None:
    lake.produce(2000, seed=1)
    ran(lake.lakehouse(*STREAMS, "--available-now"))
    checkpoints = lake.storage / "_checkpoints"
    commits = sorted(checkpoints.glob("*/commits/[0-9]*"))
    assert commits
    for file in commits:
        file.unlink()
    lake.produce(2000, seed=2)
    ran(lake.lakehouse(*STREAMS, "--available-now"))
    assert off(lake, "realtime", "bronze") == []
    shutil.rmtree(checkpoints)
    lake.produce(2000, seed=3)
    ran(lake.lakehouse(*STREAMS, "--available-now"))
    assert off(lake, "realtime", "bronze") == []


def test_a_second_run_is_refused_on_the_same_storage_and_takes_over_from_another(
    lake: Platform, tmp_path: Path
) -> None:
    stop = threading.Event()
    producing = produce_in_background(lake, stop, rate=300)
    try:
        first = lake.start("run", "pipelines/realtime")
        lake.until(lambda: grown(lake, 3), "the first run commits")
        second = lake.lakehouse("run", "--available-now", "pipelines/realtime")
        assert second.returncode == 1
        assert "LOCKED" in second.stderr
        assert f"process {first.pid}" in second.stderr
        assert first.poll() is None, lake.log(first)
        # as from another host: same database, other storage
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / ".lakehouse").mkdir(parents=True)
        shutil.copy(lake.folder / ".lakehouse" / "services.json", elsewhere / ".lakehouse")
        third = lake.start("run", str(lake.folder / "pipelines" / "realtime"), cwd=elsewhere)
        assert first.wait(120) == 1, lake.log(first)
        assert "FENCED" in lake.log(first)
        before = lake.batches()
        lake.until(lambda: grown(lake, before + 3), "the third run commits")
        third.terminate()
        assert third.wait(60) == 0, lake.log(third)
    finally:
        stop.set()
        producing.join(60)
    ran(lake.lakehouse("run", "--available-now", "pipelines/realtime"))
    assert off(lake, "realtime") == []


WINDOWS = """
source: {kafka: {topic: user-events, history: bronze.user_events}}
transforms:
  - parse: user_event
  - check:
      - expression: event_type <> 'login'
        name: no_login
        on_fail: warn
  - watermark: {column: timestamp, delay: 1 second}
  - window: {tumbling: 1 second, by: [event_type], measures: {n: count(*)}, emit: EMIT}
sink: postgres
trigger: {every: 1 second}
"""
ROWS = """
source: {kafka: {topic: user-events, history: bronze.user_events}}
transforms:
  - parse: user_event
  - derive: {parts: "if(event_type = 'click', array(1, 2), array())"}
  - explode: {column: parts, as: part, empty: drop}
  - select: [event_id, part, "_partition as place", "_offset as nr"]
sink: postgres
trigger: {every: 1 second}
"""


def test_kill_9_adds_each_row_and_sends_each_window_that_is_over_once(lake: Platform) -> None:
    """Windows sent once, with those that are open, are those that were sent on each change.

    The rows come later to the scan, and begin where the topic does: windows do not count those records again.
    """
    rows = ROWS.replace("topic: user-events", f"topic: {lake.topic}")
    (lake.folder / "pipelines" / "realtime" / "by_second_rows.yaml").write_text(rows)
    for emit in ("final", "updates"):
        text = WINDOWS.replace("EMIT", emit).replace("topic: user-events", f"topic: {lake.topic}")
        (lake.folder / "pipelines" / "realtime" / f"by_second_{emit}.yaml").write_text(text)
    names = [f"pipelines/realtime/by_second_{kind}.yaml" for kind in ("final", "updates", "rows")]

    def sent() -> int:
        there = lake.query("select to_regclass('realtime.by_second_final')") != [(None,)]
        return lake.query("select count(*) from realtime.by_second_final")[0][0] if there else 0

    stop = threading.Event()
    producing = produce_in_background(lake, stop)
    try:
        process = lake.start("run", *names[:2])
        lake.until(lambda: sent() > 0, "a window is over")
        lake.kill(process)
        before = sent()
    finally:
        stop.set()
        producing.join(60)
    lake.produce(500, seed=3)
    ran(lake.lakehouse("run", "--available-now", *names))
    final = "select window_start, event_type, n from realtime.by_second_final"
    both = f"{final} union all select window_start, event_type, n from realtime.by_second_final__state"
    updates = "select window_start, event_type, n from realtime.by_second_updates"
    assert lake.query(f"(({both}) except all {updates}) union all ({updates} except all ({both}))") == []
    assert sent() >= before > 0
    logins = f"select coalesce(sum(n), 0)::bigint from ({both}) f where event_type = 'login'"
    warned = "select sum((warnings->>'no_login')::bigint)::bigint from lakehouse.batches where pipeline ="
    assert lake.query(logins) == lake.query(f"{warned} 'realtime.by_second_final'")
    numbers = "count(*), count(distinct (place, nr, part)), 2 * count(distinct (place, nr))"
    added = lake.query(f"select {numbers} from realtime.by_second_rows")[0]
    counted = lake.query("select 2 * sum(counted)::bigint from lakehouse.batches where pipeline ="
                         " 'realtime.by_second_rows'")[0]  # fmt: skip
    assert {*added, *counted} == {added[0]}
    assert lake.query("select pipeline from lakehouse.batches group by 1 having sum(quarantined + filtered + late"
                      " + counted) <> (select sum(next_offset) from lakehouse.positions p"
                      " where p.pipeline = batches.pipeline)") == []  # fmt: skip


ONCE = """
source: {kafka: {topic: user-events, history: bronze.user_events}}
transforms:
  - parse: user_event
  - watermark: {column: timestamp, delay: 2 days}
  - dedupe: [event_id]
  - select: [event_id, "_partition as place", "_offset as nr"]
sink: postgres
trigger: {every: 0 s}
"""


def test_kill_9_on_sparks_state_adds_each_row_once_and_counts_each_record(lake: Platform) -> None:
    """Wherever it falls: before the sink's commit, between that and Spark's own note of the batch, or after both."""
    text = ONCE.replace("topic: user-events", f"topic: {lake.topic}")
    (lake.folder / "pipelines" / "realtime" / "once.yaml").write_text(text)
    once = "pipelines/realtime/once.yaml"

    def batches() -> int:
        there = lake.query("select to_regclass('lakehouse.queries') is not null") == [(True,)]
        return int(lake.query("select coalesce(max(batch), -1) from lakehouse.queries")[0][0]) if there else -1

    stop = threading.Event()
    producing = produce_in_background(lake, stop)
    try:
        for number in range(KILLS):
            before = batches()
            process = lake.start("run", once)
            lake.until(lambda b=before, n=number: batches() > b + n % 3, f"run {number} commits")  # type: ignore[misc]
            lake.kill(process)
    finally:
        stop.set()
        producing.join(60)
    ran(lake.lakehouse("run", once, "--available-now"))
    (rows, ids, records), *_ = lake.query(
        "select count(*), count(distinct event_id), count(distinct (place, nr)) from realtime.once")  # fmt: skip
    assert rows == ids == records > 0
    read = "sum(counted), sum(quarantined + filtered + duplicate + late + counted) from lakehouse.batches"
    topic = lake.query("select sum(next_offset) from lakehouse.positions")[0][0]
    assert lake.query(f"select {read}") == [(rows, topic)]
