"""What is sent to the Hub, by its interface on loopback, and what is said where it does not take it."""

import os
import subprocess
import sys

import pytest

from helpers.finished_run import finished_run
from helpers.hub import TOKEN, stand_in_hub
from unmask.cli.main import main
from unmask.errors import UserError
from unmask.export.push import check_push, push


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "full")


def test_push_creates_the_repository_and_sends_every_file_by_its_bytes(run, tmp_path):
    with stand_in_hub() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment["HF_HUB_OFFLINE"] = "0"
        words = [sys.executable, "-m", "unmask", "export", str(run), "--output", "out", "--push", "org/solver"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/org/solver" in done.stdout
    assert hub.repositories == {"org/solver"}
    written = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*")}
    assert hub.committed == written
    assert TOKEN not in done.stdout + done.stderr
    assert not [name for name, content in written.items() if TOKEN.encode() in content]
    assert "org/solver" in written["README.md"].decode()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return lambda url: monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)


def test_push_says_that_the_directory_is_whole_where_the_token_is_refused(online, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    (tmp_path / "config.json").write_text("{}")
    with stand_in_hub() as hub:
        online(hub.url)
        with pytest.raises(UserError) as caught:
            push(tmp_path, "org/solver")
    assert "is whole" in str(caught.value)
    assert "401" in str(caught.value)
    assert f"`hf upload org/solver {tmp_path}`" in str(caught.value)
    assert "hf_another" not in str(caught.value)
    assert hub.committed == {}


def test_push_says_so_where_the_network_is_down(online, run, tmp_path, monkeypatch, capsys):
    with stand_in_hub() as hub:
        pass
    online(hub.url)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--output", "out", "--push", "org/solver"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`hf upload org/solver out` sends it later" in line
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_push_without_a_token_or_offline_is_refused_before_anything_is_written(online, monkeypatch):
    online("http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("unmask.export.push.get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        check_push("org/solver")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        check_push("org/solver")
