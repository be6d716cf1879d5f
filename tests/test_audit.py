"""The audit says so when a record is unaccounted for, and only then."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from lakehouse_engine.audit import Batch, judge
from lakehouse_engine.local.stack import Services
from lakehouse_engine.sources.broker import records_between


def batch(number: int, since: int, until: int, **counters: int) -> Batch:
    return Batch(number, "t", "events", {0: (since, until)}, counters or {"counted": until - since})


WHOLE = [batch(1, 5, 10), batch(2, 10, 10), batch(3, 10, 20, counted=4, late=2, filtered=1, duplicate=2, quarantined=1)]
KEPT = replace(WHOLE[2], kept={"late": 2, "quarantined": 1})
ENDS = {"t": {0: 20}}
WRONG = [
    ("a record that no counter has", [*WHOLE[:2], batch(3, 10, 20, counted=9)], ENDS, 10,
     "batch 3 read 10 records and accounts for 9"),
    ("a record that two counters have", [*WHOLE[:2], batch(3, 10, 20, counted=10, late=1)], ENDS, 10,
     "batch 3 read 10 records and accounts for 11"),
    ("one too many, gone from the topic", [batch(3, 10, 20, counted=11)], ENDS, None,
     "batch 3 read 10 records and accounts for 11"),
    ("one too few, gone from the topic", [batch(3, 10, 20, counted=9)], ENDS, None,
     "batch 3 read 10 offsets and accounts for 9; the topic does not hold them any more, so nobody can say"),
    ("a batch that is not there", [WHOLE[0], WHOLE[2], batch(4, 21, 22)], {"t": {0: 22}}, 0,
     "batch 4 leaves out what came before offset 21 of partition 0; the one before ended at 20"),
    ("a batch that reads again", [WHOLE[0], batch(2, 9, 20)], ENDS, 0, "batch 2 reads again from offset 9"),
    ("a position ahead of its batches", WHOLE, {"t": {0: 30}}, 0,
     "partition 0 is stored as read up to 30, and its batches end at 20"),
    ("a late row that is gone", [*WHOLE[:2], replace(KEPT, kept={"late": 1})], ENDS, 0,
     "batch 3 counted 2 rows as late, and 1 are kept"),
]  # fmt: skip


@pytest.mark.parametrize(("batches", "ends", "held", "said"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_what_does_not_hold_is_said(
    batches: list[Batch], ends: dict[str, dict[int, int]], held: int | None, said: str
) -> None:
    found = judge("a.b", "postgres", 1, batches, ends, lambda topic, ranges: held)
    assert len(found.wrong) == 1, found.wrong
    assert found.wrong[0].startswith(said)


def test_offsets_without_a_record_are_no_rows() -> None:
    unasked = judge("a.b", "postgres", 1, [*WHOLE[:2], KEPT], ENDS, lambda topic, ranges: pytest.fail("asked"))
    assert (unasked.ok, unasked.read, unasked.counters["counted"], unasked.empty) == (True, 15, 9, 0)
    marks = judge("a.b", "delta", 1, [batch(1, 0, 10, counted=7)], {}, lambda topic, ranges: 7)
    assert (marks.ok, marks.read, marks.empty) == (True, 10, 3)


def test_versions_of_a_table_are_no_rows_but_follow_each_other() -> None:
    table = "0b1c5a7e-6f0e-4c3e-9f70-3b1f0f3f6a11"
    batches = [replace(one, topic_id=table) for one in (batch(1, 0, 1, counted=70), batch(2, 1, 2, counted=3))]
    assert judge("a.b", "delta", 1, batches, {}, lambda topic, ranges: pytest.fail("asked")).ok
    torn = judge("a.b", "delta", 1, [batches[0], replace(batches[1], ranges={0: (2, 3)})], {}, lambda topic, ranges: 0)
    assert torn.wrong == ("batch 2 leaves out what came before offset 2 of partition 0; the one before ended at 1",)


def test_committed_records_of_a_range_are_counted_and_no_marks(stack: Services) -> None:
    topic = f"audited_{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    for committed in (3, 0, 2):  # offsets 0 to 2 and a mark, 4 to 5 and a mark (aborted), 7 to 8 and a mark
        producer.begin_transaction()
        for _ in range(committed or 2):
            producer.produce(topic, b"x", partition=0)
        producer.flush(30)  # what an abort finds unsent is never sent
        (producer.commit_transaction if committed else producer.abort_transaction)(30)
    counted = {span: records_between(stack.bootstrap_servers, topic, {0: span})
               for span in [(0, 10), (0, 3), (0, 8), (3, 7), (5, 5), (0, 11)]}  # fmt: skip
    assert counted == {(0, 10): 5, (0, 3): 3, (0, 8): 4, (3, 7): 0, (5, 5): 0, (0, 11): None}
    assert records_between(stack.bootstrap_servers, f"{topic}_gone", {0: (0, 1)}) is None
