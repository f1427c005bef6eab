"""`python -m faults [--short] [--seed N]`: breaks small runs in every way that is known, and prints what survived."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faults.disks import REFUSED, full_disk, gone_directory, refused_writes, slow_disk
from faults.kills import OF_EVALUATION, OF_PRETRAINING, OF_TRAINING, aimed_kills, random_kills
from faults.others import SIGNALS, bad_numbers, owners, signals
from faults.ranks import beside_one, of_both, rank_kills, signalled_ranks, stopped_ranks
from faults.runs import (
    EVALUATE,
    PRETRAIN,
    Small,
    left_by_evaluation,
    left_by_pretraining,
    undisturbed,
)
from faults.starts import starts_and_resumes
from faults.table import Row, shown


def main() -> int:
    """1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few of each, in a few minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background jobs ignore
    with tempfile.TemporaryDirectory() as folder:
        rows = try_all(Path(folder), short=options.short, seed=options.seed)
    print(shown(rows))
    return 1 if any(row.lost for row in rows) else 0


def try_all(folder: Path, *, short: bool, seed: int) -> list[Row]:
    """The rows of the table."""
    train = Small(directory=folder / "train")
    pretrain = Small(directory=folder / "pretrain", command=PRETRAIN, left=left_by_pretraining)
    evaluate = Small(directory=folder / "table.json", command=EVALUATE, left=left_by_evaluation)
    whole = undisturbed(replace(train, directory=folder / "whole"))
    left = undisturbed(pretrain)
    two = replace(train, directory=folder / "two")
    of_two = of_both(two)
    parts: list[Callable[[], list[Row]]] = [
        lambda: random_kills(train, whole, OF_TRAINING, 3 if short else 50, seed),
        lambda: aimed_kills(replace(train, directory=folder / "aimed"), 1 if short else None, seed),
        lambda: random_kills(pretrain, left, OF_PRETRAINING, 1 if short else 10, seed),
        lambda: aimed_kills(replace(pretrain, directory=folder / "aimed-pretrain"), 1 if short else None, seed),
        lambda: signals(folder, whole, SIGNALS[:1] if short else SIGNALS, 1 if short else 6, seed),
        lambda: owners(folder, whole, 2 if short else 4),
        lambda: full_disk(folder, whole, 1 if short else 6, seed),
        lambda: refused_writes(folder, whole, REFUSED[:1] if short else REFUSED, 1 if short else 3),
        lambda: gone_directory(folder, whole),
        lambda: bad_numbers(folder, 1 if short else 3),
        lambda: starts_and_resumes(folder, 1 if short else 20, seed),
        lambda: beside_one(of_two, whole, two, replace(train, directory=folder / "whole")),
        lambda: rank_kills(replace(train, directory=folder / "ranks"), of_two, 3 if short else 50, seed),
        lambda: signalled_ranks(folder, of_two, 1 if short else 6, seed),
    ]
    if not short:
        parts.append(lambda: stopped_ranks(folder, of_two, (0, 1)))
        parts.append(lambda: random_kills(evaluate, undisturbed(evaluate), OF_EVALUATION, 6, seed))
        parts.append(lambda: slow_disk(folder, whole))
    rows: list[Row] = []
    for part in parts:
        started = time.monotonic()
        found = part()
        print(f"{shown(found)}\nin {time.monotonic() - started:.0f} s\n", flush=True)
        rows += found
    return rows


if __name__ == "__main__":
    sys.exit(main())
