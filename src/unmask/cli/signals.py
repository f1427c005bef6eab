"""SIGTERM in a command: raised as Ctrl-C is, so that files are closed and locks given back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unmask.errors import Terminated


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM within; a second ends the process. Not where it is handled already."""
    process = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:  # a forked child ends as it would have
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
