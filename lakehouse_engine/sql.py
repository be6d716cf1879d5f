"""Spark SQL expressions as the planner sees them: parsed by sqlglot, never executed here.

What it answers: is this one expression, which columns does it read, what would stop a stream, and which base
aggregates is a measure made of. Rewriting a column reference goes through the parse tree; an expression that needs no
rewriting reaches Spark as the user wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

#: how times are written as text, to the microsecond; Spark's own default ends at milliseconds
TIME_FORMAT = "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"
#: SQL of the options with which ``to_json`` writes them so
AS_JSON = f"map('timestampFormat', \"{TIME_FORMAT}\")"
#: a replay must give the same rows
_UNSTABLE = {"rand", "randn", "random", "uuid", "monotonically_increasing_id", "shuffle", "spark_partition_id",
             "input_file_name"}  # fmt: skip
#: what no pipeline may call, and why
_UNSAFE = {**dict.fromkeys(("reflect", "java_method", "try_reflect"), "runs code"),
           "identifier": "makes names out of text"}  # fmt: skip
#: what throws on data in ANSI mode, and what to write instead
_THROWING_CALLS = {
    **{name: f"write try_{name}" for name in (
        "to_number", "to_binary", "to_time", "make_timestamp_ltz", "make_timestamp_ntz", "make_interval", "parse_json",
        "parse_url", "url_decode", "aes_decrypt", "variant_get", "validate_utf8")},
    "timestamp_from_parts": "write try_make_timestamp",  # sqlglot's name for make_timestamp
    **dict.fromkeys(("raise_error", "assert_true"), "write a check"),
    **dict.fromkeys(("bigint", "smallint", "tinyint", "decimal", "binary"), "write try_cast"),
    **dict.fromkeys(("make_date", "next_day", "conv", "elt", "pmod"), "guard it with what cannot throw"),
}  # fmt: skip
_TIMES = ("timestamp", "timestamp_ltz", "timestamp_ntz", "date")
_TO_TIME = (exp.TsOrDsToDate, exp.StrToTime, exp.StrToDate, exp.StrToUnix, exp.Date, exp.Timestamp)
#: Spark's aggregate functions that sqlglot reads as any call
_AGGREGATES = frozenset(
    re.findall(
        r"\w+",
        """
    any any_value approx_count_distinct approx_percentile approx_top_k approx_top_k_accumulate approx_top_k_combine
    array_agg avg bit_and bit_or bit_xor bitmap_and_agg bitmap_construct_agg bitmap_or_agg bool_and bool_or collect_list
    collect_set corr count count_if count_min_sketch covar_pop covar_samp every first first_value grouping grouping_id
    histogram_numeric hll_sketch_agg hll_union_agg kll_merge_agg_bigint kll_merge_agg_double kll_merge_agg_float
    kll_sketch_agg_bigint kll_sketch_agg_double kll_sketch_agg_float
    kurtosis last last_value listagg max max_by mean measure median min min_by mode percentile percentile_approx
    percentile_cont percentile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy
    regr_syy schema_of_variant_agg skewness some std stddev stddev_pop stddev_samp string_agg sum theta_intersection_agg
    theta_sketch_agg theta_union_agg try_avg try_sum tuple_intersection_agg_double
    tuple_intersection_agg_integer tuple_sketch_agg_double tuple_sketch_agg_integer tuple_union_agg_double
    tuple_union_agg_integer var_pop var_samp variance""",
    )
)
#: one row in, several out
_GENERATORS = frozenset(
    re.findall(
        r"\w+",
        """
    collations explode explode_outer inline inline_outer json_tuple posexplode posexplode_outer sql_keywords stack
    variant_explode variant_explode_outer""",
    )
)


class ExpressionError(ValueError):
    """``code`` is stable: BAD_EXPRESSION, UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION, THROWING_EXPRESSION, BAD_MEASURE."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def reason(error: SqlglotError) -> str:
    """What the parser says, in words that are not its own."""
    text = str(error).split("\n")[0].split(". Line")[0].rstrip(".")
    if "Required" in text:  # it names a class of sqlglot's
        return "an operand or an argument is missing"
    return re.sub(r"<Token [^>]*text: (.*?), line[^>]*>", r"\1", text)


