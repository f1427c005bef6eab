"""SIGINT and SIGTERM while a run trains: the first is obeyed at the next safe point, a second at once."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from unmask.distributed import World
from unmask.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PASSED_ON_SECONDS = 5.0  # in which a launcher passes on what a scheduler has sent to all processes, ranks among them


class Stopping:
    """Notes the signals that ask a run to end, within a `with`; elsewhere than in the main thread it hears none.

    A signal that is ignored stays so: shells have their background jobs ignore the Ctrl-C that is meant for others.
    """

    def __init__(self, world: World) -> None:
        self._world, self._process = world, os.getpid()
        self._asked: int | None = None
        self._asked_seconds = -math.inf
        self._nothing_to_save = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        is_forked = os.getpid() != self._process
        if not is_forked and self._is_passed_on():
            return
        if is_forked or self._asked is not None:  # a forked child ends as it would have
            self._give_back()
            os.kill(os.getpid(), number)
            return
        if self._world.size == 1:
            self._give_back()
        if self._nothing_to_save:
            raise _interrupt(number)
        self._asked, self._asked_seconds = number, time.monotonic()
        if self._world.is_main:  # no print: it may be in the midst of one
            line = "unmask: ending after this step, once it is saved; a second signal ends at once\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())

    def _is_passed_on(self) -> bool:
        """Whether a signal may be the first one again, which the launcher of the ranks has had too and passes on."""
        return self._world.size > 1 and time.monotonic() - self._asked_seconds < _PASSED_ON_SECONDS

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Obey at once within, where nothing changes that would have to be saved; of several ranks, none ends alone."""
        self._nothing_to_save = self._world.size == 1
        try:
            yield
        finally:
            self._nothing_to_save = False

    def obey(self) -> None:
        """Raise what ends the run where any rank was asked to end; all call it, where nothing is left to be saved."""
        if self.is_asked():
            raise self.interrupt()

    def is_asked(self) -> bool:
        """Whether any rank was asked to end: at a safe point, which all ranks reach."""
        asked = torch.tensor(float(self._asked is not None), device=self._world.device)
        return bool(self._world.sum(asked)) if self._world.size > 1 else self._asked is not None

    def was_asked(self) -> bool:
        """Whether this rank was asked to end: a signal that comes now is the second."""
        return self._asked is not None

    def interrupt(self) -> KeyboardInterrupt:
        """What to raise after the save."""
        return _interrupt(self._asked or signal.SIGTERM)


def _interrupt(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
