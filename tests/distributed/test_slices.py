"""Weights that ranks read by slices are those that one reads whole and shards; together they write what one writes."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from conftest import REFERENCE
from faults.launch import torchrun_environment
from helpers.processes import finish, start
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser, save_denoiser
from unmask.denoisers.streamed import save_module
from unmask.distributed import World
from unmask.distributed.sharding import gathered, load_shards, shard, shard_mesh, shards_of
from unmask.distributed.slices import read_into

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


class NoTokenizer:
    def save_pretrained(self, directory: Path) -> None:
        pass


def changed(denoiser: Denoiser) -> Denoiser:
    """The same everywhere, whatever ranks hold."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            local(parameter).mul_(1.5)
    return denoiser


def compare(place: Path) -> int:
    """What a rank does: each model both ways, read, written and filled from a file."""
    torch.set_num_threads(1)
    world = World.start()
    mesh = shard_mesh(world, world.size)
    for name in MODELS:
        ours, theirs = (sharded(place / name, mesh, by_slices) for by_slices in (True, False))
        assert_same(ours, theirs, name)
        assert torch.equal(logits(ours), logits(theirs)), name
        save_denoiser(changed(ours), NoTokenizer(), place / name / "ours", writes=world.is_main)
        save_module(ours, place / name / "module.safetensors", writes=world.is_main)
        if world.is_main:
            alone = changed(load_denoiser(str(place / name), mask_token_id=36))
            save_denoiser(alone, NoTokenizer(), place / name / "alone")
            save_model(alone, str(place / name / "module alone.safetensors"))
        world.barrier()
        read_into(theirs, place / name / "module.safetensors")
        assert_same(ours, theirs, name)
        shards = shards_of(dict(ours.named_parameters()))
        (place / name / "shards").mkdir(exist_ok=True)
        save_file(shards.tensors, place / name / "shards" / shards.file, shards.metadata)
        world.barrier()
        load_shards(dict(changed(theirs).named_parameters()), place / name / "shards")
        assert_same(ours, theirs, name)
    world.leave()
    return 0


def assert_same(ours: Denoiser, theirs: Denoiser, name: str) -> None:
    assert described(ours) == described(theirs), name
    for kind in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(ours, kind)(), getattr(theirs, kind)(), strict=True)
        assert all(torch.equal(local(mine), local(other)) for (_, mine), (_, other) in pairs), name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The models, read and written on two ranks."""
    place = tmp_path_factory.mktemp("slices")
    for name, write in MODELS.items():
        write(place / name)
    log = place / "log"
    for rank in [start(compare, place, log=log, environment=each) for each in torchrun_environment(2)]:
        finish(rank, log)
    return place


def test_weights_read_by_slices_are_those_read_whole_and_sharded(place):
    assert (place / "log").exists()  # the ranks have compared them


@pytest.mark.parametrize("name", MODELS)
def test_ranks_write_together_what_one_writes(name, place):
    ours, alone = (
        {path.name: path.read_bytes() for path in (place / name / who).iterdir()} for who in ("ours", "alone")
    )
    assert ours == alone
    assert {"config.json", "model.safetensors"} <= ours.keys()
    together, whole = (load_file(place / name / file) for file in ("module.safetensors", "module alone.safetensors"))
    assert together.keys() - whole.keys() <= {"model.model.embed_tokens.weight"}  # the other name of a tied one
    assert len(together) == len(whole)


def test_a_rank_writes_its_shards_to_a_file_and_nobody_anything_twice(place):
    files = [load_file(path) for path in (place / "llada-tiny" / "shards").iterdir()]
    whole = load_file(place / "llada-tiny" / "alone" / "model.safetensors")
    sizes = [sum(shard.nbytes for shard in shards.values()) for shards in files]
    assert len(sizes) == 2
    assert sum(sizes) == sum(tensor.nbytes for tensor in whole.values())
    assert max(sizes) < 0.6 * sum(sizes)
