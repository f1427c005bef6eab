"""Ranks that watch one another: one that dies, stops or never comes ends all of them, in one line that names it.

A thread of every rank keeps a connection with the first rank's, and tells each second that its process lives. The
system closes the connection of a process that dies, however it dies; one that is stopped falls silent. The first rank
tells all others what it finds, and they see themselves what happens to the first.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from unmask.distributed.joining import joined
from unmask.distributed.world import ABSENT_SECONDS, CROSSINGS, World
from unmask.errors import UserError

BEAT_SECONDS = 1.0
SILENT_BEATS = 45  # that a rank may miss: one call in C may keep all threads of a process waiting for long
GRACE_SECONDS = 10.0  # that this process has, once another is lost, to end what it is at, such as a checkpoint
WAITING_SECONDS = 2.0  # the same where it waits for the others, who will not come
_MEETING_SECONDS = 60.0
_STRANGER_SECONDS = 5.0  # for the first line of a connection
_EXIT_LOST = 2  # as of a command that ends with one line
_LINKS: set[socket.socket] = set()


def _close_in_child() -> None:
    """A forked child shares its parent's connections, and may outlive it: they would not end with the parent."""
    for link in _LINKS:
        link.close()
    _LINKS.clear()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(kw_only=True)
class _Heard:
    """What is known of another rank."""

    link: socket.socket
    missed: int = 0  # of its beats
    unread: bytes = b""  # the beginning of a line
    crossings: int = 0
    waiting_seconds: float = 0.0


@dataclass(kw_only=True)
class Watch:
    """The ranks of a run, watched while they are within `with`; one process alone watches nobody.

    A rank that leaves by an exception ends the others too. `how_to_go_on`: the end of the line that is said then.
    """

    names: list[str]  # of all ranks: number, process and host
    rank: int = 0
    links: dict[int, socket.socket] = field(default_factory=dict)  # with the first rank; of that, with every other
    how_to_go_on: Callable[[], str] | None = None
    _lost: str | None = None  # what has happened to a rank
    _lost_seconds: float = 0.0  # when
    _over: bool = False
    _news: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def of(cls, world: World) -> Watch:
        """The watch of a process of a world; all ranks make it together, and wait until all have met.

        Raises UserError where one does not come.
        """
        if world.size == 1:
            return cls(names=[""])
        return joined(lambda: cls._made(world))

    @classmethod
    def _made(cls, world: World) -> Self:
        names = world.everyone(f"rank {world.rank} (process {os.getpid()} on {socket.gethostname()})")
        links = _met(world)
        world.barrier()
        return cls(names=names, rank=world.rank, links=links)

    def __enter__(self) -> Self:
        self._ranks = {rank: _Heard(link=link) for rank, link in self.links.items()}
        _LINKS.update(self.links.values())
        if self._ranks:
            threading.Thread(target=self._watch, daemon=True, name="unmask-watch").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the others, or tell them what ends this rank; raises UserError where that is the loss of another."""
        if not self.links:
            return
        if error is None:
            self._leave(["left"])
            return
        lost = self._loss_behind(error)
        self._leave(["ended", _told(error)])
        if lost is not None:
            raise UserError(self._line(lost)) from error

    def _leave(self, word: list[Any]) -> None:
        with self._news:
            self._over = True
        for rank in self.links:
            self._tell(rank, word)

    def _loss_behind(self, error: BaseException) -> str | None:
        """What has happened to another rank, where that may be why this one fails: then its connections fail first."""
        with self._news:
            if isinstance(error, RuntimeError):  # as all errors of torch.distributed
                self._news.wait_for(lambda: self._lost is not None, timeout=2 * BEAT_SECONDS)
                return self._lost
        return None

    def _line(self, lost: str) -> str:
        return "; ".join([f"{lost}, so all ranks end", *([self.how_to_go_on()] if self.how_to_go_on else [])])

    # ---- the thread ----

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, heard in self._ranks.items():
                selector.register(heard.link, selectors.EVENT_READ, rank)
            next_seconds = time.monotonic()
            while not self._over and self._ranks:
                if time.monotonic() >= next_seconds:  # once, after whatever time: all may have been stopped together
                    next_seconds = time.monotonic() + BEAT_SECONDS
                    self._beat()
                for key, _ in selector.select(max(0.0, next_seconds - time.monotonic())):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        del self._ranks[key.data]
                self._end_in_time()
            while not self._over and self._lost is not None:
                time.sleep(BEAT_SECONDS / 10)
                self._end_in_time()
        for link in self.links.values():
            _LINKS.discard(link)
            link.close()

    def _beat(self) -> None:
        """Tell that this process lives, and see who does not."""
        for rank, heard in self._ranks.items():
            self._tell(rank, ["beat", CROSSINGS.count, CROSSINGS.waiting_seconds()])
            heard.missed += 1
            if heard.missed > SILENT_BEATS:
                seconds = SILENT_BEATS * BEAT_SECONDS
                self._lose(f"{self.names[rank]} has not been heard of for {seconds:.0f} s: it is stopped, or cut off")
        if self.rank == 0:
            self._miss()

    def _miss(self) -> None:
        """See who has not come to where another rank waits."""
        counts = {rank: heard.crossings for rank, heard in self._ranks.items()} | {0: CROSSINGS.count}
        waits = {rank: heard.waiting_seconds for rank, heard in self._ranks.items()} | {0: CROSSINGS.waiting_seconds()}
        reached = max((counts[rank] for rank, seconds in waits.items() if seconds > ABSENT_SECONDS), default=0)
        late = [rank for rank, count in counts.items() if count < reached]
        if late:
            self._lose(
                f"{self.names[min(late)]} lives, but has not come for {ABSENT_SECONDS:.0f} s to where the others wait"
            )

    def _hear(self, rank: int) -> bool:
        """Read what a rank has told; whether there may be more."""
        heard = self._ranks[rank]
        try:
            content = heard.link.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            content = b""
        if not content:
            self._lose(f"{self.names[rank]} has died")
            return False
        heard.missed = 0
        *lines, heard.unread = (heard.unread + content).split(b"\n")
        for what, *values in map(json.loads, lines):
            if what == "left":
                return False
            if what == "beat":
                heard.crossings, heard.waiting_seconds = values
            else:
                self._lose(values[0] if what == "lost" else f"{self.names[rank]} has ended: {values[0]}")
        return True

    def _tell(self, rank: int, word: list[Any]) -> None:
        with suppress(OSError):  # it is stopped or gone, as will be seen
            self.links[rank].send(json.dumps(word).encode() + b"\n")

    def _lose(self, what: str) -> None:
        """Note what has happened to a rank; the first one to be lost counts, and all are told."""
        with self._news:
            if self._lost is not None or self._over:
                return
            self._lost, self._lost_seconds = what, time.monotonic()
            self._news.notify_all()
        if self.rank == 0:
            for rank in self.links:
                self._tell(rank, ["lost", what])

    def _end_in_time(self) -> None:
        """End this process once another is lost, if it does not end by itself: it may wait for that one forever."""
        if self._lost is None:
            return
        since_seconds = time.monotonic() - self._lost_seconds
        if since_seconds > GRACE_SECONDS or min(since_seconds, CROSSINGS.waiting_seconds()) > WAITING_SECONDS:
            timer = threading.Timer(WAITING_SECONDS, os._exit, (_EXIT_LOST,))  # a file system may not answer either
            timer.daemon = True
            timer.start()
            line = f"unmask: error: {UserError(self._line(self._lost))}\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
            os._exit(_EXIT_LOST)


def _told(error: BaseException) -> str:
    """What ends a rank, as the others say it."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:300].rstrip(": ")


