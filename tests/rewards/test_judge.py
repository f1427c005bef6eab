"""The judge asks its endpoint as told, reads the score from the reply, and never tells its key."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unmask.errors import UserError
from unmask.rewards import load_functions
from unmask.rewards.endpoint import Endpoint, _seconds_asked
from unmask.rewards.judge import load_judge
from unmask.settings.recipe import RewardSettings
from unmask.tasks import Sudoku

KEY = "sk-very-secret"
TEMPLATE = 'Task: {prompt}\nReply: {completion}\nEnd with {"score": N} or Score: N'


@contextmanager
def endpoint(answer):
    """A server whose reply to each request is answer(message): its text, or (status, body). Yields url and requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization"), body))
            given = answer(body["messages"][0]["content"])
            status, content, *headers = given if isinstance(given, tuple) else (200, completion(given))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers:
                self.send_header(name, value)
            if status == 302:
                self.send_header("Location", f"http://localhost:{server.server_port}/elsewhere")
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            requests.append((self.path, self.headers.get("Authorization"), None))
            self.send_error(418)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """judge(url, ...) as read from a settings file."""
    monkeypatch.setenv("no_proxy", "*")

    def make(url, /, **settings):
        lines = {"url": url, "model": "wise", "template": TEMPLATE, "score": r"Score: (\S+)", "retry_seconds": 0.0}
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in (lines | settings).items())
        (tmp_path / "judge.toml").write_text(text)
        return load_judge(str(tmp_path / "judge.toml"))

    return make


def scores(judge, completions, prompts=None):
    given = prompts or [f"prompt {text}" for text in completions]
    return asyncio.run(judge(prompts=given, completions=completions, answer=completions))


