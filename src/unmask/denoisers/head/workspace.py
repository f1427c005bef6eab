"""Memory for logits that is used again, and products written into it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unmask.denoisers.head.chunks import chunk_positions

_CACHED_WIDTH = 2048  # on a CPU: tokens of a slice whose weights and logits are still in its cache when they are read


class Workspace:
    """Buffers that grow and are used again from call to call, so that no step allocates logits anew.

    What a buffer holds is overwritten by the next call that names it: for tensors that are used up at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()  # copies and pickles begin empty

    def slice_width(self, positions: int, device: torch.device) -> int:
        """Tokens of a slice of the vocabulary, where logits of so many positions are made slice by slice."""
        return _CACHED_WIDTH if device.type == "cpu" else chunk_positions(max(1, positions))

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The float32 buffer of a name and device, in a shape, with anything in it."""
        count = math.prod(shape)
        if (name, device) not in self._buffers or len(self._buffers[name, device]) < count:
            self._buffers.pop((name, device), None)  # before there is another: both at once would be the peak
            self._buffers[name, device] = torch.empty(count, device=device)
        return self._buffers[name, device][:count].view(shape)

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        """hidden · weight^T [C, V] in the float32 buffer "logits"; of float64 hidden states, a new float64 tensor."""
        if hidden_CD.dtype == torch.float64:
            return nn.functional.linear(hidden_CD, weight_VD)
        shape = (len(hidden_CD), len(weight_VD))
        return multiply_into(self.floats("logits", shape, hidden_CD.device), hidden_CD, weight_VD)


def multiply_into(logits_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """hidden · weight^T [C, V], written to `logits_CV` (float32) and returned."""
    if hidden_CD.dtype == weight_VD.dtype == torch.float32 and not is_mixed(hidden_CD):
        return torch.mm(hidden_CD, weight_VD.t(), out=logits_CV)
    return logits_CV.copy_(nn.functional.linear(hidden_CD, weight_VD))


def is_mixed(tensor: Tensor) -> bool:
    """Whether autocast picks the number type of products; it casts none that are written to memory given (mm's out)."""
    return torch.is_autocast_enabled(tensor.device.type)
