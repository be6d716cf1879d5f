"""The kill matrix: what dies at which step of what, and whether the numbers are right afterwards.

``python -m tests.faults.matrix`` runs every cell, ``... realtime 7 kill`` one; ``make faults`` does the first.
Cells of one fault in several streams share a process and its end: each is held at its own step when it comes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, zip_longest
from pathlib import Path

from lakehouse_engine import jobs
from lakehouse_engine.errors import LakehouseError
from tests.faults.holds import Hold, made_jar
from tests.faults.rig import LIMIT, MEMBERS, WINDOWS, Rig, rig
from tests.faults.steps import FAULTS, STEPS, SUBJECTS, Cell, cells, lacking

#: seconds of SIGSTOP
STOPPED = 5.0
Group = tuple[Cell, ...]
MakeRig = Callable[[], AbstractContextManager[Rig]]
JOBS = ("silver/user_events", "gold/daily_active_users")


def groups(wanted: Iterable[Cell]) -> list[Group]:
    """Cells that share a process and a fault: one of each stream; a job's stand alone."""
    found: list[Group] = []
    wanted = list(wanted)
    for fault in FAULTS:
        mine = [c for c in wanted if c.fault == fault and c.subject != "gold"]
        of_streams = [[c for c in mine if c.subject == subject] for subject in SUBJECTS]
        for row in zip_longest(*of_streams):
            there = [c for c in row if c is not None]
            at_work = [c for c in there if c.at.keeps_core]
            found.append(tuple(c for c in there if c not in at_work[1:]))
            found += [(c,) for c in at_work[1:]]
    # what does not end the streams comes first: a kill is the start of the next group
    found.sort(key=lambda group: group[0].fault in ("kill", "stop"))
    return found + [(c,) for c in wanted if c.subject == "gold"]


@dataclass
class Matrix:
    """``wrong``: per cell that was run what was wrong, '' for nothing."""

    wrong: dict[Cell, str] = field(default_factory=dict)
    seconds: dict[Cell, float] = field(default_factory=dict)
    #: what a process said before it ended by a fault that should not end it
    ended: dict[Cell, str] = field(default_factory=dict)

    def run(self, rig: Rig, group: Group) -> None:
        """Raises what was wrong with the rig itself, after it was noted."""
        began = time.monotonic()
        try:
            found = (_job if group[0].subject == "gold" else _streams)(rig, group, self.ended)
        except BaseException as error:
            self.wrong |= dict.fromkeys(group, f"{type(error).__name__}: {error}".strip())
            raise
        finally:
            self.seconds |= dict.fromkeys(group, (time.monotonic() - began) / len(group))
        for cell in group:
            others = tuple(prefix for name, mine in _PREFIXES.items() for prefix in mine if name != cell.subject)
            self.wrong[cell] = "\n".join(line for line in found if not line.startswith(others))

    def table(self) -> str:
        """One line a fault and subject, one column a step: ``ok``, ``RED``, ``n/a``, ``.`` where it was not run."""
        lines = [f"{'':<18}" + "".join(f"{step:>5}" for step in STEPS)]
        reasons: dict[str, int] = {}
        for fault in FAULTS:
            for subject in SUBJECTS:
                line = f"{subject + ' ' + fault:<18}"
                for step in STEPS:
                    reason, cell = lacking(subject, step, fault), Cell(subject, step, fault)
                    if reason is not None:
                        number = reasons.setdefault(f"{subject}: {reason}", len(reasons) + 1)
                        line += f"{f'n/a{number}':>5}"
                    else:
                        line += f"{'.' if cell not in self.wrong else 'RED' if self.wrong[cell] else 'ok':>5}"
                lines.append(line)
        passed = sum(not wrong for wrong in self.wrong.values())
        lines += ["", *(f"step {step}: {text}" for step, text in STEPS.items()),
                  *(f"{fault}: {text}" for fault, text in FAULTS.items()),
                  *(f"{subject}: {text}" for subject, text in SUBJECTS.items()),
                  *(f"n/a{number}: {reason}" for reason, number in reasons.items()), "",
                  f"{len(self.wrong)} cells run, {passed} passed, in {sum(self.seconds.values()):.0f} s"]  # fmt: skip
        for cell, wrong in self.wrong.items():
            if wrong:
                lines.append(f"RED {cell}: {wrong}\n  again: python -m tests.faults.matrix {cell}")
        return "\n".join(lines)


_PREFIXES = {"bronze": ("bronze.",), "gold": ("gold.", "silver."), "state": ("realtime.once",),
             "realtime": tuple(f"realtime.{name}" for name in (*WINDOWS, *MEMBERS))}  # fmt: skip


