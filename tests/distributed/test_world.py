"""World: what ranks share, sum and gather; one process alone sends nothing."""

import json
import os
import signal
import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed.rendezvous import rendezvous

from faults.launch import torchrun_environment
from helpers.processes import finish, start
from unmask.distributed import World
from unmask.distributed.sharding import shard_mesh
from unmask.distributed.world import TIMEOUT
from unmask.errors import UserError


def test_world_single_is_everyone_and_sums_itself():
    world, value = World.single(), torch.tensor([1.0, 2.0])
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.sum(value) is value
    assert world.gather(value) is value
    assert world.everyone([1]) == [[1]]
    assert world.waiting("update") == {}
    assert world.first(lambda: "done") == "done"
    world.barrier()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_world_autocast_has_the_precision(precision, dtype):
    world = World.single(precision=precision)
    for _ in range(2):
        with world.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def refused(kind: type[Exception], world: World, error: Exception) -> str:
    """What is raised on this rank where the first one's work raises `error`."""

    def work() -> None:
        raise error

    with pytest.raises(kind) as raised:
        world.first(work)
    return str(raised.value)


def _rank(result: Path) -> None:
    """What a rank of two sees; the first writes it down."""
    world = World.start()
    trained, idle, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    frozen.requires_grad_(False)
    trained.grad = torch.full((2,), 1.0 + world.rank)
    if world.rank == 1:
        idle.grad = torch.full((2,), 5.0)  # the other rank has no gradient of it
    value = torch.tensor([1.0, float(world.rank)])
    seen = {
        "sum": world.sum(value).tolist(),
        "kept": value.tolist(),
        "gather": world.gather(torch.tensor([[world.rank, 7]])).tolist(),
        "gather scalar": world.gather(torch.tensor(world.rank)).tolist(),
    }
    seen["everyone"] = world.everyone({"rank": world.rank, "text": "ä" * world.rank, "third": 1 / 3})
    seen["first"] = world.first(lambda: ["done by", world.rank])
    seen["refused"] = refused(UserError, world, UserError("no"))
    if not world.is_main:
        refused(RuntimeError, world, ValueError("odd"))
    else:
        refused(ValueError, world, ValueError("odd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "1")
        patch.setenv("RANK", "0")
        patch.delenv("LOCAL_WORLD_SIZE")
        with pytest.raises(UserError, match="the process group has 2 ranks"):
            World.start()
    groups = shard_mesh(world, 1).get_all_groups()  # two copies, each on a rank of its own
    seen["patient"] = [group._get_backend(world.device).options._timeout == TIMEOUT for group in groups]
    world.sum_gradients([trained, idle, frozen])
    seen |= {"trained": trained.grad.tolist(), "idle": idle.grad.tolist(), "frozen": frozen.grad is None}
    world.barrier()
    if world.is_main:
        result.write_text(json.dumps(seen | {"size": world.size}))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
def test_world_start_ends_where_a_rank_does_not_come(rank, monkeypatch):
    monkeypatch.setattr("unmask.distributed.joining._MEETING", timedelta(seconds=1))
    for name, value in torchrun_environment(2)[rank].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"not all 2 ranks have met at 127\.0\.0\.1, port \d+ in 1 s"):
        World.start()
    assert not torch.distributed.is_initialized()


def test_world_start_says_that_the_port_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in (torchrun_environment(2)[0] | place).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"ranks cannot meet at 127\.0\.0\.1, port \d+: .*in use; give another"):
            World.start()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_to_start_hears_a_signal(rank, monkeypatch):
    def meeting(*arguments, **options):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()  # while it waits, in C
        try:
            yield from rendezvous(*arguments, **options)
        finally:
            ended.append("waiting")

    ended: list[str] = []
    monkeypatch.setattr("unmask.distributed.joining._MEETING", timedelta(seconds=10))
    monkeypatch.setattr("unmask.distributed.joining.rendezvous", meeting)
    for name, value in torchrun_environment(2)[rank].items():
        monkeypatch.setenv(name, value)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            World.start()
        assert not ended
    finally:
        signal.signal(signal.SIGINT, before)
    assert not torch.distributed.is_initialized()


def test_world_start_of_two_ranks_sums_and_gathers(tmp_path):
    result, log = tmp_path / "result.json", tmp_path / "log"
    for rank in [start(_rank, result, log=log, environment=each) for each in torchrun_environment(2)]:
        finish(rank, log)
    assert json.loads(result.read_text()) == {
        "size": 2,
        "sum": [2.0, 1.0],
        "kept": [1.0, 0.0],
        "gather": [[0, 7], [1, 7]],
        "gather scalar": [0, 1],
        "everyone": [{"rank": 0, "text": "", "third": 1 / 3}, {"rank": 1, "text": "ä", "third": 1 / 3}],
        "first": ["done by", 0],
        "refused": "no",
        "patient": [True, True],
        "trained": [3.0, 3.0],
        "idle": [5.0, 5.0],
        "frozen": True,
    }