def _met(world: World) -> dict[int, socket.socket]:
    """A connection with the first rank; of the first, with every other."""
    with _meeting_place(world) as (listener, address):
        if listener is None:
            links = {0: _joined(world, address)}
        else:
            links = {}
            while len(links) < world.size - 1:
                links |= _accepted(listener, address[2])
    for link in links.values():
        link.setblocking(False)
    return links


@contextmanager
def _meeting_place(world: World) -> Iterator[tuple[socket.socket | None, list[Any]]]:
    """Where the first rank listens, None elsewhere; host, port, and a word by which its own ranks are known."""
    opened: list[socket.socket] = []

    def opening() -> list[Any]:
        family, host = _own_address()
        opened.append(socket.create_server((host, 0), family=family, backlog=world.size))
        return [host, opened[0].getsockname()[1], secrets.token_hex(16)]

    address = world.first(opening)
    try:
        yield (opened[0] if opened else None), address
    finally:
        for listener in opened:
            listener.close()


def _own_address() -> tuple[socket.AddressFamily, str]:
    """This machine's address as the others see it: the one from which it reaches where all ranks have met."""
    place = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    family, kind, _, _, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # nothing is sent
        probe.connect(address)
        return family, probe.getsockname()[0]


def _joined(world: World, address: list[Any]) -> socket.socket:
    host, port, word = address
    try:
        link = socket.create_connection((host, port), timeout=_MEETING_SECONDS)
        link.sendall(f"{world.rank} {word}\n".encode())
    except OSError as error:
        raise UserError(
            f"rank {world.rank} cannot reach the first rank at {host}, port {port} ({error}): "
            "let the machines of a run connect to one another"
        ) from error
    return link


def _accepted(listener: socket.socket, word: str) -> dict[int, socket.socket]:
    """The next connection by its rank; none where it is somebody else's."""
    listener.settimeout(_MEETING_SECONDS)
    try:
        link, _ = listener.accept()
    except TimeoutError as error:
        raise UserError(f"a rank has not reached the first one in {_MEETING_SECONDS:.0f} s: start again") from error
    link.settimeout(_STRANGER_SECONDS)
    line = b""
    with suppress(OSError), link.makefile("rb") as stream:  # nothing follows that line until all have met
        line = stream.readline(200)
    rank, _, told = line.decode(errors="replace").strip().partition(" ")
    if not secrets.compare_digest(told.encode(), word.encode()):
        link.close()
        return {}
    return {int(rank): link}
