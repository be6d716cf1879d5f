"""What a windowed pipeline's tables must hold, worked out from the topic by its ledger and by plain definitions."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from lakehouse_engine.progress import IDLE_AFTER, Record
from tests.model.pipelines import Pipeline
from tests.model.stores import Noted, Recounted, Table
from tests.model.topic import Broker, Event

#: by partition: the greatest event time, when its last row came, whether it is idle
Seen = dict[int, tuple[int, int, bool]]


def ranges(record: Record) -> dict[int, tuple[int, int]]:
    return {int(p): (r["from"], r["to"]) for p, r in record.ranges().items()}


def records(record: Record, broker: Broker) -> list[tuple[int, int, Event]]:
    topic = broker.ever[record.topic_id]
    return [(p, o, e) for p, (since, until) in ranges(record).items() for o, e in topic.records(p, since, until)]


def once(name: str, what: str, found: Counter[tuple[str, int, int]], wanted: Counter[tuple[str, int, int]]) -> None:
    assert found == wanted, f"{name}: {what}: too many {dict(found - wanted)}, too few {dict(wanted - found)}"


class Windows:
    """What a windowed pipeline's tables must hold after each entry of its ledger, worked out from the topic.

    ``counted``: of each record the windows that it counts in; ``sent``: windows that may not change any more.
    """

    def __init__(self, pipeline: Pipeline, broker: Broker) -> None:
        assert pipeline.window is not None
        self.pipeline, self.window, self.broker = pipeline, pipeline.window, broker
        self.name, self.size = pipeline.name, pipeline.window.size
        self.open: dict[tuple[int, str], Counter[int]] = {}
        self.rows: list[Event] = []
        self.sent: dict[tuple[int, str], Counter[int]] = {}
        self.ends: dict[tuple[int, str], int] = {}
        self.late: dict[tuple[str, int, int], tuple[Event, list[int]]] = {}
        self.refused: Counter[tuple[str, int, int]] = Counter()
        self.fates: Counter[int] = Counter()
        self.partitions: dict[str, Seen] = {}
        self.watermark: int | None = None
        #: the greatest watermark of a recount
        self.recounted: int | None = None
        self.good: dict[str, list[tuple[int, int, Event]]] = {}

    def follow(self, log: list[Noted | Recounted], table: Table) -> None:
        for entry in log:
            if isinstance(entry, Noted):
                self._batch(entry)
            else:
                self._recount(entry)
        self._compare(table)

    def _batch(self, noted: Noted) -> None:
        record = noted.record
        self._watermark(record, noted.delay)
        counters: Counter[str] = Counter()
        for p, o, event in records(record, self.broker):
            place = (record.topic_id, p, o)
            if event.kind == "filtered":
                counters["filtered"] += 1
            elif event.kind != "good":
                counters["quarantined"] += 1
                self.refused[place] += 1
            else:
                self.good.setdefault(record.topic_id, []).append((p, o, event))
                counters[self._judge(event, place, record.watermark)] += 1
        found = {name: n for name, n in record.counters.items() if n}
        assert found == dict(counters), f"{self.name}: batch {record.batch_id} counted {found}, not {dict(counters)}"
        self._close(self._next(noted))

    def _judge(self, event: Event, place: tuple[str, int, int], watermark: int | None) -> str:
        if self.window.session:
            if watermark is not None and event.at < watermark:
                self.late[place] = (event, [event.at])
                return "late"
            self.rows.append(event)
            return "counted"
        newest = event.at // self.window.every * self.window.every
        starts = [newest - i * self.window.every for i in range(self.size // self.window.every)]
        closed = [s for s in starts if watermark is not None and s + self.size <= watermark]
        if closed:
            self.late[place] = (event, sorted(closed))
        for start in set(starts) - set(closed):
            window = (start, event.key)
            assert window not in self.sent, f"{self.name}: a record counts in a window that was sent"
            self.open.setdefault(window, Counter())[event.uid] += 1
        return "late" if len(closed) == len(starts) else "counted"

    def _watermark(self, record: Record, delay: int) -> None:
        """That of a batch is known before it: by what its pipeline had read, and by what was sent."""
        sent = [end + (1 if self.window.session else 0) for end in self.ends.values()]
        wanted = self._of(record.topic_id, delay, [self.watermark, max(sent, default=None)])
        if self.window.session and self.recounted is not None and None not in (wanted, record.watermark):
            # sessions that a recount sent are not followed one by one: at most its watermark closed them
            wanted = min(max(record.watermark or 0, wanted or 0), max(wanted or 0, self.recounted))
        assert record.watermark == wanted, f"{self.name}: batch {record.batch_id} has the watermark" \
            f" {record.watermark}, not {wanted}"  # fmt: skip
        self.watermark = record.watermark

    def _next(self, noted: Noted) -> int | None:
        """Where a batch has something new of a partition, all its rows there count, also those that are held."""
        record = noted.record
        seen = self.partitions.setdefault(record.topic_id, {})
        fresh: dict[int, int] = {}
        for p, (since, until) in ranges(record).items():
            began = min(noted.began.get(p, since), since)
            for _, event in self.broker.ever[record.topic_id].records(p, began, until if until > since else 0):
                if event.kind in ("good", "checked"):
                    fresh[p] = max(event.at, fresh.get(p, event.at))
        for p, time in fresh.items():
            seen[p] = (max(time, seen[p][0]) if p in seen else time, record.started_at, False)
        for p, (time, last, idle) in seen.items():
            seen[p] = (time, last, idle or record.started_at - last >= IDLE_AFTER)
        return self._of(record.topic_id, noted.delay, [self.watermark])

    def _of(self, topic: str, delay: int, least: list[int | None]) -> int | None:
        active = [time for time, _, idle in self.partitions.get(topic, {}).values() if not idle]
        found = [time for time in least if time is not None] + ([min(active) - delay] if active else [])
        return max(found, default=None)

    def _close(self, watermark: int | None) -> None:
        if watermark is None or not self.window.final:
            return
        if self.window.session:
            for first, last, key, uids in self._sessions(self.rows):
                if last + self.size < watermark:
                    self.sent[first, key], self.ends[first, key] = uids, last + self.size
                    self.rows = [e for e in self.rows if e.uid not in uids]
            return
        for window in [w for w in self.open if w[0] + self.size <= watermark]:
            self.sent[window] = self.open.pop(window)
            self.ends[window] = window[0] + self.size

    def _sessions(self, events: list[Event]) -> list[tuple[int, int, str, Counter[int]]]:
        found: list[tuple[int, int, str, Counter[int]]] = []
        for event in sorted(events, key=lambda e: (e.key, e.at)):
            if found and found[-1][2] == event.key and event.at - found[-1][1] <= self.size:
                first, _, key, uids = found[-1]
                found[-1] = (first, event.at, key, uids + Counter([event.uid]))
            else:
                found.append((event.at, event.at, event.key, Counter([event.uid])))
        return found

    def _recount(self, entry: Recounted) -> None:
        """The day's closed windows hold every good record that was read."""
        if self.window.session:
            self.recounted = max(entry.watermark, self.recounted or entry.watermark)
            self._close(entry.watermark)
            return
        places = [(entry.topic, p, o) for p, o, _ in self.good.get(entry.topic, [])]
        good = [e for p, until in entry.positions.items() for _, e in self.broker.ever[entry.topic].records(
            p, entry.firsts.get(p, 0), until) if e.kind == "good"]  # fmt: skip
        until = min(entry.end - 1, entry.watermark - self.size)
        for windows in (self.open, self.sent, self.ends):
            for window in [w for w in windows if entry.first <= w[0] <= until]:
                del windows[window]
        for event in good:
            newest = event.at // self.window.every * self.window.every
            for start in (newest - i * self.window.every for i in range(self.size // self.window.every)):
                if entry.first <= start <= until:
                    into = self.sent if self.window.final else self.open
                    into.setdefault((start, event.key), Counter())[event.uid] += 1
                    if self.window.final:
                        self.ends[start, event.key] = start + self.size
        self._close(entry.watermark)
        for place in places:
            if place in self.late and place[2] < entry.positions.get(place[1], 0):
                missed = self.late[place][1]
                if missed[0] >= entry.since and entry.first <= missed[-1] <= until:
                    self.fates[self.late[place][0].uid] += 1

    def _compare(self, table: Table) -> None:
        name = self.name
        late = Counter((one.topic, one.place[0], one.place[1]) for one in table.late)
        once(name, "late", late, Counter(dict.fromkeys(self.late, 1)))
        kept = Counter((t, p, o) for t, (p, o, _) in table.quarantine)
        once(name, "quarantine", kept, self.refused)
        again = {key: n for key, n in table.times.items() if n > 1}
        assert not again or self.recounted is not None, f"{name}: sent more than once: {again}"
        if self.window.session and self.recounted is not None:
            self._eachonce(table)
            return
        for late_row in table.late:
            applied = self.fates[late_row.place[2].uid] > 0
            assert late_row.applied == applied, f"{name}: a late row says applied: {late_row.applied}"
        if self.window.session:
            states = {(first, key): uids for key, some in table.sessions.items() for first, _, uids in some}
            wanted = {(first, key): uids for first, _, key, uids in self._sessions(self.rows)}
            assert states == wanted, f"{name}: open sessions are {states}, not {wanted}"
            assert table.sent == self.sent, f"{name}: sent were {table.sent}, not {self.sent}"
            assert table.ends == self.ends, f"{name}: they end at {table.ends}, not {self.ends}"
        elif self.window.final:
            assert table.state == self.open, f"{name}: open windows are {table.state}, not {self.open}"
            assert table.sent == self.sent, f"{name}: sent were {table.sent}, not {self.sent}"
        else:
            assert table.sent == self.open, f"{name}: the table is {table.sent}, not {self.open}"

    def _eachonce(self, table: Table) -> None:
        """After a recount of sessions: each record is in one of them or waits in ``__late``, never both."""
        found = Counter[int]()
        for counts in (*table.sent.values(), *(uids for some in table.sessions.values() for *_, uids in some)):
            found += counts
        waits = Counter(one.place[2].uid for one in table.late if not one.applied)
        good = Counter(e.uid for rows in self.good.values() for _, _, e in rows)
        before = Counter({uid: n for uid, n in found.items() if uid not in good})  # of before the stream's own start
        assert set(before.values()) <= {1}, f"{self.name}: more than once: {before}"
        assert found + waits - before == good, f"{self.name}: too many {dict(found + waits - before - good)}, too few" \
            f" {dict(good - found - waits)}"  # fmt: skip
        starts = sorted((key, start, table.ends[start, key]) for start, key in table.sent)
        for one, other in pairwise(starts):
            assert one[0] != other[0] or one[2] < other[1], f"{self.name}: two sessions that are one"
