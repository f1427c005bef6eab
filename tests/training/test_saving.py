"""Checkpoints are written while training goes on: what was taken is what is written, and what fails is told."""

import errno
import os
import signal
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.small import small_denoiser
from helpers.small_contents import small_contents
from unmask.cli.main import main
from unmask.denoisers.adapters import MergedWeights, add_adapters
from unmask.denoisers.directories import checkpoints
from unmask.distributed import World
from unmask.report.durable import DiskError
from unmask.report.progress import Progress, telling
from unmask.settings.recipe import TrainSettings
from unmask.training import checkpoint
from unmask.training.checkpoint import check_whole, save_checkpoint
from unmask.training.saving import Saving, copies
from unmask.training.trainer import Trainer

FLAGS = [
    *("train", "--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.max-steps", "3"),
    *("--train.examples", "16", "--train.save-steps", "1", "--rollout.prompts", "2", "--rollout.num-generations", "4"),
    *("--evaluation.examples", "4", "--evaluation.greedy-steps", "2"),
]


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes a sync when it is told to, or refuses it with the error that is put into it."""

    class Disk:
        ready, error = threading.Event(), None

    def sync(path):
        assert Disk.ready.wait(60)
        if Disk.error is not None:
            raise OSError(Disk.error, os.strerror(Disk.error))

    monkeypatch.setattr(checkpoint, "sync", sync)
    return Disk


def save(folder, step, what, saving, **options):
    save_checkpoint(folder, step, what, {}, saving, World.single(), **options)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_training_goes_on_while_what_was_taken_is_written(disk, tmp_path):
    what = small_contents()
    with Saving() as saving:
        disk.ready.set()
        save(tmp_path / "before", 1, what, saving)
        saving.wait()
        disk.ready.clear()
        save(tmp_path / "after", 1, what, saving)
        with torch.no_grad():
            for weight in what.denoiser.parameters():
                weight.fill_(7)
                for moment in what.optimizer.state[weight].values():
                    moment.fill_(7)
        torch.rand(3)
        assert not checkpoints(tmp_path / "after")
        saving.check()
        disk.ready.set()
    assert files(tmp_path / "after" / "step_000001") == files(tmp_path / "before" / "step_000001")


def test_one_checkpoint_is_written_at_a_time_and_old_ones_go_after_it(disk, tmp_path):
    what = small_contents()
    with Saving() as saving:
        save(tmp_path, 1, what, saving)
        threading.Timer(0.2, disk.ready.set).start()
        save(tmp_path, 2, what, saving, keep=1)
        assert checkpoints(tmp_path)[0].name == "step_000001"  # whole before the second began
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]
    check_whole(tmp_path / "step_000002", TrainSettings())


@pytest.mark.parametrize("how", ["check", "wait", "end"])
def test_what_fails_in_the_background_is_raised_by_whatever_asks_next(how, disk, tmp_path):
    def run():
        with Saving() as saving:
            save(tmp_path, 1, small_contents(), saving)
            disk.error = errno.ENOSPC
            disk.ready.set()
            while how == "check":
                saving.check()
            if how == "wait":
                saving.wait()

    with pytest.raises(DiskError, match=r"step_000001 cannot be written \(No space left on device\): free some room"):
        run()
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_up_ends_the_run_at_the_next_step_in_one_line(disk, tmp_path, monkeypatch, capsys):
    disk.ready.set()
    steps, step = [], Trainer.step

    def filling(trainer, number):
        steps.append(number)
        disk.error = errno.ENOSPC if steps == [0, 1] else None  # the checkpoint of the first step is whole
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "step", filling)
    run = tmp_path / "run"
    assert main([*FLAGS, "--output", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_000002 cannot be written (No space left on device): free some room, then `unmask train" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000001"]
    assert main(["train", "--resume", str(run)]) == 0
    assert steps[-2:] == [1, 2]


def test_a_host_without_room_writes_at_once_and_says_so_once(tmp_path, monkeypatch, capsys):
    what, told = small_contents(), tmp_path / "told"
    with Saving() as saving, telling(Progress()):
        save(tmp_path, 1, what, saving)
        saving.wait()
        monkeypatch.setattr("unmask.training.contents.room_bytes", lambda ranks: 1000)
        for step in (2, 3):
            save(tmp_path, step, what, saving)
            assert checkpoints(tmp_path)[-1].name == f"step_00000{step}"
    assert capsys.readouterr().out.count("steps wait until a checkpoint is written") == 1
    first, third = (files(tmp_path / f"step_00000{step}") for step in (1, 3))
    assert {name for name in first if first[name] != third[name]} == {"state.json"}
    assert not told.exists()


@pytest.mark.parametrize("asked", [False, True])
def test_an_interrupt_waits_for_the_write_unless_it_is_the_second(asked, tmp_path, monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()

    def write():
        begun.set()
        goes_on.wait(0.3)
        saving.go_on()
        (tmp_path / "written").touch()

    def interrupt():
        saving.begin(write)
        begun.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Saving(lambda: asked) as saving:
        interrupt()
    assert (tmp_path / "written").exists() != asked


def test_an_interrupt_while_it_waits_gives_the_write_up(tmp_path):
    def write():
        os.kill(os.getpid(), signal.SIGINT)  # of the process, as a terminal's is: the main thread wakes
        for _ in range(200):  # until the main thread has had its turn, ten seconds at most
            threading.Event().wait(0.05)
            saving.go_on()
        (tmp_path / "written").touch()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Saving() as saving:
            saving.begin(write)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "written").exists()


def test_metrics_say_how_long_training_stood_still(tmp_path):
    with Saving() as saving:
        with saving.standing_still():
            threading.Event().wait(0.02)
        assert 0.02 <= saving.waited_seconds() < 10
        assert saving.waited_seconds() == 0.0


def test_copies_are_as_many_as_the_weights_and_change_with_none():
    weight, buffer = nn.Parameter(torch.ones(3)), torch.ones(2)
    found = copies([("a", weight), ("b", weight), ("c", buffer)], room_bytes=20)
    assert found["a"] is found["b"]
    weight.data.zero_()
    buffer.zero_()
    assert [tensor.tolist() for tensor in found.values()] == [[1.0] * 3, [1.0] * 3, [1.0] * 2]
    assert copies([("a", weight), ("c", buffer)], room_bytes=19) is None


def test_without_room_adapters_are_merged_one_after_another(tmp_path, monkeypatch):
    """All at once they are the network again, on the GPU beside the one that trains."""
    denoiser = small_denoiser()
    add_adapters(denoiser, 2, 4)
    optimizer = torch.optim.AdamW([weight for weight in denoiser.parameters() if weight.requires_grad])
    what = replace(small_contents(), denoiser=denoiser, optimizer=optimizer)
    merged, alive, whole = [], [], set(map(id, denoiser.state_dict(keep_vars=True).values()))
    merge = MergedWeights.__getitem__

    def seen(weights, name):
        weight = merge(weights, name)
        if id(weight) not in whole:
            merged.append(weakref.ref(weight))
            alive.append(sum(each() is not None for each in merged))
        return weight

    monkeypatch.setattr(MergedWeights, "__getitem__", seen)
    with Saving() as saving:
        save(tmp_path, 1, what, saving)
        saving.wait()
        monkeypatch.setattr("unmask.training.contents.room_bytes", lambda ranks: 1000)
        save(tmp_path, 2, what, saving)
    first, second = (files(tmp_path / f"step_00000{step}") for step in (1, 2))
    assert {name for name in first if first[name] != second[name]} == {"state.json"}
    assert len(alive) > 10
    assert max(alive) <= 2
