"""kill -9 at random moments of every phase, and at every kind of write."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from faults.children import Fault
from faults.injected import AtWrite, HalfALine, InPhase, Record
from faults.runs import Small, undisturbed
from faults.table import Row

HALF_A_LINE = "half a line of a log"
# Seconds that a phase takes here, about; a kill comes within twice as long, so that some come a little after it.
OF_TRAINING = {"start": 0.6, "rollout": 0.1, "rewards": 0.005, "update": 0.3, "evaluation": 0.15, "checkpoint": 0.3}
OF_PRETRAINING = {"start": 0.3, "steps": 0.3, "evaluation": 0.02, "checkpoint": 0.02}
OF_EVALUATION = {"start": 0.3, "row": 0.1}
_RUNS = 6  # at most so many kills are of one run


def random_kills(small: Small, whole: dict[str, Any], phases: dict[str, float], count: int, seed: int) -> list[Row]:
    """So many kills in the phases of a command, run again after each and driven to its end: a row for each phase.

    `whole`: what it leaves when nothing happens to it.
    """
    draw = random.Random(seed)
    command = small.command[0]
    rows = {name: Row(fault=f"{command}: kill -9 within {name}") for name in phases}
    if "checkpoint" in phases:
        rows[HALF_A_LINE] = Row(fault=f"{command}: kill -9 within {HALF_A_LINE}")
    faults = _faults(list(rows), phases, draw, count)
    for number, first in enumerate(range(0, count, _RUNS)):
        killed = replace(small, directory=small.directory.with_name(f"{small.directory.name}-{number}"))
        _drive(killed, faults[first : first + _RUNS], rows, whole)
    return [row for row in rows.values() if row.tried or row.lost]


def _faults(names: list[str], phases: dict[str, float], draw: random.Random, count: int) -> list[tuple[str, Fault]]:
    def fault(name: str) -> Fault:
        if name == HALF_A_LINE:
            return HalfALine(line=draw.randint(1, 4))
        return InPhase(phase=name, time=draw.randint(1, 2), seconds=draw.random() * 2 * phases[name])

    return [(name, fault(name)) for name in (names[place % len(names)] for place in range(count))]


def _drive(small: Small, faults: list[tuple[str, Fault]], rows: dict[str, Row], whole: dict[str, Any]) -> None:
    """Kill a command again and again, and let it end."""
    met = Counter[str]()
    wrong: list[str] = []
    for name, fault in faults:
        end = small.go(fault)
        if end.code == -9:
            met[name] += 1
        elif end.code != 0:
            wrong.append(f"exit {end.code}: {end.last_error}")
        else:  # done before it was met: the next are of one that begins anew
            wrong += small.lost(whole)
            small.remove()
        wrong += small.torn()
    end = small.go()
    wrong += [f"exit {end.code}: {end.last_error}"] if end.code != 0 else small.lost(whole)
    for name, kills in (met or {faults[0][0]: 0}).items():
        rows[name].add(kills, wrong)


def aimed_kills(small: Small, most: int | None, seed: int) -> list[Row]:
    """A kill at every kind of change that a command makes to files, or at `most` of them, each of one begun anew."""
    changes = small.directory.with_name("changes")
    whole = undisturbed(small, Record(folder=str(small.directory), into=changes))
    times = Counter(changes.read_text().splitlines())
    draw = random.Random(seed)
    kinds = sorted(times) if most is None else draw.sample(sorted(times), most)
    row = Row(fault=f"{small.command[0]}: kill -9 at a write ({len(kinds)} of {len(times)} kinds)")
    for number, kind in enumerate(kinds):
        killed = replace(small, directory=small.directory.with_name(f"{small.directory.name}-{number}"))
        end = killed.go(AtWrite(folder=str(killed.directory), what=kind, time=draw.randint(1, times[kind])))
        wrong = [] if end.code == -9 else [f"was not met, exit {end.code}: {end.last_error}"]
        wrong += killed.torn()
        if not killed.is_done():
            end = killed.go()
            wrong += [f"exit {end.code}: {end.last_error}"] if end.code != 0 else killed.lost(whole)
        row.add(1, [f"{kind}: {each}" for each in wrong])
    return [row]
