"""Exact bounds: the order of ELBO, log p and EUBO, and which estimates are unbiased."""

from functools import cache
from itertools import permutations, product
from math import comb, factorial

import pytest
import torch

from helpers.small import surprise
from unmask.methods import METHODS
from unmask.objective.likelihood import elbo, per_token, row_logp, weighted_sum
from unmask.objective.masks import CoupledCounts, InverseTimes, Prefixes, RandomMasks, UniformCounts
from unmask.oracle.bounds import (
    MASKS,
    estimates,
    every_mask,
    exact_elbo,
    exact_eubo,
    exact_logp,
    many_rollouts,
    mask_probability,
)
from unmask.oracle.toy import (
    COMPLETIONS,
    LENGTH,
    MASK,
    PROMPT,
    Toy,
    ordered_trajectory,
    random_order_trajectories,
)
from unmask.uniforms import Uniforms

TOYS = [(seed, scale) for seed in range(40) for scale in (0.5, 1.0, 2.0)]


def close(ours, exact, atol=1e-9):
    torch.testing.assert_close(ours, exact, rtol=0, atol=atol)


def test_mask_probability_sums_to_one():
    assert sum(map(mask_probability, MASKS)) == pytest.approx(1, abs=1e-12)


def test_exact_logp_is_that_of_the_enumerated_trajectories():
    probability = dict.fromkeys(COMPLETIONS, 0.0)
    for trajectory in random_order_trajectories(Toy()):
        probability[trajectory.completion] += float(trajectory.logp.detach().exp())
    close(exact_logp(Toy()).exp(), torch.tensor(list(probability.values()), dtype=torch.float64))


def test_exact_logp_probabilities_sum_to_one():
    close(exact_logp(Toy()).exp().sum(), torch.tensor(1.0).double())


def test_exact_elbo_is_the_mean_logp_over_orders():
    toy = Toy()
    orders = list(permutations(range(LENGTH)))
    means = [
        sum(float(ordered_trajectory(toy, order, completion).logp.detach()) for order in orders) / len(orders)
        for completion in COMPLETIONS
    ]
    close(exact_elbo(toy), torch.tensor(means, dtype=torch.float64))


def test_exact_elbo_is_below_logp_and_every_eubo():
    for seed, scale in TOYS:
        toy = Toy(seed, scale)
        lower, logp = exact_elbo(toy), exact_logp(toy)
        assert bool((lower <= logp + 1e-9).all())
        for beta in (1.0, 1.5, 2.0, float(LENGTH), 5.0):
            assert bool((lower <= exact_eubo(toy, beta) + 1e-9).all())


@pytest.mark.parametrize("beta", [float(LENGTH), LENGTH + 0.5, 10.0])
def test_exact_eubo_is_above_logp_from_beta_of_the_length_on(beta):
    for seed, scale in TOYS:
        toy = Toy(seed, scale)
        assert bool((exact_logp(toy) <= exact_eubo(toy, beta) + 1e-9).all())


def test_exact_eubo_at_the_published_beta_is_no_upper_bound():
    above = [exact_logp(Toy(seed)) > exact_eubo(Toy(seed), 1.5) + 1e-9 for seed in range(40)]
    violations = int(torch.stack(above).sum())
    print(f"log p above EUBO at beta 1.5: {violations} of {40 * len(COMPLETIONS)} completions")
    assert violations > 0


# ---- unbiased laws: the weight of a pattern is fixed, and its probability is that of theory ----


@cache
def drawn(law):
    rollout = many_rollouts(2000)
    advantage = torch.ones(len(COMPLETIONS), 2000, dtype=torch.float64)
    return RandomMasks(distribution=law)(rollout, advantage, Uniforms(), 0, 1)


def patterns(batch):
    """Masked completion positions of each row, as tuples."""
    return [tuple(row) for row in (batch.scored_RL[:, PROMPT:]).tolist()]


def expectation(toy, weight_of, probability_of):
    """sum over masks of p(mask) · weight · sum of logp over it, for every completion."""
    batch = every_mask({mask: weight_of[mask] * probability_of(mask) for mask in MASKS})
    return weighted_sum(row_logp(toy, batch), batch).value_UK[:, 0].detach()


