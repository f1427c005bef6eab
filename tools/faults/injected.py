"""Faults within a process: kill -9 in a phase or at a write, writes that the system refuses, bad numbers."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the phases of a run are called where it tells of its progress.
PHASES = {
    "start": r"unmask (train|pretrain|evaluate): |loading |preparing ",
    "loading": r"loading |preparing ",
    "rollout": r"sampling",
    "rewards": r"rewards",
    "update": r"updates",
    "evaluation": r"(base|final) evaluation|evaluation after|validation",
    "checkpoint": r"saving ",
    "steps": r"step$",
    "row": r".* steps?\b|.*tokens",
}
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open"}
_KILLED = threading.Event()


def die() -> None:
    """kill -9 of this process by itself: nothing is flushed, closed or given back."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class InPhase:
    """A signal, kill -9 unless another is named, so many seconds after a phase has begun for the given time."""

    phase: str
    time: int  # 1: the first
    seconds: float
    number: int = signal.SIGKILL

    def __call__(self) -> None:
        """Watch the progress of the command that follows."""
        from unmask.report.progress import Progress

        met: list[str] = []
        tell_doing, tell_phase = Progress.doing, Progress.phase

        def notice(name: str) -> None:
            if re.match(PHASES[self.phase], name):
                met.append(name)
                if len(met) == self.time:
                    threading.Thread(target=self._later, daemon=True).start()

        def doing(progress: Progress, what: str) -> None:
            notice(what)
            tell_doing(progress, what)

        def phase(progress: Progress, name: str, *arguments: Any, **options: Any) -> Any:
            notice(name)
            return tell_phase(progress, name, *arguments, **options)

        Progress.doing, Progress.phase = doing, phase  # type: ignore[method-assign,assignment]

    def _later(self) -> None:
        time.sleep(self.seconds)
        os.kill(os.getpid(), self.number)


def changes_of(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """What an audited event does to a file or directory within the folder, names of steps left out; None: nothing."""
    if event not in _CHANGES or not isinstance(arguments[0], str | os.PathLike):
        return None
    path = os.path.abspath(os.fspath(arguments[0]))
    if not path.startswith(folder):
        return None
    if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        return f"reads {_general(path, folder)}" if ".partial" in path else None
    return f"{event.removeprefix('os.')}s {_general(path, folder)}"


def _general(path: str, folder: str) -> str:
    return re.sub(r"step_\d+", "step", path.removeprefix(folder).strip("/")) or "."


@dataclass(frozen=True, kw_only=True)
class AtWrite:
    """A fault at one change of a file within the folder, before it is made: kill -9, or an error of the system."""

    folder: str
    what: str  # as `changes_of` says
    time: int = 1
    error: int | None = None  # number of the system's error, from then on; None: kill -9

    def __call__(self) -> None:
        """Hook into what the command that follows writes."""
        met: list[str] = []

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            change = changes_of(event, arguments, self.folder)
            if change is None or (change != self.what and len(met) < self.time):
                return
            if change == self.what:
                met.append(change)
            if len(met) >= self.time:
                self._strike(change)

        sys.addaudithook(hook)

    def _strike(self, change: str) -> None:
        if self.error is None:
            die()
        elif change.startswith(("open", "mkdir")):  # what frees room or renames may still work
            raise OSError(self.error, os.strerror(self.error))


@dataclass(frozen=True, kw_only=True)
class Record:
    """Writes down every change within the folder, one a line, in the order in which they are made."""

    folder: str
    into: Path

    def __call__(self) -> None:
        """Hook into what the command that follows writes."""
        descriptor = os.open(self.into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            change = changes_of(event, arguments, self.folder)
            if change is not None:
                os.write(descriptor, change.encode() + b"\n")

        sys.addaudithook(hook)


@dataclass(frozen=True, kw_only=True)
class HalfALine:
    """kill -9 when half of a line of a log is written."""

    line: int  # which, over both logs

    def __call__(self) -> None:
        """Hook into the logs."""
        from unmask.report.metrics import MetricsLog

        write, lines = MetricsLog.write, []

        def torn(log: MetricsLog, record: Any) -> None:
            lines.append(1)
            if len(lines) == self.line:
                os.write(log._file.fileno(), b'{"step": 3, "reward": 0.')
                die()
            write(log, record)

        MetricsLog.write = torn  # type: ignore[method-assign,assignment]


@dataclass(frozen=True, kw_only=True)
class SlowDisk:
    """Every sync takes so many seconds."""

    seconds: float

    def __call__(self) -> None:
        """Hook into syncs."""
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(self.seconds)
            fsync(descriptor)

        os.fsync = slow


@dataclass(frozen=True, kw_only=True)
class BadNumbers:
    """A loss that is NaN, or memory that is out, in the updates of these training steps."""

    steps: frozenset[int]
    memory: bool = False

    def __call__(self) -> None:
        """Hook into steps and losses."""
        import torch

        from unmask.objective.objective import Objective
        from unmask.training.trainer import Trainer

        step, losses, now = Trainer.step, Objective._micro_losses, [0]

        def watched(trainer: Trainer, number: int) -> Any:
            now[0] = number + 1
            return step(trainer, number)

        def spoilt(objective: Objective, batch: Any, forwards: int) -> Any:
            for loss, values in losses(objective, batch, forwards):
                if now[0] in self.steps and self.memory and forwards != 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield loss * math.nan if now[0] in self.steps and not self.memory else loss, values

        Trainer.step = watched  # type: ignore[method-assign,assignment]
        Objective._micro_losses = spoilt  # type: ignore[method-assign,assignment]
