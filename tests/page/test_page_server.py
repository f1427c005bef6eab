"""The server of a run's page: for whoever has its address on this machine, and nobody else."""

import http.client
import json
import socket
import threading

import pytest

from helpers.run_directory import metrics_row, write_run
from unmask.errors import UserError
from unmask.page.watch import listening


@pytest.fixture
def served(tmp_path):
    with listening(write_run(tmp_path / "run", done=False)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_page_and_record_are_served_to_who_has_the_token(served):
    status, content, headers = ask(served, f"/{served.token}/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"connect-src &#x27;self&#x27;" in content
    assert headers["Cache-Control"] == "no-store"
    assert ask(served, f"/{served.token}/record/step_5")[0] == 200
    assert ask(served, f"/{served.token}/", Host=f"localhost:{served.server_port}")[0] == 200
    assert served.server_address[0] == "127.0.0.1"
    assert len(served.token) >= 20


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/x/",
        "//",
        "/TOKEN",
        "/TOKEN/record/",
        "/TOKEN/record/step_6",
        "/TOKEN/../recipe.toml",
        "/TOKEN/recipe.toml",
        "/%00/",
    ],
)
def test_all_else_is_not_there(path, served):
    wanted = 200 if path == "/TOKEN" else 404
    assert ask(served, path.replace("TOKEN", served.token))[0] == wanted


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1", "localhost:1", ""])
def test_other_host_headers_are_refused(host, served):
    assert ask(served, f"/{served.token}/", Host=host)[0] == 404


def test_only_get_is_answered(served):
    assert ask(served, f"/{served.token}/", "POST")[0] == 501


def test_state_is_sent_once_and_again_when_there_is_something_new(served):
    status, content, _ = ask(served, f"/{served.token}/state?seen=")
    state = json.loads(content)
    assert (status, state["page"]["runs"][0]["training"]["step"][-1]) == (200, 20)
    assert ask(served, f"/{served.token}/state?seen={state['tag']}")[:2] == (204, b"")
    with (served.run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(metrics_row(21)) + "\n")
    _, content, _ = ask(served, f"/{served.token}/state?seen={state['tag']}")
    assert json.loads(content)["page"]["runs"][0]["training"]["step"][-1] == 21
    with (served.run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 22, "los')  # a line that is being written
    assert ask(served, f"/{served.token}/state?seen=")[0] == 503


def test_listening_refuses_a_port_that_is_taken_and_what_is_no_run(served, tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot be listened at .*: give another"),
        listening(served.run, served.server_port),
    ):
        pass
    with pytest.raises(UserError, match=r"no recipe\.toml"), listening(tmp_path):
        pass


def test_broken_requests_end_no_server(served):
    with socket.create_connection(("127.0.0.1", served.server_port)) as stream:
        stream.sendall(b"\xff\x00 not http\r\n\r\n")
        stream.recv(1000)
    assert ask(served, f"/{served.token}/state?seen=")[0] == 200
