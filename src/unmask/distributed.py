"""What crosses ranks: gradients and detached scalars. A rank owns whole groups, so advantage needs no communication."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def make_accelerator(precision: str) -> Any:
    """The process group and mixed precision of this run (accelerate; several ranks under torchrun)."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")


def total(accelerator: Any, value: Tensor) -> Tensor:
    """Sum of a detached tensor over ranks."""
    if accelerator.num_processes == 1:
        return value
    summed: Tensor = accelerator.reduce(value, reduction="sum")
    return summed


def sum_gradients(accelerator: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Add up gradients over ranks, as one flat message; a parameter without gradient counts as zero.

    Losses are divided by normalizers of all ranks, so the sum is the gradient of one large batch. Ranks may differ in
    the number of their forwards (equal-reward groups cost none), which the hooks of DDP would not allow.
    """
    if accelerator.num_processes == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
    flat = total(accelerator, flat)
    for parameter, gradient in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def own_share(accelerator: Any, items: list[int]) -> list[int]:
    """This rank's contiguous part of the items (their number is a multiple of the ranks)."""
    each = len(items) // accelerator.num_processes
    first = accelerator.process_index * each
    return items[first : first + each]


def best_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
