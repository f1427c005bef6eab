"""Losses, advantages and divergences as pure functions, against their formulas written out."""

import math

import pytest
import torch

from unmask import functional

LOGP = torch.tensor([[-1.0, -2.0, -0.5], [-0.2, -3.0, -1.5]], dtype=torch.float64)
OLD = torch.tensor([[-1.4, -2.0, -0.4], [-0.2, -2.0, -1.9]], dtype=torch.float64)
ADVANTAGES = torch.tensor([2.0, -1.0], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 2.0]], dtype=torch.float64)


def summed(term):
    """sum over u, k of w term(logp, old, advantage), of plain numbers."""
    return sum(
        float(WEIGHTS[u, k]) * term(float(LOGP[u, k]), float(OLD[u, k]), float(ADVANTAGES[u]))
        for u in range(2)
        for k in range(3)
    )


def test_clipped_surrogate_is_its_formula():
    def term(logp, old, advantage):
        ratio = math.exp(logp - old)
        return min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)

    loss = functional.clipped_surrogate(LOGP, OLD, ADVANTAGES, WEIGHTS, 4.0, epsilon=0.2)
    assert loss.item() == pytest.approx(-summed(term) / 4)
    assert functional.clipped_surrogate(LOGP, OLD, ADVANTAGES, WEIGHTS, torch.tensor(4.0)).item() == loss.item()


def test_clip_ratio_counts_scores_with_a_weight_whose_gradient_is_cut_off():
    logp = LOGP.clone().requires_grad_()
    functional.clipped_surrogate(logp, OLD, ADVANTAGES, WEIGHTS, 1.0).backward()
    cut = (logp.grad == 0) & (WEIGHTS > 0)
    assert functional.clip_ratio(LOGP, OLD, ADVANTAGES, WEIGHTS).item() == pytest.approx(cut.sum().item() / 5)
    assert cut.sum() == 2


def test_policy_gradient_and_divergence_penalty_are_their_formulas():
    assert functional.policy_gradient(LOGP, ADVANTAGES, WEIGHTS, 2.0).item() == pytest.approx(
        -summed(lambda logp, old, advantage: advantage * logp) / 2
    )
    penalty = functional.divergence_penalty(LOGP, OLD, WEIGHTS, 2.0, beta=0.3)
    assert penalty.item() == pytest.approx(
        0.3 * summed(lambda logp, old, advantage: math.exp(old - logp) - (old - logp) - 1) / 2
    )


def test_centered_regression_has_the_gradient_of_the_squared_distance():
    """strength/2 sum w (dhat - A / strength)², whose mean is over the batch and detached: d/dlogp = -(A - s dhat)."""
    logp, reference = LOGP[:, :1].clone().requires_grad_(), OLD[:, :1]
    functional.centered_regression(logp, reference, ADVANTAGES, torch.ones(2, 1), 2.0, strength=0.5).backward()
    difference = (logp.detach() - reference)[:, 0]
    wanted = -(ADVANTAGES - 0.5 * (difference - difference.mean())) / 2
    assert torch.allclose(logp.grad[:, 0], wanted)


def test_contrastive_and_preference_are_their_formulas():
    pair = LOGP[:, :2]
    weights = torch.ones(2, 2, dtype=torch.float64)
    wanted = -sum(
        float((1 + a) / 2 * x + (1 - a) / 2 * y) for (x, y), a in zip(pair.tolist(), ADVANTAGES.tolist(), strict=True)
    )
    assert functional.contrastive(pair, ADVANTAGES, weights, 1.0).item() == pytest.approx(wanted)
    wanted = -sum(math.log(1 / (1 + math.exp(-0.7 * (x - y)))) for x, y in zip(LOGP[:, 0], OLD[:, 0], strict=True))
    assert functional.preference(LOGP[:, :1], OLD[:, :1], weights[:, :1], 1.0, beta=0.7).item() == pytest.approx(wanted)


REWARDS = torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "row"),
    [
        (functional.centered, [0, -1, -1, 2]),
        (functional.leave_one_out, [0, -4 / 3, -4 / 3, 8 / 3]),
        (functional.z_score, [value / (math.sqrt(2) + 1e-4) for value in (0, -1, -1, 2)]),
        (functional.bounded_z_score, [0, *[-1 / (math.sqrt(2) + 1e-4)] * 2, 1]),
        (functional.population_z_score, [value / math.sqrt(1.5) for value in (0, -1, -1, 2)]),
    ],
)
def test_advantages_are_their_formulas_and_nothing_where_rewards_are_equal(function, row):
    found = function(REWARDS)
    assert found[0].tolist() == pytest.approx(row)
    assert found[1].tolist() == [0, 0, 0, 0]


def test_softmax_advantages_sum_to_nothing_or_to_the_group():
    assert functional.softmax_pair(REWARDS).sum(1).tolist() == pytest.approx([0, 0])
    assert functional.softmax_positive(REWARDS).sum(1).tolist() == pytest.approx([4, 4])
    ratio = functional.softmax_positive(REWARDS)[0, 3] / functional.softmax_positive(REWARDS)[0, 0]
    assert ratio.item() == pytest.approx(math.exp(2))


def test_advantages_of_steps_and_states_are_their_formulas():
    steps = torch.tensor([[[0.0, 1.0, 0.5]]])
    assert functional.step_difference(steps).flatten().tolist() == [0.0, 1.0, -0.5]
    assert functional.future_mean(steps).flatten().tolist() == [0.5, 0.75, 0.5]
    assert functional.difference_and_future(steps).flatten().tolist() == [0.75, 1.5, 0.0]
    assert functional.centered_per_state(steps).flatten().tolist() == [-0.5, 0.5, 0.0]


def test_divergences_are_their_formulas_and_their_mean_is_the_kl_of_samples():
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    others = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logp, other = probabilities.log()[:, None], others.log()[:, None]
    kl = (probabilities * (probabilities / others).log()).sum()
    for estimate in (functional.k1, functional.k3):  # unbiased; k2 is not
        assert (probabilities[:, None] * estimate(logp, other)).sum().item() == pytest.approx(kl.item())
    assert functional.k2(logp, other)[0].item() == pytest.approx(math.log(0.4) ** 2 / 2)
