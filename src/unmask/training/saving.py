"""Checkpoints that are written while training goes on: one at a time, in a thread, from copies in host memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from unmask.distributed import World
from unmask.distributed.host_memory import pinned_bytes
from unmask.distributed.world import TIMEOUT
from unmask.report.durable import DiskError
from unmask.report.progress import message

Name = TypeVar("Name")


class GivenUp(Exception):
    """Ends a write that nobody waits for any more."""


class Saving:
    """Has checkpoints written in a thread, one after another: a context manager that waits for the last.

    What fails there is raised by the next call of `check`, `wait` or `begin`, or at the end of the context.
    `gives_up`: whether an interrupt ends a write, after the file that it is at; else the interrupt waits for it.
    """

    def __init__(self, gives_up: Callable[[], bool] = lambda: False) -> None:
        self._gives_up, self._given_up = gives_up, False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._writing: Future[None] | None = None
        self._group: Any = None
        self._waited_seconds = 0.0
        self._told = False

    def begin(self, write: Callable[[], None], *, at_once: bool = False) -> None:
        """Have a checkpoint written; `at_once`: return when it is."""
        self.wait()
        self._writing = self._pool.submit(write)
        if at_once:
            self._tell()
            self.wait()

    def check(self) -> None:
        """Raise what has gone wrong in a write that has ended."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written."""
        writing = self._writing
        if writing is not None:
            try:
                writing.result()
            finally:
                self._writing = None if writing.done() else writing

    def go_on(self) -> None:
        """Raise GivenUp where what is being written is wanted no more."""
        if self._given_up:
            raise GivenUp

    def meet(self, world: World) -> None:
        """Make ready for `together`: all ranks call it, from their main threads."""
        if world.size > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)

    @contextmanager
    def together(self, final: Path) -> Iterator[None]:
        """What every rank writes of `final`, in its thread. Raises on all where one fails."""
        failed = torch.ones(())
        try:
            yield
            failed.zero_()
        finally:
            if self._group is not None:
                torch.distributed.all_reduce(failed, group=self._group)
        if failed:
            raise DiskError(f"{final} cannot be written, of which another rank says why")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Count the seconds within as those that training stands still for a checkpoint."""
        begin_seconds = time.monotonic()
        try:
            yield
        finally:
            self._waited_seconds += time.monotonic() - begin_seconds

    def waited_seconds(self) -> float:
        """Seconds that training has stood still since this was asked last."""
        seconds, self._waited_seconds = self._waited_seconds, 0.0
        return seconds

    def _tell(self) -> None:
        if not self._told:
            message("the host has no room for a copy of what is saved: steps wait until a checkpoint is written")
        self._told = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._given_up = isinstance(error, KeyboardInterrupt) and self._gives_up()
        try:
            if not self._given_up:
                self.wait()
        except KeyboardInterrupt:
            self._given_up = True
            raise
        finally:
            self._pool.shutdown()


def copies(tensors: Iterable[tuple[Name, Tensor]], room_bytes: float) -> dict[Name, Tensor] | None:
    """Copies in host memory that nothing changes, of a parameter with several names one; None where room is lacking.

    Those from a GPU are in pinned memory, which it fills without waiting for each.
    """
    copied: dict[Name, Tensor] = {}
    of_parameter: dict[nn.Parameter, Tensor] = {}
    for name, tensor in tensors:
        copy = of_parameter.get(tensor) if isinstance(tensor, nn.Parameter) else None
        if copy is None:
            room_bytes -= _copy_bytes(tensor)
            if room_bytes < 0:
                return None
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if isinstance(tensor, nn.Parameter):
            of_parameter[tensor] = copy
        copied[name] = copy
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _copy_bytes(tensor: Tensor) -> int:
    """Bytes that a copy takes, pinned where it comes from a GPU."""
    return pinned_bytes(tensor.nbytes) if tensor.is_cuda else tensor.nbytes