@lru_cache(maxsize=4096)
def _tree(text: str) -> exp.Expr:
    try:
        trees = parse(text, read="spark")
    except SqlglotError as error:
        raise ExpressionError("BAD_EXPRESSION", f"`{text}` is not a Spark SQL expression: {reason(error)}") from None
    if len(trees) != 1 or not isinstance(trees[0], exp.Condition | exp.Alias | exp.Star | exp.Interval):
        raise ExpressionError("BAD_EXPRESSION", f"`{text}` is not one Spark SQL expression")
    return trees[0]


def calls_of(tree: exp.Expr) -> set[str]:
    """The functions that are called anywhere in it, in lower case."""
    names = set()
    for node in tree.find_all(exp.Func):
        names.add(node.name.lower() if isinstance(node, exp.Anonymous) else node.sql_name().lower())
    return names


def check(text: str, *, aggregates: bool = False, named: bool = False) -> None:
    """Refuses what is not one expression over a row and what no pipeline may say.

    ``aggregates``: a measure, which may aggregate rows; ``named``: a select item, which may end in ``as name``.
    Raises ``ExpressionError`` BAD_EXPRESSION, UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION.
    """
    tree = _tree(text)

    def bad(reason: str) -> ExpressionError:
        return ExpressionError("BAD_EXPRESSION", f"`{text}` {reason}")

    if any(node.comments for node in tree.walk()):  # it would swallow what the engine writes after it
        raise bad("holds a comment; write it into the YAML")
    if isinstance(tree, exp.Alias) and not named:
        raise bad(f"is an expression and a second word, {tree.alias}, which would be its name")
    if any(not isinstance(star.parent, exp.Count) for star in tree.find_all(exp.Star)):
        raise bad("holds a *; name the columns")
    if tree.find(exp.Subquery, exp.Select) is not None:
        raise ExpressionError("UNSAFE_EXPRESSION", f"`{text}` holds a query; an expression reads columns only")
    if tree.find(exp.Window) is not None:
        raise bad("looks at other rows (over ...); an expression sees one row")
    calls = calls_of(tree)
    if calls & _GENERATORS:
        raise bad(f"makes several rows of one ({min(calls & _GENERATORS)}), which comes with a later version")
    if not aggregates and is_aggregate(text):
        raise bad("aggregates rows; this step sees one row at a time: use window or aggregate")
    check_calls(tree, f"`{text}`")


def check_calls(tree: exp.Expr, shown: str) -> None:
    """Refuses functions that no pipeline may call.

    Raises ``ExpressionError`` UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION.
    """
    calls = calls_of(tree)
    for name in sorted(calls & _UNSAFE.keys()):
        raise ExpressionError("UNSAFE_EXPRESSION", f"{shown}: {name} {_UNSAFE[name]} and is refused")
    if calls & _UNSTABLE:
        name = sorted(calls & _UNSTABLE)[0]
        raise ExpressionError("UNSTABLE_EXPRESSION", f"{shown}: {name} gives other rows at a replay")


def kind(text: str, known: Mapping[str, str]) -> str:
    """The Spark type of an expression where it shows, else ''. ``known`` maps columns (lower case) to theirs."""
    return _kind(_tree(text), known)


def _kind(node: object, known: Mapping[str, str]) -> str:
    if isinstance(node, exp.Paren | exp.Alias):
        return _kind(node.this, known)
    if isinstance(node, exp.Column):
        kind = known.get(node.parts[0].name.lower(), "")
        for part in node.parts[1:]:
            kind = field(kind, part.name)
        return kind
    if isinstance(node, exp.Dot):
        return field(_kind(node.this, known), node.expression.name)
    if isinstance(node, exp.Literal):
        return "string" if node.is_string else "double" if "." in node.name else "int"
    if isinstance(node, exp.Cast):
        return str(node.args["to"].sql(dialect="spark")).lower()
    if isinstance(node, exp.Coalesce | exp.If):
        branches = [node.this, *node.expressions] if isinstance(node, exp.Coalesce) else [
            node.args.get("true"), node.args.get("false")]  # fmt: skip
        kinds = {_kind(branch, known) for branch in branches if branch is not None and not isinstance(branch, exp.Null)}
        return kinds.pop() if len(kinds) == 1 else ""
    called = _calls_one(node) if isinstance(node, exp.Expr) else ""
    return _KINDS.get(called, "")


