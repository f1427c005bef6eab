"""Calls of a user's function: named while they last, interrupted at a time limit, and cut short where they flood."""

from __future__ import annotations

import faulthandler
import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

WAIT_SECONDS = 30.0  # after which a call that has not ended is named
GRACE_SECONDS = 15.0  # for an interrupted call to end; one that does not then ends the process
MOST_PRINTED = 20_000  # characters of one call
_AGAIN_SECONDS = 1.0  # between interruptions of a call that goes on
_SIGNAL = signal.SIGURG  # ignored by default, so one that comes late does nothing

_LOG = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Raised within a call that has reached its time limit. No Exception: `except Exception` there would go on."""


@contextmanager
def told_while_waiting(what: str) -> Iterator[None]:
    """Log, from another thread, that `what` has not ended after `WAIT_SECONDS`, and after twice as long again."""
    ended = threading.Event()

    def watch() -> None:
        waited = WAIT_SECONDS
        while not ended.wait(waited if waited == WAIT_SECONDS else waited / 2):
            _LOG.warning("%s has not answered for %.0f s: the run waits for it (Ctrl-C ends the run)", what, waited)
            waited *= 2

    threading.Thread(target=watch, daemon=True, name="unmask-waiting").start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def interrupted_after(limit_seconds: float, *, by_force: bool = True) -> Iterator[None]:
    """Raise Interrupted in what the main thread does within, once it has taken so long (0: never).

    What catches that and goes on is interrupted again each second. What no signal reaches, such as 9**9**9 in C, ends
    the process (`by_force`) after `GRACE_SECONDS` more, with the traceback of where it is, from a thread that needs no
    GIL. Does nothing in other threads, which cannot be interrupted.
    """
    if not limit_seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, main = threading.Event(), threading.main_thread().ident

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not ended.is_set():
            raise Interrupted

    def watch() -> None:
        pause_seconds = limit_seconds
        while not ended.wait(pause_seconds) and main is not None:
            signal.pthread_kill(main, _SIGNAL)
            pause_seconds = _AGAIN_SECONDS

    before = signal.signal(_SIGNAL, interrupt)
    threading.Thread(target=watch, daemon=True, name="unmask-limit").start()
    try:
        with _ended_by_force(limit_seconds + GRACE_SECONDS if by_force else math.inf):
            try:
                yield
            finally:
                ended.set()
    finally:
        ended.set()
        signal.signal(_SIGNAL, before or signal.SIG_DFL)


@contextmanager
def _ended_by_force(seconds: float) -> Iterator[None]:
    """End the process, with a traceback on the standard error that it was started with, unless left in time."""
    if sys.__stderr__ is None or not math.isfinite(seconds):
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(kw_only=True)
class _Speaker:
    """What a call may still print, and how much was left out."""

    left: int
    cut: int = 0

    def passed(self, text: str) -> str:
        """The part of a text that is printed; the last one ends its line."""
        shown = text[: self.left]
        begins = shown != text and not self.cut
        self.left -= len(shown)
        self.cut += len(text) - len(shown)
        return shown + "\n" * begins


_SPEAKER: ContextVar[_Speaker | None] = ContextVar("speaker", default=None)


class _Bounded:
    """A stream that passes on what is printed outside of calls, and of each call its first part."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or as much of it as the call that prints it may."""
        speaker = _SPEAKER.get()
        self._stream.write(text if speaker is None else speaker.passed(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def bounded_output() -> Iterator[None]:
    """Within, what each call under `heard` prints is cut after `MOST_PRINTED` characters."""
    with ExitStack() as stack:
        if sys.stdout is not None:
            stack.enter_context(redirect_stdout(_Bounded(sys.stdout)))
        if sys.stderr is not None:
            stack.enter_context(redirect_stderr(_Bounded(sys.stderr)))
        yield


@contextmanager
def heard(what: str) -> Iterator[None]:
    """A call whose printing is bounded, where `bounded_output` is; what was left out is told of by its length."""
    speaker = _Speaker(left=MOST_PRINTED)
    token = _SPEAKER.set(speaker)
    try:
        yield
    finally:
        _SPEAKER.reset(token)
        if speaker.cut:
            _LOG.warning("%s has printed %d characters more in one call: they are left out", what, speaker.cut)
