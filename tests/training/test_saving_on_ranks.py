"""Checkpoints of sharded weights: each rank writes what the first copy holds, or none is kept of them all."""

import errno
import json
import os
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from faults.launch import torchrun_environment
from helpers.processes import finish, start
from helpers.small_contents import small_contents
from unmask.denoisers.directories import checkpoints, step_of
from unmask.distributed import World
from unmask.distributed.sharding import as_sharded, layers_of, shard, shard_mesh, whole
from unmask.report.durable import DiskError
from unmask.settings.recipe import TrainSettings
from unmask.training import contents
from unmask.training.checkpoint import check_whole, load_optimizer, save_checkpoint
from unmask.training.saving import Saving, copies

RANKS, TOGETHER = 4, 2  # two copies of the weights, each held by two ranks
FAILING, CROWDED = 2, 1  # the rank whose disk is full in the second checkpoint, the one without room in the third


def updated(what, gradient_of):
    """Contents after one more step of AdamW."""
    for parameter in what.denoiser.parameters():
        parameter.grad = gradient_of(parameter)
    what.optimizer.step()
    return what


def sharded_contents(world):
    what = small_contents()
    shard(what.denoiser, layers_of(what.denoiser.model), shard_mesh(world, TOGETHER), "fp32")
    optimizer = torch.optim.AdamW(what.denoiser.parameters())
    started = replace(what, optimizer=optimizer)
    return updated(started, lambda parameter: as_sharded(whole(parameter) * 2, parameter))


def on_rank(folder):
    """Three checkpoints on this rank, and what it sees of each."""
    torch.set_num_threads(1)
    world, seen = World.start(), {}
    what, goes_on = sharded_contents(world), threading.Event()
    with Saving() as saving, pytest.MonkeyPatch.context() as patch:

        def save(step):
            save_checkpoint(folder, step, what, {}, saving, world)

        def slow(path):
            assert goes_on.wait(60)

        patch.setattr(contents, "sync", slow)
        save(1)
        seen["whole before anybody waits"] = bool(checkpoints(folder))
        updated(what, lambda parameter: as_sharded(whole(parameter) * 3, parameter))
        goes_on.set()
        saving.wait()
        patch.undo()

        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if world.rank == FAILING:
            patch.setattr(contents, "sync", full)
        save(2)
        with pytest.raises(DiskError) as raised:
            saving.wait()
        seen["full"] = str(raised.value)
        patch.undo()

        if world.rank == CROWDED:
            patch.setattr(contents, "copies", lambda tensors, room_bytes: copies(tensors, room_bytes=100))
        save(3)
        seen["written at once"] = saving._writing is None
    everything = world.everyone(seen)
    if world.is_main:
        (folder / "seen.json").write_text(json.dumps(everything))
    world.leave()
    return 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of the checkpoints, and what each rank saw."""
    folder = tmp_path_factory.mktemp("saved")
    log = folder / "log"
    for rank in [start(on_rank, folder, log=log, environment=each) for each in torchrun_environment(RANKS)]:
        finish(rank, log)
    return folder, json.loads((folder / "seen.json").read_text())


def test_ranks_of_the_first_copy_write_each_tensor_once(saved):
    folder, _ = saved
    files = [load_file(path) for path in sorted((folder / "step_000001" / "optimizer").iterdir())]
    assert [bool(file) for file in files] == [True, True, False, False]
    one = small_contents()
    sizes = {name: sum(file[name].numel() for file in files if name in file) for name in {*files[0], *files[1]}}
    assert sizes == {
        f"{name}/{moment}": 1 if moment == "step" else parameter.numel()
        for name, parameter in one.denoiser.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


@pytest.mark.parametrize("step", [1, 3])
def test_one_process_reads_what_the_ranks_held_then(step, saved):
    folder, seen = saved
    directory = folder / f"step_00000{step}"
    check_whole(directory, TrainSettings())
    expected = small_contents()
    expected = replace(expected, optimizer=torch.optim.AdamW(expected.denoiser.parameters()))
    for times in (2, 3)[: 1 + step // 3]:
        updated(expected, lambda parameter, times=times: parameter.detach() * times)
    found = small_contents()
    load_optimizer(directory, found.denoiser, found.optimizer)
    for ours, theirs in zip(found.denoiser.parameters(), expected.denoiser.parameters(), strict=True):
        for moment, tensor in expected.optimizer.state[theirs].items():
            torch.testing.assert_close(found.optimizer.state[ours][moment], tensor)
    assert [rank["whole before anybody waits"] for rank in seen] == [False] * RANKS


def test_a_write_that_fails_on_one_rank_fails_on_all_and_leaves_nothing(saved):
    folder, seen = saved
    own = seen[FAILING].pop("full")
    assert "step_000002 cannot be written (No space left on device)" in own
    others = [rank["full"] for rank in seen if "full" in rank]
    assert len(others) == RANKS - 1
    assert all("step_000002 cannot be written, of which another rank says why" in line for line in others)
    assert [step_of(path) for path in checkpoints(folder)] == [1, 3]
    assert not [path for path in folder.iterdir() if "000002" in path.name]


def test_where_one_rank_has_no_room_for_copies_all_write_at_once(saved):
    assert [rank["written at once"] for rank in saved[1]] == [True] * RANKS
