"""A server of a run's page while training goes on: on this machine alone, for whoever has the address.

It listens on the loopback interface. The address holds a random token; a request without it, or with a Host header of
another name (a web page whose name was made to lead here), is told that nothing is there. It lists no directory and
reads nothing but the run's metrics and record.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from unmask.errors import UserError
from unmask.page.html import document
from unmask.page.runs import blob_makers, page_of

HOST = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PageServer(ThreadingHTTPServer):
    """Serves one run's page at `address`."""

    daemon_threads = True

    def __init__(self, run: Path, port: int = 0) -> None:
        self.run = run
        self.token = secrets.token_urlsafe(16)
        page_of([run])  # raises what is wrong before anything listens
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} cannot be listened at ({error}): give another, or 0 for a free one"
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def names(self) -> set[str]:
        """Host headers that are answered."""
        return {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def tag(self) -> str:
        """What changes when there is something new to show."""
        found = [
            path
            for path in (self.run / "metrics.jsonl", self.run / "summary.json", *self.run.glob("record/*"))
            if path.exists()
        ]
        newest = max((path.stat().st_mtime_ns for path in found), default=0)
        return f"{len(found)}-{newest}"

    @cached_property
    def page(self) -> bytes:
        """The page itself, which asks for all that changes."""
        return document(page_of([self.run]), "", connect="'self'").encode()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout: ClassVar[float] = 30.0  # seconds that a request may take to come
    server_version, sys_version = "unmask", ""

    def do_GET(self) -> None:
        """Answer a request for the page, for what is new, or for a record."""
        begin, _, what = urlsplit(self.path).path.lstrip("/").partition("/")
        is_known = secrets.compare_digest(begin.encode("utf-8", "replace"), self.server.token.encode())
        if not is_known or self.headers.get("Host") not in self.server.names:
            self._answer(HTTPStatus.NOT_FOUND)
            return
        try:
            self._answer_known(what)
        except UserError as error:  # such as a line that is being written: the page asks again
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(), "text/plain; charset=utf-8")

    def _answer_known(self, what: str) -> None:
        server = self.server
        if what == "":
            self._answer(HTTPStatus.OK, server.page, "text/html; charset=utf-8")
        elif what == "state":
            tag = server.tag()
            if parse_qs(urlsplit(self.path).query).get("seen") == [tag]:
                self._answer(HTTPStatus.NO_CONTENT)
                return
            content = json.dumps({"tag": tag, "page": page_of([server.run])}, allow_nan=False)
            self._answer(HTTPStatus.OK, content.encode(), "application/json")
        elif what.startswith("record/") and (blob := blob_makers(server.run).get(what.removeprefix("record/"))):
            self._answer(HTTPStatus.OK, blob(), "application/octet-stream")
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _answer(self, status: HTTPStatus, content: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are not told."""


@contextmanager
def listening(run: Path, port: int = 0) -> Iterator[PageServer]:
    """A server of the run's page, which listens from here on. Raises UserError where it cannot."""
    server = PageServer(run, port)
    try:
        yield server
    finally:
        server.server_close()
