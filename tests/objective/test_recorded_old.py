"""Where the sampler saw the canvases that a method scores, its log-probs are the old ones: equal to scoring again."""

from dataclasses import replace

import pytest
import torch

from helpers.small import EOS, prompts_of, small_denoiser
from unmask.methods import DiSPO, JustGRPO, StepMerge, TraceRL
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.objective import masks
from unmask.objective.likelihood import row_logp
from unmask.objective.term import record_of
from unmask.sampling.caching import CACHINGS
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import LeftToRight, LowConfidence
from unmask.uniforms import Uniforms

GROUP = 3
ROWS = [[1, 2, 3], [4, 5]]
METHODS = {
    "just-grpo": (JustGRPO(), LeftToRight()),
    "tracerl": (TraceRL(shrink=1, eos_tokens=-1, lowest=0.0, highest=1.0), LowConfidence()),
    "d2": (StepMerge(segments=8), LowConfidence()),
    "dispo": (DiSPO(base=DiffuGRPO(beta=0.0), prompt_mask_prob=0.0), LowConfidence()),
}
OTHERWISE = {
    "tracerl": (TraceRL(shrink=2, lowest=0.0, highest=1.0), LowConfidence()),
    "d2": (StepMerge(segments=4), LowConfidence()),
    "just-grpo": (JustGRPO(), LowConfidence()),
    "dispo": (DiSPO(prompt_mask_prob=0.5), LowConfidence()),
}


def last_views(method, rule, **changes):
    settings = {"max_new_tokens": 8, "block_length": 4, "steps": 8, "temperature": 1.0, "unmasking": rule}
    terms = method.terms(EOS)
    prompts, denoiser = prompts_of(ROWS, samples=range(GROUP)), small_denoiser()
    sampler = Sampler(**(settings | changes))
    rollout = sampler(denoiser, prompts, Uniforms(), record_of(terms), group_size=GROUP)
    term = terms[-1]
    columns = () if term.record is None else (term.record.guesses,)
    rewards = Uniforms().key("rewards", torch.arange(len(ROWS) * GROUP * max(1, *columns, 1))).draw().float()
    return denoiser, term.scoring_batch(rollout, rewards.view(len(ROWS), GROUP, *columns), Uniforms(), 0, 2)


@pytest.mark.parametrize(("method", "rule"), METHODS.values(), ids=METHODS)
def test_old_logps_as_recorded_equal_scoring(method, rule):
    denoiser, batch = last_views(method, rule)
    scored = row_logp(denoiser, batch).detach()
    torch.testing.assert_close(batch.old_RL * batch.scored_RL, scored, rtol=1e-5, atol=1e-5)
    assert int(batch.scored_RL.sum()) > 8


@pytest.mark.parametrize(("method", "rule"), OTHERWISE.values(), ids=OTHERWISE)
def test_old_logps_are_not_those_of_other_canvases(method, rule):
    _, batch = last_views(method, rule)
    assert batch.old_RL is None


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.7}, {"guidance_scale": 1.0}, {"caching": CACHINGS["prefix"]}],
    ids=["temperature", "guidance", "cache"],
)
def test_old_logps_are_not_those_of_other_distributions(changes):
    for name, (method, rule) in METHODS.items():
        _, batch = last_views(method, rule, **changes)
        assert batch.old_RL is None, name


def test_old_logps_are_not_those_of_filled_up_completions():
    (term,) = replace(METHODS["tracerl"][0]).terms(EOS)
    denoiser = small_denoiser(seed=5)
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=16, temperature=1.0, stop_at_end=True)
    rollout = sampler(denoiser, prompts_of(ROWS, samples=range(GROUP)), Uniforms(), group_size=GROUP)
    assert not rollout.exact
    batch = term.scoring_batch(rollout, torch.rand(len(ROWS), GROUP), Uniforms(), 0, 2)
    assert batch.old_RL is None
    assert isinstance(term.masking, masks.Segments)
