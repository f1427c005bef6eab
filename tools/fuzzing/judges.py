"""Target: what an HTTP endpoint answers a judge."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from fuzzing.values import JSON, damaged
from unmask.rewards.judge import Judge, JudgeSettings

_REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Score: 3"}}]}).encode()
_LINES = [
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200",
    "HTTP/1.1 429 Slow",
    "HTTP/1.1 500 \x1b[2J",
    "HTTP/9.9 999 ?",
    "SSH-2.0",
    "",
]
_HEADERS = ["Content-Length", "Retry-After", "Transfer-Encoding", "Location", "Content-Encoding", "Connection", "X"]
_VALUES = ["0", "5", "-1", "9" * 400, "chunked", "0.01", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "gzip", "close", "é"]


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """The bytes of an answer: a good one with an odd body, odd headers, or damaged as a whole."""
    content = draw(st.text(max_size=20) | st.sampled_from(["Score: 3", "Score: nan", "Score: 1e999", "Score: " * 50]))
    body = draw(
        st.one_of(
            st.just(_REPLY),
            damaged(_REPLY),
            JSON.map(lambda value: json.dumps({"choices": value}).encode()),
            st.just(json.dumps({"choices": [{"message": {"content": content}}]}).encode()),
        )
    )
    headers = draw(st.dictionaries(st.sampled_from(_HEADERS), st.sampled_from(_VALUES), max_size=3))
    if draw(st.booleans()):
        headers["Content-Length"] = str(len(body))
    lines = [draw(st.sampled_from(_LINES[:1] * 3 + _LINES)), *(f"{name}: {value}" for name, value in headers.items())]
    whole = "\r\n".join([*lines, "", ""]).encode() + body
    return draw(st.just(whole) | damaged(whole))


@dataclass
class _Server:
    """Answers every request with the same bytes, and closes the connection."""

    reply: bytes = b""
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def start(self) -> str:
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            try:
                connection.recv(65_536)
                connection.sendall(self.reply)
            except OSError:
                pass
            finally:
                connection.close()


_RUNNING: list[tuple[_Server, Judge]] = []


def run_reply(reply: bytes, directory: Path) -> None:
    """Ask a judge whose endpoint answers so."""
    if not _RUNNING:
        os.environ["no_proxy"] = "*"
        server = _Server()
        settings = JudgeSettings(
            url=server.start(), model="m", template="{completion}", score=r"Score: (\S+)",
            retries=1, retry_seconds=0.0, timeout_seconds=1.0, longest_pause_seconds=0.1,
        )  # fmt: skip
        _RUNNING.append((server, Judge(settings=settings, api_key="secret-key")))
    server, judge = _RUNNING[0]
    server.reply = reply
    (score,) = asyncio.run(judge(prompts=["?"], completions=["x"]))
    assert isinstance(score, float)
    assert abs(score) < float("inf")
