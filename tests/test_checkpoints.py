"""A sink and a checkpoint that do not belong together are never put together: each is refused, and nothing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lakehouse_engine.checkpoints import Checkpoint, Held, Made
from lakehouse_engine.errors import PlanError

WANTED = Made("live.n", 1, {"transforms[0].dedupe": "id"}, {"clicks": "t1"}, "4.2.0")


def there(folder: Path, batches: int, commits: int) -> Made:
    """A checkpoint as Spark leaves it after ``batches`` were begun and ``commits`` were over."""
    made = Checkpoint(folder, "x.yaml:1", "throw it away").open(WANTED, None)
    (folder / "metadata").write_text(json.dumps({"id": "spark's own"}))
    for kind, count, line in (("offsets", batches, '{"batchWatermarkMs":5000}\n-\n{"clicks":{"0":1}}'),
                              ("commits", commits, '{"nextBatchWatermarkMs":0}')):  # fmt: skip
        (folder / kind).mkdir()
        for number in range(count):
            (folder / kind / str(number)).write_text(f"v1\n{line}")
    return made


def test_it_is_opened_again_where_the_sink_stands_with_it_or_one_batch_further(tmp_path: Path) -> None:
    made = there(tmp_path / "a", 3, 2)
    checkpoint = Checkpoint(tmp_path / "a", "", "")
    assert checkpoint.open(WANTED, Held(made.id, 1)) == made
    assert checkpoint.open(WANTED, Held(made.id, 2)) == made
    assert checkpoint.watermark_before(0) is None
    assert checkpoint.watermark_before(2) == 5_000_000


def test_one_that_no_batch_has_left_anything_of_in_the_sink_is_begun_anew(tmp_path: Path) -> None:
    made = there(tmp_path / "a", 1, 0)
    again = Checkpoint(tmp_path / "a", "", "").open(replace(WANTED, steps={"other": ""}), None)
    assert again.id != made.id
    assert not (tmp_path / "a" / "offsets").exists()


def torn(file: str) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        (folder / file).write_text((folder / file).read_text()[:-3])

    return tear


@pytest.mark.parametrize(
    ("change", "held", "wanted", "code"),
    [
        pytest.param(shutil.rmtree, 1, WANTED, "CHECKPOINT_LOST", id="gone"),
        pytest.param(lambda f: (f / "lakehouse.json").unlink(), 1, WANTED, "CHECKPOINT_LOST", id="of nobody"),
        pytest.param(lambda f: (f / "lakehouse.json").unlink(), None, WANTED, "CHECKPOINT_UNREADABLE", id="nobody's"),
        pytest.param(lambda f: (f / "metadata").unlink(), 1, WANTED, "CHECKPOINT_UNREADABLE", id="without its id"),
        pytest.param(torn("metadata"), 1, WANTED, "CHECKPOINT_UNREADABLE", id="a torn id"),
        pytest.param(torn("lakehouse.json"), 1, WANTED, "CHECKPOINT_UNREADABLE", id="a torn account of itself"),
        pytest.param(torn("offsets/2"), 2, WANTED, "CHECKPOINT_UNREADABLE", id="torn offsets"),
        pytest.param(torn("commits/1"), 1, WANTED, "CHECKPOINT_UNREADABLE", id="a torn commit"),
        pytest.param(lambda f: (f / "offsets" / "2").unlink(), 2, WANTED, "CHECKPOINT_REPLACED", id="a lost batch"),
        pytest.param(lambda f: None, 3, WANTED, "CHECKPOINT_REPLACED", id="an older copy"),
        pytest.param(lambda f: None, 0, WANTED, "SINK_BEHIND", id="a restored table"),
        pytest.param(lambda f: None, None, WANTED, "SINK_BEHIND", id="a dropped table"),
        pytest.param(lambda f: None, 1, replace(WANTED, steps={"transforms[0].dedupe": "user"}), "STATE_DIFFERS",
                     id="an edited step"),
        pytest.param(lambda f: None, 1, replace(WANTED, topics={"clicks": "t2"}), "STATE_DIFFERS", id="another topic"),
        pytest.param(lambda f: None, 1, replace(WANTED, spark="4.3.0"), "STATE_DIFFERS", id="another Spark"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_and_left_as_it_is(
    tmp_path: Path, change: Callable[[Path], None], held: int | None, wanted: Made, code: str
) -> None:
    folder = tmp_path / "a"
    made = there(folder, 3, 2)
    change(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(PlanError, match="to begin anew: throw it away") as refused:
        Checkpoint(folder, "x.yaml:1", "throw it away").open(wanted, None if held is None else Held(made.id, held))
    assert refused.value.code == code
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_the_table_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    there(tmp_path / "a", 3, 2)
    with pytest.raises(PlanError) as refused:
        Checkpoint(tmp_path / "a", "", "").open(WANTED, Held("another", 1))
    assert refused.value.code == "CHECKPOINT_REPLACED"
