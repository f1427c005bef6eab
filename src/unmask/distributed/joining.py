"""How the ranks of a launch find one another, before they are watched: signals are heard, and nothing waits long."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed.rendezvous import rendezvous

from unmask.errors import UserError

Item = TypeVar("Item")

_MEETING = timedelta(minutes=30)  # in which all ranks must have started
_JOINING_SECONDS = 300.0  # in which those that have started must have joined: one of them may have died
_NAMING_SECONDS = 60.0  # in which the name of the first rank's machine must be known: a cluster may be slow to tell


def meeting(rank: int, size: int) -> Any:
    """Where the ranks exchange their addresses, once all are there.

    Raises UserError where they do not come, or another says that they are of another number.
    """
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    _check_known(host)
    place = f"{host}, port {port}"
    try:
        store = _interruptible(lambda: next(rendezvous("env://", rank, size, timeout=_MEETING))[0])
    except torch.distributed.DistError as error:
        said = str(error).partition("\n")[0].rstrip(". ")
        if "timed out" not in said.lower():
            raise UserError(f"ranks cannot meet at {place}: {said}; give another MASTER_ADDR or MASTER_PORT") from error
        raise UserError(
            f"not all {size} ranks have met at {place} in {_MEETING.total_seconds():.0f} s: see what the others say, "
            "and start all again"
        ) from error
    _check_size(store, size)
    store.set_timeout(timedelta(seconds=_JOINING_SECONDS))
    return store


def joined(work: Callable[[], Item]) -> Item:
    """What `work` gives, by which ranks that have met join. Raises UserError where one ends, or stands still."""
    try:
        return _interruptible(work, _JOINING_SECONDS)
    except (RuntimeError, TimeoutError) as error:  # as all errors of torch.distributed are
        raise UserError(
            "another rank has ended, or stands still, while ranks were starting: see what it says, and start all again"
        ) from error


def _check_known(host: str) -> None:
    """Raise UserError where the machine has no address after a minute."""
    end_seconds = time.monotonic() + _NAMING_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > end_seconds:
                raise UserError(f"MASTER_ADDR {host!r} is no machine that is known here: {error.strerror}") from error
        time.sleep(min(1.0, _NAMING_SECONDS))


def _check_size(store: Any, size: int) -> None:
    first = store.compare_set("unmask/world_size", "", str(size)).decode()
    if first != str(size):
        raise UserError(f"WORLD_SIZE is {size} here and {first} on another rank: give all the same")


def _interruptible(work: Callable[[], Item], most_seconds: float | None = None) -> Item:
    """What `work` gives, which waits in C, where no signal is heard: here it is, and the work is left behind.

    Raises TimeoutError where it takes longer.
    """
    done: Future[Item] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=do, daemon=True, name="unmask-joining").start()
    return done.result(most_seconds)
