"""Traits that pieces declare are those of their derivatives, and a wrong one is found."""

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from helpers.by_hand import hand_batch, hand_rollout
from helpers.small import EOS, MASK, small_denoiser
from helpers.toy_method import MeanOfSpan, Ratio
from helpers.traits import check_likelihood, check_surrogate, check_term
from unmask.errors import UserError
from unmask.methods import DiffuGRPO
from unmask.objective import Term, losses, masks
from unmask.objective import likelihood as likelihoods
from unmask.objective.likelihood import FromFunction, Scores
from unmask.types import Rollout
from unmask.uniforms import Uniforms

SURROGATES = [
    losses.ClippedSurrogate(epsilon=0.5),
    losses.PolicyGradient(),
    losses.CenteredRegression(strength=0.5),
    losses.Contrastive(),
    losses.Preference(beta=0.3),
    Ratio(),
]
LIKELIHOODS = [
    likelihoods.per_token,
    likelihoods.per_token_over_rows,
    likelihoods.weighted_sum,
    likelihoods.elbo,
    likelihoods.masked_mean,
    likelihoods.EUBO(beta=1.5),
    likelihoods.Sandwich(beta=1.5, mix=0.5),
    MeanOfSpan(),
    FromFunction(partial(likelihoods.elbo.__call__), linear=True),
]
# Both rows of the first unit score two of their positions; advantages have both signs.
BATCH = replace(
    hand_batch([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]]),
    unit_R=torch.tensor([0, 0, 1, 1, 2]),
    advantage_U=torch.tensor([-1.0, 1.0, 2.0]),
    length_U=torch.tensor([6, 4, 3]),
)


def name_of(piece):
    return type(piece).__name__


@pytest.mark.parametrize("surrogate", SURROGATES, ids=name_of)
def test_surrogate_traits_are_those_of_its_loss(surrogate):
    check_surrogate(surrogate)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name_of)
def test_likelihood_traits_are_those_of_its_scores(likelihood):
    check_likelihood(likelihood, BATCH)


# Contrastive has two scores a unit, of LFPO's blends.
@pytest.mark.parametrize("surrogate", [piece for piece in SURROGATES if name_of(piece) != "Contrastive"], ids=name_of)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name_of)
def test_term_is_elementwise_as_its_pieces_say(surrogate, likelihood):
    (term,) = DiffuGRPO(beta=0.0).terms(EOS)
    batch = BATCH
    if likelihood.elementwise:  # units of one row
        advantage = batch.advantage_U[batch.unit_R]
        batch = replace(batch, unit_R=torch.arange(5), advantage_U=advantage, length_U=batch.scored_RL.sum(1))
    exactly = not surrogate.centers_over_batch  # its advantages are not final before all scores are there
    check_term(replace(term, likelihood=likelihood, surrogate=surrogate), batch, exactly)


# ---- wrong traits ----


@dataclass(frozen=True)
class Coupled(losses.Surrogate):
    """Squares the sum of all scores: not elementwise."""

    elementwise: ClassVar[bool] = True
    trains_zero_advantage: ClassVar[bool] = True

    def __call__(self, score_UK, other_score_UK, advantage_U, loss_weight_UK, normalizer):
        return (loss_weight_UK * score_UK).sum().square() / normalizer


@dataclass(frozen=True, kw_only=True)
class AlwaysConstant(losses.ClippedSurrogate):
    """Its gradient depends on the ratio."""

    def has_constant_gradient(self, *, old_is_now):
        return True


@dataclass(frozen=True)
class TrainsAll(losses.PolicyGradient):
    """Has no gradient without advantage."""

    trains_zero_advantage: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class NotCentered(losses.CenteredRegression):
    """Changes advantages and does not say so."""

    centers_over_batch: ClassVar[bool] = False


@dataclass(frozen=True)
class ReadsNothing(losses.PolicyGradient):
    """Says that it compares with the old policy, and does not."""

    against: ClassVar[str | None] = "old"


@dataclass(frozen=True, kw_only=True)
class Unnamed(losses.ClippedSurrogate):
    """Reports a metric that it does not name."""

    metric_names: ClassVar[tuple[str, ...]] = ()


