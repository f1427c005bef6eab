"""SIGTERM and Ctrl-C: saved at the next safe point, resumed bit for bit; a second one ends at once."""

import json
import os
import shlex
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from unmask.cli.main import main
from unmask.denoisers.directories import LOCK, checkpoints
from unmask.distributed import World
from unmask.training.recording import Recorder
from unmask.training.run import Run
from unmask.training.saving import Saving
from unmask.training.stopping import Stopping
from unmask.training.trainer import Trainer

FLAGS = [
    *("--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.max-steps", "4", "--train.examples", "16"),
    *("--train.save-steps", "4", "--train.eval-steps", "2", "--train.save-total-limit", "1"),
    *("--rollout.prompts", "2", "--rollout.num-generations", "4", "--evaluation.examples", "4"),
    *("--evaluation.examples-during", "2"),
]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def outcome(directory: Path) -> dict[str, object]:
    files = sorted(path for path in (directory / "checkpoints").rglob("*") if path.is_file())
    found: dict[str, object] = {path.name: path.read_bytes() for path in files if path.name != "state.json"}
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{key: value for key, value in row.items() if "_seconds" not in key} for row in rows]
    found["completions"] = (directory / "completions.jsonl").read_bytes()
    return found | {"steps": [path.parent.name for path in files]}


