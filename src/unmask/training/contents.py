"""What a checkpoint is made of: the tensors that a rank writes, taken at a step and written while training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.denoisers.adapters import ADAPTERS_FILE, MergedWeights, adapters_of
from unmask.denoisers.base import Denoiser
from unmask.denoisers.streamed import save_network, untied
from unmask.distributed import World
from unmask.distributed.host_memory import room_bytes
from unmask.distributed.sharding import is_sharded, shards_of
from unmask.report.durable import sync
from unmask.training.saving import Saving, copies

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
SHARDS = "optimizer"  # folder of the moments where the weights are sharded
_NETWORK = ""  # in place of a file: those of the model


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint is made of, beside the state of its run."""

    denoiser: Denoiser
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    reference: nn.Module | None = None  # frozen weights that have moved since the start
    further: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)  # files of tensors that nothing changes


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The tensors that this rank writes of a checkpoint, by file and name."""

    network: Mapping[str, Tensor]  # of the files of the model, whose tensors have other names there
    tensors: dict[tuple[str, str], Tensor]  # of the others
    metadata: dict[str, dict[str, str] | None]  # of each file
    are_copies: bool  # else the host has no room for them, and nothing may be trained until they are written

    @classmethod
    def of(cls, contents: Contents, world: World) -> Parts:
        """Those of a rank as they are now; all ranks call it where the weights are sharded."""
        sharded = is_sharded(contents.denoiser)
        moments, metadata = _moments(contents), {}
        if sharded:
            shards = shards_of(moments)
            moments, metadata = shards.tensors, {f"{SHARDS}/{shards.file}": shards.metadata}
        files = {next(iter(metadata), "optimizer.safetensors"): moments}
        if world.is_main:
            files |= _written_by_one(contents, sharded)

        network: Mapping[str, Tensor] = {}
        if world.is_main and not sharded:
            network = MergedWeights(contents.denoiser)  # one after another: merged, they may not all fit the GPU
        copied = copies(_named({_NETWORK: network, **files}), room_bytes(world.local_size if sharded else 1))
        if sharded and world.most(int(copied is None)):
            copied = None
        if copied is not None:
            network = {name: tensor for (file, name), tensor in copied.items() if file == _NETWORK}
        tensors = dict(_named(files)) if copied is None else copied
        return cls(
            network=network,
            tensors={place: tensor for place, tensor in tensors.items() if place[0] != _NETWORK},
            metadata=dict.fromkeys(files) | metadata,
            are_copies=copied is not None,
        )

    def write(self, network: Any, directory: Path, saving: Saving) -> None:
        """Write them to a directory, the network's in its published layout. Raises GivenUp where that is wanted."""
        files: dict[str, dict[str, Tensor]] = {file: {} for file in self.metadata}
        for (file, name), tensor in self.tensors.items():
            files[file][name] = tensor
        if self.network:
            save_network(network, self.network, directory)
        for file, tensors in files.items():
            saving.go_on()
            save_file(tensors, directory / file, self.metadata[file])
            sync(directory / file)  # other ranks may lie on another machine than the one that ends the checkpoint


def _named(files: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for file, tensors in files.items():
        yield from (((file, name), tensor) for name, tensor in tensors.items())


def _written_by_one(contents: Contents, sharded: bool) -> dict[str, dict[str, Tensor]]:
    """The files beside model and moments, which the first rank writes."""
    files = {"random_state.safetensors": {"cpu": torch.get_rng_state()}}
    files |= {f"{name}.safetensors": tensors for name, tensors in contents.further.items()}
    if adapters := adapters_of(contents.denoiser):
        files[ADAPTERS_FILE] = adapters
    if contents.reference is not None and not sharded:
        files["reference.safetensors"] = untied(contents.reference)
    return files


def _moments(contents: Contents) -> dict[str, Tensor]:
    state = contents.optimizer.state
    return {
        f"{name}/{moment}": state[parameter][moment].contiguous()
        for name, parameter in contents.denoiser.named_parameters()
        if parameter in state
        for moment in MOMENTS
    }
