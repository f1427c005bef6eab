"""ScoringBatch and the scores of their rows, against formulas written out as loops."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from helpers.by_hand import close, exact, hand_batch
from helpers.small import EOS, MASK, small_denoiser
from unmask.denoisers.head.reducers import AllLogits, TargetLogProb
from unmask.objective.likelihood import (
    EUBO,
    Sandwich,
    active_unit_count,
    elbo,
    masked_mean,
    per_token,
    per_token_over_rows,
    row_contrast,
    row_logp,
    token_count,
    unit_count,
    weighted_sum,
)
from unmask.types import ScoringBatch
from unmask.uniforms import Uniforms

DENOISER = small_denoiser()


def test_row_logp_equals_one_forward_a_row():
    batch = hand_batch()
    ours = row_logp(DENOISER, batch)
    for row in range(5):
        forward = batch.forward_R[row]
        (logits,) = DENOISER(
            batch.inputs_FL[forward][None],
            batch.attention_FL[forward][None],
            torch.arange(4)[None],
            AllLogits(),
        )
        logp = (logits[0] / 0.7).log_softmax(1).gather(1, batch.targets_RL[row][:, None])[:, 0]
        close(ours[row].detach(), (logp * batch.scored_RL[row]).detach())


def test_row_logp_is_zero_without_scored_positions():
    assert not bool(row_logp(DENOISER, hand_batch([[0] * 4] * 5)).any())


def test_query_columns_are_the_scored_ones():
    widths, answered, targets = [], [], []

    class Recording(type(DENOISER)):
        def forward(self, tokens_FL, attention_FL, query_FA, reducer, selected_Q=None):
            widths.append(query_FA.tolist())
            answered.append(len(selected_Q))
            targets.append(reducer.targets_QK.shape)
            return super().forward(tokens_FL, attention_FL, query_FA, reducer, selected_Q=selected_Q)

    recording = Recording(DENOISER.model, mask_id=MASK, eos_id=EOS)
    row_logp(recording, hand_batch())
    assert [set(columns) for columns in widths[0]] == [{1, 2, 3}, {0, 1, 2}, {0, 1, 2}]
    row_logp(recording, hand_batch([[0] * 4] * 5))
    assert [len(columns) for columns in widths[1]] == [1, 1, 1]
    batch = hand_batch()
    scored = {(int(batch.forward_R[row]), int(column)) for row, column in batch.scored_RL.nonzero()}
    assert answered == [len(scored), 0]  # no head for positions that fill up a forward
    assert [shape[1] for shape in targets] == [2, 2]  # as many as the rows of the fullest forward


def test_target_log_prob_is_in_float32_at_least():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[0, 1], [2, 3], [4, 4]])
    (exact,) = TargetLogProb(targets, 0.5).from_logits(logits, slice(0, 3))
    torch.testing.assert_close(exact, (logits / 0.5).log_softmax(1).gather(1, targets))
    (half,) = TargetLogProb(targets).from_logits(logits.bfloat16()[1:], slice(1, 3))
    assert half.dtype == torch.float32
    close(half, logits.bfloat16().float().log_softmax(1).gather(1, targets)[1:])


def test_per_token_scores_are_the_log_probs():
    batch = hand_batch()
    logp = torch.arange(20.0).view(5, 4)
    scores = per_token(logp, batch)
    assert torch.equal(scores.value_UK, logp)
    assert torch.equal(scores.loss_weight_UK, batch.token_weight_RL)


def test_take_units_and_micro_batches_keep_rows_whole():
    batch = hand_batch()
    taken = batch.take_units(torch.tensor([True, False, False, True]))
    assert taken.inputs_FL.tolist() == batch.inputs_FL[[0, 2]].tolist()
    assert taken.forward_R.tolist() == [0, 0, 1]
    assert taken.unit_R.tolist() == [0, 0, 1]
    assert taken.targets_RL.tolist() == batch.targets_RL[[0, 1, 4]].tolist()
    assert taken.advantage_U.tolist() == [1.0, 2.0]
    assert taken.length_U.tolist() == [4, 0]
    assert taken.scored_U.tolist() == [True, False]
    assert batch.scored_U.tolist() == [True, True, True, False]
    parts = [keep.tolist() for _, keep in batch.micro_batches(2)]
    assert parts == [[True, True, False, False], [False, False, True, True]]
    recorded = replace(batch, old_RL=torch.arange(20.0).view(5, 4)).take_units(torch.tensor([False, True, True, False]))
    assert recorded.old_RL.tolist() == [[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]


# ---- counts ----


def test_normalizers_by_hand():
    batch = hand_batch()
    assert (token_count(batch), unit_count(batch), active_unit_count(batch)) == (7.0, 4.0, 2.0)
    assert token_count(batch).dtype == unit_count(batch).dtype == active_unit_count(batch).dtype == torch.float32


# ---- scores of units: against loops ----

# Seven rows of four units, out of order. Row 4 and all of unit 3 score nothing.
UNIT_R = [0, 1, 0, 2, 1, 1, 3]
UNIT_SCORED = [[1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
LENGTH_U = [3, 4, 2, 0]


def unit_views(advantage=(1.0, -1.0, 0.0, -2.0)) -> ScoringBatch:
    scored = torch.tensor(UNIT_SCORED).bool()
    weight = 1 + 3 * Uniforms().key("weight", torch.arange(28)).draw().view(7, 4)
    return ScoringBatch(
        inputs_FL=torch.full((7, 4), MASK),
        attention_FL=torch.ones(7, 4, dtype=torch.bool),
        forward_R=torch.arange(7),
        targets_RL=torch.arange(28).view(7, 4) % 7,
        scored_RL=scored,
        token_weight_RL=weight * scored,
        unit_R=torch.tensor(UNIT_R),
        advantage_U=torch.tensor(advantage, dtype=torch.float64),
        length_U=torch.tensor(LENGTH_U),
    )


def random_logp(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs as `row_logp` gives them, 0 where not scored, and the leaf that they come from."""
    leaf = (-3 * Uniforms().key("logp", torch.arange(28)).draw().view(7, 4)).requires_grad_()
    return leaf * batch.scored_RL, leaf


