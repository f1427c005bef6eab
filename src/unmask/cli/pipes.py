"""Output into a pipe that nobody reads any more, as under `| head`."""

from __future__ import annotations

import os
import select
import sys


def output_is_unread() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_output() -> None:
    """Send what is left of standard output, which Python writes when it ends, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