def _streams(rig: Rig, group: Group, ended: dict[Cell, str]) -> list[str]:
    """What the oracle has to say after the fault."""
    rig.running()
    fault = group[0].fault
    holds = {cell: rig.hold(cell.at) for cell in group}
    rig.send()
    for cell, hold in holds.items():
        rig.lake.until(hold.reached, f"{cell} is held", LIMIT)
    process, said = rig.process, len(rig.log())
    _FAULTS[fault](rig, holds, said)
    if fault != "stop" and fault != "kill" and process.poll() is not None:
        last = rig.lake.log(process).strip().splitlines()[-1]
        ended |= dict.fromkeys(group, last)
    rig.running()
    return rig.wrong("realtime", "bronze")


def _kill(rig: Rig, holds: Mapping[Cell, Hold], said: int) -> None:
    rig.lake.kill(rig.process)
    for hold in holds.values():
        hold.cut()


def _full(rig: Rig, holds: Mapping[Cell, Hold], said: int) -> None:
    if rig.disk.there:
        rig.disk.fill()
    for cell, hold in holds.items():
        _refused_room(rig, cell, hold)
    _until(rig, lambda: "No space left" in rig.log()[said:] or rig.process.poll() is not None, "the disk is full")
    rig.disk.free()


def _refused_room(rig: Rig, cell: Cell, hold: Hold) -> None:
    """What comes next finds no room: by the full disk itself, unless it asks for none there, as a rename of a tmpfs,
    or there is no such disk."""
    if rig.disk.there and cell.at.act in ("create", "renamed"):
        hold.let_go()
    else:
        hold.full()


def _postgres(rig: Rig, holds: Mapping[Cell, Hold], said: int) -> None:
    again = rig.restart("postgres", signal.SIGQUIT)
    for hold in holds.values():
        hold.cut()
    again()


def _broker(rig: Rig, holds: Mapping[Cell, Hold], said: int) -> None:
    again = rig.restart("kafka", signal.SIGKILL)
    for hold in holds.values():
        hold.let_go()
    again()