@pytest.fixture(autouse=True)
def _hears_ctrl_c():
    """Also where the tests themselves are a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *FLAGS, "--output", str(directory)]) == 0
    return outcome(directory)


def signalled(monkeypatch, method, call, *numbers, of=Trainer):
    """Have this process signalled as that call of a method begins, once."""
    work, calls = getattr(of, method), []

    def spy(trainer, *arguments):
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                handler = signal.getsignal(number)
                signal.raise_signal(number)
                while signal.getsignal(number) == handler:  # heard before the next, or two may be one
                    time.sleep(0.001)
        return work(trainer, *arguments)

    monkeypatch.setattr(of, method, spy)


@pytest.mark.parametrize(
    ("number", "method", "call", "saved"),
    [
        (signal.SIGTERM, "step", 1, 1),
        (signal.SIGINT, "evaluation", 2, 2),
        pytest.param(signal.SIGINT, "step", 2, 2, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "step", 4, 4, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "evaluation", 1, None, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "evaluation", 3, 4, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_at_the_next_safe_point_and_the_run_goes_on_bit_for_bit(
    number, method, call, saved, whole, tmp_path, capfd, monkeypatch
):
    run = tmp_path / "run"
    signalled(monkeypatch, method, call, number)
    before = {each: signal.getsignal(each) for each in CODES}
    assert main(["train", *FLAGS, "--output", str(run)]) == CODES[number]
    assert {each: signal.getsignal(each) for each in CODES} == before
    lines = capfd.readouterr().err.splitlines()
    assert ("unmask: ending after this step, once it is saved; a second signal ends at once" in lines) == (
        method == "step"
    )
    assert [path.name for path in checkpoints(run / "checkpoints")] == ([] if saved is None else [f"step_00000{saved}"])
    assert not (run / LOCK).exists()
    assert main(shlex.split(lines[-1].split("`")[1])[1:]) == 0
    assert outcome(run) == whole


@pytest.mark.parametrize(
    ("of", "method", "call", "saved"),
    [
        (Recorder, "write_evaluation", 2, 2),  # the row of the evaluation after step 2 is written
        (Run, "_draw", 1, 4),  # the last checkpoint is, and no step comes after it
        pytest.param(Recorder, "write_evaluation", 1, 1, marks=pytest.mark.long),
    ],
)
def test_a_signal_between_two_safe_points_makes_nothing_twice(
    of, method, call, saved, whole, tmp_path, capfd, monkeypatch
):
    run = tmp_path / "run"
    signalled(monkeypatch, method, call, signal.SIGTERM, of=of)
    assert main(["train", *FLAGS, "--output", str(run)]) == CODES[signal.SIGTERM]
    assert [path.name for path in checkpoints(run / "checkpoints")] == [f"step_00000{saved}"]
    assert not (run / "after.json").exists()
    assert main(shlex.split(capfd.readouterr().err.splitlines()[-1].split("`")[1])[1:]) == 0
    assert outcome(run) == whole


def test_a_signal_just_before_an_evaluation_loses_no_checkpoint(tmp_path, monkeypatch):
    """One who interrupts a second time waits for no checkpoint: this is the first."""
    go_on = Saving.go_on

    def slow(saving):
        time.sleep(0.5)
        go_on(saving)

    monkeypatch.setattr(Saving, "go_on", slow)
    monkeypatch.setattr(Run, "_draw", lambda run: None)
    signalled(monkeypatch, "_evaluated_during", 1, signal.SIGTERM, of=Run)  # whether there was one has been asked
    assert main(["train", *FLAGS, "--output", str(tmp_path / "run")]) == CODES[signal.SIGTERM]
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step_000002"]


def test_ranks_end_once_the_first_has_saved(tmp_path, monkeypatch):
    """A launcher that sees one rank end signals the others: to the first it would be a second signal."""
    order, checkpoint = [], Run._checkpoint

    def saving(run, *arguments):
        checkpoint(run, *arguments)
        order.append("saved")

    monkeypatch.setattr(Run, "_checkpoint", saving)
    monkeypatch.setattr(World, "barrier", lambda world: order.append("waited"))
    signalled(monkeypatch, "step", 1, signal.SIGTERM)
    assert main(["train", *FLAGS, "--output", str(tmp_path / "run")]) == 143
    assert order == ["saved", "waited"]


@pytest.mark.parametrize("number", CODES)
def test_a_second_signal_ends_at_once(number, tmp_path, capfd, monkeypatch):
    run = tmp_path / "run"
    signalled(monkeypatch, "step", 2, number, number)
    assert main(["train", *FLAGS, "--output", str(run)]) == CODES[number]
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"unmask: interrupted; `unmask train --resume {run}` starts it again, for there is no checkpoint yet"
    )
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2  # the base evaluation and one step
    assert not (run / LOCK).exists()


def test_a_second_signal_within_an_evaluation_of_several_ranks_saves_nothing(tmp_path, capfd, monkeypatch):
    """The others may be elsewhere: what they write together would wait for them."""
    saved, save = [], Run._save

    def spy(run, done, *words, **more):
        saved.append(done)
        save(run, done, *words, **more)

    monkeypatch.setattr(Run, "_save", spy)
    monkeypatch.setattr(Stopping, "at_once", lambda stopping: nullcontext())  # as of several ranks
    signalled(monkeypatch, "evaluation", 2, signal.SIGTERM, signal.SIGTERM)
    assert main(["train", *FLAGS, "--output", str(tmp_path / "run")]) == CODES[signal.SIGTERM]
    assert saved == []


@pytest.mark.parametrize("number", CODES)
def test_a_signal_of_a_scheduler_that_the_launcher_of_ranks_passes_on_is_one(number, monkeypatch):
    """Slurm sends it to torchrun and to the ranks, and torchrun sends it to the ranks."""
    now_seconds = [1000.0]
    monkeypatch.setattr("unmask.training.stopping.time.monotonic", lambda: now_seconds[0])
    monkeypatch.setattr(World, "sum", lambda world, value: value)
    ended: list[int] = []
    before = signal.signal(number, lambda got, frame: ended.append(got))
    try:
        with Stopping(World(device=torch.device("cpu"), rank=1, size=2)) as stopping:
            for _ in range(2):
                signal.raise_signal(number)
                now_seconds[0] += 2.0
            assert (stopping.is_asked(), ended) == (True, [])
            now_seconds[0] += 60.0
            signal.raise_signal(number)
            assert ended == [number]
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stopping(World.single()) as stopping:
        signal.raise_signal(signal.SIGINT)
        assert not stopping.is_asked()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_signals_are_left_alone_in_another_thread_and_in_forked_children():
    heard = []
    with Stopping(World.single()) as stopping:
        thread = threading.Thread(target=lambda: heard.append(Stopping(World.single()).__enter__().is_asked()))
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not stopping.is_asked()
    assert heard == [False]
