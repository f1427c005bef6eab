"""Likelihood: the denoiser's answers to views, and how they become a score per token or per unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.chunks import ContrastiveLogProb, TargetLogProb
from unmask.types import Views

# now_RL -> d loss / d now_RL
RowSlope = Callable[[Tensor], Tensor]


def row_logp(denoiser: nn.Module, views: Views, slope: RowSlope | None = None) -> Float[Tensor, "R L"]:
    """log p(target | input) at the scored positions of every row, 0 elsewhere.

    Rows of one forward are answered together. `slope`: the derivative of the loss by these log-probs, where each
    depends on its own alone; the gradient of the head is then made in the forward pass, and the loss must be that one.
    """
    places = _Places.of(views)
    targets_QK = places.by_place(views.targets_RL)
    chunk_slope = None if slope is None else _ChunkSlope(slope, views, places)
    answer = TargetLogProb(targets_QK, views.temperature, chunk_slope)
    (logp_QK,) = denoiser(views.inputs_FL, views.attention_FL, places.asked_FA, answer, places_Q=places.place_Q)
    return places.by_row(logp_QK) * views.scored_RL


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where rows are answered: at which asked columns of their forward, in which of its slots."""

    asked_FA: Tensor
    place_Q: Tensor  # asked positions, among the F times A, at which some row is scored
    forward_R: Tensor
    slot_R: Tensor
    slots: int
    length: int

    @staticmethod
    def of(views: Views) -> _Places:
        asked_FA, counted_FA = asked_columns(views)
        slot_R = _slots(views.forward_R)
        return _Places(
            asked_FA=asked_FA,
            place_Q=torch.nonzero(counted_FA.flatten())[:, 0],
            forward_R=views.forward_R,
            slot_R=slot_R,
            slots=int(slot_R.max()) + 1,
            length=views.inputs_FL.shape[1],
        )

    def by_place(self, value_RL: Tensor) -> Tensor:
        """What rows have at the places, [Q, K]; 0 in slots that no row has."""
        value_FKA = value_RL.new_zeros((len(self.asked_FA), self.slots, self.asked_FA.shape[1]))
        value_FKA[self.forward_R, self.slot_R] = value_RL.gather(1, self.asked_FA[self.forward_R])
        return value_FKA.transpose(1, 2).flatten(0, 1)[self.place_Q]

    def by_row(self, value_QK: Tensor) -> Tensor:
        """Answers in the rows that they belong to, [R, L]; 0 elsewhere."""
        forwards, asked = self.asked_FA.shape
        value_FAK = value_QK.new_zeros((forwards * asked, self.slots)).index_copy(0, self.place_Q, value_QK)
        value_RA = value_FAK.view(forwards, asked, -1).transpose(1, 2)[self.forward_R, self.slot_R]
        value_RL = value_RA.new_zeros((len(value_RA), self.length))
        return value_RL.scatter(1, self.asked_FA[self.forward_R], value_RA)


@dataclass(frozen=True)
class _ChunkSlope:
    """The slope at some places, the others' log-probs being unknown yet and of no account."""

    slope: RowSlope
    views: Views
    places: _Places

    def __call__(self, logp_CK: Tensor, chunk: slice) -> Tensor:
        logp_QK = logp_CK.new_zeros((len(self.places.place_Q), self.places.slots))
        logp_QK[chunk] = logp_CK
        now_RL = self.places.by_row(logp_QK) * self.views.scored_RL
        return self.places.by_place(self.slope(now_RL) * self.views.scored_RL)[chunk]


def asked_columns(views: Views) -> tuple[Int[Tensor, "F A"], Bool[Tensor, "F A"]]:
    """Columns where some row of the forward is scored; forwards with fewer have others too, which do not count."""
    scored_FL = torch.zeros(views.inputs_FL.shape, dtype=torch.long, device=views.inputs_FL.device)
    scored_FL = scored_FL.index_add(0, views.forward_R, views.scored_RL.long()) > 0
    width = max(1, int(scored_FL.sum(1).max()))
    asked_FA = scored_FL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return asked_FA, scored_FL.gather(1, asked_FA)


