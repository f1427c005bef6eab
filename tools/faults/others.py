"""Signals, owners and numbers: faults that are no kill and no disk."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

from faults.children import ended, start
from faults.disks import told_in_one_line
from faults.injected import BadNumbers, InPhase
from faults.runs import TRAIN, Small
from faults.table import Row

_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def signals(folder: Path, whole: dict[str, Any], count: int, seed: int) -> list[Row]:
    """SIGTERM and SIGINT at random moments: saved, said where to go on, and resumed by what was said."""
    draw, rows = random.Random(seed), []
    for number, code in _CODES.items():
        row = Row(fault=f"{number.name} at a random moment")
        for place in range(count):
            small = Small(directory=folder / f"{number.name}-{place}")
            phase = draw.choice(("rollout", "update", "evaluation", "checkpoint"))
            end = small.go(InPhase(phase=phase, time=draw.randint(1, 3), seconds=draw.random() / 5, number=number))
            wrong = [] if end.code == code and "unmask train --resume" in end.last_error else [f"{end}"]
            end = small.go_on_as_told(end.last_error)
            wrong += small.lost(whole) if end.code == 0 else [f"exit {end.code}: {end.last_error}"]
            row.add(1, wrong)
        rows.append(row)
    return rows


def owners(folder: Path, whole: dict[str, Any], processes: int) -> list[Row]:
    """Processes without a group that were started together: at a new directory, and at a run that is to go on."""
    rows = []
    small = Small(directory=folder / "owned", command=TRAIN)
    for name, words in (
        ("train", [*TRAIN, "--output", str(small.directory)]),
        ("--resume", ["train", "--resume", str(small.directory), "--train.steps", "6"]),
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


def bad_numbers(folder: Path) -> list[Row]:
    """A loss that is NaN once, and from some step on; memory that is out in an update."""
    once, always, memory = (Row(fault=f) for f in ("NaN loss in a step", "NaN loss from a step on", "memory out"))
    small = Small(directory=folder / "once")
    end = small.go(BadNumbers(steps=frozenset({3})))
    once.add(1, [] if end.code == 0 and _skipped(small) == [3] else [f"{end}, skipped {_skipped(small)}"])
    small = Small(directory=folder / "always")
    end = small.go(BadNumbers(steps=frozenset(range(4, 99))))
    wrong = told_in_one_line(end, "steps 4 to 6 were skipped, one after another: ")
    always.add(1, wrong + ([] if "the last good checkpoint is step_000002" in end.last_error else [end.last_error]))
    small = Small(directory=folder / "memory")
    end = small.go(BadNumbers(steps=frozenset({2}), memory=True))
    said = (small.folder / "output").read_text()
    good = end.code == 0 and "out of memory in an update: 1 forwards at a time" in said and _skipped(small) == []
    memory.add(1, [] if good else [f"{end}"])
    return [once, always, memory]


def _skipped(small: Small) -> list[int]:
    rows = [json.loads(line) for line in (small.directory / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row.get("skipped")]
