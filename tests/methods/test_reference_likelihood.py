"""LLaDA's own estimate of log p(answer | prompt), on its own masks, guided or not (1e-5)."""

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import MASK, close
from unmask.denoisers.base import Guidance
from unmask.denoisers.head.chunks import TargetLogProb
from unmask.objective.likelihood import elbo, row_logp, weighted_sum
from unmask.objective.masks import RandomMasks
from unmask.objective.masks.random import Masks
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

CASES = reference_cases("methods/llada_log_likelihood")


def views_of(case) -> ScoringBatch:
    """The stored masked copies of prompt and answer as rows of one sample; weight length / (masked · rows)."""
    prompt, answer = case["tensors"]["prompt"].long(), case["tensors"]["answer"].long()
    tokens = torch.cat([prompt, answer])[None]
    start, zeros = len(prompt), torch.zeros(tokens.shape)
    region = (torch.arange(tokens.shape[1]) >= start)[None]
    rollout = Rollout(
        tokens_NL=tokens,
        attention_NL=torch.ones_like(tokens).bool(),
        completion_NL=region,
        block_NL=region.long() - 1,
        revealed_at_NL=region.long() - 1,
        sampled_logp_NL=zeros,
        confidence_NL=zeros,
        prompt_N=torch.zeros(1, dtype=torch.long),
        sample_N=torch.zeros(1, dtype=torch.long),
        prompt_length=start,
        group_size=1,
        steps=1,
        temperature=1.0,
        mask_id=MASK,
        remasking=False,
    )
    inputs_1RL = case["tensors"]["masked_views"].long().flatten(0, 1)[None]

    def stored(rollout, span_NL, uniforms, update, updates):
        masked_1RL = inputs_1RL == MASK
        rows = masked_1RL.shape[1]
        return Masks(masked_1RL, span_NL.sum() / (masked_1RL.sum(2, keepdim=True).double() * rows))

    batch = RandomMasks(distribution=stored)(rollout, torch.zeros(1, 1), Uniforms(), 0, 1)
    assert torch.equal(batch.inputs_FL, inputs_1RL[0])
    assert len(batch.inputs_FL) == case["mc_num"]
    return batch


def guided_logp(denoiser, batch, case):
    """As row_logp, under classifier-free guidance."""
    prompt = torch.arange(batch.inputs_FL.shape[1]) < len(case["tensors"]["prompt"])
    asked = torch.arange(batch.inputs_FL.shape[1]).expand_as(batch.inputs_FL)
    guidance = Guidance(scale=case["cfg_scale"], prompt_FL=prompt.expand_as(batch.inputs_FL))
    answer = TargetLogProb(batch.targets_RL.reshape(-1, 1))
    with torch.no_grad():
        (logp_FL1,) = denoiser(batch.inputs_FL, batch.attention_FL, asked, answer, guidance)
    return logp_FL1[..., 0] * batch.scored_RL


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_elbo_equals_the_authors_log_likelihood(case, llada_tiny):
    batch = views_of(case)
    logp = guided_logp(llada_tiny, batch, case)
    if not case["cfg_scale"]:
        with torch.no_grad():
            close(row_logp(llada_tiny, batch), logp)
    close(weighted_sum(logp, batch).value_UK, [[case["log_likelihood"]]])
    close(elbo(logp, batch).value_UK, [[case["log_likelihood"] / len(case["tensors"]["answer"])]])
