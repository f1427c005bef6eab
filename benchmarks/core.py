"""What a benchmark is made of: cases, comparisons with their bars, CPU times, memory.

Timing is fair on a shared CPU: one process, one thread, CPU time, variants in a new order each round, ratios by round.
Memory of a rollout is the peak of resident memory of one call above what was resident before it, read in a fresh
process; memory of an update is the most bytes of logits (tensors over the vocabulary) that were alive at once.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allocator import GIVE_BACK

Calls = dict[str, Callable[[], Any]]  # variant -> the call that is timed


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether two results are equal, in words and in truth."""

    text: str
    holds: bool = True


# what the warm-up calls of all variants returned -> verdict
Check = Callable[[Mapping[str, Any]], Verdict]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the table: how many times faster than the baseline, equal or not, with how much memory.

    Bars and equality of rows that do not count are shown, and fail nothing.
    """

    variant: str
    baseline: str
    at_least: float | None = None  # ratio of times, baseline to variant
    equal: Check | None = None
    memory_share: float | None = None  # of the baseline's extra memory, at most
    memory_limit: float | None = None  # MB at most
    counts: bool = True

    @property
    def reads_memory(self) -> bool:
        """Whether memory is measured."""
        return self.memory_share is not None or self.memory_limit is not None


@dataclass(frozen=True, kw_only=True)
class Case:
    """Variants that do the same work, and how they compare."""

    calls: Calls
    comparisons: tuple[Comparison, ...]
    checked: Calls = field(default_factory=dict)  # warm-up calls in place of the timed ones: noise replaced
    megabytes: Callable[[Callable[[], Any]], float] | None = None  # of a call; None: of a fresh process


# brief: as few steps as show the peak of memory
Build = Callable[[bool], Case]


# ---- time ----


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


class _Logits(TorchDispatchMode):
    """Counts the storages of tensors with a dimension of the vocabulary's size, and none of the width's."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and self.vocabulary in leaf.shape and self.width not in leaf.shape:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed() -> None:
            self._seen.discard(key)
            self.alive -= size

        self._seen.add(key)
        weakref.finalize(storage, freed)
        self.alive += size
        self.most = max(self.most, self.alive)


def logits_megabytes(call: Callable[[], Any], vocabulary: int, width: int) -> float:
    """In MB, during the call."""
    with _Logits(vocabulary, width) as counted:
        call()
    return counted.most / 2**20