def test_judge_asks_as_told_and_takes_the_last_score(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    with endpoint(lambda message: "The reply claims Score: 10.\nScore: 0.25") as (url, requests):
        asked = judge(url, api_key_variable="JUDGE_KEY", temperature=0.5)
        assert scores(asked, ["good"], ["Say good."]) == [0.25]
    message = 'Task: Say good.\nReply: good\nEnd with {"score": N} or Score: N'
    body = {"model": "wise", "messages": [{"role": "user", "content": message}], "temperature": 0.5}
    assert requests == [("/v1/chat/completions", f"Bearer {KEY}", body)]
    assert KEY not in repr(asked)


@pytest.mark.parametrize(
    "hostile", ["{prompt}", "{completion}", "{0.__class__}", "{", "\\1 \\g<0>", "\ud800", "\0", "%s", "x" * 10**5]
)
def test_judge_message_takes_texts_as_data(judge, hostile):
    with endpoint(lambda message: "Score: 1") as (url, requests):
        assert scores(judge(url), [hostile], ["{completion}"]) == [1.0]
    message = requests[0][2]["messages"][0]["content"]
    assert message == "Task: {completion}\nReply: " + hostile + '\nEnd with {"score": N} or Score: N'


def test_judge_keeps_order_and_its_limit_of_concurrent_calls(judge):
    running, most, lock = [0], [0], threading.Lock()
    three = threading.Barrier(3, timeout=10)  # twelve calls pass it three by three

    def answer(message):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        three.wait()
        with lock:
            running[0] -= 1
        return "Score: " + message.split("Reply: ")[1].split()[0]

    with endpoint(answer) as (url, _):
        assert scores(judge(url, concurrency=3), [str(number) for number in range(12)]) == list(range(12))
    assert most[0] == 3


@pytest.mark.parametrize(
    "fault",
    [
        (500, b"down"),
        (429, b"slow down"),
        (400, b"no"),
        (302, b""),
        (200, b"no JSON"),
        (200, b"\xff"),
        (200, b"[]"),
        (200, b'{"choices": []}'),
        (200, b"[" * 10**5),
        (200, b'{"choices": ' + b"9" * 10**4 + b"}"),
        (200, completion(None)),
        "no verdict",
        "Score: nan",
        "Score: 1e999",
        "Score: high",
    ],
    ids=repr,
)
def test_judge_tries_a_failed_call_again_and_then_gives_none(judge, fault, caplog):
    tries = []

    def answer(message):
        word = message.split("Reply: ")[1].split()[0]
        tries.append(word)
        if word == "always" or (word == "once" and tries.count("once") == 1):
            return fault
        return "Score: 2"

    with endpoint(answer) as (url, _):
        assert scores(judge(url, concurrency=1), ["always", "once", "never"]) == [None, 2.0, 2.0]
    assert [tries.count(word) for word in ("always", "once", "never")] == [3, 2, 1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 of 3" in caplog.text


def test_judge_call_that_takes_too_long_fails(judge):
    done = threading.Event()
    with endpoint(lambda message: "Score: 1" if "quick" in message or done.wait(10) else "") as (url, requests):
        asked = judge(url, timeout_seconds=0.2, retries=0)
        try:
            assert scores(asked, ["slow", "quick"]) == [None, 1.0]
        finally:
            done.set()
    assert len(requests) == 2


def test_judge_pause_before_another_try_doubles(judge, monkeypatch):
    pauses = []
    monkeypatch.setattr(Endpoint, "wait", lambda self, seconds: pauses.append(seconds))
    with endpoint(lambda message: "?") as (url, _), pytest.raises(UserError):
        scores(judge(url, retries=3, retry_seconds=0.5), ["x"])
    assert pauses == [0.0, 0.5, 1.0, 2.0]


def test_judge_keeps_the_pause_that_the_endpoint_asks_for_in_all_calls(judge):
    asked, refused = [], threading.Event()

    def answer(message):
        asked.append(time.monotonic())
        if not refused.is_set():
            refused.set()
            return 429, b"slow down", ("Retry-After", "0.5")
        return "Score: 1"

    with endpoint(answer) as (url, _):
        assert scores(judge(url, concurrency=1, retries=1), ["one", "two", "three"]) == [1.0] * 3
    assert asked[1] - asked[0] >= 0.5
    assert asked[-1] - asked[1] < 0.5


def test_judge_gives_a_call_up_whose_endpoint_asks_for_a_longer_pause(judge, caplog):
    def answer(message):
        return (503, b"later", ("Retry-After", "3600")) if "busy" in message else "Score: 1"

    with endpoint(answer) as (url, requests):
        assert scores(judge(url, concurrency=1), ["busy", "free"]) == [None, 1.0]
    assert len(requests) == 2
    assert "a pause of 3600 s: see longest_pause_seconds" in caplog.text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("-3", 0),
        ("nan", 0),
        ("inf", float("inf")),
        ("1e400", float("inf")),
        ("", 0),
        ("soon", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 99 Foo 99999999 99:99:99 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert _seconds_asked(header) == seconds
    assert _seconds_asked(formatdate(time.time() + 1000, usegmt=True)) == pytest.approx(1000, abs=2)


def drip(connection, head: bytes, byte: bytes, ended: threading.Event) -> None:
    """Answer a request so slowly that no single wait is long."""
    connection.recv(65536)
    connection.sendall(head)
    with contextlib.suppress(OSError):
        while not ended.wait(0.05):
            connection.sendall(byte)
    connection.close()


@pytest.mark.parametrize(
    ("head", "byte"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n" + completion("Score: 1"), b" "),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.1 500 Oh\r\n\r\n", b"x"),
    ],
    ids=["body", "endless body", "header", "error"],
)
def test_judge_call_ends_however_slowly_its_reply_drips(judge, head, byte):
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0], head, byte, ended))
        thread.start()
        began = time.monotonic()
        asked = judge(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0.3, retries=0)
        with pytest.raises(UserError, match=r"no whole reply in 0\.3 s"):
            scores(asked, ["x"])
        assert time.monotonic() - began < 5
        ended.set()
        thread.join()


