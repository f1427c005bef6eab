"""Likelihood: the denoiser's answers to batch, and how they become a score per token or per unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import ContrastiveLogProb, TargetLogProb
from unmask.types import ScoringBatch

# now_RL -> d loss / d now_RL
RowGradient = Callable[[Tensor], Tensor]


def row_logp(denoiser: nn.Module, batch: ScoringBatch, grad_logp: RowGradient | None = None) -> Float[Tensor, "R L"]:
    """log p(target | input) at the scored positions of every row, 0 elsewhere.

    Rows of one forward are answered together. `grad_logp`: the derivative of the loss by these log-probs, where each
    depends on its own alone; the gradient of the head is then made in the forward pass, and the loss must be that one.
    """
    places = _Places.of(batch)
    targets_QK = places.by_place(batch.targets_RL)
    grad_chunk = None if grad_logp is None else _ChunkGradient(grad_logp, batch, places)
    answer = TargetLogProb(targets_QK, batch.temperature, grad_chunk)
    (logp_QK,) = denoiser(batch.inputs_FL, batch.attention_FL, places.query_FA, answer, selected_Q=places.selected_Q)
    return places.by_row(logp_QK) * batch.scored_RL


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where rows are answered: at which asked columns of their forward, in which of its slots."""

    query_FA: Tensor
    selected_Q: Tensor  # asked positions, among the F times A, at which some row is scored
    forward_R: Tensor
    slot_R: Tensor
    slots: int
    length: int

    @staticmethod
    def of(batch: ScoringBatch) -> _Places:
        query_FA, counted_FA = query_columns(batch)
        slot_R = _slots(batch.forward_R)
        return _Places(
            query_FA=query_FA,
            selected_Q=torch.nonzero(counted_FA.flatten())[:, 0],
            forward_R=batch.forward_R,
            slot_R=slot_R,
            slots=int(slot_R.max()) + 1,
            length=batch.inputs_FL.shape[1],
        )

    def by_place(self, value_RL: Tensor) -> Tensor:
        """What rows have at the places, [Q, K]; 0 in slots that no row has."""
        value_FKA = value_RL.new_zeros((len(self.query_FA), self.slots, self.query_FA.shape[1]))
        value_FKA[self.forward_R, self.slot_R] = value_RL.gather(1, self.query_FA[self.forward_R])
        return value_FKA.transpose(1, 2).flatten(0, 1)[self.selected_Q]

    def by_row(self, value_QK: Tensor) -> Tensor:
        """Answers in the rows that they belong to, [R, L]; 0 elsewhere."""
        forwards, asked = self.query_FA.shape
        value_FAK = value_QK.new_zeros((forwards * asked, self.slots)).index_copy(0, self.selected_Q, value_QK)
        value_RA = value_FAK.view(forwards, asked, -1).transpose(1, 2)[self.forward_R, self.slot_R]
        value_RL = value_RA.new_zeros((len(value_RA), self.length))
        return value_RL.scatter(1, self.query_FA[self.forward_R], value_RA)


@dataclass(frozen=True)
class _ChunkGradient:
    """The grad_logp at some places, the others' log-probs being unknown yet and of no account."""

    grad_logp: RowGradient
    batch: ScoringBatch
    places: _Places

    def __call__(self, logp_CK: Tensor, chunk: slice) -> Tensor:
        logp_QK = logp_CK.new_zeros((len(self.places.selected_Q), self.places.slots))
        logp_QK[chunk] = logp_CK
        now_RL = self.places.by_row(logp_QK) * self.batch.scored_RL
        return self.places.by_place(self.grad_logp(now_RL) * self.batch.scored_RL)[chunk]


def query_columns(batch: ScoringBatch) -> tuple[Int[Tensor, "F A"], Bool[Tensor, "F A"]]:
    """Columns where some row of the forward is scored; forwards with fewer have others too, which do not count."""
    scored_FL = torch.zeros(batch.inputs_FL.shape, dtype=torch.long, device=batch.inputs_FL.device)
    scored_FL = scored_FL.index_add(0, batch.forward_R, batch.scored_RL.long()) > 0
    width = max(1, int(scored_FL.sum(1).max()))
    query_FA = scored_FL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return query_FA, scored_FL.gather(1, query_FA)