def _slots(forward_R: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Place of each row among those of its forward (rows of a forward are neighbours)."""
    row_R = torch.arange(len(forward_R), device=forward_R.device)
    first_R = torch.searchsorted(forward_R, forward_R)
    return row_R - first_R


def row_contrast(denoiser: Denoiser, views: Views, old: Denoiser | None, blend: float) -> Float[Tensor, "R L 2"]:
    """log-probs of the targets under logits (1-b) old + b now, and under (1+b) old - b now (LFPO 2603.01563).

    `old` None: now, detached. One row a forward.
    """
    places = _Places.of(views)
    answer = ContrastiveLogProb(places.by_place(views.targets_RL)[:, 0], blend)
    (logp_Q2,) = denoiser(
        views.inputs_FL,
        views.attention_FL,
        places.asked_FA,
        answer,
        beside=old or denoiser,
        places_Q=places.place_Q,
    )
    columns = [places.by_row(logp_Q1) for logp_Q1 in logp_Q2.split(1, dim=1)]
    return torch.stack(columns, dim=2) * views.scored_RL[..., None]


class Scores(NamedTuple):
    """Scores of units, and the weight of each in loss and normaliser."""

    value_UK: Tensor
    weight_UK: Tensor


def _by_unit(value_R: Float[Tensor, "R *K"], views: Views) -> Float[Tensor, "U *K"]:
    """Sums over the rows of each unit."""
    sums = torch.zeros((len(views.credit_U), *value_R.shape[1:]), dtype=value_R.dtype, device=value_R.device)
    return sums.index_add(0, views.unit_R, value_R)


def _one_each(value_U: Float[Tensor, "U *two"], weight_U: Tensor | None = None) -> Scores:
    """Scores of whole units (K = 1, or the two of a contrast), one weight a unit."""
    value_UK = value_U if value_U.ndim == 2 else value_U[:, None]
    weight_UK = torch.ones_like(value_UK) if weight_U is None else weight_U[:, None].to(value_UK.dtype)
    return Scores(value_UK, weight_UK)


def per_token(logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
    """One score a token: every unit is one row, K = L; weight_RL weighs the tokens in the loss."""
    return Scores(logp_RL, views.weight_RL)


def per_token_over_rows(logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
    """One score a token, sum over the unit's rows of weight · logp, K = L (coupled-GRPO 2506.20639)."""
    counted_UL = _by_unit(views.scored_RL.to(logp_RL.dtype), views) > 0
    return Scores(_by_unit(views.weight_RL * logp_RL, views), counted_UL.to(logp_RL.dtype))


def weighted_sum(logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
    """sum over the unit's rows of weight · logp: an ELBO in nats where the masking's weights make it one."""
    return _one_each(_by_unit((views.weight_RL * logp_RL).sum(1), views))


def elbo(logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
    """The weighted sum per token: ELBO / length."""
    return _one_each(weighted_sum(logp_RL, views).value_UK[:, 0] / views.length_U.clamp(min=1))


def masked_mean(logp_RL: Float[Tensor, "R L *two"], views: Views) -> Scores:
    """mean over the unit's rows of the mean of logp over a row's scored tokens (SPG's lower bound, UniGRPO, LFPO)."""
    tokens_R = views.scored_RL.sum(1).clamp(min=1).to(logp_RL.dtype)
    rows_U = _by_unit(torch.ones_like(tokens_R), views)
    shape = (-1, *[1] * (logp_RL.ndim - 2))
    return _one_each(_by_unit(logp_RL.sum(1) / tokens_R.view(shape), views) / rows_U.view(shape))


@dataclass(frozen=True, kw_only=True)
class EUBO:
    """(1/beta) mean_k log mean_rows w_k p_k^beta over the tokens scored in some row, w = 1 / masked fraction (SPG).

    A Rényi bound from above: above log p for beta >= L, not always below (2510.09541).
    """

    beta: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
        power_RL = (self.beta * logp_RL + views.weight_RL.clamp(min=1e-30).log()).masked_fill(
            ~views.scored_RL, -torch.inf
        )
        rows_U = _by_unit(torch.ones_like(logp_RL[:, 0]), views)
        largest_UL = power_RL.new_full((len(views.credit_U), power_RL.shape[1]), -torch.inf).scatter_reduce(
            0, views.unit_R[:, None].expand_as(power_RL), power_RL.detach(), "amax"
        )
        counted_UL = largest_UL > -torch.inf
        shift_UL = largest_UL.masked_fill(~counted_UL, 0.0)
        sums_UL = _by_unit((power_RL - shift_UL[views.unit_R]).exp(), views)
        log_UL = (sums_UL.masked_fill(~counted_UL, 1.0).log() + shift_UL - rows_U.log()[:, None]) * counted_UL
        return _one_each(log_UL.sum(1) / (self.beta * counted_UL.sum(1).clamp(min=1)))


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """ELBO where A >= 0, else mix · EUBO + (1 - mix) · ELBO; a unit weighs as much as it is long (SPG 2510.09541)."""

    beta: float
    mix: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
        lower_U = masked_mean(logp_RL, views).value_UK[:, 0]
        upper_U = EUBO(beta=self.beta)(logp_RL, views).value_UK[:, 0]
        mixed_U = self.mix * upper_U + (1 - self.mix) * lower_U
        return _one_each(torch.where(views.credit_U >= 0, lower_U, mixed_U), views.length_U)


# Scores that are linear in the log-probs.
LINEAR = (per_token, per_token_over_rows, weighted_sum, elbo, masked_mean)


# ---- normalisers: what the sum over units is divided by ----


def token_count(views: Views) -> Float[Tensor, ""]:
    """The token mean: all tokens that units speak for, in the whole optimizer batch."""
    return views.length_U.sum().float()


def unit_count(views: Views) -> Float[Tensor, ""]:
    """The mean over units."""
    return torch.tensor(float(len(views.credit_U)), device=views.credit_U.device)


def credited_count(views: Views) -> Float[Tensor, ""]:
    """The mean over units that have credit and something scored."""
    return ((views.credit_U != 0) & views.scored_U).sum().float()