def field(kind: str, name: str) -> str:
    """The type of a struct's field, '' where ``kind`` is no struct, or has none of that name."""
    level, start = 0, len("struct<")
    for at, letter in enumerate(kind if kind.startswith("struct<") else "", 0):
        level += (letter in "<(") - (letter in ">)")
        if at >= start and (level, letter) in ((1, ","), (0, ">")):
            one, _, inner = kind[start:at].partition(":")
            if one.lower() == name.lower():
                return inner
            start = at + 1
    return ""


#: by sqlglot's names: its date_trunc is Spark's trunc, its timestamp_trunc Spark's date_trunc
_KINDS = {
    **dict.fromkeys(("to_date", "try_to_date", "ts_or_ds_to_date", "current_date", "curdate", "date_add", "date_sub",
                     "ts_or_ds_add", "last_day", "next_day", "make_date", "trunc", "date_trunc"), "date"),
    **dict.fromkeys(("to_timestamp", "try_to_timestamp", "str_to_time", "timestamp_trunc", "now", "current_timestamp",
                     "timestamp_seconds", "timestamp_millis", "timestamp_micros", "timestamp_from_parts",
                     "try_make_timestamp"), "timestamp"),
    **dict.fromkeys(("concat", "concat_ws", "lower", "upper", "trim", "substring", "regexp_extract", "regexp_replace",
                     "get_json_object", "date_format", "time_to_str", "base64", "hex", "md5"), "string"),
    **dict.fromkeys(("year", "month", "day", "hour", "minute", "second", "length"), "int"),
}  # fmt: skip


def check_stream(text: str, known: Mapping[str, str] | None = None) -> None:
    """Refuses what throws on data: in ANSI mode one such row would stop a stream for ever.

    ``known`` maps a column to its Spark type where it is known: ``to_date(timestamp)`` of a TIMESTAMP cannot throw.
    Raises ``ExpressionError`` THROWING_EXPRESSION.
    """
    for node in _tree(text).walk():
        hint = _throws(node, known or {})
        if hint:
            reason = f"`{text}` can throw on data, and one such row would stop the stream: {hint}"
            raise ExpressionError("THROWING_EXPRESSION", reason)


def _throws(node: exp.Expr, known: Mapping[str, str]) -> str | None:
    """What to write instead, when the node's own operation can throw."""
    if isinstance(node, exp.Cast):
        safe = (isinstance(node, exp.TryCast) and node.args.get("safe")) or isinstance(node.this, exp.Literal)
        to_text = node.args["to"].this in (exp.DataType.Type.TEXT, exp.DataType.Type.VARCHAR)
        return None if safe or to_text or _kind(node.this, known) in _TIMES else "write try_cast"
    if isinstance(node, exp.Div | exp.IntDiv | exp.Mod) and not _nonzero(node.expression):
        instead = "try_mod" if isinstance(node, exp.Mod) else "try_divide"
        return f"write {instead} (or a divisor that is a number)"
    if isinstance(node, exp.Bracket):
        return None if node.args.get("safe") else "write try_element_at"
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Neg | exp.Predicate):
        kinds = {_kind(operand, known) for operand in node.iter_expressions()}
        if "string" in kinds and (not isinstance(node, exp.Predicate) or kinds & {"int", "bigint", "double"}):
            return "a text stands for a number here; write try_cast"
    if isinstance(node, exp.Func):
        if isinstance(node, exp.Anonymous) and _calls_one(node) == "pmod" and _nonzero(node.expressions[-1]):
            return None
        if isinstance(node, _TO_TIME):
            return None if _kind(node.this, known) in _TIMES else "write try_to_date or try_to_timestamp"
        if _calls_one(node) in _THROWING_CALLS:
            return _THROWING_CALLS[_calls_one(node)]
        if isinstance(node, exp.TimeUnit | exp.Hour | exp.Minute | exp.Second) and _kind(node.this, known) == "string":
            return "write try_to_timestamp"
    return None


