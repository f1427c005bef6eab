"""Scoring batches and update batches for the benchmarks, built from tensors without running a sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toy import Sizes
from unmask.methods import DiffuGRPO
from unmask.objective import likelihood
from unmask.objective.objective import UpdateBatch
from unmask.objective.term import Term
from unmask.types import Rollout, ScoringBatch


def scoring_batch_of(
    inputs_FL: Tensor,
    targets_RL: Tensor,
    scored_RL: Tensor,
    advantage_U: Tensor,
    **others: Tensor | float,
) -> ScoringBatch:
    """A ScoringBatch of unpadded rows: one unit and one forward each, token weights 1, unless told otherwise."""
    row_R = torch.arange(len(targets_RL))
    settings: dict[str, Any] = {
        "forward_R": row_R,
        "unit_R": row_R,
        "token_weight_RL": scored_RL.float(),
        "length_U": scored_RL.sum(1),
    }
    return ScoringBatch(
        inputs_FL=inputs_FL,
        attention_FL=torch.ones_like(inputs_FL).bool(),
        targets_RL=targets_RL,
        scored_RL=scored_RL,
        advantage_U=advantage_U,
        **(settings | others),
    )


def update_batch(term: Term, batch: ScoringBatch, normalizer: Tensor, old_RL: Tensor | None = None) -> UpdateBatch:
    """The UpdateBatch of one term, without a reference policy."""
    return UpdateBatch(term=term, batch=batch, normalizer=normalizer, old_RL=old_RL)


def diffu_grpo_batch(batch: ScoringBatch) -> UpdateBatch:
    """The UpdateBatch of diffu-GRPO: clipped surrogate, mean over tokens."""
    (term,) = DiffuGRPO(beta=0.0, epsilon=0.5).terms(0)
    return update_batch(term, batch, likelihood.token_count(batch))


def rollout_of(tokens_NL: Tensor, sizes: Sizes) -> Rollout:
    """A Rollout of one prompt's samples as if all tokens had been revealed in one step."""
    region_L = torch.arange(tokens_NL.shape[1]) >= sizes.prompt
    index_N, zeros_NL = torch.arange(len(tokens_NL)), torch.zeros(tokens_NL.shape)
    return Rollout(
        tokens_NL=tokens_NL,
        attention_NL=torch.ones_like(tokens_NL).bool(),
        completion_NL=region_L.expand_as(tokens_NL),
        block_NL=(region_L.long() - 1).expand_as(tokens_NL),
        revealed_at_NL=(region_L.long() - 1).expand_as(tokens_NL),
        sampled_logp_NL=zeros_NL,
        confidence_NL=zeros_NL,
        prompt_N=index_N * 0,
        sample_N=index_N,
        prompt_length=sizes.prompt,
        group_size=len(tokens_NL),
        steps=1,
        temperature=1.0,
        mask_id=sizes.mask_id,
        remasking=False,
    )
