"""Keys and values of a canvas that are kept from forward to forward, and which of its columns a forward runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

Columns = slice | Int[Tensor, "F R"]  # neighbours, the same in every row; or each row's own, ascending (twice: no harm)


class KeyValues:
    """Keys and values of every column, a pair of [F, heads, L, width] a layer; a network of transformers calls it.

    A forward writes those of the columns that it runs, and attends to the columns before `end`.
    """

    is_compileable: ClassVar[bool] = False  # transformers asks

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.columns: Columns = slice(0, 0)
        self.length = self.end = 0

    def begin(self, columns: Columns, length: int, end: int) -> None:
        """Name the columns that the next forward runs, of `length`, and those that it attends to."""
        self.columns, self.length, self.end = columns, length, end

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:
        """As transformers asks: those of the columns run in, those attended to out."""
        if isinstance(self.columns, slice) and keys.shape[2] == self.length:  # all of them: nothing to copy
            self.layers[layer_idx] = (keys, values)
            return keys, values
        if layer_idx not in self.layers:
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.layers[layer_idx] = (keys.new_zeros(shape), values.new_zeros(shape))
        for held, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            if isinstance(self.columns, slice):
                held.narrow(2, self.columns.start, new.shape[2]).copy_(new)
            else:
                held.scatter_(2, self.columns[:, None, :, None].expand_as(new), new.to(held.dtype))
        held_keys, held_values = self.layers[layer_idx]
        return held_keys.narrow(2, 0, self.end), held_values.narrow(2, 0, self.end)

    def take(self, rows: Tensor) -> None:
        """Keep some rows, in their order; a row may be taken more than once."""
        self.layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.layers.items()}

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks where there is no mask: how many columns are attended to, from which on."""
        return self.end, 0

    def get_query_offset(self, layer_idx: int) -> int:
        """As transformers asks where there is no mask; nothing depends on it where attention goes both ways."""
        return 0


@dataclass(frozen=True, kw_only=True)
class CacheWindow:
    """Run some columns alone; the keys and values of the others, before `end`, are as `cache` has them.

    Exact where nothing that those columns attend to has changed since: tokens of earlier blocks, for denoisers that
    attend in blocks. Else an approximation.
    """

    cache: KeyValues
    columns: Columns
    end: int

    def of(self, tensor_FL: Tensor) -> Tensor:
        """The columns of a tensor [F, L] that are run."""
        if isinstance(self.columns, Tensor):
            return tensor_FL.gather(1, self.columns)
        run_FL: Tensor = tensor_FL[:, self.columns]
        return run_FL

    def mask(self, mask: Any) -> Any:
        """Their rows, and the columns attended to, of a mask [F, 1, 1 or L, L]."""
        if mask is None:
            return None
        mask = mask[..., : self.end]
        if mask.shape[2] > 1 and isinstance(self.columns, Tensor):
            mask = mask.gather(2, self.columns[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
        elif mask.shape[2] > 1:
            mask = mask[:, :, self.columns]
        return mask

    def places(self, columns_FA: Int[Tensor, "F A"]) -> Int[Tensor, "F A"]:
        """Where columns stand among those that are run; some place for those that do not, whose answer nobody reads."""
        if isinstance(self.columns, slice):
            return torch.clamp(columns_FA - self.columns.start, 0, self.columns.stop - self.columns.start - 1)
        places_FA = torch.searchsorted(self.columns, columns_FA.contiguous())
        return places_FA.clamp(max=self.columns.shape[1] - 1)
