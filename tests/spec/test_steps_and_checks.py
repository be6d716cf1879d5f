"""Rename, drop, cast, check and explode, and the checks: what is wrong in them is said at its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lakehouse_engine.checks import CHECKS
from lakehouse_engine.errors import SpecError
from lakehouse_engine.fields import described
from lakehouse_engine.plan import compile_plan
from lakehouse_engine.spec.check import output_columns
from lakehouse_engine.spec.loader import load
from lakehouse_engine.transforms import TRANSFORMS
from tests.spec.project import JOB, LANDING, STREAM, changed, problems, refused, spec, write
from tests.spec.test_loader import NAMES

USERS = LANDING.replace("topic: clicks", "topic: users")

# What is wrong; the layer of the file; the line that is replaced; what stands there instead; line and code.
WRONG = [
    # rename
    ("a column under two names", "silver", "- dedupe", "  - rename: {a: id, b: id}", "3 SAME_COLUMN"),
    ("a name that another column has", "bronze", "- derive", "  - derive: {day: to_date(at)}\n  - rename: {amount: id}",
     "5 SAME_COLUMN"),
    ("a name that differs in case alone", "bronze", "- derive",
     "  - derive: {day: to_date(at)}\n  - rename: {AMOUNT: id}", "5 SAME_COLUMN, 5 SAME_COLUMN"),
    ("a new name of nothing", "silver", "- dedupe", "  - rename: {a: idd}", "3 UNKNOWN_COLUMN"),
    ("a name that is none", "silver", "- dedupe", "  - rename: {a-b: id}", "3 BAD_NAME"),
    ("a record's place under another name", "bronze", "- derive",
     "  - derive: {day: to_date(at)}\n  - rename: {place: _offset}", "5 RESERVED_COLUMN"),
    ("a renamed column asked for by its old name", "silver", "- aggregate",
     "  - rename: {key: id}\n  - aggregate: {by: [day, id], measures: {n: count(*)}}", "5 UNKNOWN_COLUMN"),
    # drop
    ("nothing to drop", "silver", "- dedupe", "  - drop: []", "3 BAD_VALUE"),
    ("a dropped column that is not there", "silver", "- dedupe", "  - drop: [idd]", "3 UNKNOWN_COLUMN"),
    ("no column left", "bronze", "- derive", "  - drop: [id, at, amount]", "4 NO_COLUMNS, 5 UNKNOWN_COLUMN"),
    ("a record's place dropped", "bronze", "- derive", "  - derive: {day: to_date(at)}\n  - drop: [_partition]",
     "5 RESERVED_COLUMN"),
    ("a dropped column asked for", "silver", "- dedupe", "  - drop: [id]\n  - dedupe: [day, id]",
     "4 UNKNOWN_COLUMN"),
    ("unique of dropped keys", "silver", "checks", "  - drop: [day]\nchecks:\n  - unique",
     "7 MISSING_KEY, 8 UNKNOWN_COLUMN, 9 UNKNOWN_COLUMN"),
    # cast
    ("a type that is none", "silver", "- dedupe", "  - cast: {id: integr}", "3 BAD_TYPE"),
    ("a decimal of too many digits", "silver", "- dedupe", '  - cast: {amount: "decimal(39,2)"}', "3 BAD_TYPE"),
    ("a decimal of more places than digits", "silver", "- dedupe", '  - cast: {amount: "decimal(2,3)"}', "3 BAD_TYPE"),
    ("a decimal that YAML splits", "silver", "- dedupe", "  - cast: {amount: decimal(18,2)}",
     "3 UNBALANCED, 3 UNBALANCED"),
    ("a nested type", "silver", "- dedupe", "  - cast: {id: array<int>}", "3 BAD_TYPE"),
    ("a cast of nothing", "silver", "- dedupe", "  - cast: {idd: int}", "3 UNKNOWN_COLUMN"),
    ("event time cast to a number", "realtime", "- parse", "  - parse: click\n  - cast: {at: bigint}",
     "5 COLUMN_TYPE"),
    ("a record's time cast", "bronze", "- derive", "  - derive: {day: to_date(at)}\n  - cast: {_timestamp: string}",
     "5 RESERVED_COLUMN"),
    # check
    ("a check step of nothing", "silver", "- dedupe", "  - check: []", "3 BAD_CHECK"),
    ("a check step that is no list", "silver", "- dedupe", "  - check: {not_null: [id]}", "3 BAD_VALUE"),
    ("an unknown check in a step", "silver", "- dedupe", "  - check:\n      - not_nul: [id]", "4 UNKNOWN_COMPONENT"),
    ("an unknown column in a check step", "silver", "- dedupe",
     "  - check:\n      - not_null: [id]\n      - not_null: [idd]", "5 UNKNOWN_COLUMN"),
    ("a check of a whole result in a step", "silver", "- dedupe", "  - check:\n      - unique: [id]", "4 BAD_CHECK"),
    ("a check of another table in a step", "silver", "- dedupe",
     "  - check:\n      - relationship: {id: bronze.users.id}", "4 BAD_CHECK"),
    ("what throws in a check step of a stream", "realtime", "- filter",
     "  - check:\n      - expression: cast(id as int) = 1", "6 THROWING_EXPRESSION"),
    ("two components in an item of a check step", "silver", "- dedupe",
     "  - check:\n      - not_null: [id]\n        range: {amount: {min: 0}}", "4 TWO_COMPONENTS"),
    ("a clock in a check of a slice", "silver", "- not_null", "  - expression: day < current_date()",
     "6 UNSTABLE_EXPRESSION"),
    # explode
    ("an array that is not there", "silver", "- dedupe", "  - explode: items", "3 UNKNOWN_COLUMN"),
    ("an element with a column's name", "silver", "- dedupe", "  - explode: {column: id, as: amount}",
     "3 SAME_COLUMN"),
    ("an element and its place with one name", "silver", "- dedupe", "  - explode: {column: id, as: x, position: X}",
     "3 SAME_COLUMN"),
    ("what to do with an empty array", "silver", "- dedupe", "  - explode: {column: id, empty: fail}", "3 BAD_VALUE"),
    ("an unknown option of explode", "silver", "- dedupe", "  - explode: {column: id, name: x}", "3 UNKNOWN_KEY"),
    ("unique of exploded rows", "silver", "checks", "  - explode: n\nchecks:\n  - unique", "7 MISSING_KEY"),
    # tolerance, where, name, on_fail
    ("a tolerance that is a number", "silver", "- not_null", "  - not_null: [day]\n    tolerance: 0.01", "7 BAD_SHARE"),
    ("a tolerance of all", "silver", "- not_null", "  - not_null: [day]\n    tolerance: 100%", "7 BAD_SHARE"),
    ("a tolerance of what stops at once", "silver", "- not_null",
     "  - not_null: [day]\n    on_fail: fail\n    tolerance: 1%", "6 BAD_CHECK"),
    ("a tolerance of parse that is none", "bronze", "- parse",
     "  - parse:\n      contract: click\n      tolerance: some", "5 BAD_SHARE"),
    ("a tolerance of a whole result", "silver", "- not_null", "  - unique: [day]\n    tolerance: 1%", "7 UNKNOWN_KEY"),
    ("a whole result that is quarantined", "silver", "- not_null", "  - row_count: {min: 1}\n    on_fail: quarantine",
     "7 BAD_VALUE"),
    ("an unknown column of where", "silver", "- not_null", "  - not_null: [day]\n    where: idd = 1",
     "7 UNKNOWN_COLUMN"),
    ("an unknown column of a whole result's where", "silver", "- not_null",
     "  - row_count: {min: 1}\n    where: idd = 1", "7 UNKNOWN_COLUMN"),
    # matches, row_count, freshness, relationship
    ("a pattern that is none", "silver", "- not_null", '  - matches: {day: "(a"}', "6 BAD_PATTERN"),
    ("a pattern of nothing", "silver", "- not_null", '  - matches: {idd: "a"}', "6 UNKNOWN_COLUMN"),
    ("a number of rows without a bound", "silver", "- not_null", "  - row_count", "6 BAD_CHECK"),
    ("bounds that exclude each other", "silver", "- not_null", "  - row_count: {min: 2, max: 1}", "6 BAD_CHECK"),
    ("fewer rows than none", "silver", "- not_null", "  - row_count: {min: -1}", "6 BAD_VALUE"),
    ("a number of rows in a stream", "bronze", "sink",
     "checks: [{row_count: {min: 1}}]\nsink: {delta: {partition_by: [day]}}", "5 JOB_ONLY"),
    ("an age without a limit", "silver", "- not_null", "  - freshness: {column: day}", "6 MISSING_KEY"),
    ("an age of a number", "silver", "- not_null", "  - cast: {n: int}\n  - freshness: {column: n, max_age: 1 h}",
     "6 UNKNOWN_COMPONENT"),
    ("an age of a text", "bronze", "sink",
     "checks:\n  - freshness: {column: id, max_age: 1 h}\n    on_fail: warn\nsink: {delta: {partition_by: [day]}}",
     "6 COLUMN_TYPE"),
    ("an age that stops a stream", "bronze", "sink",
     "checks:\n  - freshness: {column: at, max_age: 1 h}\nsink: {delta: {partition_by: [day]}}", "6 BAD_CHECK"),
    ("a table that is no name", "silver", "- not_null", "  - relationship: {day: users}", "6 BAD_NAME"),
    ("another table in a stream", "bronze", "sink",
     "checks: [{relationship: {id: bronze.users.id}}]\nsink: {delta: {partition_by: [day]}}", "5 JOB_ONLY"),
    ("a column that another table lacks", "silver", "- not_null", "  - relationship: {day: bronze.users.dya}",
     "6 UNKNOWN_COLUMN"),
    ("another table in PostgreSQL", "silver", "- not_null", "  - relationship: {day: realtime.clicks.id}",
     "6 MISSING_TABLE"),
    ("a pipeline's own table", "silver", "- not_null", "  - relationship: {day: silver.clicks.day}", "5 CYCLE"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "line", "new", "expected"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_step_or_check_is_reported_where_it_is(
    layer: str, line: str, new: str, expected: str, tmp_path: Path
) -> None:
    write(tmp_path, {f"{layer}/clicks.yaml": changed(NAMES[layer], line, new), "bronze/users.yaml": USERS})
    found = [found for found in problems(tmp_path) if found.startswith(f"{layer}/clicks")]  # not what reads it
    assert sorted(found) == sorted(f"{layer}/clicks.yaml:{one.replace(' ', ': ')}" for one in expected.split(", "))


RIGHT = [
    ("silver", "- dedupe", "  - rename: {ID: id}\n  - drop: [amount, at]\n  - dedupe: [day, ID]"),
    ("silver", "- dedupe", "  - rename: {at: amount, amount: at}"),
    ("silver", "- dedupe", '  - cast: {amount: "decimal(18, 2)", id: bigint}'),
    ("silver", "- dedupe", "  - check:\n      - matches: {id: '^\\p{L}+\\z'}\n        tolerance: 1.5%"),
    ("silver", "- dedupe", "  - explode: {column: id, as: item, position: line, empty: drop}"),
    ("silver", "- not_null", "  - relationship: {day: bronze.users.day}\n    on_fail: warn\n    tolerance: 5%"),
    ("silver", "- not_null", "  - row_count: {min: 1, max: 2}\n    where: n > 1\n    name: some\n    on_fail: warn"),
    ("silver", "- not_null", "  - freshness: {column: day, max_age: 2 days}"),
    ("bronze", "- derive", "  - derive: {day: to_date(at)}\n  - explode: amount\n  - check: [{not_null: amount}]"),
    ("bronze", "- parse", "  - parse: {contract: click, tolerance: 1%}"),
    ("realtime", "- filter", "  - check:\n      - range: {amount: {min: 0}}\n        on_fail: fail"),
    ("realtime", "- filter", "  - rename: {who: id}\n  - rename: {id: who}\n  - drop: amount"),
]


@pytest.mark.parametrize(("layer", "line", "new"), RIGHT)
def test_a_right_step_or_check_is_taken(layer: str, line: str, new: str, tmp_path: Path) -> None:
    write(tmp_path, {f"{layer}/clicks.yaml": changed(NAMES[layer], line, new), "bronze/users.yaml": USERS})
    assert problems(tmp_path) == []
    compile_plan(load([tmp_path]))


@pytest.mark.parametrize(
    ("layer", "line", "new", "hint"),
    [
        ("silver", "- dedupe", "  - cast: {id: strin}", "did you mean string?"),
        ("silver", "- dedupe", "  - cast: {id: LONG}", "did you mean bigint?"),
        ("silver", "- dedupe", "  - explode: {column: id, ass: x}", "did you mean as?"),
        ("silver", "- dedupe", "  - check:\n      - not_nul: [id]", "did you mean not_null?"),
        ("silver", "- not_null", "  - relationship: {day: bronze.users.dya}", "no column dya; did you mean day?"),
        ("silver", "- not_null", "  - not_null: [day]\n    tolerance: 0.01", "write e.g. 1%"),
    ],
)
def test_a_wrong_step_or_check_says_what_to_write(layer: str, line: str, new: str, hint: str, tmp_path: Path) -> None:
    write(tmp_path, {f"{layer}/clicks.yaml": changed(NAMES[layer], line, new), "bronze/users.yaml": USERS})
    with pytest.raises(SpecError, match=re.escape(hint)):
        load([tmp_path])


def test_the_columns_of_a_result_are_those_that_its_steps_leave(tmp_path: Path) -> None:
    steps = """  - dedupe: {keys: [day, id], order_by: [at]}
  - rename: {key: id}
  - cast: {amount: int}
  - derive: {parts: "split(key, ',')"}
  - explode: {column: parts, as: part, position: nr}
  - drop: [at]"""
    text = changed(changed(changed(JOB, "- dedupe", steps), "- aggregate", ""), "- not_null", "  - not_null: [part]")
    made = spec(tmp_path, "silver.clicks", text)

    class Upstream:
        def find(self, name: str, beside: str) -> object:
            return next(s for s in load([tmp_path / "bronze"]) if s.name == name)

    columns = output_columns(made, Upstream())  # type: ignore[arg-type]
    assert columns is not None
    assert {n: t for n, t in columns.items() if not n.startswith("_")} == {
        "key": "string", "amount": "int", "day": "date", "part": "", "nr": "int", "updated_at": "timestamp"
    }  # fmt: skip


KEYS = [
    ("a rename takes them along", "  - rename: {who: id}", ("day", "who")),
    ("dropping another column leaves them", "  - drop: [amount]", ("day", "id")),
    ("dropping one voids them", "  - drop: [id]", ()),
    ("an explode voids them", "  - explode: amount", ()),
]


@pytest.mark.parametrize(("step", "keys"), [k[1:] for k in KEYS], ids=[k[0] for k in KEYS])
def test_the_keys_of_a_result_after(step: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    text = changed(JOB, "- aggregate", step)
    assert spec(tmp_path, "silver.clicks", text).key_columns == keys


LOCAL = [
    ("a rename of another column", "  - rename: {who: id}\n  - dedupe: [day, who]", True, "every step keeps day"),
    ("a renamed slice", "  - rename: {day: at, at: day}", False, "transforms[0].rename does not pass day on as it is"),
    ("a cast slice", "  - cast: {day: timestamp}", False, "transforms[0].cast computes day"),
    ("a cast of another column", "  - cast: {amount: int}", True, "every step keeps day"),
    ("an exploded slice", "  - derive: {days: array(day)}\n  - drop: day\n  - explode: {column: days, as: day}", False,
     "transforms[1].drop does not pass day on as it is"),
    ("an explode of another column", "  - explode: amount", True, "every step keeps day"),
    ("a check", "  - check: [{not_null: id}]", True, "every step keeps day"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "local", "reason"), [c[1:] for c in LOCAL], ids=[c[0] for c in LOCAL])
def test_a_job_stays_local_when_its_slice_stays_as_it_is(step: str, local: bool, reason: str, tmp_path: Path) -> None:
    (job,) = compile_plan([spec(tmp_path, "silver.clicks", changed(JOB, "- dedupe", step))]).jobs
    assert (job.local, job.reason) == (local, reason)


def test_a_job_comes_after_the_tables_that_its_checks_look_into(tmp_path: Path) -> None:
    related = changed(JOB, "- not_null", "  - relationship: {day: silver.zebra.day}")
    write(tmp_path, {"silver/clicks.yaml": related, "silver/zebra.yaml": JOB})
    assert [job.name for job in compile_plan(load([tmp_path])).jobs] == ["silver.zebra", "silver.clicks"]
    back = changed(JOB, "- not_null", "  - relationship: {day: silver.clicks.day}")
    write(tmp_path, {"silver/clicks.yaml": related, "silver/zebra.yaml": back})
    assert [problem.code for problem in refused(tmp_path)] == ["CYCLE", "CYCLE"]


def test_every_step_and_check_says_what_it_does_and_what_its_options_mean() -> None:
    new = [TRANSFORMS[key] for key in ("rename", "drop", "cast", "check", "explode")]
    for component in [*new, *CHECKS.values()]:
        assert component.__doc__, component.key
        options = {field.alias or name for name, field in component.model_fields.items()}
        assert options - described(component).keys() == set(), component.key


def test_a_step_of_a_stream_does_not_take_part_in_another_ones_scan(tmp_path: Path) -> None:
    checked = changed(STREAM, "- filter", "  - check: [{not_null: amount}]")
    plan = compile_plan(load([write(tmp_path, {"realtime/checked.yaml": checked})]))
    members = [member for scan in plan.scans for member in scan.members]
    verdicts = {member.name: [v.step for v in member.rows.verdicts] for member in members}
    assert "transforms[2].check" in verdicts["realtime.checked"]
    assert "transforms[2].check" not in verdicts["realtime.clicks"]
