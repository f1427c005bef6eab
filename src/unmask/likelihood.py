"""Likelihood: the denoiser's answers to views, and how they become a score per token or per unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.head import ContrastiveLogProb, TargetLogProb
from unmask.types import Views


def row_logp(denoiser: nn.Module, views: Views) -> Float[Tensor, "R L"]:
    """log p(target | input) at the scored positions of every row, 0 elsewhere.

    Rows of one forward are answered together.
    """
    asked_FA = asked_columns(views)
    slot_R = _slots(views.forward_R)
    forwards, length = views.inputs_FL.shape
    targets_FKL = views.targets_RL.new_zeros((forwards, int(slot_R.max()) + 1, length))
    targets_FKL[views.forward_R, slot_R] = views.targets_RL
    targets_FKA = targets_FKL.gather(2, asked_FA[:, None].expand(-1, targets_FKL.shape[1], -1))
    answer = TargetLogProb(targets_FKA.transpose(1, 2).flatten(0, 1), views.temperature)
    (logp_FAK,) = denoiser(views.inputs_FL, views.attention_FL, asked_FA, answer)
    logp_RA = logp_FAK.transpose(1, 2)[views.forward_R, slot_R]
    logp_RL = torch.zeros(views.targets_RL.shape, dtype=logp_RA.dtype, device=logp_RA.device)
    return logp_RL.scatter(1, asked_FA[views.forward_R], logp_RA) * views.scored_RL


def asked_columns(views: Views) -> Int[Tensor, "F A"]:
    """Columns where some row of the forward is scored; forwards with fewer ask others too, which no row counts."""
    scored_FL = torch.zeros(views.inputs_FL.shape, dtype=torch.long, device=views.inputs_FL.device)
    scored_FL = scored_FL.index_add(0, views.forward_R, views.scored_RL.long()) > 0
    width = max(1, int(scored_FL.sum(1).max()))
    return scored_FL.long().argsort(dim=1, descending=True, stable=True)[:, :width]


def _slots(forward_R: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Place of each row among those of its forward (rows of a forward are neighbours)."""
    row_R = torch.arange(len(forward_R), device=forward_R.device)
    first_R = torch.searchsorted(forward_R, forward_R)
    return row_R - first_R


def row_contrast(denoiser: Denoiser, views: Views, old: Denoiser | None, blend: float) -> Float[Tensor, "R L 2"]:
    """log-probs of the targets under logits (1-b) old + b now, and under (1+b) old - b now (LFPO 2603.01563).

    `old` None: now, detached. One row a forward.
    """
    asked_FA = asked_columns(views)
    targets_FA = views.targets_RL.gather(1, asked_FA)
    answer = ContrastiveLogProb(targets_FA.flatten(), blend)
    (logp_FA2,) = denoiser(views.inputs_FL, views.attention_FL, asked_FA, answer, beside=old or denoiser)
    logp_RL2 = torch.zeros((*views.targets_RL.shape, 2), dtype=logp_FA2.dtype, device=logp_FA2.device)
    logp_RL2 = logp_RL2.scatter(1, asked_FA[..., None].expand(-1, -1, 2), logp_FA2)
    return logp_RL2 * views.scored_RL[..., None]


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