def test_estimated_logp_of_uniform_counts_has_the_exact_elbo_as_mean():
    batch = drawn(UniformCounts(count=1))
    seen = patterns(batch)
    weight_of = {}
    for mask, weight in zip(seen, batch.token_weight_RL.amax(1).tolist(), strict=True):
        assert weight_of.setdefault(mask, weight) == weight
    counts = torch.tensor([seen.count(mask) for mask in MASKS])
    assert surprise(counts, [mask_probability(mask) for mask in MASKS]) < 4
    close(expectation(Toy(), weight_of, mask_probability), exact_elbo(Toy()))


def test_estimated_logp_of_coupled_counts_has_the_exact_elbo_as_mean():
    batch = drawn(CoupledCounts(pairs=1))
    seen = patterns(batch)
    subset, rest = seen[::2], seen[1::2]
    assert rest == [tuple(not masked for masked in mask) for mask in subset]
    every = list(product((False, True), repeat=LENGTH))
    law = {mask: 1 / ((LENGTH + 1) * comb(LENGTH, sum(mask))) for mask in every}
    counts = torch.tensor([subset.count(mask) for mask in every])
    # Stratified over the group, so less spread than independent draws: only too much of it would be wrong.
    assert surprise(counts, list(law.values())) < 4
    weight_of = dict.fromkeys(MASKS, 0.0)
    for mask, weight in zip(seen, batch.token_weight_RL.amax(1).tolist(), strict=True):
        if any(mask):
            assert weight_of[mask] in (0.0, weight)
            weight_of[mask] = weight
    # A mask is met as the subset of its count or as the rest of the complement's.
    close(expectation(Toy(), weight_of, lambda mask: law[mask] + law[tuple(not m for m in mask)]), exact_elbo(Toy()))


def test_estimated_logp_of_inverse_times_has_the_exact_elbo_as_mean():
    """E[1/t 1[S]] is the integral of t^(|S|-1) (1-t)^(L-|S|): a beta function."""
    beta = {mask: factorial(sum(mask) - 1) * factorial(LENGTH - sum(mask)) / factorial(LENGTH) for mask in MASKS}
    close(expectation(Toy(), beta, lambda mask: 1.0), exact_elbo(Toy()))
    batch = drawn(InverseTimes(count=1))
    seen = torch.tensor([[float(row == mask) for mask in MASKS] for row in patterns(batch)])
    observed = seen.double() * batch.token_weight_RL.amax(1)[:, None]
    errors = (observed.mean(0) - torch.tensor(list(beta.values())).double()) / (observed.std(0) / len(observed) ** 0.5)
    assert errors.abs().max() < 4


def test_estimated_logp_left_to_right_sums_to_one():
    rollout = many_rollouts(1)
    batch = Prefixes()(rollout, torch.ones(len(COMPLETIONS), 1, dtype=torch.float64), Uniforms(), 0, 1)
    value_UK = per_token(row_logp(Toy(), batch), batch).value_UK
    logp_N = value_UK.sum(1).view(len(COMPLETIONS), LENGTH).sum(1)
    close(logp_N.exp().sum().detach(), torch.tensor(1.0).double())


def test_estimates_show_the_biases():
    methods = {name: METHODS[name]() for name in ("coupled-grpo", "espo", "gdpo", "rspo", "spg")}
    table = estimates(Toy(), methods, 2000)
    for name, row in table.items():
        print(f"{name}: mean minus exact ELBO {row.to_elbo:+.3f}, minus log p {row.to_logp:+.3f}")
    assert abs(table["espo"].to_elbo) < 0.03 > abs(table["rspo"].to_elbo)
    assert abs(table["spg"].to_elbo) < 0.03  # one block: a uniform count
    assert table["coupled-grpo"].to_elbo < -1  # weights total 3/2
    assert table["gdpo"].to_elbo < -0.5  # the floor of few tokens
    assert table["spg, bad samples"].mean > table["spg"].mean


def test_scoring_batch_masks_hide_what_they_score():
    batch = every_mask(dict.fromkeys(MASKS, 1.0))
    assert bool((batch.inputs_FL[batch.scored_RL] == MASK).all())
    close(elbo(row_logp(Toy(), batch), batch).value_UK * LENGTH, weighted_sum(row_logp(Toy(), batch), batch).value_UK)
