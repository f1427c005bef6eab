"""One run has one owner: of processes at one directory one goes on, and death gives the directory back."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.processes import start
from unmask.cli.main import main
from unmask.denoisers.directories import LOCK
from unmask.errors import UserError
from unmask.settings.ownership import InUseError, owned, owned_new
from unmask.training import run_directory

FLAGS = [
    *("--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.examples", "8", "--train.max-steps", "1"),
    *("--rollout.prompts", "1", "--rollout.num-generations", "2", "--evaluation.examples", "2"),
    *("--evaluation.examples-during", "2", "--train.num-iterations", "1"),
]
HOLD = """
import os, sys, time
from pathlib import Path
from unmask.settings.ownership import owned
with owned(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else None
    if child:
        Path(sys.argv[1], "child").write_text(str(child))
    if child != 0:
        Path(sys.argv[1], "holds").touch()
    time.sleep(600)
"""


def train_in(folder: Path, *arguments: str) -> int:
    """`unmask train` there, as one of several processes that were started together."""
    os.chdir(folder)
    return main(["train", *FLAGS, *arguments])


def race(folder: Path, count: int, *arguments: str) -> tuple[list[int], list[str]]:
    """Exit codes of processes started together, and what they said on errors."""
    logs = [folder.with_name(f"{folder.name}-{number}.log") for number in range(count)]
    processes = [start(train_in, folder, *arguments, log=log) for log in logs]
    for process in processes:
        process.join(timeout=120)
    errors = [line for log in logs for line in log.read_text().splitlines() if line.startswith("unmask: error")]
    return [process.exitcode for process in processes], errors


@pytest.fixture
def holder(tmp_path):
    """A function that has another process own a directory, and gives that process."""
    with ExitStack() as stack:

        def hold(directory, mode=""):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", HOLD, str(directory), mode]))
            stack.callback(process.kill)
            deadline = time.monotonic() + 120
            while not (directory / "holds").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return process

        yield hold


def test_of_processes_that_train_into_one_directory_one_does_and_the_others_say_who(tmp_path):
    codes, errors = race(tmp_path, 2, "--output", "run")
    assert sorted(codes) == [0, 2]
    assert all("run is in use by process" in line or "is not empty" in line for line in errors)
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not (tmp_path / "run" / LOCK).exists()


def test_runs_started_together_without_a_directory_have_one_each(tmp_path):
    codes, errors = race(tmp_path, 2)
    assert (codes, errors) == ([0, 0], [])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/summary.json")) == [
        f"runs/sudoku-diffu-grpo-00{number}/summary.json" for number in (1, 2)
    ]


def test_resume_of_a_run_that_goes_on_is_refused_with_the_process_that_does(tmp_path, holder, capsys):
    run = tmp_path / "run"
    assert main(["train", *FLAGS, "--output", str(run)]) == 0
    process = holder(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run} is in use by process {process.pid} on {os.uname().nodename}: wait until that ends" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["train", *FLAGS, "--output", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run} is in use by process {process.pid}" in line
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / LOCK).exists()
    assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 0
    assert not (run / LOCK).exists()


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path, holder):
    process = holder(tmp_path, "fork")
    child = int((tmp_path / "child").read_text())
    try:
        with pytest.raises(InUseError), owned(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)
        with owned(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_start_that_fails_or_was_killed_leaves_its_directory_to_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), owned_new("a/run", "name"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for directory in ("mine", "runs/name-001"):
        (tmp_path / directory).mkdir(parents=True)
        for name in (LOCK, ".recipe.toml.partial"):
            (tmp_path / directory / name).write_text("of a process that was killed")
        with owned_new("mine" if directory == "mine" else None, "name") as found:
            assert found == Path(directory)
            assert [path.name for path in found.iterdir()] == [LOCK]


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_run_killed_while_it_is_described_goes_on_by_the_same_command_or_by_resume(place, tmp_path, monkeypatch):
    (tmp_path / "reward.py").write_text(
        "def score(completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    command = ["train", *FLAGS, "--reward.funcs", f"{tmp_path / 'reward.py'}:score", "--output", "run"]
    write, calls = run_directory.write_durably, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == place:
            raise SystemError
        write(*arguments)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory, "write_durably", killed)
    assert main(command) == 1
    monkeypatch.setattr(run_directory, "write_durably", write)
    assert main(command if place == 1 else ["train", "--resume", "run"]) == 0
    described = {"recipe.toml", "README.txt", "inputs.json"}
    assert described <= {path.name for path in (tmp_path / "run").iterdir()}


def test_new_directories_keep_what_is_somebody_s(tmp_path):
    for name in (".movie.mp4.partial", ".hidden", "file"):
        place = tmp_path / name.strip(".")
        place.mkdir()
        (place / name).write_text("mine")
        with pytest.raises(UserError, match="is not empty"), owned_new(str(place), "name"):
            pass
        with owned(place):
            assert (place / name).read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    told = r"run cannot be written \(Read-only file system\): make it so"
    with pytest.raises(UserError, match=told), owned(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with owned(tmp_path):
        pass
    assert "knows no locks: see that no other process writes there" in caplog.text
