"""Runs on several ranks, started and gone on with again and again: none fails, and all come to the same."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import deserialize

from faults.children import Ended, ended, start
from faults.launch import torchrun_environment
from faults.runs import Small, left_by_training
from faults.table import Row

RANKS = 4
_COMMAND = (
    *("train", "--recipe", "sudoku-dispo", "--train.threads", "1", "--train.max-steps", "1", "--train.examples", "8"),
    *("--rollout.prompts", "2", "--rollout.num-generations", "4", "--evaluation.examples", "4"),
    *("--evaluation.greedy-steps", "4"),
)
_LATEST_SECONDS = 0.5  # that a rank begins after the others


def starts_and_resumes(folder: Path, count: int, seed: int) -> list[Row]:
    """So many runs of a step, by turns with weights that ranks hold together and whole; each then goes on by a step."""
    draw = random.Random(seed)
    rows = [Row(fault=f"{what} on {RANKS} ranks") for what in ("start", "--resume")]
    first: dict[tuple[str, int], dict[str, Any]] = {}
    for number in range(count):
        shard = 0 if number % 2 else RANKS
        small = Small(directory=folder / f"starts-{number}", command=_COMMAND, left=left_by_ranks)
        begins = [*_COMMAND, "--train.shard", str(shard), "--output", str(small.directory)]
        goes_on = ["train", "--resume", str(small.directory), "--train.max-steps", "2"]
        for row, words in zip(rows, (begins, goes_on), strict=True):
            ends = _launch(words, small.folder, draw)
            wrong = [
                f"rank {rank}, exit {end.code}: {end.last_error}" for rank, end in enumerate(ends) if end.code != 0
            ]
            if not wrong:
                wrong = small.torn() + small.lost(first.setdefault((row.fault, shard), small.outcome()))
            row.add(1, wrong)
    return rows


def left_by_ranks(directory: Path) -> dict[str, Any]:
    """As of one rank; of the ranks' shards the tensors, for what is said of a file has no order."""
    found = left_by_training(directory)
    return {name: dict(deserialize(value)) if "/optimizer/" in name else value for name, value in found.items()}


def _launch(words: list[str], folder: Path, draw: random.Random) -> list[Ended]:
    """What becomes of the ranks that do a command together."""
    folders = [folder / f"rank-{rank}" for rank in range(RANKS)]
    processes = [
        start(words, place, partial(time.sleep, draw.random() * _LATEST_SECONDS), environment)
        for place, environment in zip(folders, torchrun_environment(RANKS), strict=True)
    ]
    return [ended(process, place) for process, place in zip(processes, folders, strict=True)]
