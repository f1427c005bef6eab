"""Exceptions of the user's own code, told from where that begins: what is above it is ours, and of no use to them."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = Path(__file__).parents[1]
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def users_traceback(error: BaseException) -> str | None:
    """The traceback of an exception from the first frame of the user's code on; None where none of it is theirs."""
    told = traceback.TracebackException.from_exception(error)
    first = next((place for place, frame in enumerate(told.stack) if _is_users(frame.filename)), None)
    if first is None:
        return None
    told.stack = traceback.StackSummary.from_list(told.stack[first:])
    return "".join(told.format()).replace("Traceback (most recent call last)", "Traceback from your code on", 1)


def _is_users(filename: str) -> bool:
    """Whether a file of a frame is neither of this package nor of an installed one, nor Python's own."""
    path = Path(filename)
    return path.is_file() and not any(path.is_relative_to(place) for place in (_OURS, *_INSTALLED))