@pytest.mark.parametrize(
    ("surrogate", "trait"),
    [
        (Coupled(), "elementwise: False"),
        (AlwaysConstant(epsilon=0.5), "constant gradient: False"),
        (TrainsAll(), "without advantage"),
        (NotCentered(strength=0.5), "centers"),
        (ReadsNothing(), "reads old"),
        (Unnamed(epsilon=0.5), "metrics"),
    ],
    ids=name_of,
)
def test_check_surrogate_finds_a_wrong_trait(surrogate, trait):
    with pytest.raises(AssertionError, match=trait):
        check_surrogate(surrogate)


@pytest.mark.parametrize(
    ("likelihood", "trait"),
    [
        (FromFunction(likelihoods.Sandwich(beta=1.5, mix=0.5), linear=True), "linear: False"),
        (FromFunction(likelihoods.elbo, elementwise=True, linear=True), "elementwise: False"),
        (FromFunction(likelihoods.per_token_over_rows, elementwise=True, linear=True), "elementwise: False"),
        (FromFunction(likelihoods.per_token, elementwise=True), "linear: True"),
        (FromFunction(likelihoods.per_token, linear=True), "elementwise: True"),
    ],
)
def test_check_likelihood_finds_a_wrong_trait(likelihood, trait):
    with pytest.raises(AssertionError, match=trait):
        check_likelihood(likelihood, BATCH)


@pytest.mark.parametrize(
    "wrong",
    [
        {"likelihood": FromFunction(likelihoods.elbo, elementwise=True, linear=True)},
        {"likelihood": likelihoods.elbo, "surrogate": AlwaysConstant(epsilon=0.5)},
        {"likelihood": FromFunction(likelihoods.Sandwich(beta=1.5, mix=0.5), linear=True)},
    ],
)
def test_check_term_finds_a_wrong_trait(wrong):
    (term,) = DiffuGRPO(beta=0.0).terms(EOS)
    with pytest.raises(AssertionError, match="elementwise: False"):
        check_term(replace(term, **wrong), BATCH)


def test_wrong_elementwise_trait_is_found_by_the_backward_pass(monkeypatch):
    monkeypatch.setattr("unmask.denoisers.head.chunks.chunk_positions", lambda vocabulary: 1)
    (term,) = DiffuGRPO(beta=0.0).terms(EOS)
    wrong = replace(term, likelihood=FromFunction(likelihoods.Sandwich(beta=1.5, mix=0.5), elementwise=True))
    normalizer = torch.tensor(1.0)
    old = -torch.ones(BATCH.targets_RL.shape)
    logp = wrong.answers(small_denoiser(), BATCH, None, wrong.grad_logp(BATCH, old, None, normalizer))
    loss, _ = wrong.loss(BATCH, logp, old, None, normalizer)
    with pytest.raises(RuntimeError):
        loss.backward()


# ---- pieces without traits ----


def sum_of_rows(logp_RL, batch):
    score_U1 = torch.zeros_like(batch.advantage_U).index_add(0, batch.unit_R, logp_RL.sum(1))[:, None]
    return Scores(score_U1, torch.ones_like(score_U1))


def loss_of_scores(score_UK, other_score_UK, advantage_U, loss_weight_UK, normalizer):
    return -(advantage_U[:, None] * score_UK).sum() / normalizer


@pytest.mark.parametrize(
    ("pieces", "missing"),
    [
        ({"likelihood": sum_of_rows}, "Likelihood, it declares no elementwise, linear.*FromFunction"),
        ({"likelihood": partial(sum_of_rows)}, "Likelihood, it declares no elementwise, linear.*FromFunction"),
        ({"surrogate": loss_of_scores}, "Surrogate, it declares no against, centers_over_batch, compares_pairs"),
        ({"masking": lambda *arguments: BATCH}, "Masking, it declares no prompt_mask, reads_trajectory, rows, unit"),
    ],
)
def test_term_refuses_pieces_without_traits(pieces, missing):
    (term,) = DiffuGRPO().terms(EOS)
    with pytest.raises(UserError, match=missing):  # where no check of types, as in tests, refuses them before
        Term.__post_init__(SimpleNamespace(**(vars(term) | pieces)))