def _nonzero(node: object) -> bool:
    if isinstance(node, exp.Neg | exp.Paren):
        return _nonzero(node.this)
    return isinstance(node, exp.Literal) and node.name.strip("0.") != ""


def _calls_one(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous):
        return node.name.lower()
    return node.sql_name().lower() if isinstance(node, exp.Func) else ""


def _free_columns(tree: exp.Expr) -> list[exp.Column]:
    """Column references that are not parameters of a lambda; ``a.b`` counts as a field of column ``a``."""
    found = []
    for column in tree.find_all(exp.Column):
        bound, node = False, column.parent
        while node is not None:
            if isinstance(node, exp.Lambda) and any(
                column.parts[0].name.lower() == parameter.name.lower() for parameter in node.expressions
            ):
                bound = True
            node = node.parent
        if not bound:
            found.append(column)
    return found


def columns(text: str) -> set[str]:
    """The columns an expression reads, in lower case as Spark compares them."""
    return {column.parts[0].name.lower() for column in _free_columns(_tree(text))}


def calls(text: str) -> set[str]:
    """The functions an expression calls, in lower case."""
    return calls_of(_tree(text))


def rewrite(text: str, replace: Mapping[str, str]) -> str:
    """The expression with column references replaced by other expressions (keys in lower case).

    A reference whose replacement is itself stays; when nothing changes the text is returned as it is.
    """
    used = {name: replace[name] for name in columns(text) if replace.get(name, name) != name}
    if not used:
        return text
    tree = _tree(text).copy()
    wrapped = exp.Paren(this=tree)  # a root to hang the tree on, so that a lone column can be replaced too
    for column in _free_columns(wrapped):
        parts = column.parts
        if (name := parts[0].name.lower()) not in used:
            continue
        value: exp.Expr = exp.Paren(this=_tree(used[name]).copy())
        for part in parts[1:]:
            value = exp.Dot(this=value, expression=part.copy())
        column.replace(value)
    return str(wrapped.this.sql(dialect="spark"))


@dataclass(frozen=True)
class SelectItem:
    """``expression as name`` of a ``select`` list."""

    name: str
    expression: str


def select_item(text: str) -> SelectItem:
    """Raises ``ExpressionError`` BAD_EXPRESSION when the item has no name of its own."""
    tree = _tree(text)
    if isinstance(tree, exp.Alias):
        before = re.fullmatch(r"(?is)(.*\S)\s+as\s+\S.*", text)
        if before is not None and _parses_to(before[1], tree.this):
            return SelectItem(tree.alias, before[1])  # as it was written
        return SelectItem(tree.alias, str(tree.this.sql(dialect="spark")))
    if isinstance(tree, exp.Column):
        return SelectItem(tree.parts[-1].name, text)
    if isinstance(tree, exp.Dot):
        return SelectItem(tree.expression.name, text)
    raise ExpressionError("BAD_EXPRESSION", f"`{text}` needs a name: {text} as <column>")


def _parses_to(text: str, tree: exp.Expr) -> bool:
    try:
        return _tree(text) == tree
    except ExpressionError:
        return False


@dataclass(frozen=True)
class Measure:
    """A measure as base aggregates that merge: ``function`` count | sum | min | max | avg over ``argument``.

    ``argument`` None is ``count(*)``. ``count_if(c)`` is a count of ``if(c, 1, null)``: it merges as a sum.
    """

    function: str
    argument: str | None


_MERGEABLE: dict[type[exp.Expr], str] = {exp.Count: "count", exp.Sum: "sum", exp.Min: "min", exp.Max: "max",
                                               exp.Avg: "avg", exp.CountIf: "count"}  # fmt: skip


