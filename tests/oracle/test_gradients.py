"""Gradients of methods against the exact gradient of the expected reward."""

from dataclasses import replace

import pytest
import torch

from unmask.methods import MDPO, JustGRPO, StepMerge, TraceRL
from unmask.oracle.gradients import biases, compare, expected_reward_gradient, oracle_methods, rewards_of
from unmask.oracle.toy import COMPLETIONS, LENGTH, MASK, SAMPLERS, Toy, reward, with_prompt


def test_rewards_of_looks_rewards_up():
    rows = with_prompt([*COMPLETIONS, (0, MASK, 1)])
    assert rewards_of(rows).tolist() == [*map(reward, COMPLETIONS), 0.0]


def test_compare_of_known_gradients():
    exact = torch.tensor([3.0, 4.0]).double()
    noise = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    bias = compare(2 * exact + noise, exact, groups=5, group_size=6, forwards=2.0)
    square = 100 - (4 / 3) / 4  # the mean of four gradients is as noisy as a quarter of their variance, 2/3 + 2/3
    assert bias.cosine == pytest.approx(10 / square**0.5)
    assert bias.norm_ratio == pytest.approx(square**0.5 / 5)
    assert bias.noise == pytest.approx(4 / 3 * 5 * 2 * 6 / square)
    assert 0 < bias.cosine_error < 0.1
    across = compare(torch.tensor([[-4.0, 3.0]] * 4).double() + noise, exact, groups=1, group_size=1, forwards=1.0)
    assert across.cosine == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def table():
    methods = {
        "just-grpo": JustGRPO(),
        "d2": replace(StepMerge(), segments=LENGTH),
        "merged": replace(StepMerge(), segments=1),
        "tracerl": TraceRL(shrink=1, lowest=0.0, highest=1.0),
    }
    return biases(Toy(), methods, tuple(SAMPLERS), batches=8, groups=200, group_size=6)


def test_biases_of_exact_scores_follow_the_exact_gradient(table):
    """Up to the z-score's group-dependent scale."""
    assert table["d2"]["random"].cosine > 0.98
    assert table["tracerl"]["random"].cosine > 0.98
    for name in ("just-grpo", "d2", "tracerl"):
        assert table[name]["left_to_right"].cosine > 0.99


def test_biases_of_another_samplers_scores_do_not(table):
    assert table["just-grpo"]["random"].cosine < 0.8
    assert table["merged"]["random"].cosine < 0.8
    assert table["d2"]["low_confidence"].cosine < 0.98  # its proposals decide the order, and are not scored
    assert table["just-grpo"]["left_to_right"].forwards == LENGTH
    assert table["merged"]["random"].forwards == 1


def test_oracle_methods_has_every_method():
    methods = oracle_methods()
    small = biases(Toy(), methods, ("random",), batches=3, groups=4, group_size=3)
    assert set(small) == set(methods)
    assert all(rows["random"].forwards > 0 for rows in small.values())
    assert isinstance(methods["mdpo"], MDPO)


def test_expected_reward_gradient_differs_between_samplers():
    gradients = [expected_reward_gradient(Toy(), name) for name in SAMPLERS]
    assert all(gradient.norm() > 1e-2 for gradient in gradients)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) < 0.9
