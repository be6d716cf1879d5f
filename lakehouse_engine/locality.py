"""Which parts of a job's result depend on which parts of what it reads: whether incremental equals full.

A slice is one value of ``replace_by``. The slice column must reach every grouping, dedupe and join key unchanged; then
a slice of the result is made of that slice of the source, and of that slice of every input that is joined or added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lakehouse_engine import sql
from lakehouse_engine.sources import Delta
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.transforms import (
    Aggregate,
    Cast,
    Combining,
    Dedupe,
    Derive,
    Drop,
    Explode,
    Join,
    Lookup,
    Rename,
    Select,
    Sql,
    Union,
    Window,
)

#: of a sentence, what a job does with another table
_WHY = {"lookup": "which it looks up", "join": "which it joins", "union": "which it adds",
        "sql": "which its query reads"}  # fmt: skip


@dataclass(frozen=True)
class Other:
    """Another table that a job reads, beside its source's.

    ``name``: what steps call it, an input or the table itself; ``key``: what ``sources`` of the commit call it;
    ``slice_by``: its column whose changed values are the
    slices of the result to recompute, None where any change makes the next run a full one; ``ignored``: changes of it
    are let be. ``why``: of a sentence, what the job does with it; ``place``: in the file.
    """

    name: str
    table: str
    as_of: int | str | None
    key: str
    slice_by: str | None
    ignored: bool
    why: str
    place: str


def locality(spec: PipelineSpec, column: str | None) -> tuple[bool, str]:
    """Whether a slice of the result depends on that slice of the source alone, and if not, why."""
    if column is None:
        return False, "the sink has no replace_by"
    for index, transform in enumerate(spec.transforms):
        step = f"{spec.below}transforms[{index}].{transform.key}"
        if isinstance(transform, Derive | Cast) and column in transform.columns:
            return False, f"{step} computes {column}"
        if isinstance(transform, Explode) and column in (transform.column, *transform.made):
            return False, f"{step} computes {column}"
        if (isinstance(transform, Drop) and transform.drops(column)) or (
            isinstance(transform, Rename) and column.lower() in (*transform.new, *map(str.lower, transform.columns))
        ):
            return False, f"{step} does not pass {column} on as it is"
        if isinstance(transform, Select):
            kept = [item for item in map(sql.select_item, transform.items) if item.name == column]
            if [item.expression for item in kept] != [column]:
                return False, f"{step} does not pass {column} on as it is"
        if isinstance(transform, Dedupe) and column not in transform.keys:
            return False, f"{step} does not have {column} among its keys"
        if isinstance(transform, Join) and column not in transform.keys:
            return False, f"{step} does not have {column} among its keys"
        if isinstance(transform, Aggregate | Window) and column not in transform.by:
            return False, f"{step} does not group by {column}"
        if isinstance(transform, Sql) and not transform.local:
            return False, f"{step} does not say local: true"
    return True, f"every step keeps {column}"


def others(spec: PipelineSpec, slice_by: str | None) -> tuple[Other, ...]:
    """The other tables that a job reads, by what its steps call them; those that only its checks look into, too."""
    found: dict[str, Other] = {}
    for place, step in spec.combining():
        for one in _read(spec, place, step, slice_by):
            before = found.setdefault(one.name, one)
            found[one.name] = replace(
                before,
                slice_by=before.slice_by if before.slice_by == one.slice_by else None,
                ignored=before.ignored and one.ignored,
            )
    for table in spec.related:
        one = Other(table, table, None, _key(spec, table, None), None, False, "which its checks look into", "checks")
        found[table] = replace(found.get(table, one), slice_by=None, ignored=False)
    return tuple(found.values())


def _read(spec: PipelineSpec, place: str, step: Combining, slice_by: str | None) -> Iterator[Other]:
    for name in step.others:
        read = spec.other(name)
        assert read is not None
        assert isinstance(read.source, Delta)
        their = step.keys.get(slice_by or "") if isinstance(step, Join) else slice_by
        aligned = isinstance(step, Join | Union) and their is not None and locality(spec.part(name), their)[0]
        ignored = isinstance(step, Lookup) and step.on_change == "ignore"
        table, as_of = read.source.table, read.source.as_of
        yield Other(name, table, as_of, _key(spec, table, as_of), their if aligned else None, ignored, _WHY[step.key],
                    f"inputs.{name}" if name in spec.inputs else place)  # fmt: skip


def _key(spec: PipelineSpec, table: str, as_of: int | str | None) -> str:
    pinned = isinstance(spec.source, Delta) and spec.source.table == table and spec.source.as_of is not None
    return f"{table} as of {'now' if as_of is None else as_of}" if pinned or as_of is not None else table


def slices_of(step: Combining, slice_by: str) -> str | None:
    """The other side's column that is the slice column of the result, where it has one."""
    if isinstance(step, Join):
        return step.keys.get(slice_by)
    return slice_by if isinstance(step, Union) else None