def _slots(forward_R: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Place of each row among those of its forward (rows of a forward are neighbours)."""
    row_R = torch.arange(len(forward_R), device=forward_R.device)
    first_R = torch.searchsorted(forward_R, forward_R)
    return row_R - first_R


def row_contrast(denoiser: Denoiser, batch: ScoringBatch, old: Denoiser | None, blend: float) -> Float[Tensor, "R L 2"]:
    """log-probs of the targets under logits (1-b) old + b now, and under (1+b) old - b now (LFPO 2603.01563).

    `old` None: now, detached. One row a forward.
    """
    places = _Places.of(batch)
    answer = ContrastiveLogProb(places.by_place(batch.targets_RL)[:, 0], blend)
    (logp_Q2,) = denoiser(
        batch.inputs_FL,
        batch.attention_FL,
        places.query_FA,
        answer,
        other_model=old or denoiser,
        selected_Q=places.selected_Q,
    )
    columns = [places.by_row(logp_Q1) for logp_Q1 in logp_Q2.split(1, dim=1)]
    return torch.stack(columns, dim=2) * batch.scored_RL[..., None]


class Scores(NamedTuple):
    """Scores of units, and the weight of each in loss and normalizer."""

    value_UK: Tensor
    loss_weight_UK: Tensor


def _by_unit(value_R: Float[Tensor, "R *K"], batch: ScoringBatch) -> Float[Tensor, "U *K"]:
    """Sums over the rows of each unit."""
    sums = torch.zeros((len(batch.advantage_U), *value_R.shape[1:]), dtype=value_R.dtype, device=value_R.device)
    return sums.index_add(0, batch.unit_R, value_R)


def _one_each(value_U: Float[Tensor, "U *two"], weight_U: Tensor | None = None) -> Scores:
    """Scores of whole units (K = 1, or the two of a contrast), one weight a unit."""
    value_UK = value_U if value_U.ndim == 2 else value_U[:, None]
    loss_weight_UK = torch.ones_like(value_UK) if weight_U is None else weight_U[:, None].to(value_UK.dtype)
    return Scores(value_UK, loss_weight_UK)


def per_token(logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
    """One score a token: every unit is one row, K = L; token_weight_RL weighs the tokens in the loss."""
    return Scores(logp_RL, batch.token_weight_RL)


def per_token_over_rows(logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
    """One score a token, sum over the unit's rows of weight · logp, K = L (coupled-GRPO 2506.20639)."""
    counted_UL = _by_unit(batch.scored_RL.to(logp_RL.dtype), batch) > 0
    return Scores(_by_unit(batch.token_weight_RL * logp_RL, batch), counted_UL.to(logp_RL.dtype))


def weighted_sum(logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
    """sum over the unit's rows of weight · logp: an ELBO in nats where the masking's weights make it one."""
    return _one_each(_by_unit((batch.token_weight_RL * logp_RL).sum(1), batch))


def elbo(logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
    """The weighted sum per token: ELBO / length."""
    return _one_each(weighted_sum(logp_RL, batch).value_UK[:, 0] / batch.length_U.clamp(min=1))


def masked_mean(logp_RL: Float[Tensor, "R L *two"], batch: ScoringBatch) -> Scores:
    """mean over the unit's rows of the mean of logp over a row's scored tokens (SPG's lower bound, UniGRPO, LFPO)."""
    tokens_R = batch.scored_RL.sum(1).clamp(min=1).to(logp_RL.dtype)
    rows_U = _by_unit(torch.ones_like(tokens_R), batch)
    shape = (-1, *[1] * (logp_RL.ndim - 2))
    return _one_each(_by_unit(logp_RL.sum(1) / tokens_R.view(shape), batch) / rows_U.view(shape))


@dataclass(frozen=True, kw_only=True)
class EUBO:
    """(1/beta) mean_k log mean_rows w_k p_k^beta over the tokens scored in some row, w = 1 / masked fraction (SPG).

    A Rényi bound from above: above log p for beta >= L, not always below (2510.09541).
    """

    beta: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        power_RL = (self.beta * logp_RL + batch.token_weight_RL.clamp(min=1e-30).log()).masked_fill(
            ~batch.scored_RL, -torch.inf
        )
        rows_U = _by_unit(torch.ones_like(logp_RL[:, 0]), batch)
        largest_UL = power_RL.new_full((len(batch.advantage_U), power_RL.shape[1]), -torch.inf).scatter_reduce(
            0, batch.unit_R[:, None].expand_as(power_RL), power_RL.detach(), "amax"
        )
        counted_UL = largest_UL > -torch.inf
        shift_UL = largest_UL.masked_fill(~counted_UL, 0.0)
        sums_UL = _by_unit((power_RL - shift_UL[batch.unit_R]).exp(), batch)
        log_UL = (sums_UL.masked_fill(~counted_UL, 1.0).log() + shift_UL - rows_U.log()[:, None]) * counted_UL
        return _one_each(log_UL.sum(1) / (self.beta * counted_UL.sum(1).clamp(min=1)))


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """ELBO where A >= 0, else mix · EUBO + (1 - mix) · ELBO; a unit weighs as much as it is long (SPG 2510.09541)."""

    beta: float
    mix: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        lower_U = masked_mean(logp_RL, batch).value_UK[:, 0]
        upper_U = EUBO(beta=self.beta)(logp_RL, batch).value_UK[:, 0]
        mixed_U = self.mix * upper_U + (1 - self.mix) * lower_U
        return _one_each(torch.where(batch.advantage_U >= 0, lower_U, mixed_U), batch.length_U)


# Scores that are linear in the log-probs.
LINEAR = (per_token, per_token_over_rows, weighted_sum, elbo, masked_mean)


# ---- normalizers: what the sum over units is divided by ----


def token_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """The token mean: all tokens that units speak for, in the whole optimizer batch."""
    return batch.length_U.sum().float()


def unit_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """The mean over units."""
    return torch.tensor(float(len(batch.advantage_U)), device=batch.advantage_U.device)


def active_unit_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """The mean over units that have advantage and something scored."""
    return ((batch.advantage_U != 0) & batch.scored_U).sum().float()
