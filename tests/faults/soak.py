"""kill -9 at random moments under load: ``python -m tests.faults.soak [KILLS] [SEED]``, ``make soak`` for 200.

Streams, and now and then a job, are killed while events come, one in twenty repeated, late or malformed each. After
every twentieth kill all is read to the end, and the oracle of the matrix is asked.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Sequence

from tests.faults.matrix import JOBS, rigs
from tests.faults.rig import Rig

#: events a second
RATE = 200.0
#: kills between two looks, at most
LOOK = 20
#: seconds after its start at which a process is killed: from before Spark is up to some batches on
MOMENTS = (1.0, 14.0)
SHARES = {"duplicates": 0.05, "late": 0.05, "malformed": 0.05}


def kills(rig: Rig, number: int, chance: random.Random) -> int:
    """Kills so many processes under load; how many were jobs."""
    stop, jobs = threading.Event(), 0
    rig.seed += 1
    load = threading.Thread(target=lambda: rig.lake.produce(10_000_000, rate=RATE, seed=rig.seed, **SHARES,
                                                            stopped=stop.is_set))  # fmt: skip
    load.start()
    try:
        for _ in range(number):
            bronze = (rig.lake.storage / "bronze" / "user_events" / "_delta_log").exists()
            if bronze and chance.random() < 0.25:
                rig.started()
                rig.ask("run", "serve")
                time.sleep(chance.uniform(0.0, 6.0))
                rig.kill_jobs()
                jobs += 1
                continue
            rig.start()
            time.sleep(chance.uniform(*MOMENTS))
            assert rig.process.poll() is None, rig.log()[-3000:]
            rig.lake.kill(rig.process)
    finally:
        stop.set()
        load.join(60)
    return jobs


def look(rig: Rig) -> list[str]:
    """What is wrong after all has been read, and the jobs have run."""
    rig.running()
    rig.process.terminate()
    assert rig.process.wait(60) == 0, rig.log()[-3000:]
    files = [rig.lake.folder / "pipelines" / f"{name}.yaml" for name in JOBS]
    for command in ("run", "serve"):
        assert rig.here(command, files, rig.lake.storage) == 0, rig.said[-3:]
    return rig.wrong("realtime", "bronze", "gold")


def main(words: Sequence[str]) -> int:
    total, seed = int(words[0]) if words else 200, int(words[1]) if len(words) > 1 else random.randrange(10**6)
    chance, red, began = random.Random(seed), 0, time.monotonic()
    print(f"seed {seed}, {RATE:.0f} events/s\n{'kills':>6} {'of jobs':>8} {'records':>9} {'batches':>8} {'minutes':>8}"
          "  wrong", flush=True)  # fmt: skip
    with rigs() as make, make() as rig:
        rig.send()
        done = jobs = 0
        while done < total:
            number = min(LOOK, total - done)
            jobs += kills(rig, number, chance)
            done += number
            wrong = look(rig)
            red += len(wrong)
            print(f"{done:>6} {jobs:>8} {sum(rig.lake.ends().values()):>9,} {rig.lake.batches():>8,}"
                  f" {(time.monotonic() - began) / 60:>8.1f}  {len(wrong)}", flush=True)  # fmt: skip
            print("\n".join(wrong), end="\n" if wrong else "", flush=True)
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
