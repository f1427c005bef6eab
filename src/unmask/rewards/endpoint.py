"""Requests to an HTTP endpoint: each ends by a deadline, and a pause that the endpoint asks for is kept by all."""

from __future__ import annotations

import email.utils
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import (
    BaseHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

_CONNECT_SECONDS = 10.0  # nobody is there, where a connection takes longer
_REPLY_BYTES = 2**20
_LONGEST = 400  # characters that are told of a failure


@dataclass(frozen=True)
class Failed:
    """A request that did not succeed: why, in one line, and the status where the endpoint gave one."""

    why: str
    status: int | None = None
    retry_after_seconds: float = 0.0  # as the endpoint asks


@dataclass(kw_only=True)
class Endpoint:
    """Posts to a URL, from several threads, until it is closed: all then end at once, and further ones fail.

    timeout_seconds: of a whole request, however slowly its reply drips.
    """

    url: str
    headers: Mapping[str, str]
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # sent to this URL alone
    timeout_seconds: float
    _sockets: set[socket.socket] = field(default_factory=set, init=False, repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _not_before: float = field(default=-math.inf, init=False, repr=False)  # seconds of the monotonic clock

    def close(self) -> None:
        """End all requests and pauses."""
        self._closed.set()
        for open_socket in list(self._sockets):
            _shut(open_socket)

    def wait(self, seconds: float) -> None:
        """Wait so long, and as long as the endpoint has asked all to wait, unless it is closed."""
        until = time.monotonic() + seconds
        while (left := max(until, self._not_before) - time.monotonic()) > 0 and not self._closed.wait(left):
            pass

    def hold(self, seconds: float) -> None:
        """Have all requests wait so long from now."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def post(self, body: bytes) -> bytes | Failed:
        """The reply to a body, at most a MiB of it, or why there is none."""
        if self._closed.is_set():
            return Failed("given up")
        own: list[socket.socket] = []  # of this request: a redirection opens a further one
        late = threading.Event()

        def give_up() -> None:
            late.set()
            for open_socket in list(own):
                _shut(open_socket)

        timer = threading.Timer(self.timeout_seconds, give_up)
        timer.daemon = True
        timer.start()
        outcome: bytes | Failed
        try:
            outcome = self._reply(body, own, late)
        except HTTPError as error:
            outcome = _refusal(error)
        except (OSError, HTTPException, ValueError) as error:
            outcome = Failed(_line(f"{type(error).__name__}: {error}"))
        finally:
            timer.cancel()
            self._sockets.difference_update(own)
        return Failed(f"TimeoutError: no whole reply in {self.timeout_seconds:g} s") if late.is_set() else outcome

    def _reply(self, body: bytes, own: list[socket.socket], late: threading.Event) -> bytes:
        request = Request(self.url, body, dict(self.headers))  # noqa: S310 - settings allow http(s) alone
        for name, value in self.secret_headers.items():
            request.add_unredirected_header(name, value)

        def opened(new: socket.socket) -> None:
            new.settimeout(self.timeout_seconds)
            own.append(new)
            self._sockets.add(new)
            if late.is_set() or self._closed.is_set():
                _shut(new)

        connect_seconds = min(self.timeout_seconds, _CONNECT_SECONDS)
        with _opener(_Http(opened), _Https(opened)).open(request, timeout=connect_seconds) as response:
            return bytes(response.read(_REPLY_BYTES))


def _refusal(error: HTTPError) -> Failed:
    """What the endpoint says with an error status."""
    with error:
        try:
            said = error.read(_LONGEST).decode(errors="replace")
        except (OSError, HTTPException, ValueError) as broken:
            said = f"{type(broken).__name__}: {broken}"
    asked = _seconds_asked(error.headers.get("Retry-After", "") if error.headers else "")
    parts = (f"{error.code} {error.reason}".strip(), said.strip())
    return Failed(_line(": ".join(filter(None, parts))), error.code, asked)


def _line(text: str) -> str:
    """The beginning of a text as one line that a terminal can show: it may come from the other side."""
    words = " ".join(text[: 4 * _LONGEST].split())[:_LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _seconds_asked(retry_after: str) -> float:
    """The pause that a Retry-After header asks for, in seconds or until a date; 0 where it says neither."""
    with suppress(ValueError):
        seconds = float(retry_after)
        return max(0.0, seconds) if not math.isnan(seconds) else 0.0
    with suppress(ValueError, OverflowError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _shut(open_socket: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)  # not TLS's own, which waits for the other side


def _connection(kind: type[Any], opened: Callable[[socket.socket], None]) -> Any:
    """A kind of connection that hands out its socket once it is there."""

    class Connection(kind):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    return Connection


def _opener(*handlers: BaseHandler) -> OpenerDirector:
    """What `build_opener` makes, without ftp and files: a redirection leads to http or https, or nowhere."""
    opener = OpenerDirector()
    usual = (ProxyHandler(), UnknownHandler(), HTTPDefaultErrorHandler(), HTTPRedirectHandler(), HTTPErrorProcessor())
    for handler in (*usual, *handlers):
        opener.add_handler(handler)
    return opener


class _Http(HTTPHandler):
    def __init__(self, opened: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._kind = _connection(HTTPConnection, opened)

    def http_open(self, req: Request) -> Any:
        return self.do_open(self._kind, req)


class _Https(HTTPSHandler):
    def __init__(self, opened: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._kind = _connection(HTTPSConnection, opened)

    def https_open(self, req: Request) -> Any:
        return self.do_open(self._kind, req)