@pytest.mark.parametrize("function", [sum_of_rows, partial(sum_of_rows)], ids=["function", "partial"])
def test_from_function_has_safe_traits_and_the_functions_scores(function):
    wrapped = FromFunction(function)
    assert (wrapped.elementwise, wrapped.linear) == (False, False)
    logp = -torch.arange(20.0).view(5, 4)
    assert torch.equal(wrapped(logp, BATCH).value_UK, sum_of_rows(logp, BATCH).value_UK)
    (term,) = DiffuGRPO().terms(EOS)
    assert not replace(term, likelihood=wrapped, surrogate=losses.PolicyGradient()).is_elementwise(old_is_now=True)


# ---- maskings, groupings, rollouts ----


@pytest.mark.parametrize(
    ("masking", "reads"),
    [
        (masks.FullyMasked(), False),
        (masks.RandomMasks(distribution=masks.UniformCounts(count=2)), False),
        (masks.RandomMasks(distribution=masks.RecordedTimes(count=2)), True),
        (masks.BestAndWorst(masks=masks.RandomMasks(distribution=masks.UniformCounts(count=2))), False),
        (masks.BestAndWorst(masks=masks.RandomMasks(distribution=masks.RecordedTimes(count=2))), True),
        (masks.Segments(grouping=masks.ShrunkSteps(), span=masks.through_eos, per_row=True), True),
        (masks.Prefixes(), False),
        (masks.BlockRandom(), False),
    ],
)
def test_reads_trajectory_is_refused_after_a_remasking_sampler(masking, reads):
    assert masking.reads_trajectory == reads
    arguments = (hand_rollout(remasking=True), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), Uniforms(), 0, 1)
    if reads:
        with pytest.raises(ValueError, match="remasking"):
            masking(*arguments)
    else:
        masking(*arguments)


@pytest.mark.parametrize(
    ("grouping", "one_step"),
    [
        (masks.ShrunkSteps(shrink=1), True),
        (masks.ShrunkSteps(shrink=2), False),
        (masks.EqualSegments(count=2), False),
        (masks.EqualSegments(count=3), True),
        (masks.EqualSegments(count=8), True),
    ],
)
def test_is_one_step_where_segments_are_steps(grouping, one_step):
    rollout = hand_rollout()  # of three steps
    assert grouping.is_one_step(rollout) == one_step
    segment_NL, count = grouping(rollout)
    steps = [rollout.revealed_at_NL[(segment_NL == segment) & rollout.region_L].unique() for segment in range(count)]
    assert all(len(found) <= 1 for found in steps) == one_step


def test_prompt_mask_is_that_of_the_settings():
    assert masks.FullyMasked(prompt_mask_prob=0.3, shared=True).prompt_mask == masks.PromptMask(0.3, shared=True)
    assert masks.BlockRandom(prompt_mask_prob=0.2).prompt_mask == masks.PromptMask(0.2)
    assert masks.Branches(eos_id=EOS, prompt_mask_prob=0.1).prompt_mask == masks.PromptMask(0.1)
    assert masks.Prefixes().prompt_mask == masks.PromptMask(0.0, shared=False)


def test_rollout_fake_by_hand():
    rollout = Rollout.fake(
        torch.tensor([[1, 2, 3], [1, 4, 5], [6, 2, 2], [6, 3, 3]]), prompt_length=1, group_size=2, mask_id=MASK
    )
    assert rollout.attention_NL.all()
    assert rollout.completion_NL.tolist() == [[False, True, True]] * 4
    assert rollout.block_NL.tolist() == rollout.revealed_at_NL.tolist() == [[-1, 0, 0]] * 4
    assert (rollout.prompt_N.tolist(), rollout.sample_N.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert (rollout.steps, rollout.remasking, rollout.temperature, rollout.exact) == (1, False, 1.0, False)
    revealed = torch.tensor([[-1, 1, 0]]).expand(4, -1)
    assert replace(rollout, revealed_at_NL=revealed, steps=2).canvas(1).tolist()[0] == [1, MASK, 3]
    fields = {"revealed_at_NL": revealed, "temperature": 0.5}
    given = Rollout.fake(rollout.tokens_NL, prompt_length=1, group_size=2, mask_id=MASK, **fields)
    assert (given.steps, given.temperature) == (2, 0.5)
