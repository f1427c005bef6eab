"""Continuous batching: which samples run, and on which block. Samples that are done make room for others.

Tokens depend on none of this: draws are keyed by sample, and what is kept of a sample never depends on its neighbours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.denoisers.key_values import KeyValues
from unmask.sampling.context import SamplingContext
from unmask.sampling.state import SamplerState, pad_to_multiple


@dataclass(kw_only=True)
class ActiveBatch:
    """The samples that run: their numbers among all, the block that each is on, and what the loop carries of them.

    `canvas` and `cache` have further rows, repeats of the first, up to a multiple of the context's `batch_multiple`.
    """

    rows: list[int]
    blocks: list[int]
    block_N1: Tensor  # the same, and of the repeats, on the device
    canvas: SamplerState
    cache: KeyValues
    cached_columns: int  # columns that the cache has in final form


@dataclass(kw_only=True)
class Batching:
    """State of one Sampler call between blocks: all samples, those that wait, and those that run."""

    context: SamplingContext
    whole: SamplerState  # of all samples; rows that run are stale
    last_block: list[int]  # of each sample
    size: int  # samples that run at once, at most
    group_size: int  # neighbours with equal prompts
    waiting: deque[int]
    active: ActiveBatch
    filled_NL: Tensor  # positions that were filled up behind an end of sequence
    stopped_early: bool = False  # some were

    @classmethod
    def begin(
        cls, context: SamplingContext, whole: SamplerState, *, last_block: list[int], size: int, group_size: int
    ) -> Batching:
        """With the first `size` samples at their first block."""
        rows = list(range(size))
        canvas = whole.take(_padded(rows, context, whole))
        return cls(
            context=context,
            whole=whole,
            last_block=last_block,
            size=size,
            group_size=group_size,
            waiting=deque(range(size, len(whole.tokens))),
            filled_NL=torch.zeros_like(whole.tokens, dtype=torch.bool),
            active=ActiveBatch(
                rows=rows,
                blocks=[0] * size,
                block_N1=torch.zeros_like(canvas.step_N)[:, None],
                canvas=canvas,
                cache=KeyValues(),
                cached_columns=0,
            ),
        )

    @property
    def equal_neighbours(self) -> int:
        """How many neighbours have equal canvases now: a whole group that has not begun, else 1."""
        rows, group = self.active.rows, self.group_size
        whole_groups = rows[0] % group == 0 and len(rows) % group == 0 and len(self.active.canvas.tokens) == len(rows)
        return group if whole_groups and not any(self.active.blocks) else 1

    def all_tokens(self, tokens_NL: Tensor) -> Tensor:
        """The canvases of all samples, given those that run."""
        row_N = torch.tensor(self.active.rows, device=tokens_NL.device)
        return self.whole.tokens.index_copy(0, row_N, tokens_NL[: len(row_N)])

    def advance(self, cached_columns: int) -> list[int]:
        """Go on to the next block: retire what is done, compact the rest, admit what waits. Returns the retired rows.

        `cached_columns`: columns that the cache has in final form after the block.
        """
        active = self.active
        active.cached_columns = cached_columns
        ended = self._ended()
        kept = [
            place
            for place, (row, block) in enumerate(zip(active.rows, active.blocks, strict=True))
            if block < self.last_block[row] and not ended[place]
        ]
        if len(kept) == len(active.rows) and not (self.waiting and len(kept) < self.size):
            active.blocks, active.block_N1 = [block + 1 for block in active.blocks], active.block_N1 + 1
            return []
        device = self.whole.tokens.device
        self.whole.put(torch.tensor(active.rows, device=device), active.canvas)
        going = set(kept)
        done = [row for place, row in enumerate(active.rows) if place not in going]
        if any(ended):
            self._fill_up(torch.tensor(done, device=device))
        self.active = self._compact(kept)
        return done

    def _ended(self) -> list[bool]:
        """Which samples have an end of sequence in a finished block, and so need no other block."""
        active, context = self.active, self.context
        final = all(self.last_block[row] == block for row, block in zip(active.rows, active.blocks, strict=True))
        if not context.stop_at_end or context.record is not None or final:
            return [False] * len(active.rows)
        finished_NC = active.canvas.block_NC <= active.block_N1
        end_NC = context.denoiser.ends(active.canvas.tokens[:, context.layout.start :]) & finished_NC
        ended: list[bool] = end_NC.any(1)[: len(active.rows)].tolist()
        return ended

    def _fill_up(self, done_N: Tensor) -> None:
        """Fill masks that are left with the end of sequence, as if revealed at the last step that the sample took."""
        self.stopped_early = True
        whole, context = self.whole, self.context
        masked_NL = whole.tokens[done_N] == context.denoiser.mask_id
        masked_NL[:, : context.layout.start] = False
        whole.tokens[done_N] = whole.tokens[done_N].masked_fill(masked_NL, context.denoiser.eos_id)
        self.filled_NL[done_N] = masked_NL
        last_step_N1 = whole.step_N[done_N, None] - 1
        whole.revealed_at[done_N] = torch.where(masked_NL, last_step_N1, whole.revealed_at[done_N])

    def _compact(self, kept: list[int]) -> ActiveBatch:
        """The samples at the places `kept`, one block on, and new ones in the free places."""
        active = self.active
        new = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.size - len(kept)))]
        rows = [active.rows[place] for place in kept] + new
        reusable = bool(kept) and not new and self.context.exact_prefix_cache
        if reusable:
            active.cache.take(_padded(kept, self.context, self.whole))
        blocks = [active.blocks[place] + 1 for place in kept] + [0] * len(new)
        return ActiveBatch(
            rows=rows,
            blocks=blocks,
            block_N1=_padded(blocks, self.context, self.whole)[:, None],
            canvas=self.whole.take(_padded(rows, self.context, self.whole)),
            cache=active.cache if reusable else KeyValues(),
            cached_columns=active.cached_columns if reusable else 0,
        )


def _padded(numbers: list[int], context: SamplingContext, whole: SamplerState) -> Tensor:
    padded = pad_to_multiple(numbers, context.batch_multiple)
    return torch.tensor(padded, dtype=torch.long, device=whole.tokens.device)
