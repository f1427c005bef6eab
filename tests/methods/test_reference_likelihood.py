"""LLaDA's own estimate of log p(answer | prompt), on its own masks, guided or not (1e-5)."""

from dataclasses import dataclass

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import MASK, close
from unmask.denoisers.base import Guidance
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.objective.likelihood import elbo, row_logp, weighted_sum
from unmask.objective.masks import RandomMasks
from unmask.objective.masks.random import MaskDistribution, Masks
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

CASES = reference_cases("methods/llada_log_likelihood")


@dataclass(frozen=True, kw_only=True)
class Stored(MaskDistribution):
    """The masks of given inputs, weighing span / (masked · rows)."""

    inputs_1RL: torch.Tensor

    def __call__(self, rollout, span_NL, uniforms, update, updates):
        masked_1RL = self.inputs_1RL == MASK
        rows = masked_1RL.shape[1]
        return Masks(masked_1RL, span_NL.sum() / (masked_1RL.sum(2, keepdim=True).double() * rows))


def batch_of(case) -> ScoringBatch:
    """The stored masked copies of prompt and answer as rows of one sample; weight length / (masked · rows)."""
    prompt, answer = case["tensors"]["prompt"].long(), case["tensors"]["answer"].long()
    tokens = torch.cat([prompt, answer])[None]
    rollout = Rollout.fake(tokens, prompt_length=len(prompt), group_size=1, mask_id=MASK)
    inputs_1RL = case["tensors"]["masked_views"].long().flatten(0, 1)[None]
    batch = RandomMasks(distribution=Stored(inputs_1RL=inputs_1RL))(rollout, torch.zeros(1, 1), Uniforms(), 0, 1)
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
    batch = batch_of(case)
    logp = guided_logp(llada_tiny, batch, case)
    if not case["cfg_scale"]:
        with torch.no_grad():
            close(row_logp(llada_tiny, batch), logp)
    close(weighted_sum(logp, batch).value_UK, [[case["log_likelihood"]]])
    close(elbo(logp, batch).value_UK, [[case["log_likelihood"] / len(case["tensors"]["answer"])]])
