"""A model whose replicas break a cap of memory trains, and is saved, where two ranks hold its weights together."""

import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from faults.launch import torchrun_environment
from helpers.processes import start
from unmask.cli.environment import give_back_freed_memory
from unmask.cli.main import main
from unmask.denoisers.loading import load_denoiser, load_tokenizer, save_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.distributed import World
from unmask.distributed.sharding import shard, shard_mesh

# A process takes 350 MiB before it begins, 164 M weights in float32 take 625. The worst moment of a replica is when its
# gradients are summed: weights, gradients, their flat copy and the sum. That of a rank with shards is the evaluation
# after an update: half the weights, half their gradients, half of both moments, and the weights gathered.
CAP_BYTES = 2700 << 20
WEIGHTS = 163_832_832
# While it loads from a file in bf16, which is mapped (313 MiB): the weights in float32 are 625 more, half of them 313.
LOADING_CAP_BYTES = 1150 << 20
UNEVEN = """
def uneven(completions, **columns):
    return [float(sum(place * ord(letter) for place, letter in enumerate(text))) for text in completions]
"""


def load(model: Path, by_slices: bool) -> int:
    """What a rank does, under a cap: it loads the weights and shards them."""
    torch.set_num_threads(1)  # their stacks count
    resource.setrlimit(resource.RLIMIT_DATA, (LOADING_CAP_BYTES, LOADING_CAP_BYTES))
    give_back_freed_memory()
    world = World.start()
    mesh = shard_mesh(world, world.size)
    denoiser = load_denoiser(str(model), mesh=mesh if by_slices else None)
    shard(denoiser, denoiser.model.base_model.layers, mesh, "fp32")
    world.barrier()
    world.leave()
    return 0


def train(words: list[str]) -> int:
    """What a rank does, under the cap: the system refuses memory beyond it."""
    resource.setrlimit(resource.RLIMIT_DATA, (CAP_BYTES, CAP_BYTES))
    return main(words)


def on_two_ranks(place: Path, shard: int) -> tuple[list[int | None], str]:
    """Exit codes, and what they said, of a step and its checkpoint in the directory `shard`."""
    words = [
        *("train", "--model", str(place / "model"), "--method", "diffu-grpo", "--method.beta", "0"),
        *("--task", "sudoku", "--reward.funcs", f"{place / 'uneven.py'}:uneven"),
        *("--rollout.prompts", "2", "--rollout.num-generations", "2", "--rollout.steps", "1"),
        *("--train.max-steps", "1", "--train.num-iterations", "1", "--train.examples", "4", "--train.threads", "1"),
        *("--evaluation.examples", "1", "--evaluation.greedy-steps", "1"),
        *("--train.shard", str(shard), "--output", str(place / str(shard))),
    ]
    return launched(place / f"log {shard}", train, words)


def launched(log: Path, work: Callable[..., int], *arguments: object) -> tuple[list[int | None], str]:
    """Exit codes of two ranks, and what they said."""
    ranks = [start(work, *arguments, log=log, environment=each) for each in torchrun_environment(2)]
    for rank in ranks:
        rank.join(timeout=240)
        rank.kill()
    return [rank.exitcode for rank in ranks], log.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The model in float32 and in bf16, and a reward of which no two completions have the same."""
    place = tmp_path_factory.mktemp("cap")
    tokenizer = load_tokenizer("embedded:sudoku")
    ids = {"vocabulary": len(tokenizer), "mask_id": tokenizer.mask_token_id, "eos_id": tokenizer.eos_token_id}
    denoiser = tiny_denoiser(**ids, hidden=1024, layers=13, heads=8, max_length=64, seed=0)
    assert sum(weight.numel() for weight in denoiser.parameters()) == WEIGHTS
    save_denoiser(denoiser, tokenizer, place / "model")
    save_denoiser(denoiser.bfloat16(), tokenizer, place / "bf16")
    (place / "uneven.py").write_text(UNEVEN)
    return place


def refused_memory(said: str) -> bool:
    return re.search(r"can't allocate memory|not enough memory|MemoryError|bad_alloc|Cannot allocate", said) is not None


@pytest.mark.long
def test_weights_that_break_a_cap_where_they_are_read_whole_load_by_slices(place):
    codes, said = launched(place / "log slices", load, place / "bf16", True)
    assert codes == [0, 0], said[-2000:]
    codes, said = launched(place / "log whole", load, place / "bf16", False)
    assert 0 not in codes
    assert refused_memory(said), said[-2000:]


@pytest.mark.long
def test_weights_that_break_a_cap_as_replicas_train_and_are_saved_as_shards(place):
    codes, said = on_two_ranks(place, shard=2)
    assert codes == [0, 0], said[-2000:]
    before, after = place / "model", place / "2" / "checkpoints" / "step_000001"
    with safe_open(before / "model.safetensors", "pt") as old, safe_open(after / "model.safetensors", "pt") as new:
        assert set(old.keys()) == set(new.keys())
        name = "model.layers.7.mlp.up_proj.weight"
        assert not torch.equal(old.get_tensor(name), new.get_tensor(name))  # it has trained

    codes, said = on_two_ranks(place, shard=0)
    assert 0 not in codes
    assert refused_memory(said), said[-2000:]
    assert not (place / "0" / "checkpoints").exists()
