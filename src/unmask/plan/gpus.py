"""GPUs of a plan: how many, how large, how fast."""

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


@dataclass(frozen=True, kw_only=True)
class GPUs:
    """`count` equal GPUs, each of `memory` bytes and `peak` FLOP/s at the recipe's precision."""

    count: int
    memory: int
    peak: float


def gpus_of(settings: PlanSettings) -> GPUs:
    """The GPUs of a plan. Raises UserError where they, or what is to be planned on them, cannot be planned."""
    if settings.train.four_bit:
        raise UserError(
            "train.four_bit cannot be planned: set it to false and train.param_dtype to bf16, which needs more"
        )
    if settings.train.shard_size:
        raise UserError(
            f"train.shard {settings.train.shard} is not planned, GPUs that hold all weights are: set it to auto or 0"
        )
    gpus = parse_gpus(settings.gpus, settings.gpu, settings.train.precision)
    if (completions := settings.rollout.prompts * settings.rollout.group_size) < gpus.count:
        raise UserError(f"{gpus.count} GPUs sample {completions} completions a step: raise rollout.prompts")
    return gpus


def parse_gpus(gpus: str, gpu: str, precision: str) -> GPUs:
    """GPUs from "8x80GB" and a name such as "a100", or a number of TFLOP/s. Raises UserError."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)GB", gpus)
    if match is None:
        raise UserError(f"gpus is {gpus!r}: give number and memory, such as 8x80GB")
    if gpu in PEAKS:
        teraflops = PEAKS[gpu][precision != "bf16"]
    elif re.fullmatch(r"\d+(\.\d+)?", gpu) and float(gpu) > 0:
        teraflops = float(gpu)
    else:
        raise UserError(f"unknown gpu {gpu!r}{did_you_mean(gpu, list(PEAKS))}, or its peak in TFLOP/s, such as 312")
    return GPUs(count=int(match[1]), memory=int(match[2]) * GIBIBYTE, peak=teraflops * 1e12)
