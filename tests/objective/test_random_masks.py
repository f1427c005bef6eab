"""Mask distributions: their counts, their weights, their subsets."""

from itertools import combinations
from math import comb, floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.by_hand import ended_rollout, exact, hand_rollout, padded, taken_samples
from helpers.small import EOS, MASK, few, surprise
from unmask.objective.likelihood import weighted_sum
from unmask.objective.masks import (
    BestAndWorst,
    CoupledCounts,
    EosTokens,
    FullAndPair,
    InverseTimes,
    QuadratureNodes,
    RandomMasks,
    RandomTimes,
    SpacedTime,
    StratifiedTimes,
    UniformCounts,
    all_completion,
    through_eos,
)
from unmask.objective.masks.random import QUADRATURE
from unmask.uniforms import Uniforms

ROLLOUT = hand_rollout()
REWARDS = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
LAWS = {
    "spaced": SpacedTime(),
    "times": RandomTimes(count=2, low=0.2, high=0.7),
    "strata": StratifiedTimes(count=3),
    "counts": UniformCounts(count=2),
    "inverse times": InverseTimes(count=2),
    "nodes": QuadratureNodes(),
    "empirical nodes": QuadratureNodes(nodes=2, empirical=True),
    "coupled": CoupledCounts(),
    "full and pair": FullAndPair(),
}
every_law = pytest.mark.parametrize("distribution", LAWS.values(), ids=LAWS)


def drawn(law, rollout, update=0, updates=1, seed=0):
    """Masks at the span through the end of the sequence."""
    return law(rollout, rollout.completion_NL, Uniforms().key(seed), update, updates)


def assert_law(counts, probabilities):
    """`counts` is a sample of integers that follow the distribution, as far as chi-square sees."""
    probabilities = torch.as_tensor(probabilities)
    assert surprise(counts.flatten().bincount(minlength=len(probabilities)), probabilities) < 3


@every_law
@pytest.mark.parametrize("update", [0, 1])
def test_random_masks_ignore_padding_and_order(distribution, update):
    batch = RandomMasks(distribution=distribution)(ROLLOUT, REWARDS, Uniforms(), update, 3)
    wider = RandomMasks(distribution=distribution)(padded(ROLLOUT, 4), REWARDS, Uniforms(), update, 3)
    turned = RandomMasks(distribution=distribution)(
        taken_samples(ROLLOUT, [3, 2, 1, 0], 2), REWARDS, Uniforms(), update, 3
    )
    for name in ("inputs_FL", "scored_RL", "token_weight_RL"):
        ours = getattr(batch, name)
        assert torch.equal(getattr(wider, name)[:, 4:], ours)
        assert torch.equal(getattr(turned, name).view(4, -1, 7), ours.view(4, -1, 7).flip(0))


@every_law
@pytest.mark.parametrize("span", [through_eos, all_completion, EosTokens(eos_id=EOS, count=1)])
def test_random_masks_mask_what_follows_the_span(distribution, span):
    batch = RandomMasks(distribution=distribution, span=span)(ROLLOUT, REWARDS, Uniforms(), 0, 1)
    masks = distribution(ROLLOUT, span(ROLLOUT), Uniforms(), 0, 1)
    rows = masks.masked_NRL.shape[1]
    inside = span(ROLLOUT).repeat_interleave(rows, 0)
    assert torch.equal(batch.scored_RL, masks.masked_NRL.flatten(0, 1))
    assert not bool((batch.scored_RL & ~inside).any())
    masked = batch.scored_RL | (ROLLOUT.region_L & ~inside)
    assert torch.equal(batch.inputs_FL, batch.targets_RL.masked_fill(masked, MASK))
    weight = (masks.token_weight_NRL * torch.ones(7)).flatten(0, 1).float()
    assert torch.equal(batch.token_weight_RL, torch.where(batch.scored_RL, weight, 0.0))
    assert batch.length_U.tolist() == span(ROLLOUT).sum(1).tolist()
    assert torch.equal(batch.advantage_U, REWARDS.flatten())


# ---- times: every position masked with probability t, one at least ----

MANY = 3000


