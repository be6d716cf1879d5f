"""``lakehouse diff``: what becomes of tables when files are changed, from the files alone. No Spark, no service."""

from __future__ import annotations

from collections.abc import Iterator

from lakehouse_engine import definitions, verdicts
from lakehouse_engine.errors import SpecError
from lakehouse_engine.spec.check import output_columns
from lakehouse_engine.spec.loader import Read
from lakehouse_engine.spec.pipeline import PipelineSpec
from lakehouse_engine.verdicts import VERDICTS, Change


def between(old: Read, new: Read) -> list[Change]:
    """All changes from one reading of files to another, by pipeline.

    Raises ``SpecError`` with what is wrong in either.
    """
    problems = [*old.problems, *new.problems]
    if problems:
        raise SpecError(problems)
    olds, news = {spec.name: spec for spec in old.specs}, {spec.name: spec for spec in new.specs}
    found = [Change(name, "", "gone", VERDICTS["gone"]) for name in olds.keys() - news.keys()]
    found += [Change(name, "", "new", VERDICTS["new"]) for name in news.keys() - olds.keys()]
    for name in olds.keys() & news.keys():
        found += verdicts.settled(list(_of_one(olds[name], old, news[name], new)))
    return sorted(found)


def _of_one(before: PipelineSpec, old: Read, after: PipelineSpec, new: Read) -> Iterator[Change]:
    was, now = definitions.of(before), definitions.of(after)
    yield from verdicts.changes(after.name, was, now)
    there, wanted = output_columns(before, old.upstream), output_columns(after, new.upstream)
    if was.sink == now.sink and there is not None and wanted is not None:
        yield from verdicts.columns(after.name, now, there, wanted)