def _stop(rig: Rig, holds: Mapping[Cell, Hold], said: int) -> None:
    """On the same storage a second instance is refused; windows go on from another one, and the first is fenced."""
    process, folder = rig.process, rig.lake.folder / "pipelines"
    os.killpg(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    refused = _refused(rig, [folder / "bronze", folder / "realtime"])
    taken = any(cell.subject == "realtime" for cell in holds)
    files = [folder / "realtime" / f"{name}.yaml" for name in WINDOWS]
    elsewhere, outcome = rig.lake.folder / f"elsewhere{said}", list[object]()

    def take_over() -> None:
        try:
            outcome.append(rig.here("run", files, elsewhere))
        except Exception as error:
            outcome.append(error)

    other = threading.Thread(target=take_over)
    if taken:
        other.start()
    time.sleep(max(0.0, began + STOPPED - time.monotonic()))
    os.killpg(process.pid, signal.SIGCONT)
    if taken:  # it may wait for rows that the first holds
        for hold in holds.values():
            hold.let_go()
        other.join(LIMIT)
        assert outcome == [0], f"the second instance: {outcome} {rig.said[-3:]}"
        rig.send()
        _until(rig, lambda: "FENCED" in rig.log()[said:], "the first is fenced")
    for hold in holds.values():
        hold.let_go()
    assert "LOCKED" in refused, refused
    assert f"process {process.pid} " in refused, refused
    process.terminate()
    status = process.wait(LIMIT)
    assert status == (1 if taken else 0), rig.log()[-1500:]


def _refused(rig: Rig, specs: Sequence[Path]) -> str:
    try:
        status = rig.here("run", specs, rig.lake.storage)
    except LakehouseError as error:
        return str(error)
    raise AssertionError(f"a second instance was not refused: {status}")


_FAULTS: Mapping[str, Callable[[Rig, Mapping[Cell, Hold], int], None]] = {
    "kill": _kill, "stop": _stop, "full": _full, "postgres": _postgres, "broker": _broker}  # fmt: skip


def _until(rig: Rig, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT:.0f} s\n{rig.log()[-1500:]}"
        time.sleep(0.05)


# jobs


def _job(rig: Rig, group: Group, ended: dict[Cell, str]) -> list[str]:
    (cell,) = group
    folder = rig.lake.folder / "pipelines"
    if rig.lake.processes and rig.process.poll() is None:
        rig.process.terminate()
        assert rig.process.wait(LIMIT) == 0, rig.log()[-1500:]
    rig.send()
    assert rig.here("run", [folder / "bronze"], rig.lake.storage) == 0, rig.said[-3:]
    if not (rig.lake.storage / "gold").exists():  # at first all is computed
        assert rig.job("run", "serve") == 0, rig.jobs_log()[-1500:]
        rig.send()
        assert rig.here("run", [folder / "bronze"], rig.lake.storage) == 0, rig.said[-3:]
    rig.started()
    hold = rig.hold(cell.at)
    rig.ask("run", "serve")
    _until(rig, hold.reached, f"{cell} is held")
    assert rig.jobs is not None
    files = [folder / f"{name}.yaml" for name in JOBS]
    said = len(rig.jobs_log())
    if cell.fault == "kill":
        rig.kill_jobs()
        hold.cut()
        for command in ("run", "serve"):
            assert rig.here(command, files, rig.lake.storage) == 0, rig.said[-3:]
        return rig.wrong("gold", "bronze")
    if cell.fault == "stop":
        _stop_job(rig, cell, hold, files)
        assert rig.answer() == 0, rig.jobs_log()[-1500:]
        return rig.wrong("gold", "bronze")
    if cell.fault == "full":
        if rig.disk.there:
            rig.disk.fill()
        _refused_room(rig, cell, hold)
        status = rig.answer()
        rig.disk.free()
        assert "No space left" in rig.jobs_log()[said:], rig.jobs_log()[said:]
    else:
        again = rig.restart("postgres", signal.SIGQUIT)
        hold.cut()
        status = rig.answer()
        again()
    assert status, "it has not noticed"
    ended[cell] = rig.jobs_log().strip().splitlines()[-1]
    assert rig.job("run", "serve") == 0, rig.jobs_log()[-1500:]
    return rig.wrong("gold", "bronze")


def _stop_job(rig: Rig, cell: Cell, hold: Hold, files: Sequence[Path]) -> None:
    """While it writes its table a second run is refused; while it fills the copy, a second one waits for it."""
    assert rig.jobs is not None
    os.killpg(rig.jobs.pid, signal.SIGSTOP)
    began, outcome = time.monotonic(), list[object]()
    command = "serve" if cell.at.on_wire else "run"
    patience, jobs.LOCK_PATIENCE = jobs.LOCK_PATIENCE, 1.0
    try:
        other = threading.Thread(target=lambda: outcome.append(rig.here(command, files, rig.lake.storage)))
        other.start()
        time.sleep(max(0.0, began + STOPPED - time.monotonic()))
        os.killpg(rig.jobs.pid, signal.SIGCONT)
        if not cell.at.on_wire:
            other.join(LIMIT)
            assert outcome == [1], f"a second instance was not refused: {outcome}"
            assert "LOCKED" in "\n".join(rig.said[-4:]), rig.said[-4:]
        hold.let_go()
        other.join(LIMIT)
        assert len(outcome) == 1, "the second instance does not end"
    finally:
        jobs.LOCK_PATIENCE = patience
        os.killpg(rig.jobs.pid, signal.SIGCONT)


# all of it


@contextmanager
def rigs(*, state: bool = True) -> Iterator[MakeRig]:
    """A stack and a Spark of their own, and what makes lakes on them."""
    from lakehouse_engine.local import classes
    from lakehouse_engine.local import stack as local
    from lakehouse_engine.local.jars import engine_jars
    from lakehouse_engine.local.java import find_java
    from lakehouse_engine.session import start

    os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=192m")
    os.environ.update(find_java().environment())
    classes.prepare(engine_jars())
    root, work = (Path(tempfile.mkdtemp(prefix=f"lakehouse-{name}-")) for name in ("stack", "faults"))
    root.chmod(0o755)
    try:
        stack, jar, spark = local.up(root), made_jar(work), start("faults", jars=engine_jars())
        numbers = count(1)
        yield lambda: rig(stack, root, spark, jar, work / f"rig{next(numbers)}", state=state)
        spark.stop()
    finally:
        local.down(root)
        shutil.rmtree(root)
        shutil.rmtree(work, ignore_errors=True)


def run(matrix: Matrix, wanted: Iterable[Group], make: MakeRig) -> None:
    """Each group on the lake that the one before has left, on a new one after one that was wrong."""
    left = list(wanted)
    while left:
        with make() as made:
            going = True
            while left and going:
                group = left.pop(0)
                with suppress(Exception):  # it is noted
                    matrix.run(made, group)
                going = not any(matrix.wrong[cell] for cell in group)
                if not going:
                    print("\n".join(matrix.wrong[cell] for cell in group), flush=True)
                print(", ".join(f"{c} {'RED' if matrix.wrong[c] else 'ok'} {matrix.seconds[c]:.1f} s" for c in group),
                      flush=True)  # fmt: skip


def main(words: Sequence[str]) -> int:
    wanted = cells()
    if len(words) == 1:  # those of a subject
        wanted = [cell for cell in wanted if cell.subject == words[0]]
    elif words:
        subject, step, fault = words
        wanted = [cell for cell in wanted if (cell.subject, str(cell.step), cell.fault) == (subject, step, fault)]
        if not wanted:
            print(f"{' '.join(words)}: n/a, {lacking(subject, int(step), fault)}")
            return 2
    matrix = Matrix()
    with rigs(state=any(cell.subject == "state" for cell in wanted)) as make:
        run(matrix, groups(wanted), make)
    print(matrix.table())
    return 1 if any(matrix.wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
