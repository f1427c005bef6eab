"""The processes of a run as one of them sees them, and what crosses between them: sums, tensors, small values.

torch.distributed alone; nothing that is sent is pickled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unmask.distributed.joining import joined, meeting
from unmask.distributed.launch import Launch
from unmask.errors import UserError

Item = TypeVar("Item")

ABSENT_SECONDS = 7200.0  # that ranks wait for one that lives, whose rewards may be slow; NCCL's own 600 are too few
TIMEOUT = timedelta(seconds=ABSENT_SECONDS + 300)  # `Watch`, which says who is late, comes first


class Crossings:
    """How often this process has met the other ranks, and how long it has now waited for them: a context manager."""

    def __init__(self) -> None:
        self.count = 0
        self._begin_seconds: float | None = None

    def __enter__(self) -> None:
        self.count += 1
        self._begin_seconds = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._begin_seconds = None

    def waiting_seconds(self) -> float:
        """Seconds since it began to wait; 0 where it does not."""
        begin_seconds = self._begin_seconds
        return 0.0 if begin_seconds is None else time.monotonic() - begin_seconds


CROSSINGS = Crossings()  # of this process, as torch.distributed's own group is


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run as one of them sees them: its rank, their number, its device, mixed precision, sums.

    `World.start` joins the processes that torchrun started, `World.single` is one process alone:

        world = World.single()
        world.everyone("here")       # ["here"]
        world.sum(torch.ones(2))     # tensor([1., 1.])
    """

    device: torch.device
    precision: str = "fp32"  # of autocast: "fp32" (none) or "bf16"
    rank: int = 0
    size: int = 1
    local_size: int = 1  # ranks of this machine

    @classmethod
    def single(cls, device: torch.device | str = "cpu", precision: str = "fp32") -> World:
        """One process alone: nothing is sent anywhere."""
        return cls(device=torch.device(device), precision=precision)

    @classmethod
    def start(
        cls, precision: str = "fp32", telling: Callable[[str], AbstractContextManager[object]] = nullcontext
    ) -> World:
        """All processes that torchrun started (one without it), each on a device of its own; joins them once.

        Returns when all are there; `telling` says meanwhile that they are waited for. Raises UserError where they have
        not come in half an hour, one ends meanwhile, or the environment contradicts itself, that of another rank, or a
        process group that is there already.
        """
        gpus = torch.cuda.device_count()
        launch = Launch.read(os.environ, gpus)
        device = torch.device("cuda", launch.local_rank) if gpus else torch.device("cpu")
        places = {"rank": launch.rank, "size": launch.size, "local_size": launch.local_size}
        world = cls(device=device, precision=precision, **places)
        if gpus:
            torch.cuda.set_device(device)
        if launch.size > 1 and not torch.distributed.is_initialized():
            with telling(f"waiting until all {launch.size} ranks have started"):
                store = meeting(launch.rank, launch.size)
            joined(lambda: world._join(store))
        world._check_group()
        return world

    def _join(self, store: Any) -> None:
        options: dict[str, Any] = {"backend": "gloo"}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread
            options = {"backend": "cpu:gloo,cuda:nccl", "device_id": self.device}
        options |= {"rank": self.rank, "world_size": self.size, "timeout": TIMEOUT}
        torch.distributed.init_process_group(store=store, **options)
        self.barrier()  # none goes on, and writes, while another still looks at what is there
        store.set_timeout(TIMEOUT)

    def _check_group(self) -> None:
        if not torch.distributed.is_initialized():
            return
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if (rank, size) != (self.rank, self.size):
            raise UserError(
                f"the process group has {size} ranks, this one is {rank}, and the environment says {self.size} and "
                f"{self.rank}: leave the group first, or set WORLD_SIZE and RANK"
            )

    @property
    def active(self) -> dict[str, Any]:
        """What is truly there: ranks, this one's device, and where there are others, the backend."""
        on_gpu = self.device.type == "cuda"
        active = {"ranks": self.size, "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu"}
        if self.size > 1:
            return active | {"backend": str(torch.distributed.get_backend_config())}
        idle = max(0, torch.cuda.device_count() - 1) if on_gpu else 0
        return active | ({"idle_gpus": idle} if idle else {})

    def leave(self) -> None:
        """Leave the other ranks at the good end of the work."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for forwards, a context manager of its own for each `with`."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a detached tensor over ranks; the tensor itself where there is one rank."""
        if self.size == 1:
            return value
        summed = value.clone()
        with CROSSINGS:
            torch.distributed.all_reduce(summed)
        return summed

    def most(self, number: int) -> int:
        """The largest of the numbers of all ranks."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with CROSSINGS:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: Tensor) -> Tensor:
        """The equally shaped tensors of all ranks, concatenated along dimension 0; the tensor itself on one rank."""
        if self.size == 1:
            return value
        value = value.reshape(-1, *value.shape[1:]).contiguous()
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        with CROSSINGS:
            torch.distributed.all_gather(gathered, value)
        return torch.cat(gathered)

    def everyone(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, where they are what JSON can say; they may differ in size."""
        if self.size == 1:
            return [value]
        content = _bytes_of(value)
        lengths = self.gather(torch.tensor([len(content)])).tolist()
        padded = torch.nn.functional.pad(content, (0, max(lengths) - len(content)))
        rows = self.gather(padded).view(self.size, -1)
        return [_value_of(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def first(self, work: Callable[[], Item]) -> Item:
        """What `work` gives on the first rank, on every rank; only that rank does it, and JSON can say what it gives.

        Where it fails, every rank does: by the same UserError, or else by a RuntimeError on the other ranks.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = []
        try:
            outcome = ["done", work()] if self.is_main else []
        except UserError as error:
            outcome = ["refused", str(error)]
        except BaseException as error:
            outcome = ["failed", repr(error)]
            raise
        finally:
            how, value = self._sent(outcome)
        if how == "refused":
            raise UserError(value)
        if how == "failed":
            raise RuntimeError(f"the first rank failed: {value}")
        return value  # type: ignore[no-any-return]

    def _sent(self, value: Any) -> Any:
        """The first rank's value."""
        content = _bytes_of(value)
        length = torch.tensor([len(content)])
        with CROSSINGS:
            torch.distributed.broadcast(length, 0)
            if not self.is_main:
                content = torch.empty(int(length), dtype=torch.uint8)
            torch.distributed.broadcast(content, 0)
        return _value_of(content)

    def waiting(self, where: str) -> dict[str, float]:
        """Wait for all ranks: the seconds that they have waited, by names of metrics; nothing where there is one rank.

        Half of what the ranks do between two such places is lost where the mean wait is half of the time between them.
        """
        if self.size == 1:
            return {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begin_seconds = time.monotonic()
        self.barrier()
        seconds = self.gather(torch.tensor([time.monotonic() - begin_seconds], dtype=torch.float64)).tolist()
        return {f"wait_seconds/{where}_mean": fmean(seconds), f"wait_seconds/{where}_max": max(seconds)}

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            with CROSSINGS:
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


def _bytes_of(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value_of(content: Tensor) -> Any:
    return json.loads(content.numpy().tobytes())


def best_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