def rows_of(unit):
    return [row for row, owner in enumerate(UNIT_R) if owner == unit]


def looped(score_of):
    """The score of every unit from (row, its scored columns) pairs."""
    pairs = [
        [(row, [column for column in range(4) if UNIT_SCORED[row][column]]) for row in rows_of(unit)]
        for unit in range(4)
    ]
    return torch.stack([torch.as_tensor(score_of(rows), dtype=torch.float64) for rows in pairs])


def mean_score(logp):
    return lambda rows: sum(logp[row][columns].mean() for row, columns in rows if columns) / len(rows)


def upper_bound(logp, weight, beta):
    def score(rows):
        terms = []
        for column in range(4):
            inside = [row for row, columns in rows if column in columns]
            if inside:
                total = sum(weight[row, column] * (beta * logp[row, column]).exp() for row in inside)
                terms.append((total / len(rows)).log())
        return sum(terms) / len(terms) / beta if terms else 0.0

    return score


def assert_same(scores, expected, leaf, weight=None):
    """Values, gradients and weights of scores with one number a unit."""
    exact(scores.value_UK.detach(), expected.detach()[:, None])
    exact(scores.loss_weight_UK, torch.ones(4, 1) if weight is None else torch.tensor(weight)[:, None])
    factor = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((factor * value).sum(), leaf, retain_graph=True)[0]
        for value in (scores.value_UK[:, 0], expected)
    )
    exact(ours, theirs)


def test_weighted_sum_and_elbo_by_hand():
    batch = unit_views()
    (logp, leaf), weight = random_logp(batch), batch.token_weight_RL
    sums = looped(lambda rows: sum((weight[row] * logp[row]).sum() for row, _ in rows))
    assert_same(weighted_sum(logp, batch), sums, leaf)
    assert_same(elbo(logp, batch), sums / torch.tensor([3.0, 4.0, 2.0, 1.0]), leaf)


def test_masked_mean_by_hand():
    batch = unit_views()
    logp, leaf = random_logp(batch)
    assert_same(masked_mean(logp, batch), looped(mean_score(logp)), leaf)
    two = torch.stack([logp, 2 * logp - 1.0 * batch.scored_RL], dim=2)
    scores = masked_mean(two, batch)
    exact(scores.value_UK.detach(), torch.stack([looped(mean_score(two[..., k].detach())) for k in (0, 1)], dim=1))
    assert torch.equal(scores.loss_weight_UK, torch.ones(4, 2))


