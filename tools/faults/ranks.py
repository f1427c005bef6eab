"""Two ranks of a run, one or both killed, stopped or signalled: the other ends too, and the run goes on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from faults.children import LONGEST, Ended, Fault, Process, ended, start
from faults.injected import HalfALine, InPhase
from faults.kills import HALF_A_LINE
from faults.launch import torchrun_environment
from faults.runs import Small
from faults.table import Row
from unmask.denoisers.directories import newest_checkpoint

# Seconds that a phase takes on two ranks, about.
_PHASES = {"loading": 0.6, "rollout": 0.15, "rewards": 0.01, "update": 0.4, "evaluation": 0.2, "checkpoint": 0.3}
_VICTIMS = ((0,), (1,), (0, 1))
_RUNS = 6  # at most so many kills are of one run
_MOST_SECONDS = 60.0  # in which a rank ends that another has left: as docs/faults.md says
_SAID = "so all ranks end; "


def started(small: Small, faults: Mapping[int, Fault]) -> list[tuple[Process, Path]]:
    """The two ranks of a command, with the faults of some, and where the words of each go."""
    ranks = []
    for rank, environment in enumerate(torchrun_environment(2)):
        folder = small.folder / f"rank-{rank}"
        ranks.append((start(small.words, folder, faults.get(rank), environment), folder))
    return ranks


def together(small: Small, faults: Mapping[int, Fault] | None = None) -> tuple[list[Ended], list[str]]:
    """How the two ranks of a command ended, and what is wrong where one was left by the other."""
    ranks = started(small, faults or {})
    victims = sorted(range(2), key=lambda rank: rank not in (faults or {}))
    ends: dict[int, Ended] = {}
    begin_seconds = time.monotonic()
    for rank in victims:
        ends[rank] = ended(*ranks[rank])
        left_seconds, begin_seconds = time.monotonic() - begin_seconds, time.monotonic()
    both = [ends[0], ends[1]]
    wrong = [f"rank {rank} hung for {LONGEST:.0f} s" for rank in ends if ends[rank].code is None]
    dead = [rank for rank in ends if ends[rank].code == -signal.SIGKILL]
    if len(dead) == 1 and both[1 - dead[0]].code != 0:  # else all was done
        wrong += _survivor(both[1 - dead[0]], dead[0])
        wrong += [f"it took {left_seconds:.0f} s"] if left_seconds > _MOST_SECONDS else []
    return both, wrong


def _survivor(end: Ended, lost: int) -> list[str]:
    """What is wrong with how a rank ended that another has left."""
    lines = [line for line in end.errors if line.startswith("unmask: error: ")]
    good = end.code == 2 and len(lines) == 1 and f"rank {lost} (process " in lines[0] and _SAID in lines[0]
    return [] if good else [f"beside a lost rank {lost}: exit {end.code}, said {end.errors[-3:]}"]


def of_both(small: Small) -> dict[str, Any]:
    """What a command leaves on two ranks that nothing happens to."""
    ends, _ = together(small)
    if [end.code for end in ends] != [0, 0]:
        raise RuntimeError(f"the command fails on two ranks without a fault: {ends}")
    return small.outcome()


def rank_kills(small: Small, whole: dict[str, Any], count: int, seed: int) -> list[Row]:
    """So many kills of one rank or both in the phases of a run: a row for each phase.

    `whole`: what the run leaves on two ranks when nothing happens to it.
    """
    draw = random.Random(seed)
    rows = {name: Row(fault=f"train on two ranks: kill -9 within {name}") for name in (*_PHASES, HALF_A_LINE)}
    names = list(rows)
    drawn = [names[place % len(names)] for place in range(count)]
    for number, first in enumerate(range(0, count, _RUNS)):
        killed = replace(small, directory=small.directory.with_name(f"{small.directory.name}-{number}"))
        _drive(killed, drawn[first : first + _RUNS], rows, whole, draw)
    return [row for row in rows.values() if row.tried or row.lost]


def _drive(
    small: Small, names: Sequence[str], rows: dict[str, Row], whole: dict[str, Any], draw: random.Random
) -> None:
    """Kill ranks of a run again and again, and let it end."""
    for name in names:
        victims = (0,) if name == HALF_A_LINE else draw.choice(_VICTIMS)  # the first rank writes
        fault = _fault(name, draw)
        ends, wrong = together(small, dict.fromkeys(victims, fault))
        wrong += small.torn()
        killed = sum(end.code == -signal.SIGKILL for end in ends)
        if not killed:  # done before it was met: the next are of one that begins anew
            codes = [end.code for end in ends]
            wrong += small.lost(whole) if codes == [0, 0] else [f"exit {codes}: {[end.last_error for end in ends]}"]
            small.remove()
        rows[name].add(min(killed, 1), wrong)
    ends, wrong = together(small)
    codes = [end.code for end in ends]
    wrong += small.lost(whole) if codes == [0, 0] else [f"exit {codes}: {[end.last_error for end in ends]}"]
    rows[names[-1]].add(0, wrong)


def _fault(name: str, draw: random.Random) -> Fault:
    if name == HALF_A_LINE:
        return HalfALine(line=draw.randint(1, 4))
    return InPhase(phase=name, time=draw.randint(1, 2), seconds=draw.random() * 2 * _PHASES[name])


def stopped_ranks(folder: Path, whole: dict[str, Any], victims: Sequence[int]) -> list[Row]:
    """A rank that is stopped while it updates: the other ends in the time that is promised, and the run goes on."""
    row = Row(fault="train on two ranks: SIGSTOP of one")
    for victim in victims:
        small = Small(directory=folder / f"stopped-{victim}")
        fault = InPhase(phase="update", time=2, seconds=0.1, number=signal.SIGSTOP)
        ranks = started(small, {victim: fault})
        begin_seconds = time.monotonic()
        end = ended(*ranks[1 - victim])
        seconds = time.monotonic() - begin_seconds
        process = ranks[victim][0]
        wrong = [] if process.is_alive() else ["it was not stopped"]
        process.kill()
        process.join()
        wrong += _survivor(end, victim) + ([f"it took {seconds:.0f} s"] if seconds > _MOST_SECONDS + 20 else [])
        row.add(1, wrong + _resumed(small, whole))
    return [row]


def signalled_ranks(folder: Path, whole: dict[str, Any], count: int, seed: int) -> list[Row]:
    """SIGTERM of one rank or both at a random moment: saved, and resumed."""
    draw, row = random.Random(seed), Row(fault="train on two ranks: SIGTERM of one or both")
    for place in range(count):
        small = Small(directory=folder / f"signalled-{place}")
        phase = draw.choice(("rollout", "update", "checkpoint"))
        fault = InPhase(phase=phase, time=draw.randint(1, 2), seconds=draw.random() / 5, number=signal.SIGTERM)
        ends, wrong = together(small, dict.fromkeys(draw.choice(_VICTIMS), fault))
        wrong += [] if [end.code for end in ends] == [143, 143] else [f"{ends}"]
        wrong += [] if "unmask train --resume" in ends[0].last_error else [ends[0].last_error]
        row.add(1, wrong + _resumed(small, whole))
    return [row]


def beside_one(whole: dict[str, Any], alone: dict[str, Any], two: Small, one: Small) -> list[Row]:
    """What two ranks leave beside one: the same completions, the weights to 1e-6."""
    row = Row(fault="train on two ranks: beside one rank")
    row.add(1, [f"{name} differs" for name in ("completions", "after", "names") if whole[name] != alone[name]])
    ours, theirs = (_weights(small) for small in (two, one))
    gap = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    row.add(1, [f"weights differ by {gap:.1e}"] if gap > 1e-6 else [])
    return [row]


def _weights(small: Small) -> dict[str, torch.Tensor]:
    last = newest_checkpoint(small.directory / "checkpoints") or small.directory
    return load_file(last / "model.safetensors")


def _resumed(small: Small, whole: dict[str, Any]) -> list[str]:
    ends, wrong = together(small)
    codes = [end.code for end in ends]
    return wrong + (small.lost(whole) if codes == [0, 0] else [f"exit {codes}: {[end.last_error for end in ends]}"])
