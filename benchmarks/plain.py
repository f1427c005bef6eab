"""The plain way: the reference sampler (all logits, whole softmax), and an update that runs a forward a row.

Slow and obvious, for two uses: what the fast sampler and update must equal, and a baseline where no peer is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unmask.sampling import reference
from unmask.types import Prompts, ScoringBatch
from unmask.uniforms import Uniforms

Network = Callable[..., Any]
BLOCK = 32


def keyed_uniforms(prompts: Prompts, uniforms: Uniforms, step: int, completion: int) -> Tensor:
    """The uniforms [N, C] that our sampler's draws read in a step."""
    sample = uniforms.key("sample", prompts.prompt_N[:, None], prompts.sample_N[:, None])
    return sample.key(step).key("token", torch.arange(completion)).draw()


def sample(
    network: Network,
    prompts: Prompts,
    uniforms: Uniforms,
    *,
    completion: int,
    steps: int,
    temperature: float,
    mask_id: int,
) -> Tensor:
    """Completions by `unmask.sampling.reference`, most confident tokens of the block first: tokens [N, L]."""
    sampled = reference.sample(
        lambda tokens_NL: network(tokens_NL).logits,
        prompts,
        uniforms,
        max_new_tokens=completion,
        block_length=BLOCK,
        steps=steps,
        temperature=temperature,
        mask_id=mask_id,
    )
    return torch.cat([prompts.tokens_NP, sampled.token_NC], dim=1)


def update_loss(network: Network, batch: ScoringBatch, epsilon: float) -> Tensor:
    """The clipped surrogate of every row's scored tokens, a forward a row: mean over tokens, old = now."""
    logits_RLV = network(batch.inputs_FL[batch.forward_R]).logits
    now_RL = logits_RLV.log_softmax(2).gather(2, batch.targets_RL[..., None])[..., 0]
    ratio_RL = (now_RL - now_RL.detach()).exp()
    advantage_R1 = batch.advantage_U[batch.unit_R][:, None]
    gain_RL = torch.minimum(ratio_RL * advantage_R1, ratio_RL.clamp(1 - epsilon, 1 + epsilon) * advantage_R1)
    return -(gain_RL * batch.scored_RL).sum() / batch.scored_RL.sum()
