"""Likelihood: the denoiser's answers to views, and how they become a score per token or per unit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.denoisers.base import Denoiser, TargetLogProb
from unmask.types import Views


def row_logp(denoiser: Denoiser, views: Views) -> Float[Tensor, "R L"]:
    """log p(target | input) at the scored positions of every row, 0 elsewhere.

    Rows of one forward are answered together.
    """
    asked_FA = _asked(views)
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


def _asked(views: Views) -> Int[Tensor, "F A"]:
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


class Scores(NamedTuple):
    """Scores of units, and the weight of each in loss and normaliser."""

    value_UK: Tensor
    weight_UK: Tensor


def per_token(logp_RL: Float[Tensor, "R L"], views: Views) -> Scores:
    """One score a token: every unit is one row, K = L."""
    return Scores(logp_RL, views.weight_RL)


def token_count(views: Views) -> Float[Tensor, ""]:
    """Normaliser of the token mean: the scored tokens of the whole optimizer batch."""
    return views.scored_RL.sum().float()


def unit_count(views: Views) -> Float[Tensor, ""]:
    """Normaliser of the mean over units."""
    return torch.tensor(float(len(views.credit_U)), device=views.credit_U.device)
