"""Surrogates and divergences, by hand and by their gradients."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.by_hand import close, exact, hand_batch
from helpers.small import EOS
from unmask.methods import DiffuGRPO
from unmask.objective.divergences import Penalty, k1, k2, k3, penalty
from unmask.objective.losses import CenteredRegression, ClippedSurrogate, Contrastive, PolicyGradient, Preference

RATIOS = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [0.5, 1.2, 2.0]])
ADVANTAGE = torch.tensor([2.0, -1.0, 0.0])
CLIP = ClippedSurrogate(epsilon=0.25)


def test_clipped_surrogate_by_hand():
    old = torch.full((3, 3), -2.0)
    now = (old + RATIOS.log()).requires_grad_()
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    loss = CLIP(now, old, ADVANTAGE, weight, torch.tensor(4.0))
    close(loss.detach(), -(2 * (0.5 + 1.0 + 1.25) - 2 * (0.75 + 1.0 + 1.5)) / 4)
    loss.backward()
    close(now.grad, [[-1.0 / 4, -2.0 / 4, 0.0], [0.0, 2.0 / 4, 3.0 / 4], [0.0, 0.0, 0.0]])
    assert CLIP.clipped(now, old, ADVANTAGE).tolist() == [
        [False, False, True],
        [True, False, False],
        [False] * 3,
    ]
    assert not bool(ClippedSurrogate(epsilon=0.0).clipped(old, old, ADVANTAGE).any())


def test_divergences_by_hand():
    now, other = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    close(k2(now, other), [[0.125, 0.5]])
    close(k3(now, other), [[0.60653066 + 0.5 - 1, 2.71828183 - 1 - 1]])
    close(k3(now, now), [[0.0, 0.0]])
    close(k1(now, other), [[0.5, -1.0]])
    paid = Penalty(estimate=k2, coefficient=0.1)
    close(paid(now, other, torch.tensor([[1.0, 3.0]]), torch.tensor([4]), torch.tensor(5.0)), 0.1 * (0.125 + 1.5) / 5)


def test_penalty_by_hand():
    now, other = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.tensor([[-1.5, -1.0], [-3.5, -0.5]])
    weight, length = torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([4, 7])
    for per_unit, expected in ((False, 0.5 - 3 + 1), (True, 4 * (0.5 - 3) + 7 * 1)):
        paid = penalty(k1, 0.1, per_unit=per_unit)
        assert paid == Penalty(estimate=k1, coefficient=0.1, against="reference", per_unit=per_unit)
        close(paid(now, other, weight, length, torch.tensor(5.0)), 0.1 * expected / 5)
    assert penalty(k3, 0.2, against="old") == Penalty(estimate=k3, coefficient=0.2, against="old")
    assert Penalty(estimate=k3, coefficient=0.2) == Penalty(
        estimate=k3, coefficient=0.2, against="reference", per_unit=False
    )
    assert penalty(k2, 0.0) is None


# ---- without ratios ----


def scores(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


ADVANTAGES = scores(0.5, -1.0, 0.25, 0.25)
NORMALIZER = scores(3.0)[0]


def gradient(loss, now):
    return torch.autograd.grad(loss, now)[0]


def test_policy_gradient_by_hand():
    now = scores([-1.0, -2.0], [-3.0, -4.0], [-0.5, -1.0], [-1.0, -1.0]).requires_grad_()
    weight = scores([1.0, 2.0], [1.0, 0.5], [0.0, 4.0], [0.0, 0.0])
    loss = PolicyGradient()(now, None, ADVANTAGES, weight, NORMALIZER)
    exact(loss.detach(), -(0.5 * (-1 - 4) - (-3 - 2) + 0.25 * -4) / 3)
    exact(gradient(loss, now), -weight * ADVANTAGES[:, None] / 3)


@pytest.mark.parametrize("strength", [0.5, 2.0])
@pytest.mark.parametrize("detached", [True, False], ids=["detached mean", "mean"])
def test_centered_regression_is_a_regression_onto_advantages(strength, detached):
    now = scores([-1.0], [-2.5], [-0.5], [-4.0]).requires_grad_()
    reference = scores([-2.0], [-2.0], [-1.0], [-1.0])
    surrogate = CenteredRegression(strength=strength)
    advantage = surrogate.final_advantages(now, reference, ADVANTAGES, torch.mean)
    assert not advantage.requires_grad
    exact(advantage, ADVANTAGES - strength * scores(1.5, 0.0, 1.0, -2.5))
    ones = torch.ones(4, 1, dtype=torch.float64)
    ours = gradient(surrogate(now, reference, advantage, ones, scores(4.0)[0]), now)
    difference = (now - reference)[:, 0]
    mean = difference.mean()
    # Advantages of mean zero: the gradient through the mean vanishes.
    centred = difference - (mean.detach() if detached else mean)
    exact(ours, gradient(strength / 2 * (centred - ADVANTAGES / strength).square().mean(), now))


def test_centered_regression_takes_the_mean_that_it_is_given():
    advantage = CenteredRegression(strength=2.0).final_advantages(
        scores([1.0], [3.0]), scores([0.0], [1.0]), scores(1.0, 1.0), torch.sum
    )
    exact(advantage, [1 - 2 * (1 - 3), 1 - 2 * (2 - 3)])


def test_contrastive_by_hand():
    now = scores([-1.0, -2.0], [-3.0, -4.0], [-0.5, -1.0], [-1.0, -5.0]).requires_grad_()
    weight = scores([1.0, 1.0], [1.0, 2.0], [3.0, 1.0], [0.0, 0.0])
    loss = Contrastive()(now, None, ADVANTAGES, weight, NORMALIZER)
    # shares r of the first score: 0.75, none, 0.625, 0.625
    exact(loss.detach(), (0.75 * 1 + 0.25 * 2 + 8 + 0.625 * 1.5 + 0.375 * 1) / 3)
    shares = scores([0.75, 0.25], [0.0, 1.0], [0.625, 0.375], [0.625, 0.375])
    exact(gradient(loss, now), -weight * shares / 3)


def test_preference_by_hand():
    margin, reference = scores([2.0], [-1.0], [0.0], [5.0]).requires_grad_(), scores([0.5], [0.5], [0.0], [1.0])
    weight, advantage = scores([1.0], [2.0], [1.0], [1.0]), scores(1.0, 1.0, 1.0, 0.0)
    loss = Preference(beta=0.2)(margin, reference, advantage, weight, NORMALIZER)
    gains = [-math.log(1 + math.exp(-0.2 * difference)) for difference in (1.5, -1.5, 0.0)]
    exact(loss.detach(), -(gains[0] + 2 * gains[1] + gains[2]) / 3)
    grad_logp = [-0.2 / (1 + math.exp(0.2 * difference)) / 3 for difference in (1.5, -1.5, 0.0)]
    exact(gradient(loss, margin), [[grad_logp[0]], [2 * grad_logp[1]], [grad_logp[2]], [0.0]])
    metrics = Preference(beta=0.2).metrics(margin.detach(), reference, advantage)
    exact(metrics["rewards/margins"], [[0.3], [-0.3], [0.0], [0.8]])
    assert metrics["rewards/accuracies"].tolist() == [[True], [False], [False], [True]]


def test_surrogates_declare_what_they_read():
    table = {
        ClippedSurrogate: ("old", False),
        PolicyGradient: (None, False),
        CenteredRegression: ("reference", True),
        Contrastive: (None, True),
        Preference: ("reference", False),
    }
    assert {kind: (kind.against, kind.trains_zero_advantage) for kind in table} == table


# ---- a term ----


def test_term_loss_adds_its_parts_and_reports_sums():
    (term,) = DiffuGRPO(epsilon=0.25, beta=0.5).terms(EOS)
    batch = hand_batch()
    old = torch.full((5, 4), -1.0)
    now, reference = old + 0.5, old - 0.25
    rows = replace(
        batch,
        unit_R=torch.arange(5),
        advantage_U=torch.tensor([1.0, -1.0, 0.0, 2.0, 1.0]),
        length_U=torch.ones(5).long(),
    )
    loss, sums = term.loss(rows, now, old, reference, torch.tensor(2.0))
    ratio, k3_now = 0.5 * 2.71828183**0.5, 2.71828183**-0.75 + 0.75 - 1
    policy = -(0.5 * 2 * 1.25 - 2 * ratio + 0.5 * 1 * 2 * 1.25) / 2
    close(loss, policy + 0.5 * 0.5 * 7 * k3_now / 2)
    close(replace(term, coefficient=0.1).loss(rows, now, old, reference, torch.tensor(2.0))[0], 0.1 * loss)
    assert (sums["count"], sums["clip_ratio"]) == (7.0, 3.0)
    close(sums["approx_kl"], 7 * (2.71828183**-0.5 + 0.5 - 1))
    close(sums["kl"], 7 * k3_now)
    alone, sums = term.loss(rows, now, old, None, torch.tensor(2.0))
    close(alone, policy)
    assert "kl" not in sums
