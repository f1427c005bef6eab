"""Weights that ranks read by slices are those that a rank reads whole and shards."""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from conftest import REFERENCE
from helpers.processes import finish, start, torchrun_environment
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser
from unmask.distributed import World
from unmask.distributed.sharding import gathered, shard, shard_mesh

PUBLISHED = ("llada-tiny", "dream-tiny", "llada-moe-tiny", "llada2-moe-tiny")
SIZES = {
    "vocab_size": 37,  # which two ranks share unequally
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "is_causal": False,
}


def plain(directory: Path, network: type, config: type) -> None:
    torch.manual_seed(0)
    network(config(**SIZES, mask_token_id=36)).save_pretrained(directory)


def tied(directory: Path, name: str) -> None:
    """The published checkpoint with one tensor for embedding and head, in bf16."""
    tensors = {
        key: tensor.bfloat16() for key, tensor in load_file(REFERENCE / "models" / name / "model.safetensors").items()
    }
    head = "model.transformer.ff_out.weight" if name == "llada-tiny" else "lm_head.weight"
    del tensors[head]
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((REFERENCE / "models" / name / "config.json").read_text())
    tie = "weight_tying" if name == "llada-tiny" else "tie_word_embeddings"
    (directory / "config.json").write_text(json.dumps(config | {tie: True}))


def in_two_files(directory: Path, name: str) -> None:
    """The published checkpoint, neighbouring tensors in different files."""
    shutil.copytree(REFERENCE / "models" / name, directory, copy_function=shutil.copyfile)
    (directory / "model.safetensors").unlink()
    tensors = load_file(REFERENCE / "models" / name / "model.safetensors")
    where = {}
    for place in (0, 1):
        file = f"model-0000{place + 1}-of-00002.safetensors"
        names = list(tensors)[place::2]
        save_file({key: tensors[key] for key in names}, directory / file)
        where |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


MODELS = {
    **{name: partial(shutil.copytree, REFERENCE / "models" / name) for name in PUBLISHED},
    "plain": lambda directory: plain(directory, LlamaForCausalLM, LlamaConfig),
    "without fast layers": lambda directory: plain(directory, Olmo2ForCausalLM, Olmo2Config),
    "tied llada": lambda directory: tied(directory, "llada-tiny"),
    "tied llada2": lambda directory: tied(directory, "llada2-moe-tiny"),
    "two files": lambda directory: in_two_files(directory, "llada2-moe-tiny"),
}


def sharded(directory: Path, mesh, by_slices: bool) -> Denoiser:
    denoiser = load_denoiser(str(directory), mask_token_id=36, mesh=mesh if by_slices else None).eval()
    denoiser.model.model.norm.weight.requires_grad_(False)
    if by_slices and directory.name != "without fast layers":
        assert all(parameter.is_meta for parameter in denoiser.parameters())
        held = sum(parameter.rows.untyped_storage().nbytes() for parameter in denoiser.parameters())
        assert held < 0.6 * sum(parameter.numel() * parameter.element_size() for parameter in denoiser.parameters())
    shard(denoiser, denoiser.model.base_model.layers, mesh, "fp32")
    return denoiser


def described(denoiser: Denoiser) -> dict[str, tuple]:
    """All that there is of parameters and buffers, tied ones by each name, whether they are saved or not."""
    named = [*denoiser.named_parameters(remove_duplicate=False), *denoiser.named_buffers(remove_duplicate=False)]
    same = {}
    return {
        name: (
            tensor.shape,
            tensor.dtype,
            tensor.device,
            tensor.requires_grad,
            tensor.placements if isinstance(tensor, DTensor) else None,
            same.setdefault(id(tensor), name),
        )
        for name, tensor in named
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def logits(denoiser: Denoiser) -> torch.Tensor:
    tokens = torch.arange(24).view(2, 12)
    asked = torch.arange(12).expand(2, -1)
    with torch.no_grad(), gathered(denoiser):
        return denoiser(tokens, torch.ones_like(tokens).bool(), asked, AllLogits())[0]


def compare(place: Path) -> int:
    """What a rank does: each model both ways."""
    torch.set_num_threads(1)
    world = World.start()
    mesh = shard_mesh(world, world.size)
    for name in MODELS:
        ours, theirs = (sharded(place / name, mesh, by_slices) for by_slices in (True, False))
        assert described(ours) == described(theirs), name
        for kind in ("named_parameters", "named_buffers"):
            pairs = zip(getattr(ours, kind)(), getattr(theirs, kind)(), strict=True)
            assert all(torch.equal(local(mine), local(other)) for (_, mine), (_, other) in pairs), name
        assert torch.equal(logits(ours), logits(theirs)), name
    world.leave()
    return 0


def test_weights_read_by_slices_are_those_read_whole_and_sharded(tmp_path):
    for name, write in MODELS.items():
        write(tmp_path / name)
    log = tmp_path / "log"
    for rank in [start(compare, tmp_path, log=log, environment=each) for each in torchrun_environment(2)]:
        finish(rank, log)
