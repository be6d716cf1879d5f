"""Expressions as the planner sees them: what is refused, what is read, and that a rewriting changes nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse_engine import sql

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REFUSED = [
    ("", "BAD_EXPRESSION"),
    ("a > 1 or", "BAD_EXPRESSION"),
    ("a, b", "BAD_EXPRESSION"),
    ("a; b", "BAD_EXPRESSION"),
    ("select 1", "BAD_EXPRESSION"),
    ("drop table x", "BAD_EXPRESSION"),
    ("set a = 1", "BAD_EXPRESSION"),
    ("coalesce(a", "BAD_EXPRESSION"),
    ("exists(select 1)", "UNSAFE_EXPRESSION"),
    ("a in (select b from c)", "UNSAFE_EXPRESSION"),
    ("reflect('java.lang.System', 'exit')", "UNSAFE_EXPRESSION"),
    ("if(a, java_method('x', 'y'), 1)", "UNSAFE_EXPRESSION"),
    ("try_reflect('x', 'y')", "UNSAFE_EXPRESSION"),
    ("rand()", "UNSTABLE_EXPRESSION"),
    ("RAND(5) > 0.5", "UNSTABLE_EXPRESSION"),
    ("randn()", "UNSTABLE_EXPRESSION"),
    ("uuid()", "UNSTABLE_EXPRESSION"),
    ("shuffle(a)", "UNSTABLE_EXPRESSION"),
    ("monotonically_increasing_id()", "UNSTABLE_EXPRESSION"),
    ("transform(a, x -> x + rand())", "UNSTABLE_EXPRESSION"),
    ("count(*) > 1", "BAD_EXPRESSION"),
    ("a > avg(a)", "BAD_EXPRESSION"),
    ("try_sum(a)", "BAD_EXPRESSION"),
    ("any(a)", "BAD_EXPRESSION"),
    ("row_number() over (order by a)", "BAD_EXPRESSION"),
    ("a as b", "BAD_EXPRESSION"),
    ("a desc", "BAD_EXPRESSION"),
    ("*", "BAD_EXPRESSION"),
    ("struct(*)", "BAD_EXPRESSION"),
    ("s.*", "BAD_EXPRESSION"),
    ("explode(a)", "BAD_EXPRESSION"),
]


@pytest.mark.parametrize(("text", "code"), REFUSED)
def test_what_no_pipeline_may_say_is_refused(text: str, code: str) -> None:
    with pytest.raises(sql.ExpressionError) as caught:
        sql.check(text)
    assert caught.value.code == code


TAKEN = ["a", "1", "'text'", "null", "a.b", "`a b`", "a is not null and b like '%x'", "case when a then 1 else 2 end",
         "timestamp <= _timestamp + interval 1 hour", "transform(a, x -> x + 1)",
         "'rand()'", "`uuid`", "a in ('select 1')"]  # fmt: skip


@pytest.mark.parametrize("text", TAKEN)
def test_one_expression_is_taken(text: str) -> None:
    sql.check(text)


#: a clock of the source, a day, a number; everything else is of no known type
TYPES = {"at": "timestamp", "day": "date", "n": "double", "id": "string"}
THROWING = [
    "a / -0",
    "pmod(a, b)",
    "make_date(a, 1, 1)",
    "make_timestamp(1, 2, 3, 4, 5, a)",
    "parse_json(a)",
    "bigint(a)",
    "id + 1",
    "-id",
    "id > 5",
    "5 in (id)",
    "id between 1 and 2",
    "hour(id)",
    "date_trunc('day', id)",
    "unix_timestamp(id)",
    "year(id)",
    "year(a)",
    "cast(a as int)",
    "a::date",
    "int(a)",
    "cast(n as bigint)",
    "a / b",
    "a % b",
    "a div b",
    "mod(a, b)",
    "a / 0",
    "a / 0.00",
    "a[0]",
    "m['key']",
    "element_at(a, 1)",
    "to_date(a)",
    "to_date(n)",
    "to_timestamp(a)",
    "to_date('x')",
    "date(a)",
    "raise_error('x')",
    "assert_true(a)",
    "to_number(a, '999')",
    "coalesce(if(b, cast(a as int), 1), 2)",
    "transform(a, x -> 1 / x)",
]


@pytest.mark.parametrize("text", THROWING)
def test_what_throws_on_data_is_refused_in_a_stream(text: str) -> None:
    with pytest.raises(sql.ExpressionError) as caught:
        sql.check_stream(text, TYPES)
    assert caught.value.code == "THROWING_EXPRESSION"


CALM = ["cast(a as string)", "cast(at as date)", "CAST(AT AS DATE)", "try_cast(a as int)", "to_date(at)",
        "to_date(day)", "to_timestamp(at)", "try_to_timestamp(a)", "a / 2", "a % 1.5", "try_divide(a, b)",
        "date_trunc('day', at)", "timestamp '2026-01-01'", "cast('1' as int)", "a + b * 2",
        "s.b", "'a / b'", "a / -2", "a % (3)", "pmod(a, 7)", "try_element_at(a, 1)", "year(at)", "year(day)",
        "datediff(day, at)", "hour(at)", "unix_timestamp(at)", "id = '5'", "id like '5%'", "n > 5",
        "day > '2026-01-01'", "id in ('1', '2')", "transform(a, X -> x + 1)", "cast(try_cast(id as timestamp) as date)",
        "year(try_to_date(id))", "to_date(coalesce(at, timestamp '2026-01-01'))", "concat(id, 1)",
        "id || 'x'"]  # fmt: skip


@pytest.mark.parametrize("text", CALM)
def test_what_cannot_throw_is_taken_in_a_stream(text: str) -> None:
    sql.check_stream(text, TYPES)


@pytest.mark.parametrize("text", ["to_date(at)", "cast(at as date)"])
def test_a_time_of_no_known_type_may_throw(text: str) -> None:
    with pytest.raises(sql.ExpressionError):
        sql.check_stream(text)


READ = [
    ("1", set()),
    ("count(*)", set()),
    ("current_timestamp", set()),
    ("A + a", {"a"}),
    ("`A b`", {"a b"}),
    ("timestamp", {"timestamp"}),
    ("item.sku.code", {"item"}),
    ("items[i].sku", {"items", "i"}),
    ("struct(a as b)", {"a"}),
    ("transform(xs, x -> x + y)", {"xs", "y"}),
    ("transform(xs, x -> x.f)", {"xs"}),
    ("x + size(transform(xs, x -> x))", {"x", "xs"}),
    ("transform(xs, (x, i) -> x + i + z)", {"xs", "z"}),
    ("aggregate(xs, 0, (sum, x) -> sum + x, sum -> sum / n)", {"xs", "n"}),
    ("transform(xs, x -> transform(ys, y -> x + y + z))", {"xs", "ys", "z"}),
]


@pytest.mark.parametrize(("text", "read"), READ)
def test_the_columns_of_an_expression_are_those_it_reads_from_the_row(text: str, read: set[str]) -> None:
    assert sql.columns(text) == read


def test_the_functions_of_an_expression_are_told_in_lower_case() -> None:
    assert {"now", "my_function"} <= sql.calls("coalesce(NOW(), My_Function(a))")
    assert sql.calls("a + 1") == set()


REWRITTEN = [
    ("a + 1", {"a": "b * 2"}, "(b * 2) + 1"),
    ("a", {"a": "b + 1"}, "(b + 1)"),
    ("A", {"a": "`x`"}, "(`x`)"),
    ("a - b", {"a": "b", "b": "a"}, "(b) - (a)"),
    ("a", {"a": "b", "b": "c"}, "(b)"),
    ("item.sku", {"item": "p.v"}, "(p.v).sku"),
    ("transform(xs, x -> x + y)", {"x": "0", "y": "`q`"}, "TRANSFORM(xs, x -> x + (`q`))"),
    ("a = 'a'", {"a": "b"}, "(b) = 'a'"),
]


@pytest.mark.parametrize(("text", "replace", "expected"), REWRITTEN)
def test_columns_are_replaced_all_at_once_and_nothing_else_is(
    text: str, replace: dict[str, str], expected: str
) -> None:
    assert sql.rewrite(text, replace) == expected


def test_an_expression_whose_columns_stay_reaches_spark_as_it_was_written() -> None:
    assert sql.rewrite("coalesce( a,B )   -- why", {"a": "a", "other": "x"}) == "coalesce( a,B )   -- why"


NAMES = st.sampled_from(["a", "b", "c", "`d e`"])
EXPRESSIONS = st.recursive(
    st.one_of(NAMES, st.integers(0, 9).map(str), st.sampled_from(["'a'", "null", "s.a"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", "*", " and ", " = ", " <=> ", "||"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, inner).map(lambda two: f"coalesce({two[0]},{two[1]})"),
        inner.map(lambda text: f"transform(xs, a -> a + {text})"),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_rewriting_with_the_identity_returns_the_text(text: str) -> None:
    assert sql.rewrite(text, {name: name for name in sql.columns(text)}) == text
    assert sql.rewrite(text, {}) == text


@given(EXPRESSIONS)
def test_a_rewritten_expression_reads_what_its_columns_are_replaced_by(text: str) -> None:
    replace = {"a": "n1 + m1", "b": "n2", "xs": "ys"}
    expected = {found for name in sql.columns(text) for found in sql.columns(replace.get(name, f"`{name}`"))}
    assert sql.columns(sql.rewrite(text, replace)) == expected


@given(EXPRESSIONS)
def test_a_renaming_and_the_way_back_read_the_same_columns(text: str) -> None:
    there = {name: f"`{name}_`" for name in sql.columns(text)}
    back = {f"{name}_": f"`{name}`" for name in there}
    assert sql.columns(sql.rewrite(sql.rewrite(text, there), back)) == sql.columns(text)


ITEMS = [
    ("a", "a", "a"),
    ("item.sku", "sku", "item.sku"),
    ("a as b", "b", "a"),
    ("coalesce(a, b) AS c", "c", "coalesce(a, b)"),
    ("cast(a as int) as b", "b", "cast(a as int)"),
    ("concat(' as ', a) as b", "b", "concat(' as ', a)"),
    ("a b", "b", "a"),
    ("cast(a as int) b", "b", "CAST(a AS INT)"),
    ("concat(a, ' as ') b", "b", "CONCAT(a, ' as ')"),
    ("concat(' as b', a)\nAS\tc", "c", "concat(' as b', a)"),
    ("a + 1 as `b c`", "b c", "a + 1"),
]


@pytest.mark.parametrize(("text", "name", "expression"), ITEMS)
def test_a_select_item_is_an_expression_and_a_name(text: str, name: str, expression: str) -> None:
    assert sql.select_item(text) == sql.SelectItem(name, expression)


@pytest.mark.parametrize("text", ["a + 1", "count(*)", "*", "'a'"])
def test_a_select_item_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(sql.ExpressionError, match="needs a name") as caught:
        sql.select_item(text)
    assert caught.value.code == "BAD_EXPRESSION"


MEASURES = [
    ("count(*)", "count", None),
    ("COUNT(1)", "count", "1"),
    ("count(a)", "count", "a"),
    ("sum(a + b)", "sum", "a + b"),
    ("min(a)", "min", "a"),
    ("max(s.a)", "max", "s.a"),
    ("avg(a)", "avg", "a"),
    ("count_if(a > 1)", "count", "if(a > 1, 1, null)"),
]


@pytest.mark.parametrize(("text", "function", "argument"), MEASURES)
def test_a_measure_is_one_base_aggregate_that_merges(text: str, function: str, argument: str | None) -> None:
    assert sql.measure(text) == sql.Measure(function, argument)


@pytest.mark.parametrize("text", ["a", "count(distinct a)", "sum(distinct a)", "count(a, b)", "count(*) + 1",
                                  "sum(a) / count(*)", "stddev(a)", "max_by(a, b)", "sum(a) over ()", "sum(a) as b",
                                  "approx_count_distinct(a)", "count()", "min(a, b)", "sum(*)",
                                  "sum(max(a))"])  # fmt: skip
def test_a_measure_that_does_not_merge_is_refused(text: str) -> None:
    with pytest.raises(sql.ExpressionError) as caught:
        sql.measure(text)
    assert caught.value.code == "BAD_MEASURE"


@pytest.mark.parametrize(("text", "expected"), [
    ("count(*)", True), ("sum(a) / count(*)", True), ("collect_list(a)", True), ("count_if(a)", True),
    ("some(a)", True), ("any(a)", True), ("a like any ('x', 'y')", False),
    ("bool_or(a)", True), ("max_by(a, b)", True), ("any_value(a)", True),
    ("a", False), ("coalesce(a, 1)", False), ("'count(*)'", False), ("size(a)", False),
])  # fmt: skip
def test_an_aggregate_is_told_from_an_expression_over_one_row(text: str, expected: bool) -> None:
    assert sql.is_aggregate(text) is expected


def test_every_aggregate_function_of_spark_is_told(spark: SparkSession) -> None:
    jvm: Any = spark._jvm
    infos = jvm.org.apache.spark.sql.api.python.PythonSQLUtils.listBuiltinFunctionInfos()
    names = [info.getName() for info in infos if info.getGroup() == "agg_funcs"]
    assert len(names) > 50
    assert [name for name in names if not told(name)] == []


def told(name: str) -> bool:
    """Whether the function is known as an aggregate, with as many arguments as sqlglot wants."""
    for arguments in ("a", "a, b", "a, b, c"):
        try:
            return sql.is_aggregate(f"{name}({arguments})")
        except sql.ExpressionError:
            continue
    return False


KINDS = [
    ("at", "timestamp"), ("AT", "timestamp"), ("x", ""), ("s.at", ""), ("(day)", "date"), ("'a'", "string"),
    ("cast(id as bigint)", "bigint"), ("try_cast(id as timestamp)", "timestamp"), ("to_date(at)", "date"),
    ("date_trunc('day', at)", "timestamp"), ("coalesce(at, null)", "timestamp"), ("coalesce(at, day)", ""),
    ("if(n > 1, at, at)", "timestamp"), ("lower(id)", "string"), ("n + 1", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), KINDS)
def test_the_type_of_an_expression_is_told_where_it_shows(text: str, expected: str, spark: SparkSession) -> None:
    assert sql.kind(text, TYPES) == expected
    if expected:  # and Spark says the same
        columns = ", ".join(f"cast(null as {kind}) as {name}" for name, kind in TYPES.items())
        assert spark.sql(f"select {text} as x from (select {columns})").dtypes == [("x", expected)]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_string_is_one_literal_with_its_value(value: str) -> None:
    text = sql.string(value)
    assert (text[0], text[-1]) == ("'", "'")
    # Inside, every quote and backslash is escaped: taking the escapes away gives the value back.
    plain, rest = "", text[1:-1]
    while rest:
        escaped = rest[0] == "\\"
        assert escaped or rest[0] != "'"
        plain, rest = plain + rest[escaped], rest[1 + escaped :]
    assert plain == value


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
def test_a_quoted_name_is_the_column_of_that_name(value: str) -> None:
    assert sql.columns(sql.name(value)) == {value.lower()}


@pytest.mark.parametrize(("value", "text"), [("it's", "'it\\'s'"), ("a\\b", "'a\\\\b'"), ("", "''")])
def test_a_string_is_quoted_for_spark(value: str, text: str) -> None:
    assert sql.string(value) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [("e.at", "timestamp"), ("E.In.x", "double"), ("e.m", "map<string,bigint>"), ("e.d", "decimal(10,2)"), ("e.no", ""),
     ("e.at.x", ""), ("n.at", ""), ("(e.in).x", "double")],
)  # fmt: skip
def test_the_type_of_a_field_is_that_of_its_struct(text: str, kind: str) -> None:
    known = {"e": "struct<d:decimal(10,2),at:timestamp,m:map<string,bigint>,in:struct<x:double>>", "n": "bigint"}
    assert sql.kind(text, known) == kind
