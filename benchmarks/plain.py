"""The plain way: every position through the whole head, whole softmax, draws by the whole cumulative sum in float64.

Slow and obvious, for two uses: what the fast sampler and update must equal, and a baseline where no peer is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unmask.types import Prompts, ScoringBatch
from unmask.uniforms import Uniforms

Network = Callable[..., Any]
BLOCK = 32


def draw(logits_CV: Tensor, uniform_C: Tensor, temperature: float, mask_id: int) -> Tensor:
    """Token whose cumulative probability at the temperature is the first above the uniform; never the mask."""
    weight_CV = (logits_CV.double() / temperature).softmax(1)
    weight_CV[:, mask_id] = 0
    cdf_CV = weight_CV.cumsum(1)
    return torch.searchsorted(cdf_CV, uniform_C[:, None] * cdf_CV[:, -1:], right=True)[:, 0]


def keyed_uniforms(prompts: Prompts, uniforms: Uniforms, step: int, completion: int) -> Tensor:
    """The uniforms [N, C] that our sampler's draws read in a step."""
    sample = uniforms.key("sample", prompts.prompt_N[:, None], prompts.sample_N[:, None])
    return sample.key(step).key("token", torch.arange(completion)).draw()


@torch.no_grad()
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
    """Completions, most confident tokens of the block first, equally many each step: tokens [N, L]."""
    start = prompts.tokens_NP.shape[1]
    tokens_NL = torch.nn.functional.pad(prompts.tokens_NP, (0, completion), value=mask_id)
    steps_per_block = steps // (completion // BLOCK)
    for step in range(steps):
        stop = start + (step // steps_per_block + 1) * BLOCK
        logits_NLV = network(tokens_NL).logits
        uniform_NC = keyed_uniforms(prompts, uniforms, step, completion)
        for row, logits_LV in enumerate(logits_NLV):
            probability_LV = logits_LV.softmax(1)
            if temperature:
                drawn_C = draw(logits_LV[start:], uniform_NC[row], temperature, mask_id)
                proposal_L = torch.cat([tokens_NL[row, :start], drawn_C])
            else:
                proposal_L = logits_LV.argmax(1)
            candidate_L = tokens_NL[row] == mask_id
            candidate_L[stop:] = False
            confidence_L = probability_LV.gather(1, proposal_L[:, None])[:, 0].masked_fill(~candidate_L, -1.0)
            best = confidence_L.topk(BLOCK // steps_per_block).indices
            tokens_NL[row, best] = proposal_L[best]
    return tokens_NL


def update_loss(network: Network, batch: ScoringBatch, epsilon: float) -> Tensor:
    """The clipped surrogate of every row's scored tokens, a forward a row: mean over tokens, old = now."""
    logits_RLV = network(batch.inputs_FL[batch.forward_R]).logits
    now_RL = logits_RLV.log_softmax(2).gather(2, batch.targets_RL[..., None])[..., 0]
    ratio_RL = (now_RL - now_RL.detach()).exp()
    advantage_R1 = batch.advantage_U[batch.unit_R][:, None]
    gain_RL = torch.minimum(ratio_RL * advantage_R1, ratio_RL.clamp(1 - epsilon, 1 + epsilon) * advantage_R1)
    return -(gain_RL * batch.scored_RL).sum() / batch.scored_RL.sum()
