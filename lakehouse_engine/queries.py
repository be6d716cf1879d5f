"""A whole select, as the planner sees it: parsed by sqlglot, never executed here.

It answers which tables a query reads, what its columns are called, and whether a pipeline may say it. A query reaches
Spark as the user wrote it: only the names of its tables are replaced, where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

from lakehouse_engine import sql
from lakehouse_engine.sql import ExpressionError

#: what the rows so far are called
INPUT = "input"
#: functions that may stand where a table does
_ROWS = {"range", "explode", "explode_outer", "posexplode", "posexplode_outer", "inline", "inline_outer", "stack",
         "json_tuple", "variant_explode", "variant_explode_outer"}  # fmt: skip


@lru_cache(maxsize=1024)
def _tree(text: str) -> exp.Query:
    if not re.match(r"[\s(]*(select|with|from)\b", text, re.IGNORECASE):
        raise ExpressionError("UNSAFE_EXPRESSION", "only one query, a select, is allowed here")
    try:
        trees = parse(text, read="spark")
    except SqlglotError as error:
        raise ExpressionError("BAD_EXPRESSION", f"this is not a Spark SQL query: {sql.reason(error)}") from None
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        raise ExpressionError("UNSAFE_EXPRESSION", "only one query, a select, is allowed here")
    return trees[0]


def check(text: str) -> None:
    """Raises ``ExpressionError`` BAD_EXPRESSION, UNSTABLE_EXPRESSION, UNSAFE_EXPRESSION."""
    tree = _tree(text)
    sql.check_calls(tree, "the query")
    for table in tree.find_all(exp.Table):
        _check_table(table)
    for lateral in tree.find_all(exp.Lateral):
        if isinstance(lateral.this, exp.Func):
            _check_rows(lateral.this)
    if tree.find(exp.QueryTransform) is not None:
        raise ExpressionError("UNSAFE_EXPRESSION", "the query: transform runs a program and is refused")
    if tree.find(exp.Into, exp.DML, exp.DDL, exp.Command) not in (None, tree):
        raise ExpressionError("UNSAFE_EXPRESSION", "the query changes something; only a select is allowed here")
    if tree.find(exp.Placeholder, exp.Parameter) is not None:
        raise ExpressionError("BAD_EXPRESSION", "the query has a parameter; a pipeline's are written ${name}")
    if tree.find(exp.TableSample) is not None:
        raise ExpressionError("UNSTABLE_EXPRESSION", "the query: a sample gives other rows at a replay")
    for node in tree.find_all(exp.Limit, exp.Offset, exp.Fetch):
        if node.parent is not None and node.parent.args.get("order") is None:
            raise ExpressionError("UNSTABLE_EXPRESSION", "the query: limit without order by gives other rows at a"
                                  " replay")  # fmt: skip
    for name in sorted(_common(tree) & {INPUT}):
        raise ExpressionError("BAD_EXPRESSION", f"the query: {name} is what the rows so far are called")
    for item in _first(tree).selects:
        if not item.is_star and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", item.output_name):
            shown = item.sql(dialect="spark")
            raise ExpressionError("BAD_EXPRESSION", f"the query: `{shown}` needs a name: {shown} as <column>")
    if INPUT not in tables(text):
        raise ExpressionError("BAD_EXPRESSION", "the query does not read input, the rows of the steps before it")


def _check_rows(called: exp.Func) -> None:
    name = called.name.lower() if isinstance(called, exp.Anonymous) else called.sql_name().lower()
    if name not in _ROWS:
        raise ExpressionError("UNSAFE_EXPRESSION", f"the query: {name} in place of a table is refused")


def _check_table(table: exp.Table) -> None:
    shown = table.sql(dialect="spark")
    if isinstance(table.this, exp.Func):
        _check_rows(table.this)
    elif any(not part.name.replace("_", "a").isalnum() for part in table.parts):
        raise ExpressionError("UNSAFE_EXPRESSION", f"the query reads the file {shown}; a query reads inputs and"
                              " pipelines' tables")  # fmt: skip
    elif len(table.parts) > 2:
        raise ExpressionError("BAD_EXPRESSION", f"the query: {shown} is not <layer>.<name>")
    elif table.args.get("version") is not None or table.args.get("when") is not None:
        raise ExpressionError("BAD_EXPRESSION", f"the query: an older version of a table is an input of its own, with"
                              f" as_of: {shown}")  # fmt: skip


def _first(tree: exp.Query) -> exp.Query:
    """The select that names the result's columns."""
    while isinstance(tree, exp.Subquery | exp.SetOperation):
        tree = tree.this
    return tree


def _common(tree: exp.Query) -> set[str]:
    """The names of its common table expressions."""
    return {cte.alias.lower() for cte in tree.find_all(exp.CTE)}


def _named(tree: exp.Query) -> Iterator[tuple[str, exp.Table]]:
    """The tables that it reads by name, other than what it defines itself."""
    own = _common(tree)
    for table in tree.find_all(exp.Table):
        if isinstance(table.this, exp.Func) or table.find_ancestor(exp.Hint) is not None:
            continue
        name = ".".join(part.name for part in table.parts).lower()
        if len(table.parts) > 1 or name not in own:
            yield name, table


def tables(text: str) -> tuple[str, ...]:
    """What it reads, in lower case, ``input`` among it; each once, in the order of the text."""
    found = sorted((table.parts[0].meta.get("start", 0), name) for name, table in _named(_tree(text)))
    return tuple(dict.fromkeys(name for _, name in found))


def calls(text: str) -> set[str]:
    """The functions it calls, in lower case."""
    return sql.calls_of(_tree(text))


def columns(text: str, known: Mapping[str, str] | None) -> dict[str, str] | None:
    """Its columns with their types ('' unknown); ``known``: those of ``input``. None where that does not show."""
    tree = _first(_tree(text))
    found: dict[str, str] = {}
    for item in tree.selects:
        if item.is_star:
            below = [name for name, table in _named(tree) if table.find_ancestor(exp.Select) is tree]
            alone = below == [INPUT] and not tree.args.get("joins") and not tree.args.get("laterals")
            if known is None or not alone or not isinstance(item, exp.Star) or any(item.args.values()):
                return None
            found |= known
        else:
            plain = isinstance(item, exp.Column) and len(item.parts) == 1 and tables(text) == (INPUT,)
            found[item.output_name] = (known or {}).get(item.name, "") if plain else ""
    return found


def placed(text: str, names: Mapping[str, str]) -> str:
    """The query with each table's name replaced by a placeholder ``{name}``; other braces are doubled.

    A table keeps its own name as its alias where the query gives it none.
    """
    found = []
    for name, table in _named(_tree(text)):
        parts = [part.meta for part in table.parts]
        alias = "" if table.alias else f" as {sql.name(table.parts[-1].name)}"
        found.append((parts[0]["start"], parts[-1]["end"] + 1, f"{{{names[name]}}}{alias}"))
    made, at = "", 0
    for start, end, instead in sorted(found):
        made += text[at:start].replace("{", "{{").replace("}", "}}") + instead
        at = end
    return made + text[at:].replace("{", "{{").replace("}", "}}")


__all__ = ["INPUT", "calls", "check", "columns", "placed", "tables"]
