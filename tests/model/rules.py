"""What keeps the numbers right, a switch each; ``schedules`` has what breaks a law without it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rules:
    """As the engine has them; each False is one defence less."""

    #: ``progress.move`` compares the position
    compare: bool = True
    #: ``progress.move`` compares the writer
    writer: bool = True
    #: a batch's number is unique in ``lakehouse.batches``
    batch_key: bool = True
    #: ``progress.claim`` waits for batches that are about to commit
    claim_locks: bool = True
    #: ``progress.claim`` takes the rows of all topics that were called so
    claim_all: bool = True
    #: a partition that is new to a pipeline which has read the topic begins at its first record
    new_partition_first: bool = True
    #: rows below a pipeline's position are not counted (``scan_floors``, ``not_before``)
    floors: bool = True
    #: where members stand that were taken out by a lookup counts for the floors of others (``ScanRun._left``)
    left_by_lookup: bool = True
    #: where members stand that failed in a commit counts for the floors of others
    left_by_commit: bool = True
    #: a member that fails rolls back to its savepoint
    savepoint: bool = True
    #: Spark ends a query that misses records (``failOnDataLoss``)
    fail_on_data_loss: bool = True
    #: rows are late by the watermark before their batch, not by that after it
    watermark_before: bool = True
    #: a watermark is never less than the one before it
    watermark_stays: bool = True
    #: an idle partition takes no part in the watermark
    idle: bool = True
    #: rows, late rows and what is refused are written in the transaction of the position
    one_transaction: bool = True
    #: windows are sent by the watermark that the next batch will have
    close_by_next: bool = True
    #: a start closes at least what was sent (``FinalMerge.closed_until``)
    closed_until: bool = True
    #: one writer process for each table and scan in a storage
    locks: bool = True
    #: what is refused by a landing is kept by a position of its own (``Aside``)
    aside_position: bool = True
    #: a recount compares claim and positions in each day's transaction (``_Recount._compare``)
    recount_compares: bool = True
    #: a recount counts the rows below the stream's positions, and no others
    recount_below: bool = True
    #: a landing that has read a former topic of that name is not the history of this one (``past._history``)
    history_of_topic: bool = True
    #: a record whose rows a RESTORE has taken away does not count (``DeltaLog.record``)
    restore_seen: bool = True
    #: before a position is written, the topic is still the one that was claimed (``Reading.still``)
    topic_watched: bool = True


#: the engine as it is
ENGINE = Rules()
#: what it lacks: for each there is a schedule that breaks a law
LACKING = frozenset(f.name for f in fields(Rules) if f.default is False)
#: second lines: nothing is known that needs them while ``writer`` stands
SECOND = frozenset({"compare", "batch_key"})
DEFENCES = frozenset(f.name for f in fields(Rules)) - LACKING - SECOND
