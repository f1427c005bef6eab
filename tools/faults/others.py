"""Signals, owners and numbers: faults that are no kill and no disk."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.children import ended, start
from faults.disks import told_in_one_line
from faults.injected import BadNumbers, InPhase
from faults.runs import TRAIN, Small
from faults.table import Row

SIGNALS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))  # with the exit codes of commands that they end


def signals(
    folder: Path, whole: dict[str, Any], tried: Sequence[tuple[signal.Signals, int]], count: int, seed: int
) -> list[Row]:
    """SIGTERM and SIGINT at random moments: saved, said where to go on, and resumed by what was said."""
    draw, rows = random.Random(seed), []
    for number, code in tried:
        row = Row(fault=f"{number.name} at a random moment")
        for place in range(count):
            small = Small(directory=folder / f"{number.name}-{place}")
            phase = draw.choice(("rollout", "update", "evaluation", "checkpoint"))
            end = small.go(InPhase(phase=phase, time=draw.randint(1, 3), seconds=draw.random() / 5, number=number))
            if end.code == 0 and not small.lost(whole):
                continue  # it came when all was done
            wrong = [] if end.code == code and "unmask train --resume" in end.last_error else [f"{end}"]
            end = small.go_on_as_told(end.last_error)
            wrong += small.lost(whole) if end.code == 0 else [f"exit {end.code}: {end.last_error}"]
            row.add(1, wrong)
        if not row.tried:
            row.add(1, ["no signal was heard"])
        rows.append(row)
    return rows


def owners(folder: Path, whole: dict[str, Any], processes: int) -> list[Row]:
    """Processes without a group that were started together: at a new directory, and at a run that is to go on."""
    rows = []
    small = Small(directory=folder / "owned", command=TRAIN)
    for name, words in (
        ("train", [*TRAIN, "--output", str(small.directory)]),
        ("--resume", ["train", "--resume", str(small.directory), "--train.max-steps", "6"]),
    ):
        row = Row(fault=f"{processes} processes, one {name}")
        folders = [folder / f"owner-{name}-{number}" for number in range(processes)]
        ends = [ended(process, each) for each, process in [(each, start(words, each)) for each in folders]]
        refused = [end for end in ends if end.code == 2]
        wrong = [] if sum(end.code == 0 for end in ends) == 1 else [f"{ends}"]
        wrong += [each for end in refused for each in told_in_one_line(end, str(small.directory))]
        row.add(1, wrong + small.lost(whole))
        rows.append(row)
        (small.directory / "summary.json").unlink()
    return rows


def bad_numbers(folder: Path, most: int) -> list[Row]:
    """A loss that is NaN from some step on, or once; memory that is out in an update: at most so many of them."""
    return [kind(folder) for kind in (_always, _once, _memory_out)[:most]]


def _once(folder: Path) -> Row:
    once, small = Row(fault="NaN loss in a step"), Small(directory=folder / "once")
    end = small.go(BadNumbers(steps=frozenset({3})))
    once.add(1, [] if end.code == 0 and _skipped(small) == [3] else [f"{end}, skipped {_skipped(small)}"])
    return once


def _always(folder: Path) -> Row:
    always, small = Row(fault="NaN loss from a step on"), Small(directory=folder / "always")
    end = small.go(BadNumbers(steps=frozenset(range(4, 99))))
    wrong = told_in_one_line(end, "steps 4 to 6 were skipped, one after another: ")
    always.add(1, wrong + ([] if "the last good checkpoint is step_000002" in end.last_error else [end.last_error]))
    return always


def _memory_out(folder: Path) -> Row:
    memory, small = Row(fault="memory out in an update"), Small(directory=folder / "memory")
    end = small.go(BadNumbers(steps=frozenset({2}), memory=True))
    said = (small.folder / "output").read_text()
    good = end.code == 0 and "out of memory in an update: 1 forwards at a time" in said and _skipped(small) == []
    memory.add(1, [] if good else [f"{end}"])
    return memory


def _skipped(small: Small) -> list[int]:
    rows = [json.loads(line) for line in (small.directory / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row.get("skipped")]
