"""The authors' own SPG code gives the same bounds, losses and gradients (1e-5)."""

from dataclasses import replace

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import EOS, GROUPS, MASK, assert_gradients_equal, close, rollout_of
from unmask.methods import SPG
from unmask.objective.likelihood import EUBO, Sandwich, masked_mean, row_logp, token_count
from unmask.objective.masks import BlockRandom
from unmask.types import ScoringBatch
from unmask.uniforms import Uniforms

CASES = reference_cases("methods/spg")
BLOCKS = [case for case in CASES if case["forward_type"] == "block_random"]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def rollout_of_case(case):
    return rollout_of(case["shared"], pads_attended=False, block_length=case["block_length"])


def views_of(case, inputs_NRL) -> ScoringBatch:
    """Masked inputs as the published code scores them: all that is masked, to the end of the sequence."""
    rollout, (samples, rows, _) = rollout_of_case(case), inputs_NRL.shape
    sample, length = torch.arange(samples).repeat_interleave(rows), rollout.completion_NL.sum(1)
    inputs = inputs_NRL.flatten(0, 1)
    scored = (inputs == MASK) & rollout.completion_NL[sample]
    return ScoringBatch(
        inputs_FL=inputs,
        attention_FL=rollout.attention_NL[sample],
        forward_R=torch.arange(len(inputs)),
        targets_RL=rollout.tokens_NL[sample],
        scored_RL=scored,
        token_weight_RL=scored / (scored.sum(1) / length[sample])[:, None],
        unit_R=sample,
        advantage_U=case["shared"]["advantages"],
        length_U=length,
    )


def stored_views(case) -> ScoringBatch:
    return views_of(case, case["tensors"]["masked_views"].long())


@every_case
def test_spg_bounds_equal_the_authors(case, llada_tiny):
    tensors, batch = case["tensors"], stored_views(case)
    assert torch.equal(rollout_of_case(case).attention_NL, tensors["model_attention_mask"].bool())
    now, beta = row_logp(llada_tiny, batch).detach(), case["eubo_beta"]
    close(masked_mean(now, batch).value_UK[:, 0], tensors["sequence_elbo"])
    close(EUBO(beta=beta)(now, batch).value_UK[:, 0], tensors["sequence_eubo"])
    # The stored mixture is every sequence's, so all count as bad here.
    mixture, bad = Sandwich(beta=beta, mix=case["mix_weight"]), replace(batch, advantage_U=-torch.ones(6))
    close(mixture(now, bad).value_UK[:, 0], tensors["sequence_mix"])
    # By the sign of the advantage. At 0 we score the lower bound, the published code the mixture: neither has a loss.
    good, with_advantage = tensors["reward_mask"].bool(), batch.advantage_U != 0
    assert torch.equal(good, batch.advantage_U > 0)
    expected = torch.where(good, tensors["sequence_elbo"], tensors["sequence_mix"])
    close(mixture(now, batch).value_UK[with_advantage, 0], expected[with_advantage])


@every_case
@pytest.mark.parametrize("estimator", ["elbo", "eubo", "mix", "zero"])
def test_spg_loss_and_gradients_equal_the_authors(case, estimator, exact_llada_tiny):
    batch, tensors = stored_views(case), case["tensors"]
    mix = {"elbo": 0.0, "eubo": 1.0}.get(estimator, case["mix_weight"])
    (term,) = SPG(num_masks=case["num_t"], beta=case["eubo_beta"], mix=mix).terms(EOS)
    close(term.advantage(case["shared"]["rewards"].view(GROUPS)).flatten(), batch.advantage_U)
    if estimator == "zero":  # bad sequences score nothing: no setting of ours, the same as no advantage
        batch = replace(batch, advantage_U=batch.advantage_U.clamp(min=0))
    loss, _ = term.loss(batch, row_logp(exact_llada_tiny, batch), None, None, token_count(batch))
    close(loss.detach(), case[f"loss_{estimator}"])
    if f"grads_{estimator}" in case:
        slices = {key.removesuffix(f"_{estimator}"): value for key, value in tensors.items()}
        assert_gradients_equal(loss, exact_llada_tiny, slices, case[f"grads_{estimator}"])


def follows_a_block(inputs, completion, block_NL) -> bool:
    """Whether some block has a masked token, all after it (and after the end) masked, and all before it clean."""
    masked, region = inputs == MASK, block_NL >= 0
    return any(
        bool(masked[(block_NL > block) | (region & ~completion)].all())
        and bool(masked[(block_NL == block) & completion].any())
        and not bool(masked[block_NL < block].any())
        for block in range(int(block_NL[completion].max()) + 1)
    )


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case["name"])
def test_block_random_rows_equal_the_authors(case):
    """Our rows are scored and weighed as the published ones, and have their form."""
    rollout = rollout_of_case(case)
    prob = case["p_mask_prompt"] if case["use_mask_prompt"] else 0.0
    (term,) = SPG(num_masks=case["num_t"], prompt_mask_prob=prob).terms(EOS)
    assert term.masking == BlockRandom(count=case["num_t"], prompt_mask_prob=prob)
    theirs = stored_views(case)
    ours = term.scoring_batch(rollout, case["shared"]["rewards"].view(GROUPS), Uniforms(), 0, 1)
    again = views_of(case, ours.inputs_FL.unflatten(0, (len(rollout.tokens_NL), -1)))
    close(ours.token_weight_RL, again.token_weight_RL)
    for name in ("scored_RL", "length_U", "unit_R", "targets_RL", "attention_FL", "forward_R"):
        assert torch.equal(getattr(ours, name), getattr(again, name))
    for batch in () if prob else (ours, theirs):
        for inputs, sample in zip(batch.inputs_FL, batch.unit_R, strict=True):
            assert follows_a_block(inputs, rollout.completion_NL[sample], rollout.block_NL[sample])
        masked = batch.inputs_FL == MASK
        between = ~masked & (masked.cumsum(1) > 0) & rollout.region_L
        assert bool(between.any())  # some block is masked in part
