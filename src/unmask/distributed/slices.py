"""Weights of which a rank keeps its slices alone from the moment that they are read: none holds a model whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook


class SlicedParameter(nn.Parameter):
    """A parameter without content, and the rows of it that this rank keeps; `fully_shard` takes it as any other."""

    rows: Tensor


@contextmanager
def slices_kept(mesh: DeviceMesh | None) -> Iterator[None]:
    """Of every parameter that is put into a module meanwhile keep this rank's rows, on the mesh's device.

    The module is on the meta device then, until `shard`. Only one tensor is whole at a time where the weights are put
    one by one. None: nothing changes.
    """
    if mesh is None:
        yield
        return

    def slice_of(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # it is left as it is
        blank = torch.empty_like(parameter, device="meta")
        sliced = SlicedParameter(blank, requires_grad=parameter.requires_grad)
        vars(sliced).update(vars(parameter))  # a loader's marks
        begin, end = rows_of_rank(len(parameter), mesh)
        sliced.rows = parameter.detach()[begin:end].to(mesh.device_type, copy=True)
        return sliced

    hook = register_module_parameter_registration_hook(slice_of)  # type: ignore[arg-type]  # which may return one
    try:
        yield
    finally:
        hook.remove()


def rows_of_rank(count: int, mesh: DeviceMesh) -> tuple[int, int]:
    """First row and the one after the last of a tensor with so many, as fully_shard deals them over the mesh."""
    place, ranks = mesh.get_coordinate()[-1], mesh.shape[-1]  # type: ignore[index]  # the rank is in its mesh
    most = -(-count // ranks)
    return min(place * most, count), min((place + 1) * most, count)


def kept_rows(root: nn.Module) -> dict[str, Tensor]:
    """This rank's rows by names of parameters, a tied one under each of its names; those alone that have some."""
    named = root.named_parameters(remove_duplicate=False)
    return {name: parameter.rows for name, parameter in named if isinstance(parameter, SlicedParameter)}


def fill(root: nn.Module, rows: dict[str, Tensor]) -> None:
    """Give a module that was sharded without content the rows that `kept_rows` had found in it."""
    filled: dict[Tensor, nn.Parameter] = {}
    named: dict[str, Tensor] = {}
    sharded: Iterable[tuple[str, Any]] = root.named_parameters(remove_duplicate=False)
    for name, parameter in sharded:
        if name not in rows:
            continue
        if parameter not in filled:
            shard = DTensor.from_local(
                rows[name].to(parameter.dtype),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            filled[parameter] = nn.Parameter(shard, requires_grad=parameter.requires_grad)
        named[name] = filled[parameter]
    root.load_state_dict(named, strict=False, assign=True)


@torch.no_grad()
def read_into(root: nn.Module, path: Path) -> None:
    """Fill weights and buffers from a safetensors file with their names: of those that are sharded, this rank's rows.

    Names that the file lacks keep their content: tied ones have it already.
    """
    state = root.state_dict()
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            own, found = state[name], tensors.get_slice(name)
            if not isinstance(own, DTensor):
                own.copy_(found[...])
                continue
            begin, end = rows_of_rank(len(own), own.device_mesh)
            if begin < end:  # a rank may have none of few
                own.to_local().copy_(found[begin:end])
