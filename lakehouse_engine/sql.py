"""Spark SQL expressions as the planner sees them: parsed by sqlglot, never executed here.

What it answers: is this one expression, which columns does it read, what would stop a stream, and which base
aggregates is a measure made of. Rewriting a column reference goes through the parse tree; an expression that needs no
rewriting reaches Spark as the user wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

#: a replay must give the same rows
_UNSTABLE = {"rand", "randn", "random", "uuid", "monotonically_increasing_id", "shuffle", "spark_partition_id",
             "input_file_name"}  # fmt: skip
#: runs code or reads files
_UNSAFE = {"reflect", "java_method", "try_reflect"}
_THROWING_CALLS = {"element_at": "try_element_at", "to_date": "try_to_date", "to_timestamp": "try_to_timestamp",
                   "to_number": "try_to_number", "raise_error": "nothing: it always throws",
                   "assert_true": "a check"}  # fmt: skip


class ExpressionError(ValueError):
    """``code`` is stable: BAD_EXPRESSION, UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION, THROWING_EXPRESSION, BAD_MEASURE."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@lru_cache(maxsize=4096)
def _tree(text: str) -> exp.Expr:
    try:
        trees = parse(text, read="spark")
    except SqlglotError as error:
        reason = str(error).split("\n")[0].split(". Line")[0].rstrip(".")
        raise ExpressionError("BAD_EXPRESSION", f"`{text}` is not a Spark SQL expression: {reason}") from None
    if len(trees) != 1 or not isinstance(trees[0], exp.Condition | exp.Alias | exp.Star | exp.Interval):
        raise ExpressionError("BAD_EXPRESSION", f"`{text}` is not one Spark SQL expression")
    return trees[0]


def _calls(tree: exp.Expr) -> set[str]:
    names = set()
    for node in tree.find_all(exp.Func):
        names.add(node.name.lower() if isinstance(node, exp.Anonymous) else node.sql_name().lower())
    return names


def check(text: str) -> None:
    """Refuses what is not one expression and what no pipeline may say.

    Raises ``ExpressionError`` BAD_EXPRESSION, UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION.
    """
    tree = _tree(text)
    if any(node.comments for node in tree.walk()):  # it would swallow what the engine writes after it
        raise ExpressionError("BAD_EXPRESSION", f"`{text}` holds a comment; write it into the YAML")
    if tree.find(exp.Subquery, exp.Select) is not None:
        raise ExpressionError("UNSAFE_EXPRESSION", f"`{text}` holds a query; an expression reads columns only")
    calls = _calls(tree)
    if calls & _UNSAFE:
        raise ExpressionError("UNSAFE_EXPRESSION", f"`{text}`: {sorted(calls & _UNSAFE)[0]} runs code and is refused")
    if calls & _UNSTABLE:
        name = sorted(calls & _UNSTABLE)[0]
        raise ExpressionError("UNSTABLE_EXPRESSION", f"`{text}`: {name} gives other rows at a replay")


def check_stream(text: str, known: Mapping[str, str] | None = None) -> None:
    """Refuses what throws on data: in ANSI mode one such row would stop a stream for ever.

    ``known`` maps a column to its Spark type where it is known: ``to_date(timestamp)`` of a TIMESTAMP cannot throw.
    Raises ``ExpressionError`` THROWING_EXPRESSION.
    """
    known = known or {}
    tree = _tree(text)

    def safe_time(node: exp.Expr | None) -> bool:
        return isinstance(node, exp.Column) and known.get(node.name.lower(), "") in ("timestamp", "date")

    for node in tree.walk():
        hint = None
        if isinstance(node, exp.Cast) and not (isinstance(node, exp.TryCast) and node.args.get("safe")):
            to_text = node.args["to"].this in (exp.DataType.Type.TEXT, exp.DataType.Type.VARCHAR)
            if not to_text and not safe_time(node.this) and not isinstance(node.this, exp.Literal):
                hint = "write try_cast"
        elif isinstance(node, exp.Div | exp.IntDiv | exp.Mod):
            divisor = node.expression
            if not (isinstance(divisor, exp.Literal) and divisor.name.strip("0.") != ""):
                hint = "write try_divide (or a divisor that is a number)"
        elif isinstance(node, exp.Bracket):
            hint = "write try_element_at"
        elif (
            isinstance(node, exp.TsOrDsToDate | exp.StrToTime | exp.StrToDate | exp.Date | exp.Timestamp)
            or (isinstance(node, exp.Func) and _calls_one(node) in _THROWING_CALLS)
        ) and not safe_time(node.this if isinstance(node.this, exp.Expr) else None):
            hint = f"write {_THROWING_CALLS.get(_calls_one(node), 'the try_ form')}"
        if hint:
            reason = f"`{text}` can throw on data, and one such row would stop the stream: {hint}"
            raise ExpressionError("THROWING_EXPRESSION", reason)


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
            if isinstance(node, exp.Lambda) and any(column.parts[0].name == p.name for p in node.expressions):
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
    return _calls(_tree(text))


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
        return SelectItem(tree.alias, text[: text.lower().rindex(" as ")] if " as " in text.lower() else
                          tree.this.sql(dialect="spark"))  # fmt: skip
    if isinstance(tree, exp.Column):
        return SelectItem(tree.parts[-1].name, text)
    if isinstance(tree, exp.Dot):
        return SelectItem(tree.expression.name, text)
    raise ExpressionError("BAD_EXPRESSION", f"`{text}` needs a name: {text} as <column>")


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
    if isinstance(tree, exp.Count) and (isinstance(argument, exp.Star) or argument is None):
        return Measure("count", None)
    if isinstance(tree, exp.Count) and tree.args.get("expressions"):
        raise ExpressionError("BAD_MEASURE", f"`{text}`: count takes one argument here")
    inner = argument.sql(dialect="spark")
    if isinstance(tree, exp.CountIf):
        return Measure("count", f"if({inner}, 1, null)")
    return Measure(function, inner)


def is_aggregate(text: str) -> bool:
    """Whether the expression aggregates at its top or below (as a job's measure must)."""
    return _tree(text).find(exp.AggFunc, exp.AnonymousAggFunc) is not None or bool(
        _calls(_tree(text)) & {"count_if", "any_value", "approx_count_distinct", "percentile", "bool_or", "every"}
    )


def string(value: str) -> str:
    """A Spark SQL string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def name(value: str) -> str:
    """A Spark SQL identifier, quoted."""
    return "`" + value.replace("`", "``") + "`"
