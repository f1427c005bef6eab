"""GPUs of a plan: how many, how large, how fast. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unmask.errors import UserError
from unmask.settings.commands import PlanSettings
from unmask.validation import did_you_mean

GIBIBYTE = 2**30

# Peak TFLOP/s of dense matrix products as the maker states them: in bf16, and in fp32 without tensor cores.
PEAKS = {
    "a100": (312.0, 19.5),
    "h100": (989.0, 67.0),
    "h200": (989.0, 67.0),
    "rtx4090": (165.0, 83.0),
}


# GB/s that a GPU sends to others of its machine, as collectives reach it: NVLink, else PCIe 4. Assumptions.
LINKS = {"a100": 230.0, "h100": 350.0, "h200": 350.0}
_PCIE = 20.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """Bytes a second that a GPU sends: to others of its machine, and to those of other machines."""

    link: float
    between: float


@dataclass(frozen=True, kw_only=True)
class GPUs:
    """`count` equal GPUs, each of `memory` bytes and `peak` FLOP/s at the recipe's precision; `node` in a machine."""

    count: int
    memory: int
    peak: float
    node: int
    network: Network


def gpus_of(settings: PlanSettings) -> GPUs:
    """The GPUs of a plan. Raises UserError where they, or what is to be planned on them, cannot be planned."""
    count, memory = parse_gpus(settings.gpus)
    link = LINKS.get(settings.gpu, _PCIE) if settings.link is None else settings.link
    gpus = GPUs(
        count=count,
        memory=memory,
        peak=parse_peak(settings.gpu, settings.train.precision),
        node=settings.node_gpus,
        network=Network(link=link * 1e9, between=settings.network * 1e9),
    )
    if (completions := settings.rollout.prompts * settings.rollout.num_generations) < gpus.count:
        raise UserError(f"{gpus.count} GPUs sample {completions} completions a step: raise rollout.prompts")
    _check_shard(settings.train.shard_size, count)
    return gpus


def _check_shard(size: int, count: int) -> None:
    if size == 1:
        raise UserError("train.shard 1, groups of one GPU that hold all weights, is not planned: set it to 0")
    if size and count % size:
        raise UserError(f"{count} GPUs cannot be split into groups of {size}: give a train.shard that divides them")


def parse_gpus(gpus: str) -> tuple[int, int]:
    """Number of GPUs and bytes of each, from "8x80GB". Raises UserError."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)GB", gpus)
    if match is None:
        raise UserError(f"gpus is {gpus!r}: give number and memory, such as 8x80GB")
    return int(match[1]), int(match[2]) * GIBIBYTE


def parse_peak(gpu: str, precision: str) -> float:
    """Peak FLOP/s of a name such as "a100", or of a number of TFLOP/s. Raises UserError."""
    if gpu in PEAKS:
        return PEAKS[gpu][precision != "bf16"] * 1e12
    if re.fullmatch(r"\d+(\.\d+)?", gpu) and float(gpu) > 0:
        return float(gpu) * 1e12
    raise UserError(f"unknown gpu {gpu!r}{did_you_mean(gpu, list(PEAKS))}, or its peak in TFLOP/s, such as 312")