def count_law(length, low, high):
    """P(count masked) for t ~ U(low, high)."""
    time = low + (high - low) * (torch.arange(1000).double()[:, None] + 0.5) / 1000
    count = torch.arange(length + 1)
    ways = torch.tensor([comb(length, k) for k in range(length + 1)])
    law = (ways * time**count * (1 - time) ** (length - count)).mean(0)
    law[1] += law[0]
    law[0] = 0
    return law


@pytest.mark.parametrize(
    ("distribution", "update", "updates", "times"),
    [
        (SpacedTime(), 0, 1, [(0, 1)]),
        (SpacedTime(), 0, 3, [(0, 1)]),
        (SpacedTime(), 1, 3, [(0.5, 1)]),
        (RandomTimes(count=2), 1, 2, [(0, 1)] * 2),
        (RandomTimes(count=1, low=0.3, high=0.6), 0, 1, [(0.3, 0.6)]),
        (StratifiedTimes(count=1), 0, 1, [(0, 1)]),
        (StratifiedTimes(count=3), 1, 2, [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]),
    ],
)
def test_mask_distributions_have_the_counts_of_their_times(distribution, update, updates, times):
    rollout = ended_rollout([5] * MANY, width=6)
    masked, weight = drawn(distribution, rollout, update, updates)
    assert masked.shape == (MANY, len(times), 8)
    assert bool((weight == 1).all())
    assert not bool(masked[..., :2].any() | masked[..., 7].any())
    for row, (low, high) in enumerate(times):
        assert_law(masked[:, row].sum(1), count_law(5, low, high))
        at = masked[:, row, 2:7].nonzero()[:, 1]
        assert_law(at, [0.2] * 5)


def test_spaced_time_rises_from_one_draw_to_a_full_mask():
    rollout = ended_rollout([600] * 50, width=601)
    fraction = torch.stack([drawn(SpacedTime(), rollout, n, 4).masked_NRL.sum((1, 2)) / 600 for n in range(4)])
    for update in (1, 2):
        spaced = fraction[0] + update / 3 * (1 - fraction[0])
        assert (fraction[update] - spaced).abs().max() < 0.1
    assert fraction[0].std() > 0.2
    assert fraction[3].tolist() == [1.0] * 50
    two = [drawn(SpacedTime(), rollout, n, 2).masked_NRL.sum((1, 2)) / 600 for n in range(2)]
    assert torch.equal(two[0], fraction[0])
    assert two[1].tolist() == [1.0] * 50


def test_inverse_times_by_hand():
    masked, weight = drawn(InverseTimes(count=2), ended_rollout([5] * MANY, width=6))
    assert_law(masked.sum(2), [1 / 6] * 6)
    assert bool((weight >= 0.5).all())
    assert not bool(masked[..., :2].any() | masked[..., 7].any())
    rollout = ended_rollout([600] * 50, width=600)
    for count in (1, 3):
        masked, weight = drawn(InverseTimes(count=count), rollout)
        assert weight.shape == (50, count, 1)
        assert (masked.sum(2) / 600 - 1 / (count * weight[..., 0])).abs().max() < 0.08


def test_stratified_times_are_one_in_each_stratum():
    rollout = ended_rollout([600] * 50, width=600)
    fraction = drawn(StratifiedTimes(count=4), rollout).masked_NRL.sum(2) / 600
    noise = 0.08
    for row in range(4):
        assert row / 4 - noise < fraction[:, row].min() < row / 4 + 0.05
        assert (row + 1) / 4 - 0.05 < fraction[:, row].max() < (row + 1) / 4 + noise
        assert abs(fraction[:, row].mean() - (row + 0.5) / 4) < 0.04


# ---- counts: exactly so many positions, each subset alike ----


@pytest.mark.parametrize("length", [1, 4])
def test_uniform_counts_are_uniform(length):
    masked, weight = drawn(UniformCounts(count=2), ended_rollout([length] * MANY, width=5))
    counts = masked.sum(2)
    assert masked.shape[1] == 2
    assert bool((counts >= 1).all())
    exact(weight[..., 0], length / (2 * counts.double()))
    if length > 1:
        assert_law(length * (counts[:, 0] - 1) + counts[:, 1] - 1, [1 / length**2] * length**2)