def test_per_token_over_rows_by_hand():
    batch = unit_views()
    logp, weight = random_logp(batch)[0].detach(), batch.token_weight_RL
    scores = per_token_over_rows(logp, batch)
    for unit in range(4):
        rows = rows_of(unit)
        exact(scores.value_UK[unit], sum(weight[row] * logp[row] for row in rows))
        assert scores.loss_weight_UK[unit].tolist() == [max(UNIT_SCORED[row][k] for row in rows) for k in range(4)]


@pytest.mark.parametrize("beta", [1.0, 1.5, 4.0])
def test_eubo_by_hand(beta):
    batch = unit_views()
    logp, leaf = random_logp(batch)
    assert_same(EUBO(beta=beta)(logp, batch), looped(upper_bound(logp, batch.token_weight_RL, beta)), leaf)


def test_eubo_is_finite_for_very_unlikely_tokens():
    batch = unit_views()
    logp = random_logp(batch)[0].detach()
    far = logp - 2000 * batch.scored_RL
    near = EUBO(beta=1.5)(logp, batch).value_UK
    shift = torch.tensor([2000.0, 2000.0, 2000.0, 0.0])[:, None]
    torch.testing.assert_close(EUBO(beta=1.5)(far, batch).value_UK, near - shift, rtol=0, atol=1e-9)


@pytest.mark.parametrize("advantage", [(1.0, -1.0, 0.0, -2.0), (-1.0, 1.0, -1.0, 0.0), (0.0, 0.0, -0.5, 0.5)])
def test_sandwich_by_sign_of_the_advantage(advantage):
    batch = unit_views(advantage)
    logp, leaf = random_logp(batch)
    lower, upper = looped(mean_score(logp)), looped(upper_bound(logp, batch.token_weight_RL, 1.5))
    mixed = [0.3 * upper[u] + 0.7 * lower[u] if advantage[u] < 0 else lower[u] for u in range(4)]
    assert_same(Sandwich(beta=1.5, mix=0.3)(logp, batch), torch.stack(mixed), leaf, LENGTH_U)


# ---- contrast of two denoisers ----

OLD = small_denoiser(seed=1)
CONTRAST_SCORED = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]).bool()


def contrast_views(scored=CONTRAST_SCORED) -> ScoringBatch:
    batch, row = hand_batch(), torch.arange(3)
    return replace(
        batch,
        forward_R=row,
        targets_RL=batch.targets_RL[[0, 2, 4]],
        scored_RL=scored,
        token_weight_RL=scored.float(),
        unit_R=row,
        advantage_U=torch.ones(3),
        length_U=scored.sum(1),
    )


def logits_of(denoiser, batch):
    columns = torch.arange(4).expand(3, -1)
    return denoiser(batch.inputs_FL, batch.attention_FL, columns, AllLogits())[0]


def gradients(value):
    return torch.autograd.grad(value, list(DENOISER.parameters()), retain_graph=True)


@pytest.mark.parametrize("blend", [0.5, 1.0])
@pytest.mark.parametrize("other_model", [OLD, DENOISER, None])
def test_row_contrast_equals_blended_logits(blend, other_model):
    batch = contrast_views()
    ours = row_contrast(DENOISER, batch, other_model, blend)
    now, old = logits_of(DENOISER, batch), logits_of(other_model or DENOISER, batch).detach()
    mixtures = ((1 - blend) * old + blend * now, (1 + blend) * old - blend * now)
    logps = [mixed.log_softmax(2).gather(2, batch.targets_RL[..., None])[..., 0] for mixed in mixtures]
    expected = torch.stack(logps, dim=2) * CONTRAST_SCORED[..., None]
    assert ours.shape == (3, 4, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)  # logits near 100 in float32
    for side in (0, 1):
        for mine, theirs in zip(gradients(ours[..., side].sum()), gradients(expected[..., side].sum()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) + 1e-6)


def test_row_contrast_without_an_old_policy_is_with_a_copy():
    batch = contrast_views()
    ours, copied = (row_contrast(DENOISER, batch, old, 0.5) for old in (None, deepcopy(DENOISER)))
    assert torch.equal(ours, copied)
    assert all(map(torch.equal, gradients(ours.square().sum()), gradients(copied.square().sum())))


def test_row_contrast_is_zero_without_scored_positions():
    batch = contrast_views(torch.zeros(3, 4, dtype=torch.bool))
    assert not bool(row_contrast(DENOISER, batch, OLD, 1.0).any())
