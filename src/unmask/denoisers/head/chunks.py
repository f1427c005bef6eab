"""Query positions in chunks: logits [C, V] exist for one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS_PER_CHUNK = 1 << 24  # 64 MB in float32


def chunk_positions(vocabulary: int) -> int:
    """The number of query positions whose logits may exist at the same time: 2^24 logits, 64 MB in float32."""
    return max(1, _LOGITS_PER_CHUNK // vocabulary)


def chunks_of(positions: int, vocabulary: int) -> list[slice]:
    """Slices over so many query positions, each small enough for its logits to exist at once."""
    return even_chunks(positions, chunk_positions(vocabulary))


def even_chunks(positions: int, most: int) -> list[slice]:
    """Slices of at most `most` positions, of equal length but the last; one empty slice if there are no positions."""
    count = max(1, -(-positions // most))
    size = max(1, -(-positions // count))
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)] or [slice(0, 0)]


def reduce_chunks(reduce: Callable[[slice], tuple[Tensor, ...]], positions: int, vocabulary: int) -> list[Tensor]:
    """`reduce` called on every chunk of positions, results concatenated.

    Where there are several chunks and gradients are wanted, each chunk's logits are computed again for its gradient.
    """
    chunks = chunks_of(positions, vocabulary)
    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(reduce, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        parts = [reduce(chunk) for chunk in chunks]
    return [torch.cat(part) for part in zip(*parts, strict=True)]
