"""A stream's windows, counted anew as one backfill after a test: the closed ones must be those that it wrote.

It is another way to the same numbers: all rows at once and each window whole, where the stream merged what each batch
gave. Not asked where the two may differ by design: with late rows, which a backfill counts; where a table was looked up
that has changed since; where the test put rows into the table; and where it has many rows, which would take long.
"""

from __future__ import annotations

from lakehouse_engine.plan import compile_plan
from lakehouse_engine.recount import recount
from lakehouse_engine.request import Span
from lakehouse_engine.sinks import Postgres
from lakehouse_engine.sources import Delta
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.streaming import needs_state
from lakehouse_engine.testing.cases import SOURCE, Case
from lakehouse_engine.testing.feeds import Place
from lakehouse_engine.testing.rendering import rendered
from lakehouse_engine.testing.target import Target
from lakehouse_engine.testing.values import Found, difference
from lakehouse_engine.transforms import Window

#: rows that a test may send for this to be asked
MOST_ROWS = 1_000


def asked(case: Case, spec: PipelineSpec) -> bool:
    """Whether a test of this pipeline is also run as a backfill when it ends; late rows aside."""
    if not spec.is_stream or not isinstance(spec.sink, Postgres) or not any(t.key == "window" for t in spec.transforms):
        return False
    by_another = any(isinstance(t, Window) and t.column is not None for t in spec.transforms)
    source = spec.source
    again = spec.placed or (isinstance(source, Delta) and not source.changes and source.rewrites == "fail")
    if needs_state(spec) or not again or by_another:
        return False  # such a stream has no backfill yet
    changed = any(name in batch for batch in case.batches for name in spec.inputs if name != SOURCE)
    return not (changed or case.tables) and sum(len(rows) for b in case.batches for rows in b.values()) <= MOST_ROWS


def differs(place: Place, spec: PipelineSpec, target: Target) -> str | None:
    """What is different, None when nothing is. ``spec``: as it runs, with the test's own topic."""
    if target.aside("late"):  # those too that are late for some of their windows alone
        return None
    before = [_kept(row) for row in target.rows()]
    (member,) = compile_plan([spec]).scans[0].members
    recount(place.bench.spark, member, None, Span(full=True), place.connections, lambda _: None)
    found = difference(before, [_kept(row) for row in target.rows()])
    if found is None:
        return None
    return f"counted anew as one backfill, closed windows are others: {rendered(found)}"


def _kept(row: Found) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "updated_at"}