def test_uniform_counts_subsets_are_equally_likely():
    masked, _ = drawn(QuadratureNodes(nodes=1), ended_rollout([4] * MANY, width=6))
    code = (masked[:, 0, 2:] * 2 ** torch.arange(6)).sum(1)
    subsets = [2**first + 2**second for first, second in combinations(range(4), 2)]
    assert_law(torch.searchsorted(torch.tensor(sorted(subsets)), code), [1 / 6] * 6)
    assert set(code.tolist()) == set(subsets)


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 99))
def test_uniform_counts_weights_sum_to_the_length(lengths, rows, seed):
    rollout = ended_rollout(lengths, width=9)
    for law in (UniformCounts(count=rows), QuadratureNodes(nodes=min(rows, 3), empirical=True)):
        masked, weight = drawn(law, rollout, seed=seed)
        assert bool((masked.sum(2) >= 1).all())
        exact((weight * masked).sum((1, 2)), lengths)


@pytest.mark.parametrize("nodes", QUADRATURE)
def test_quadrature_nodes_integrate_polynomials(nodes):
    assert sorted(QUADRATURE) == [1, 2, 3]
    node, weight = torch.tensor(QUADRATURE[nodes], dtype=torch.float64)
    assert len(node) == nodes
    errors = [abs(float((weight * node**degree).sum()) - 1 / (degree + 1)) for degree in range(2 * nodes + 1)]
    assert max(errors[:-1]) < 1e-12
    assert errors[-1] > 1e-4


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_quadrature_nodes_counts_and_weights(nodes):
    lengths = [1, 3, 4, 9, 16]
    rollout, node, weight = ended_rollout(lengths, width=16), *QUADRATURE[nodes]
    counts = [[max(1, floor(time * length)) for time in node] for length in lengths]
    published = drawn(QuadratureNodes(nodes=nodes), rollout)
    empirical = drawn(QuadratureNodes(nodes=nodes, empirical=True), rollout)
    assert published.masked_NRL.sum(2).tolist() == empirical.masked_NRL.sum(2).tolist() == counts
    shape = torch.zeros(5, nodes, 1)
    exact(published.token_weight_NRL + shape, [[[w / t] for t, w in zip(node, weight, strict=True)]] * 5)
    for sample, length in enumerate(lengths):
        expected = [w * length / count for w, count in zip(weight, counts[sample], strict=True)]
        exact(empirical.token_weight_NRL[sample, :, 0], expected)
    assert QuadratureNodes() == QuadratureNodes(nodes=3, empirical=False)


# ---- pairs of complements ----


@pytest.mark.parametrize("pairs", [1, 2])
def test_coupled_counts_rows_are_complements(pairs):
    rollout = ended_rollout([1, 3, 5, 6] * 20, width=6, group_size=4)
    span = rollout.completion_NL
    masked, _ = drawn(CoupledCounts(pairs=pairs), rollout)
    assert masked.shape[1] == 2 * pairs
    assert torch.equal(masked[:, 0::2] | masked[:, 1::2], span[:, None].expand(-1, pairs, -1))
    assert not bool((masked[:, 0::2] & masked[:, 1::2]).any())
    batch = RandomMasks(distribution=CoupledCounts(pairs=pairs))(rollout, torch.zeros(20, 4), Uniforms().key(0), 0, 1)
    count = batch.scored_RL.sum(1)
    assert int(count.min()) == 0
    length = span.sum(1).repeat_interleave(2 * pairs)
    total = torch.where(count > 0, (length + 1) / (2.0 * pairs), 0.0)
    torch.testing.assert_close(batch.token_weight_RL.sum(1), total)
    for row in range(len(count)):
        assert len(batch.token_weight_RL[row][batch.scored_RL[row]].unique()) == min(1, int(count[row]))
    assert CoupledCounts() == CoupledCounts(pairs=2)