def measure(text: str) -> Measure:
    """Raises ``ExpressionError`` BAD_MEASURE unless the text is one of count, sum, min, max, avg, count_if."""
    tree = _tree(text)
    function = _MERGEABLE.get(type(tree))
    if function is None:
        raise ExpressionError("BAD_MEASURE", f"`{text}` does not merge in a stream: use one of count, count_if, sum, "
                              "min, max, avg, alone")  # fmt: skip
    argument = tree.this
    if isinstance(argument, exp.Distinct):
        raise ExpressionError("BAD_MEASURE", f"`{text}`: count(distinct) does not merge; aggregate it in a job")
    if isinstance(tree, exp.Count) and isinstance(argument, exp.Star):
        return Measure("count", None)
    if argument is None or isinstance(argument, exp.Star) or tree.args.get("expressions"):
        raise ExpressionError("BAD_MEASURE", f"`{text}`: {function} takes one argument here")
    if _aggregates(argument):
        raise ExpressionError("BAD_MEASURE", f"`{text}` aggregates what is aggregated already")
    inner = argument.sql(dialect="spark")
    if isinstance(tree, exp.CountIf):
        return Measure("count", f"if({inner}, 1, null)")
    return Measure(function, inner)


def aggregation(text: str) -> None:
    """Refuses a measure that is none. Raises ``ExpressionError`` BAD_MEASURE."""
    tree = _tree(text)
    if not _aggregates(tree):
        raise ExpressionError("BAD_MEASURE", f"`{text}` does not aggregate")
    for node in tree.walk():
        if not _is_aggregate(node):
            continue
        if any(_aggregates(below) for below in node.iter_expressions()):
            raise ExpressionError("BAD_MEASURE", f"`{text}` aggregates what is aggregated already")
        if type(node) in _MERGEABLE and (node.args.get("expressions") or node.this is None):
            raise ExpressionError("BAD_MEASURE", f"`{text}`: {_MERGEABLE[type(node)]} takes one argument here")


def merges(text: str) -> bool:
    """Whether a measure is one of those that ``measure`` takes apart."""
    try:
        measure(text)
    except ExpressionError:
        return False
    return True


def is_distinct(text: str) -> bool:
    """Whether the expression aggregates distinct values."""
    return _tree(text).find(exp.Distinct) is not None


def is_aggregate(text: str) -> bool:
    """Whether the expression aggregates at its top or below (as a job's measure must)."""
    return _aggregates(_tree(text))


def _aggregates(tree: exp.Expr) -> bool:
    return any(map(_is_aggregate, tree.walk()))


def _is_aggregate(node: exp.Expr) -> bool:
    return (
        isinstance(node, exp.AggFunc | exp.AnonymousAggFunc) or _calls_one(node) in _AGGREGATES
        or (isinstance(node, exp.Any) and not isinstance(node.parent, exp.Binary))  # not of `like any`
    )  # fmt: skip


def string(value: str) -> str:
    """A Spark SQL string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def name(value: str) -> str:
    """A Spark SQL identifier, quoted."""
    return "`" + value.replace("`", "``") + "`"


def comparable(one: str, other: str) -> bool:
    """Whether values of two Spark types compare as they are.

    ANSI SQL compares a text with a number by reading it as one, and stops at the first that is none.
    """
    return one == other or {one, other} <= {"tinyint", "smallint", "int", "bigint"}


def among(column: str, kind: str, values: Iterable[str | None], alias: str = "") -> str:
    """SQL that is true for rows whose column, of Spark type ``kind``, is one of the values: text, or None for null.

    ``alias``: of the table that has the column.
    """
    values = list(values)
    column = f"{alias}.{name(column)}" if alias else name(column)
    there = [f"cast({string(value)} as {kind})" for value in values if value is not None]
    parts = [f"{column} in ({', '.join(there)})"] if there else []
    parts += [f"{column} is null"] if None in values else []
    return " or ".join(parts) or "false"
