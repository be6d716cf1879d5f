"""A difference between rows as people read it: a table with aligned columns, in which the cells that differ are marked.

After chispa, which prints two frames beside each other and colours the rows that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lakehouse_engine.testing.values import Difference, Found, same, shown

#: rows that are shown of each kind, and characters of a cell
SHOWN, WIDE = 8, 60
_RED, _GREEN, _END = "\033[31m", "\033[32m", "\033[0m"
Line = tuple[str, Sequence[str], Sequence[bool]]


def rendered(difference: Difference, *, colour: bool = False) -> str:
    """How many rows differ, and a table of them: ``expected`` above ``found`` where both are one row.

    The cells that differ are red, or without ``colour`` stand above carets.
    """
    counts = {"differ": len(difference.changed), "are missing": len(difference.missing),
              "are unexpected": len(difference.unexpected)}  # fmt: skip
    said = ", ".join(f"{n} {'row' if n == 1 else 'rows'} {_verb(verb, n)}" for verb, n in counts.items() if n)
    rows = [*(row for pair in difference.changed for row in pair), *difference.missing, *difference.unexpected]
    columns = [*dict.fromkeys(column for row in rows for column in row)]
    lines = list(_lines(difference, columns))
    widths = [max(len(name), *(len(cells[i]) for _, cells, _ in lines)) for i, name in enumerate(columns)]
    first = max(len(word) for word, _, _ in lines)
    drawn = [" " * first + "".join(f"  {name:<{width}}" for name, width in zip(columns, widths, strict=True))]
    for word, cells, marked in lines:
        tint = _GREEN if word in ("expected", "missing") else _RED
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
        if colour:
            padded = [f"{tint}{cell}{_END}" if mark else cell for cell, mark in zip(padded, marked, strict=True)]
        drawn.append(f"{word:<{first}}" + "".join(f"  {cell}" for cell in padded))
        if word == "found" and not colour:
            carets = ["^" * len(cell) if mark else "" for cell, mark in zip(cells, marked, strict=True)]
            drawn.append(" " * first + "".join(f"  {c:<{w}}" for c, w in zip(carets, widths, strict=True)))
    left = sum(max(0, n - SHOWN) for n in counts.values())
    return "\n".join([said, *(line.rstrip() for line in drawn), *([f"and {left:,} more"] if left else [])])


def _verb(verb: str, count: int) -> str:
    return verb if count > 1 else {"differ": "differs"}.get(verb, verb.replace("are", "is"))


def _lines(difference: Difference, columns: Sequence[str]) -> Iterator[Line]:
    for expected, found in difference.changed[:SHOWN]:
        differ = [column in expected and not (column in found and same(expected[column], found[column]))
                  for column in columns]  # fmt: skip
        yield "expected", _cells(expected, columns), differ
        yield "found", _cells(found, columns), differ
    for word, rows in (("missing", difference.missing), ("unexpected", difference.unexpected)):
        for row in rows[:SHOWN]:
            yield word, _cells(row, columns), [column in row for column in columns]


def _cells(row: Found, columns: Sequence[str]) -> list[str]:
    cells = [shown(row[column]).replace("\n", "\\n") if column in row else "" for column in columns]
    return [cell if len(cell) <= WIDE else cell[: WIDE - 3] + "..." for cell in cells]
