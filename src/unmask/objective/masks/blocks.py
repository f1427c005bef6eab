"""Random masks of one block of the sampler, later blocks fully masked (SPG)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.objective.masks.base import Masking, PromptMask, position_draws, row_draws, sample_rows, smallest
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class BlockRandom(Masking):
    """`count` rows a sample: a block masked at a uniform count >= 1, blocks before it clean, after it masked (SPG).

    Blocks are the first `count` of a random order of all blocks, modulo those used up to the end of the sequence: they
    may repeat. Clean tokens, prompt included, are masked with `prompt_mask_prob`. Scored: masked positions through the
    end of the sequence; weight 1 / (masked fraction of the span), as the upper bound reads it (2510.09541).
    """

    rows: ClassVar[str] = "one block partly masked, later ones fully"
    unit: ClassVar[str] = "sample"
    count: int = 2
    prompt_mask_prob: float = 0.15

    @property
    def prompt_mask(self) -> PromptMask:
        """Prompt tokens masked with `prompt_mask_prob`."""
        return PromptMask(self.prompt_mask_prob)

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.count)
        span_NL = rollout.completion_NL
        block_NR = self._blocks(rollout, uniforms.key("block", update))
        block_N1L = rollout.block_NL[:, None]
        here_NRL = (block_N1L == block_NR[..., None]) & span_NL[:, None]
        size_NR = here_NRL.sum(2)
        count_NR = (key_NR.key("count").draw() * size_NR).long() + 1
        partly_NRL = smallest(position_draws(rollout, key_NR.key("position")), here_NRL, count_NR)
        later_NRL = (block_N1L > block_NR[..., None]) | (rollout.region_L & ~span_NL)[:, None]
        noise_NRL = position_draws(rollout, key_NR.key("clean")) < self.prompt_mask_prob
        earlier_NRL = (block_N1L < block_NR[..., None]) & rollout.attention_NL[:, None] & noise_NRL
        masked_NRL = partly_NRL | later_NRL | earlier_NRL
        scored_NRL = masked_NRL & span_NL[:, None]
        length_N = span_NL.sum(1)
        fraction_NR1 = scored_NRL.sum(2, keepdim=True) / length_N[:, None, None]
        return sample_rows(
            rollout,
            masked_NRL=masked_NRL,
            scored_NRL=scored_NRL,
            token_weight_NRL=scored_NRL / fraction_NR1,
            length_N=length_N,
            advantage=advantage,
        )

    def _blocks(self, rollout: Rollout, key: Uniforms) -> Tensor:
        """The block of each row: [N, count]."""
        blocks = int(rollout.block_NL.max()) + 1
        used_N1 = (rollout.block_NL * rollout.completion_NL).amax(1, keepdim=True) + 1
        order_NB = row_draws(rollout, key, blocks).draw().argsort(dim=1)
        place_R = torch.arange(self.count, device=order_NB.device) % blocks
        return order_NB[:, place_R] % used_N1
