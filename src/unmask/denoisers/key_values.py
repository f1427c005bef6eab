"""KV cache of a bidirectional model: keys and values of all columns, of which a forward recomputes some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

# Columns that a forward runs: a slice, the same for every forward; or R of each forward's own, ascending, repeats
# allowed.
Columns = slice | Int[Tensor, "F R"]


class KeyValues:
    """KV cache: keys and values [F, heads, L, head width] of every column, a pair for each layer.

    Takes the place of transformers' `Cache`. Where that one appends tokens, this one overwrites: a forward writes the
    keys and values of the columns that it runs over those of earlier forwards, and attends to all columns before `end`.
    """

    is_compileable: ClassVar[bool] = False  # transformers asks

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.columns: Columns = slice(0, 0)
        self.length = self.end = 0

    def begin(self, columns: Columns, length: int, end: int) -> None:
        """Announce the next forward: it runs `columns` of a canvas of `length`, and attends to columns before `end`.

        `CacheWindow` says what they are; the denoiser calls this before each forward.
        """
        self.columns, self.length, self.end = columns, length, end

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of the columns run [F, heads, R, width]; return all before `end`.

        An attention layer calls it, as it calls `Cache.update` of transformers. Columns never run hold zeros.
        """
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
        """Keep the cache of some forwards, by their indices and in that order; one may be taken more than once."""
        self.layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.layers.items()}

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of columns attended to, and the first of them; transformers calls it where there is no mask."""
        return self.end, 0

    def get_query_offset(self, layer_idx: int) -> int:
        """0: transformers calls it where there is no mask, and bidirectional attention does not depend on it."""
        return 0


@dataclass(frozen=True, kw_only=True)
class CacheWindow:
    """Which columns of the canvas one forward runs, with the keys and values of the others read from `cache`.

    `columns`: the columns run; their keys and values are written to `cache`.
    `end`: columns before it are attended to, from the cache where they are not run; those behind are not there at all.
    Exact where nothing that the columns attend to has changed since it was cached: tokens of earlier blocks, for
    denoisers that attend in blocks. Else an approximation (Fast-dLLM 2505.22618, dKV-Cache 2505.15781).

        everything = CacheWindow(cache=cache, columns=slice(0, L), end=L)  # fills the cache
        block = CacheWindow(cache=cache, columns=slice(64, 96), end=L)  # one block again, the rest as it was
    """

    cache: KeyValues
    columns: Columns
    end: int

    def select(self, tensor_FL: Tensor) -> Tensor:
        """The columns run of a tensor [F, L]: [F, R]."""
        if isinstance(self.columns, Tensor):
            return tensor_FL.gather(1, self.columns)
        run_FL: Tensor = tensor_FL[:, self.columns]
        return run_FL

    def select_mask(self, mask: Any) -> Any:
        """Of an attention mask [F, 1, 1 or L, L] the queries run and the keys attended to: [F, 1, 1 or R, end]."""
        if mask is None:
            return None
        mask = mask[..., : self.end]
        if mask.shape[2] > 1 and isinstance(self.columns, Tensor):
            mask = mask.gather(2, self.columns[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
        elif mask.shape[2] > 1:
            mask = mask[:, :, self.columns]
        return mask

    def index(self, columns_FA: Int[Tensor, "F A"]) -> Int[Tensor, "F A"]:
        """Indices of canvas columns among those run; any index for a column that is not run, whose result is unused."""
        if isinstance(self.columns, slice):
            return torch.clamp(columns_FA - self.columns.start, 0, self.columns.stop - self.columns.start - 1)
        index_FA = torch.searchsorted(self.columns, columns_FA.contiguous())
        return index_FA.clamp(max=self.columns.shape[1] - 1)
