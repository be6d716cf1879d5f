"""Which tables and columns a query has, as the planner sees it; what it may not say is in the gallery."""

from __future__ import annotations

import pytest

from lakehouse_engine import queries
from lakehouse_engine.sql import ExpressionError

KNOWN = {"id": "bigint", "day": "date"}
QUERIES = [
    # query, tables, columns (None: not told)
    ("select * from input", ("input",), KNOWN),
    ("from input select id", ("input",), {"id": "bigint"}),
    ("select *, 1 as one from INPUT", ("input",), {**KNOWN, "one": ""}),
    ("select i.id as n, p.* from input i join Silver.Pages p using (id)", ("input", "silver.pages"), None),
    ("with a as (select * from silver.b), b as (select * from a) select id from b, input", ("silver.b", "input"),
     {"id": ""}),
    ("select id from input where id in (select id from `silver`.`b`)", ("input", "silver.b"), {"id": ""}),
    ("(select day from input) union all select d from other", ("input", "other"), {"day": ""}),
    ("select e.x, id from input lateral view explode(array(1)) e as x", ("input",), {"x": "", "id": "bigint"}),
    ("select * except (day) from input", ("input",), None),
    ("select count(*) as n from input", ("input",), {"n": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("query", "tables", "columns"), QUERIES)
def test_tables_and_columns_of_a_query(query: str, tables: tuple[str, ...], columns: dict[str, str] | None) -> None:
    queries.check(query)
    assert queries.tables(query) == tables
    assert queries.columns(query, KNOWN) == columns


def test_only_the_names_of_tables_are_replaced_and_braces_stay_braces() -> None:
    query = ("with w as (select '{x}' as b from Silver.Pages)\n"
             "select w.b, input.id from input, w join silver.pages p -- {")  # fmt: skip
    names = {"input": "input", "silver.pages": "other0"}
    assert queries.placed(query, names) == (
        "with w as (select '{{x}}' as b from {other0} as `Pages`)\n"
        "select w.b, input.id from {input} as `input`, w join {other0} p -- {{")  # fmt: skip


@pytest.mark.parametrize("query", [
    "select * from input, lateral read_files('/etc')", "select * from input, `parquet`.`s3:/x`",
    "select * from input where id in (select id from csv.`/etc/passwd`)", "describe input", "set a = b",
    "select * from input, text.`/etc/passwd` t", "select try_reflect('a', 'b') from input",
    "explain select * from input",
])  # fmt: skip
def test_nothing_gets_at_files_code_or_settings(query: str) -> None:
    with pytest.raises(ExpressionError) as error:
        queries.check(query)
    assert error.value.code == "UNSAFE_EXPRESSION"
