"""A model whose replicas break a cap of memory trains, and is saved, where two ranks hold its weights together."""

import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers.processes import start, torchrun_environment
from unmask.cli.main import main
from unmask.denoisers.loading import load_tokenizer, save_denoiser
from unmask.denoisers.tiny import tiny_denoiser

# A process takes 350 MiB before it begins, 164 M weights in float32 take 625. The worst moment of a replica is when its
# gradients are summed: weights, gradients, their flat copy and the sum. That of a rank with shards is the evaluation
# after an update: half the weights, half their gradients, half of both moments, and the weights gathered.
CAP_BYTES = 2700 << 20
WEIGHTS = 163_832_832
UNEVEN = """
def uneven(completions, **columns):
    return [float(sum(place * ord(letter) for place, letter in enumerate(text))) for text in completions]
"""


def train(words: list[str]) -> int:
    """What a rank does, under the cap: the system refuses memory beyond it."""
    resource.setrlimit(resource.RLIMIT_DATA, (CAP_BYTES, CAP_BYTES))
    return main(words)


def on_two_ranks(place: Path, shard: int) -> tuple[list[int | None], str]:
    """Exit codes, and what they said, of a step and its checkpoint in the directory `shard`."""
    words = [
        *("train", "--model", str(place / "model"), "--method", "diffu-grpo", "--method.beta", "0"),
        *("--task", "sudoku", "--reward.functions", f"{place / 'uneven.py'}:uneven"),
        *("--rollout.prompts", "2", "--rollout.group-size", "2", "--rollout.steps", "1"),
        *("--train.steps", "1", "--train.num-iterations", "1", "--train.examples", "4", "--train.threads", "1"),
        *("--evaluation.examples", "1", "--evaluation.greedy-steps", "1"),
        *("--train.shard", str(shard), "--output", str(place / str(shard))),
    ]
    log = place / f"log {shard}"
    ranks = [start(train, words, log=log, environment=each) for each in torchrun_environment(2)]
    for rank in ranks:
        rank.join(timeout=240)
        rank.kill()
    return [rank.exitcode for rank in ranks], log.read_text()


@pytest.mark.long
def test_weights_that_break_a_cap_as_replicas_train_and_are_saved_as_shards(tmp_path):
    tokenizer = load_tokenizer("embedded:sudoku")
    ids = {"vocabulary": len(tokenizer), "mask_id": tokenizer.mask_token_id, "eos_id": tokenizer.eos_token_id}
    denoiser = tiny_denoiser(**ids, hidden=1024, layers=13, heads=8, max_length=64, seed=0)
    assert sum(weight.numel() for weight in denoiser.parameters()) == WEIGHTS
    save_denoiser(denoiser, tokenizer, tmp_path / "model")
    del denoiser
    (tmp_path / "uneven.py").write_text(UNEVEN)

    codes, said = on_two_ranks(tmp_path, shard=2)
    assert codes == [0, 0], said[-2000:]
    before, after = tmp_path / "model", tmp_path / "2" / "checkpoints" / "step_000001"
    with safe_open(before / "model.safetensors", "pt") as old, safe_open(after / "model.safetensors", "pt") as new:
        assert set(old.keys()) == set(new.keys())
        name = "model.layers.7.mlp.up_proj.weight"
        assert not torch.equal(old.get_tensor(name), new.get_tensor(name))  # it has trained

    codes, said = on_two_ranks(tmp_path, shard=0)
    assert 0 not in codes
    assert re.search(r"can't allocate memory|not enough memory|MemoryError|bad_alloc", said), said[-2000:]
    assert not (tmp_path / "0" / "checkpoints").exists()