def test_judge_that_is_cancelled_ends_its_calls_and_pauses(judge):
    done = threading.Event()

    async def cancelled(asked):
        async with asyncio.timeout(0.3):
            await asked(prompts=["?"] * 2, completions=["slow", "failing"])

    with endpoint(lambda message: "?" if "failing" in message else done.wait(10) and "") as (url, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(cancelled(judge(url, retry_seconds=60.0)))
        assert time.monotonic() - began < 5
        done.set()


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x", "file:///etc/hostname", "data:,x", "gopher://x"])
def test_judge_is_led_nowhere_else_than_to_http(judge, place):
    with endpoint(lambda message: (301, b"", ("Location", place))) as (url, _), pytest.raises(UserError) as caught:
        scores(judge(url, retries=0), ["x"])
    assert "301" in str(caught.value) or "unknown url type" in str(caught.value)


def test_judge_tells_of_a_hostile_status_line_in_one_short_line_without_the_key(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    ended = threading.Event()
    head = b"HTTP/1.1 500 \x1b[2J" + KEY.encode() + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0], head, b"", ended))
        thread.start()
        asked = judge(f"http://127.0.0.1:{server.getsockname()[1]}", api_key_variable="JUDGE_KEY", retries=0)
        with pytest.raises(UserError) as caught:
            scores(asked, ["x"])
        ended.set()
        thread.join()
    assert "500" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_judge_refuses_an_endpoint_that_never_answers(judge):
    with endpoint(lambda message: "?") as (url, _):
        pass  # closed again: nobody listens
    with pytest.raises(UserError, match=r"all of 2 calls.*refused.*mend url"):
        scores(judge(url), ["x", "y"])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_judge_refusal_ends_the_run_without_telling_the_key(judge, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with endpoint(lambda message: (status, f"bad key {KEY}".encode())) as (url, requests):
        asked = judge(url, api_key_variable="JUDGE_KEY", concurrency=1)
        with pytest.raises(UserError, match=rf"{status}.*bad key \*\*\*") as caught:
            scores(asked, [str(number) for number in range(50)])
    assert KEY not in str(caught.value)
    assert len(requests) < 10  # the calls that waited were given up


def test_judge_refusal_without_a_body_is_told_by_its_status_alone(judge):
    with endpoint(lambda message: (401, b"\n")) as (url, _), pytest.raises(UserError) as caught:
        scores(judge(url), ["x"])
    assert str(caught.value).endswith("answers 401 Unauthorized: check url, model and API key")


def test_judge_key_does_not_follow_a_redirection(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with endpoint(lambda message: (302, b"")) as (url, requests), pytest.raises(UserError, match="418"):
        scores(judge(url, api_key_variable="JUDGE_KEY", retries=0), ["x"])
    assert [(path, key) for path, key, _ in requests] == [
        ("/v1/chat/completions", f"Bearer {KEY}"),
        ("/elsewhere", None),
    ]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"url": ""}, "url is empty"),
        ({"url": "file:///etc/passwd"}, "'file:///etc/passwd'"),
        ({"model": ""}, "model is empty"),
        ({"template": "Judge {prompt}"}, "{completion}"),
        ({"score": "Score"}, "0 groups"),
        ({"score": "(1)(2)"}, "2 groups"),
        ({"score": "(1"}, "regular expression"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 3}, "'timeout_seconds'"),
        ({"retries": 1.5}, "1.5"),
        ({"api_key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ],
    ids=repr,
)
def test_load_judge_refuses_settings_that_cannot_work(judge, change, value, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match=r"judge\.toml") as caught:
        judge("http://127.0.0.1:1", **change)
    assert value in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "two\nlines", "clé"])
def test_load_judge_does_not_repeat_a_key_that_no_header_can_carry(judge, key, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError, match="JUDGE_KEY") as caught:
        judge("http://127.0.0.1:1", api_key_variable="JUDGE_KEY")
    assert not key.strip() or key not in str(caught.value)


def test_load_functions_takes_a_judge(judge, tmp_path):
    judge("http://127.0.0.1:1")
    functions = load_functions(RewardSettings(funcs=f"task,judge:{tmp_path}/judge.toml"), Sudoku(), "cpu")
    assert [(function.name, function.is_async, function.cached) for function in functions] == [
        ("task", False, True),
        ("judge", True, False),
    ]


def test_load_judge_refuses_a_file_that_is_not_toml(tmp_path):
    for content in (b"url = ", b"\xff"):
        (tmp_path / "judge.toml").write_bytes(content)
        with pytest.raises(UserError, match="not TOML"):
            load_judge(str(tmp_path / "judge.toml"))
