"""How glibc treats freed memory, which its environment alone decides: set before a process starts."""

from __future__ import annotations

import os
import sys

_NAMES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
KEEP_ALL = dict.fromkeys(_NAMES, str(1 << 32))  # no page faults, however much is allocated: time is that of algorithms
GIVE_BACK = dict.fromkeys(_NAMES, str(1 << 16))  # at once, so that the peak of a call is seen


def tune() -> None:
    """Start this process again with the thresholds raised, unless they are set."""
    if _NAMES[0] not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_ALL)  # noqa: S606 - itself
