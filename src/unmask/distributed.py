"""Ranks: which part of the work is this process's, on which device, and the sums that cross between processes.

What crosses is gradients and detached scalars; a rank owns whole groups of completions, so advantages need none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run as one of them sees them: its rank, their number, its device, mixed precision, sums.

    `World.start` joins the processes that torchrun started, `World.single` is one process alone:

        world = World.single()
        world.share([3, 1, 2])       # [3, 1, 2]
        world.sum(torch.ones(2))     # tensor([1., 1.])
    """

    device: torch.device
    precision: str = "fp32"  # of autocast: "fp32" (none) or "bf16"
    rank: int = 0
    size: int = 1

    @classmethod
    def single(cls, device: torch.device | str = "cpu", precision: str = "fp32") -> World:
        """One process alone: nothing is sent anywhere."""
        return cls(device=torch.device(device), precision=precision)

    @classmethod
    def start(cls, precision: str = "fp32") -> World:
        """All processes that torchrun started (one without it), each on a device of its own; joins them once."""
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        return cls(
            device=torch.device(state.device), precision=precision, rank=state.process_index, size=state.num_processes
        )

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for forwards, a context manager of its own for each `with`."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's contiguous part of the items, as many on each rank: their number is a multiple of `size`."""
        each = len(items) // self.size
        return list(items[self.rank * each : (self.rank + 1) * each])

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a detached tensor over ranks; the tensor itself where there is one rank."""
        if self.size == 1:
            return value
        summed = value.clone()
        torch.distributed.all_reduce(summed)
        return summed

    def gather(self, value: Tensor) -> Tensor:
        """The equally shaped tensors of all ranks, concatenated along dimension 0; the tensor itself on one rank."""
        if self.size == 1:
            return value
        value = value.reshape(-1, *value.shape[1:]).contiguous()
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, value)
        return torch.cat(gathered)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over ranks, one flat message; a parameter without gradient counts as zero.

        Losses are divided by normalizers of all ranks, so the sum is the gradient of one large batch. Ranks may differ
        in the number of their forwards (groups of equal rewards cost none), which DDP's hooks would not allow.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
        flat = self.sum(flat)
        for parameter, gradient in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
            parameter.grad = gradient.view_as(parameter)


def best_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
