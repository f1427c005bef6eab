"""Fair timing on a CPU: one process, one thread, CPU time, variants in a new order each round, ratios by round.

Extra memory is the peak of one call above what was resident before it, read in a fresh process.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from allocator import GIVE_BACK

Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """CPU seconds of each variant in each round, and what the warm-up calls returned."""

    seconds: dict[str, list[float]]
    outputs: dict[str, Any]

    def typical(self, variant: str) -> float:
        """Median seconds of a variant."""
        return median(self.seconds[variant])

    def ratios(self, variant: str, baseline: str) -> list[float]:
        """How many times the variant's time the baseline takes, round by round."""
        return [
            theirs / max(ours, 1e-9) for ours, theirs in zip(self.seconds[variant], self.seconds[baseline], strict=True)
        ]


def compare(calls: Calls, warm_up: Calls, rounds: int, seed: int = 0) -> Timed:
    """Time all variants in each of the rounds, after one warm-up call of each (that of `warm_up` where it has one)."""
    torch.set_num_threads(1)
    outputs = {name: warm_up.get(name, call)() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(seed)  # noqa: S311
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return Timed(seconds=seconds, outputs=outputs)


# ---- memory ----


def _status(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def extra_megabytes(call: Callable[[], Any]) -> float:
    """Peak of resident memory during the call above what was resident before it."""
    torch.set_num_threads(1)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    call()
    return _status("VmHWM") - before


def extra_megabytes_elsewhere(arguments: list[str], name: str) -> float:
    """Extra memory of the variant `name`, which `run.py --memory-of` measures in a process of its own."""
    command = [sys.executable, sys.argv[0], *arguments, "--memory-of", name]
    done = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"the memory of {name} could not be measured:\n{done.stderr}")
    return float(done.stdout.split()[-1])
