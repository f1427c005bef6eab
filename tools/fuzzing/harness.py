"""What every case must keep to: a result or one line of UserError, in two seconds, with no file touched elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from unmask.errors import UserError

LIMIT_SECONDS = 2.0
HANG_SECONDS = 20  # after which a case is ended
LONGEST_LINE = 2_000  # characters of an error
_CHANGES = {
    "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.rmtree", "shutil.copyfile", "shutil.move", "shutil.copytree", "shutil.unpack_archive",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """Raised in a case that does not end."""


@dataclass
class Tally:
    """How many cases were tried, how many of them ended in a UserError, and the slowest."""

    cases: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0


@dataclass
class _Guard:
    """Notes files that are written, made, moved or removed outside a directory, and programs and connections."""

    inside: str | None = None  # None: nothing is noted
    touched: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & _WRITES)
            self._note(event, [path] if writes else [])
        elif event == "os.symlink":
            self._note(event, [arguments[1]])
        elif event in _CHANGES:
            self._note(event, [_absolute(path, arguments[-1]) for path in arguments if isinstance(path, str | bytes)])

    def _note(self, event: str, paths: list[Any]) -> None:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                place = os.path.join(os.path.realpath(folder), name)  # what is removed or moved is a link itself
                place = os.path.realpath(place) if event == "open" else place
                if not place.startswith((str(self.inside), "/dev/")):
                    self.touched.append(f"{event} {place}")


def _absolute(path: str | bytes, descriptor: object) -> str:
    """A path that may be relative to an open directory."""
    of_directory = isinstance(descriptor, int) and descriptor >= 0
    return os.path.join(os.readlink(f"/proc/self/fd/{descriptor}") if of_directory else "", os.fsdecode(path))


_GUARD = _Guard()
_HOOKED: list[bool] = []  # a hook of the interpreter cannot be taken away again


@contextmanager
def guarded(inside: Path) -> Iterator[None]:
    """Fail where a file outside `inside` is touched."""
    if not _HOOKED:
        sys.addaudithook(_GUARD.hook)
        _HOOKED.append(True)
    _GUARD.inside, _GUARD.touched = str(inside.resolve()), []
    try:
        yield
    finally:
        _GUARD.inside = None
    assert not _GUARD.touched, f"touched outside the case's directory: {_GUARD.touched[:3]}"


@contextmanager
def _ended_when_hanging() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(work: Callable[[], object], inside: Path, tally: Tally) -> None:
    """Do the work of one case. Raises what it raises but UserError, and AssertionError for the rest of the promise."""
    with guarded(inside), _ended_when_hanging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = _seconds(work, tally)
        if seconds > LIMIT_SECONDS:  # once more: what is slow is slow again
            seconds = min(seconds, _seconds(work, Tally()))
    tally.cases += 1
    tally.slowest_seconds = max(tally.slowest_seconds, seconds)
    assert seconds <= LIMIT_SECONDS, f"took {seconds:.1f} s"


def _seconds(work: Callable[[], object], tally: Tally) -> float:
    """How long the work takes, without the time that other processes had the CPU."""
    begin = time.monotonic() - _ready_seconds()
    try:
        work()
    except UserError as error:
        tally.refused += 1
        line = str(error)
        assert line, "an empty error"
        assert "\n" not in line, f"an error of several lines: {line[:300]!r}"
        assert len(line) <= LONGEST_LINE, f"an error of {len(line)} characters: {line[:300]!r}"
        line.encode()  # a terminal can show it
    return time.monotonic() - _ready_seconds() - begin


def _ready_seconds() -> float:
    """How long this thread has been ready and had no CPU, where the kernel (Linux) tells."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