@pytest.mark.parametrize(("group", "shifts"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (5, [0, 1, 2, 3, 4])])
def test_coupled_counts_are_uniform_and_spread_over_the_group(group, shifts):
    rollout = ended_rollout([4] * 1500 * group, width=4, group_size=group)
    counts = drawn(CoupledCounts(), rollout).masked_NRL[:, 0::2].sum(2).view(1500, group, 2)
    key = Uniforms().key(0, "mask", 0, "count", torch.arange(1500)[:, None], torch.arange(2))
    assert torch.equal(counts[:, 0], (5 * key.draw()).long())
    for sample, shift in enumerate(shifts):  # round(j · 5 / G), halves up
        assert bool(((counts[:, sample] - counts[:, 0]) % 5 == shift).all())
        assert_law(5 * counts[:, sample, 0] + counts[:, sample, 1], [1 / 25] * 25)


def test_full_and_pair_weights_by_hand():
    rollout = ended_rollout([1, 4, 5] * MANY, width=5)
    span = rollout.completion_NL
    for update in range(4):
        masked, weight = drawn(FullAndPair(), rollout, update, 4)
        assert torch.equal(masked[:, 0], span)
        assert torch.equal(masked[:, 1] | masked[:, 2], span)
        assert not bool((masked[:, 1] & masked[:, 2]).any())
        full, chosen, rest = (weight * torch.ones(masked.shape)).unique(dim=0)[0].unbind(0)
        time = 0.5 / chosen
        exact(full, torch.full((7,), 0.5))
        exact(rest, 0.5 / (1 - time))
        exact(full + time * chosen + (1 - time) * rest, torch.full((7,), 1.5))  # the expectation over subsets
        assert abs(masked[:, 1].sum() / span.sum() - time[0]) < 0.01


@pytest.mark.parametrize(
    ("distribution", "low", "high"), [(FullAndPair(), 0.2, 0.8), (FullAndPair(low=0.1, high=0.3), 0.1, 0.3)]
)
def test_full_and_pair_draw_one_time_an_update(distribution, low, high):
    rollout = ended_rollout([2], width=2)
    weights = [drawn(distribution, rollout, update, 300).token_weight_NRL for update in range(300)]
    times = torch.stack([0.5 / weight[0, 1, 0] for weight in weights])
    assert bool(((times > low) & (times < high)).all())
    assert len(drawn(distribution, ROLLOUT).token_weight_NRL[:, 1].unique()) == 1
    assert_law(((times - low) / (high - low) * 5).long(), [0.2] * 5)


# ---- the best and the worst of a group ----


def test_best_and_worst_by_hand():
    rollout = ended_rollout([1, 2, 3, 4, 5, 6, 2, 3, 4], width=6, group_size=3)
    rewards = torch.tensor([[0.5, 0.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, -1.0]])
    masks = RandomMasks(distribution=UniformCounts(count=2))
    every = masks(rollout, rewards, Uniforms(), 1, 2)
    batch = BestAndWorst(masks=masks)(rollout, rewards, Uniforms(), 1, 2)
    samples, signs = [1, 2, 3, 6, 8], [-1, 1, 1, 1, -1]
    rows = [2 * sample + row for sample in samples for row in range(2)]
    assert torch.equal(batch.inputs_FL, every.inputs_FL[rows])
    assert torch.equal(batch.targets_RL, every.targets_RL[rows])
    assert torch.equal(batch.scored_RL, every.scored_RL[rows])
    assert torch.equal(
        batch.token_weight_RL, every.token_weight_RL[rows] * torch.tensor(signs).repeat_interleave(2)[:, None]
    )
    assert batch.forward_R.tolist() == list(range(10))
    assert batch.unit_R.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert batch.advantage_U.tolist() == [1.0, 0.0, 1.0]
    assert batch.length_U.tolist() == [5, 4, 6]
    logp = -torch.arange(len(every.forward_R) * 8).view(-1, 8) / 100 * every.scored_RL
    scores = weighted_sum(logp, every).value_UK[:, 0]
    margin = weighted_sum(logp[rows], batch).value_UK[:, 0]
    torch.testing.assert_close(margin, torch.stack([scores[2] - scores[1], scores[3], scores[6] - scores[8]]))
