"""What the modes of a sink need beside them: keys, an order, since when, a table to delete from."""

from __future__ import annotations

from collections.abc import Iterator

from lakehouse_engine.errors import Problem
from lakehouse_engine.sinks import Delta, Postgres
from lakehouse_engine.spec.further import TO
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.spec.problems import at, some_unread


def merges(spec: PipelineSpec, sink: Delta | Postgres, *, windowed: bool) -> Iterator[Problem]:
    """Rows that replace each other: by what, and which of them wins."""
    here = f"sink.{sink.key}"
    merging = not windowed and sink.mode in ("upsert", "scd2")
    since = sink.valid_from if isinstance(sink, Delta) else None
    if merging and not spec.key_columns and not some_unread(spec):
        yield at(spec, f"{here}.mode", "MISSING_KEY", "rows of which columns replace each other? say it in keys")
    if merging and not sink.order_by:
        yield at(spec, f"{here}.mode", "MISSING_KEY", "order_by is missing: which of two rows of a key wins, whatever"
                 " comes first")  # fmt: skip
    if sink.mode == "scd2" and since is None:
        yield at(spec, f"{here}.mode", "MISSING_KEY", "valid_from is missing: the column that says since when a state"
                 " is valid")  # fmt: skip
    modes = "mode: upsert or scd2" if isinstance(sink, Delta) else "mode: upsert"
    for option, value in (("order_by", sink.order_by), ("delete_when", sink.delete_when)):
        if value and not merging:
            yield at(spec, f"{here}.{option}", "ILLEGAL_MODE", f"{option} goes with {modes}, without a window")
    if since is not None and sink.mode != "scd2":
        yield at(spec, f"{here}.valid_from", "ILLEGAL_MODE", "valid_from goes with mode: scd2")
    own = {"updated_at"} if sink.updated_at else set()
    own |= {"valid_to", *({"valid_from"} if since != "valid_from" else ())} if sink.mode == "scd2" else set()
    for path, names in (("keys", spec.keys or ()), (f"{here}.order_by", sink.order_by)):
        for name in sorted(own.intersection(names)):
            yield at(spec, path, "RESERVED_COLUMN", f"{name} is the engine's column; it neither tells rows apart nor"
                     " orders them")  # fmt: skip


def deletes(spec: PipelineSpec, sink: Delta) -> Iterator[Problem]:
    """Rows of another table."""
    if sink.mode != "delete":
        if sink.table is not None and TO not in spec.name:
            yield at(spec, "sink.delta.table", "ILLEGAL_MODE", "a Delta table is named as its pipeline; table is for"
                     " mode: delete, the one whose rows are deleted")  # fmt: skip
        return
    if sink.table is None:
        yield at(spec, "sink.delta.mode", "MISSING_KEY", "table is missing: the pipeline from whose table rows are"
                 " deleted")  # fmt: skip
    if not spec.key_columns and not some_unread(spec):
        yield at(spec, "sink.delta.mode", "MISSING_KEY", "rows that are equal in which columns are deleted? say it in"
                 " keys")  # fmt: skip
    for option in ("partition_by", "cluster_by", "vacuum_after"):
        if getattr(sink, option):
            yield at(spec, f"sink.delta.{option}", "ILLEGAL_MODE", f"{option} says how a table is laid out or kept:"
                     " say it where that table is written")  # fmt: skip
