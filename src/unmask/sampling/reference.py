"""The specification of the sampler: all logits at every step, no cache, no compaction, nothing shared. Read it first.

`Sampler` gives the same tokens for rules that are not adaptive, and the same log-probs up to rounding; tests hold it to
that. Here are no end-of-sequence stops, no recorded states, and no models that attend in blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.sampling.schedules import Schedule, uniform_schedule
from unmask.sampling.unmasking import STATISTICS, LowConfidence, Measure, Observation, Unmasking
from unmask.types import Prompts
from unmask.uniforms import Uniforms


class Completions(NamedTuple):
    """Tokens [N, C] behind the prompt, and the step that last revealed each, its log-prob and confidence then."""

    token_NC: Tensor
    revealed_at_NC: Tensor
    logp_NC: Tensor  # at the sampling temperature; at 1 if greedy
    confidence_NC: Tensor  # by the rule's measure


@torch.no_grad()
def sample(
    logits_of: Callable[[Tensor], Tensor],
    prompts: Prompts,
    uniforms: Uniforms,
    *,
    max_new_tokens: int,
    block_length: int,
    steps: int,
    temperature: float,
    mask_id: int,
    unmasking: Unmasking = LowConfidence(),  # noqa: B008  frozen
    schedule: Schedule = uniform_schedule,
) -> Completions:
    """Complete the prompts, block by block; `logits_of` maps canvases [N, L] to logits [N, L, V]."""
    samples, start = prompts.tokens_NP.shape
    position_C = torch.arange(max_new_tokens)
    zeros_NC = torch.zeros(samples, max_new_tokens)
    result = Completions(
        torch.full(zeros_NC.shape, mask_id), torch.full(zeros_NC.shape, -1), zeros_NC, zeros_NC.clone()
    )
    running_NC, state = zeros_NC - float("inf"), unmasking.initial_state(samples, max_new_tokens, zeros_NC.device)
    counts = schedule(block_length, steps * block_length // max_new_tokens)
    sample_key = uniforms.key("sample", prompts.prompt_N[:, None], prompts.sample_N[:, None])
    for step in range(steps):
        block, index = divmod(step, len(counts))
        candidate_C = _is_candidate(position_C // block_length, block, unmasking)
        masked_NC = (result.token_NC == mask_id) & candidate_C
        logits_NCV = logits_of(torch.cat([prompts.tokens_NP, result.token_NC], 1))[:, start:]
        key = sample_key.key(step)
        uniform_NC = key.key("token", position_C).draw()
        token_NC, logp_NC, confidence_NC = propose(logits_NCV, uniform_NC, temperature, mask_id, unmasking.measure)
        running_NC = torch.where(masked_NC, STATISTICS[unmasking.statistic](running_NC, confidence_NC), running_NC)
        observation = Observation(
            masked_NC=masked_NC,
            token_NC=token_NC * masked_NC,
            confidence_NC=confidence_NC * masked_NC,
            running_NC=running_NC.masked_fill(~candidate_C, float("inf")),
            position_NC=position_C.expand_as(masked_NC),
            count=counts[index],
            remaining=sum(counts[index + 1 :]),
            uniforms=key,
            state=state,
        )
        masked_after_NC, state = unmasking(observation) & candidate_C, unmasking.next_state(observation)
        revealed_NC = masked_NC & ~masked_after_NC
        now = Completions(token_NC, torch.full_like(token_NC, step), logp_NC, confidence_NC)
        result = Completions(*(torch.where(revealed_NC, new, old) for new, old in zip(now, result, strict=True)))
        result.token_NC.masked_fill_(masked_after_NC, mask_id)
    return result


def _is_candidate(block_C: Tensor, block: int, unmasking: Unmasking) -> Tensor:
    return block_C <= block if unmasking.candidates == "completion" else block_C == block


def propose(
    logits_NCV: Tensor, uniform_NC: Tensor, temperature: float, mask_id: int, measure: Measure
) -> tuple[Tensor, Tensor, Tensor]:
    """A token at every position, its log-prob and confidence: [N, C] each.

    Never the mask, whose logit keeps its part in normalizers: what is recorded is what scoring gives.
    """
    rows = []
    for logits_CV, uniform_C in zip(logits_NCV, uniform_NC, strict=True):
        if temperature:
            token_C = draw(logits_CV, uniform_C, temperature, mask_id)
        else:
            token_C = logits_CV.index_fill(1, torch.tensor([mask_id]), -float("inf")).argmax(1)
        logp_CV = (logits_CV / (temperature or 1.0)).log_softmax(1)
        kept_CV = logits_CV.index_fill(1, torch.tensor([mask_id]), -1e30)
        confidence_C1 = measure(kept_CV, logits_CV.logsumexp(1), token_C[:, None])
        rows.append((token_C, logp_CV.gather(1, token_C[:, None])[:, 0], confidence_C1[:, 0]))
    token_NC, logp_NC, confidence_NC = (torch.stack(part) for part in zip(*rows, strict=True))
    return token_NC, logp_NC, confidence_NC


def draw(logits_CV: Tensor, uniform_C: Tensor, temperature: float, mask_id: int) -> Tensor:
    """Tokens by inverse CDF in float64: the first whose cumulative probability at the temperature is above the uniform.

    Never the mask.
    """
    probability_CV = (logits_CV.double() / temperature).softmax(1)
    probability_CV[:, mask_id] = 0
    cdf_CV = probability_CV.cumsum(1)
    return torch.searchsorted(cdf_CV, uniform_C[:, None] * cdf_CV[:, -1:], right=True)[:, 0]
