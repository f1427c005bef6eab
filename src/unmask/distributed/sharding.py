"""Weights sharded over ranks by FSDP2 (torch.distributed.fsdp.fully_shard): whole only while they compute.

With gradient, every forward and backward is a collective: all ranks make equally many. Without gradient they work on
`gathered` weights, in which nothing crosses, so that each rank makes as many forwards as it needs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.distributed.slices import fill, kept_rows, rows_of_rank
from unmask.distributed.world import TIMEOUT, World
from unmask.errors import UserError


def shard_mesh(world: World, size: int) -> DeviceMesh:
    """The ranks as copies of `size` neighbours each, who hold the weights together; ranks are a multiple of `size`."""
    if not torch.distributed.is_initialized():  # a mesh of one
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    copies = world.size // size
    mesh = init_device_mesh(world.device.type, (copies, size), mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():  # those within the world have torch's own, which a slow disk exceeds
        _set_pg_timeout(TIMEOUT, group)
    return mesh if copies > 1 else mesh["shard"]


def layers_of(network: Any) -> Any:
    """The decoder layers of a network, for `shard`. Raises UserError where it has none."""
    layers = getattr(network.base_model, "layers", None)
    if layers is None:
        raise UserError(f"train.shard shards decoder layers, and {type(network).__name__} has none: set it to 0")
    return layers


def shard(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, precision: str) -> None:
    """Shard each of the layers, and what else is in `root`, whose call alone may reach the weights from then on.

    Moves the weights to the mesh's device, a layer at a time; of a module that was loaded by slices they are there.
    Gradients are sums over ranks, sharded and in the precision of the weights; with precision "bf16" the network
    computes in it.
    """
    rows = kept_rows(root)
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # At the root it would reach into dataclasses, and round the sampler's uniforms.
    fully_shard(root, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
    for module in _sharded(root):  # neither call is recursive
        module.set_gradient_divide_factor(1.0)
        # gloo has no scaled sum, and NCCL's loses small gradients in bf16.
        module.set_force_sum_reduction_for_comms(True)
    fill(root, rows)


def placement(root: nn.Module) -> dict[str, str]:
    """What a rank holds of the weights, as it stands in ranks.jsonl."""
    weight = next(root.parameters())
    if not isinstance(weight, DTensor):
        return {"weights": "whole on every rank"}
    sizes = dict(zip(weight.device_mesh.mesh_dim_names or (), weight.device_mesh.shape, strict=True))
    ranks, copies = sizes["shard"], sizes.get("replicate", 1)
    split = f"split over {ranks} rank{'s' * (ranks > 1)}"
    return {"weights": f"{split}, {copies} {'copy' if copies == 1 else 'copies'}"}


def reduce_over_copies(root: nn.Module, now: bool) -> None:
    """Whether the next backward sums gradients over the copies of the weights too; needed in the last of an update."""
    if isinstance(root, FSDPModule):
        root.set_requires_all_reduce(now)


def begin_anew(root: nn.Module | None) -> None:
    """Forget a forward or backward that an error has ended; else the next would not be finished. Gradients go too."""
    if root is not None and is_sharded(root):
        sharded: Any = root
        sharded.zero_grad()  # those of weights that are still gathered, which torch leaves and adds to the next
        sharded.reset_iter_state()


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are sharded."""
    return isinstance(module, FSDPModule)


def _sharded(root: nn.Module) -> list[Any]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(root: nn.Module | None) -> Iterator[None]:
    """Whole weights for forwards without gradient, in which nothing crosses between ranks; all ranks enter together.

    Parameters are plain tensors within: no optimizer, copy or state_dict there. Weights that are not sharded stay.
    """
    if root is None or not isinstance(root, FSDPModule):
        yield
        return
    modules = _sharded(root)
    guard = root.register_state_dict_pre_hook(_refuse_state_dict)  # type: ignore[no-untyped-call]
    for module in modules:
        module.unshard()
    root.set_reshard_after_forward(False)
    try:
        yield
    finally:
        guard.remove()
        for module in modules:
            module.reshard()
        for module in modules[1:]:  # the root stays whole from a forward to its backward
            module.set_reshard_after_forward(True, recurse=False)


def _refuse_state_dict(*_: object) -> None:
    raise RuntimeError("the weights are gathered: a state_dict would shard them again on this rank alone")


def whole(tensor: Tensor) -> Tensor:
    """A tensor or parameter with all its shards, on every rank: a collective where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The parts of tensors that a rank writes to a safetensors file, as torch.distributed.checkpoint reads them."""

    file: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def shards_of(tensors: Mapping[str, Tensor]) -> Shards:
    """This rank's shards of tensors, of several copies those of the first; the first rank's hold what is whole.

    A rank may have none.
    """
    rank, own, places = torch.distributed.get_rank(), {}, {}
    for name, tensor in tensors.items():
        part, first_row = tensor.detach(), 0
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            *copy, _ = mesh.get_coordinate()
            part, first_row = tensor.to_local(), rows_of_rank(len(tensor), mesh)[0]
            is_ours = not any(copy) and len(part)
        else:
            is_ours = rank == 0
        if is_ours:
            own[name] = part.contiguous()
            places[name] = {"saved_offsets": [first_row, *[0] * (part.ndim - 1)][: part.ndim]}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
    return Shards(file=f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", tensors=own, metadata=metadata)


def load_shards(tensors: dict[str, Tensor], directory: Path) -> None:
    """Fill tensors, sharded in any way or not at all, from the files of `shards_of` of any number of ranks.

    Each rank reads what it holds.
    """
    reader = HuggingFaceStorageReader(str(directory))
    alone = not torch.distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
        load(tensors, storage_reader=reader, no_dist=alone)


def names_in_shards(directory: Path) -> set[str]:
    """Names of the tensors in a directory of the files of `shards_of`."""
    return set(HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata)


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has whole, placed as `like`, or the tensor on its device.

    What is a shard already stays.
    """
    if isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
