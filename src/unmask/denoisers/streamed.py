"""Write weights to safetensors files one after another: of those that ranks hold together few are whole at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from unmask.distributed.sharding import whole

_LARGEST_FILE = "50GB"  # save_pretrained's default
# Names of safetensors, in the order in which it sorts tensors.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = list(_DTYPES)


def save_network(network: Any, state: Mapping[str, Tensor], directory: Path, *, writes: bool = True) -> None:
    """Write the weights `state` of a network of transformers as `save_pretrained` does, byte for byte.

    Where they are sharded all ranks call it; the one that `writes` has at most one tensor whole, or those of a layer
    that the published layout fuses, the others one. Elsewhere any thread may.
    """
    blank = {name: _blank(tensor) for name, tensor in state.items()}
    for name in network._keys_to_ignore_on_save or ():
        blank.pop(name, None)
    blank = remove_tied_weights_from_state_dict(blank, network)
    published = revert_weight_conversion(network, blank)
    split = split_state_dict_into_shards_factory(
        published,
        get_storage_size=lambda tensor: tensor.untyped_storage().nbytes(),
        get_storage_id=lambda tensor: tensor.untyped_storage()._cdata,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_LARGEST_FILE,
    )
    with ExitStack() as stack:
        files = {}
        for file, keys in split.filename_to_tensors.items() if writes else ():
            tensors = {key: published[key] for key in keys}
            files[file] = stack.enter_context(_tensor_file(directory / file, tensors, format="pt"))
        for names in _groups(network, blank, published):
            tensors = {name: tensor.cpu() for name, tensor in _whole(state, names) if writes}
            for name, tensor in revert_weight_conversion(network, tensors).items():
                files[split.tensor_to_filename[name]].put(name, tensor)
    if writes and split.is_sharded:
        metadata = {"total_parameters": network.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text)


def untied(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module by name, tied ones by their first alone."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def save_module(module: nn.Module, path: Path, *, writes: bool = True) -> None:
    """Write what is `untied` in a module to a safetensors file.

    Where it is sharded all ranks call it, and one `writes`.
    """
    state = untied(module)
    with ExitStack() as stack:
        blank = {name: _blank(tensor) for name, tensor in state.items()}
        file = stack.enter_context(_tensor_file(path, blank)) if writes else None
        for name, tensor in _whole(state, state):
            if file is not None:
                file.put(name, tensor.cpu())


def _whole(state: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors with all their shards, one after another."""
    for name in names:
        yield name, whole(state[name])


def _blank(tensor: Tensor) -> Tensor:
    """Its shape and kind, without content."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _groups(network: Any, blank: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors of the network that become published ones together: mostly one; all where a format asks it."""
    shapes = {name: tensor.shape for name, tensor in published.items()}
    groups: dict[str, list[str]] = {}
    for name, tensor in blank.items():
        made = _published_shapes(network, {name: tensor})
        alone = bool(made) and made.items() <= shapes.items()
        layer = re.match(r".*?\.\d+\.", name)
        groups.setdefault(name if alone else layer[0] if layer else "", []).append(name)
    found: dict[str, Any] = {}
    for names in groups.values():
        found |= _published_shapes(network, {name: blank[name] for name in names})
    return list(groups.values()) if found == shapes else [list(blank)]


def _published_shapes(network: Any, tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of the published tensors that these alone become, by name; none where a conversion wants others too."""
    try:
        return {name: tensor.shape for name, tensor in revert_weight_conversion(network, tensors).items()}
    except (LookupError, ValueError, TypeError, RuntimeError):  # of a conversion that may be the user's
        return {}


class _TensorFile:
    """A safetensors file whose tensors come one after another, in any order."""

    def __init__(self, stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        self._stream = stream
        self._begins: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for name in sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype), name.encode())):
            shape, dtype = tensors[name].shape, tensors[name].dtype
            begin, end = end, end + shape.numel() * dtype.itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._begins[name] = begin
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        stream.write(len(text).to_bytes(8, "little") + text)
        self._data_begin = stream.tell()

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor's content where it belongs."""
        self._stream.seek(self._data_begin + self._begins.pop(name))
        self._stream.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def check(self) -> None:
        """Raise RuntimeError where a tensor has not come."""
        if self._begins:
            raise RuntimeError(f"{self._stream.name} lacks {', '.join(self._begins)}")


@contextmanager
def _tensor_file(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Iterator[_TensorFile]:
    """The file for tensors of these shapes, all of which must come."""
    with path.open("wb") as stream:
        file = _TensorFile(stream, tensors, metadata)
        yield file
        file.check()
