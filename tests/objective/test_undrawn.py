"""Tokens that nobody drew, filled in behind an end of sequence: not scored, not counted, not credited."""

from dataclasses import replace

import pytest
import torch

from helpers.every_method import VARIANTS
from helpers.small import EOS, MASK, prompts_of, small_denoiser
from unmask.evaluation.evaluator import tokens_a_step
from unmask.methods import GDPO, LFPO, JustGRPO
from unmask.objective.likelihood import masked_mean
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import LeftToRight, LowConfidence, RunningConfidence
from unmask.uniforms import Uniforms

GROUP, START, LENGTH = 4, 3, 16
DENOISER = small_denoiser(seed=5)


def rollout_of(rule, steps=16):
    settings = {"max_new_tokens": LENGTH, "block_length": 4, "temperature": 1.0, "stop_at_end": True}
    sampler = Sampler(**settings, steps=steps, unmasking=rule)
    return sampler(DENOISER, prompts_of([[1, 2, 3], [4, 5, 6]], range(GROUP)), Uniforms(), group_size=GROUP)


def whole_blocks(rollout):
    """Positions of the blocks through that of the first end of sequence: what the sampler ran."""
    last_N1 = (rollout.block_NL * rollout.completion_NL).amax(1, keepdim=True)
    return rollout.region_L & (rollout.block_NL <= last_N1)


@pytest.mark.parametrize("rule", [LowConfidence(), LeftToRight(), RunningConfidence()])
def test_rollout_drawn_are_the_positions_of_blocks_that_ran(rule):
    rollout = rollout_of(rule)
    assert torch.equal(rollout.drawn_NL, whole_blocks(rollout))
    assert bool((rollout.tokens_NL[rollout.region_L & ~rollout.drawn_NL] == EOS).all())
    assert int((~rollout.drawn_NL & rollout.region_L).sum()) > 0


TRAINED = [name for name, method in VARIANTS.items() if all(term.record is None for term in method.terms(EOS))]


@pytest.mark.parametrize("name", TRAINED)
def test_no_method_scores_or_shows_what_was_not_drawn(name):
    method = VARIANTS[name]
    rollout = rollout_of(LeftToRight() if method.unmasking else LowConfidence())
    (term,) = method.terms(EOS)
    for update in range(2):
        batch = term.scoring_batch(rollout, torch.rand(2, GROUP), Uniforms(), update, 2)
        batch = batch.take_units(batch.scored_U)
        # Rows tell whose they are by prompt and target alone, so each is looked up among the samples.
        for row, (target_L, scored_L) in enumerate(zip(batch.targets_RL, batch.scored_RL, strict=True)):
            samples = (rollout.tokens_NL == target_L).all(1)
            undrawn_L = (rollout.region_L & ~rollout.drawn_NL)[samples][0]
            assert not bool((scored_L & undrawn_L).any())
            assert bool((batch.inputs_FL[batch.forward_R[row]][undrawn_L] == MASK).all())


def test_prefixes_of_a_share_are_of_the_drawn_positions():
    rollout = rollout_of(LeftToRight())
    for fraction in (1.0, 0.25):
        (term,) = JustGRPO(fraction=fraction).terms(EOS)
        batch = term.scoring_batch(rollout, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), Uniforms(), 0, 1)
        expected = sum(max(1, round(fraction * int(drawn))) for drawn in rollout.drawn_NL.sum(1))
        assert int(batch.scored_RL.sum()) == term.normalizer(batch).item() == expected


def test_gdpo_divides_by_the_positions_that_were_drawn():
    rollout = rollout_of(LowConfidence())
    (term,) = GDPO().terms(EOS)
    batch = term.scoring_batch(rollout, torch.rand(2, GROUP), Uniforms(), 0, 1)
    assert torch.equal(batch.length_U, rollout.drawn_NL.sum(1))


def test_recorded_times_have_no_row_without_a_scored_token():
    rollout = rollout_of(LowConfidence())
    (term,) = LFPO(recorded_states=True, num_masks=4).terms(EOS)
    batch = term.scoring_batch(rollout, torch.rand(2, GROUP), Uniforms(), 0, 1)
    assert bool(batch.scored_RL.any(1).all())
    score_U = masked_mean(-1.0 * batch.scored_RL, batch).value_UK[:, 0]
    assert score_U.tolist() == [-1.0] * len(score_U)


@pytest.mark.parametrize(("rule", "steps"), [(LowConfidence(), 8), (RunningConfidence(), 8)])
def test_tokens_a_step_counts_drawn_tokens(rule, steps):
    rollout = rollout_of(rule, steps)
    assert tokens_a_step(rollout) == [2.0] * (2 * GROUP)
    whole = replace(rollout, filled_NL=None)
    assert max(tokens_a_step(whole)) > 2 or rollout.remasking
