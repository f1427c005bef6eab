"""What a denoising step proposes: tokens drawn by keyed uniforms, their log-probs, confidences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unmask.denoisers.head import Workspace
from unmask.unmasking import Measure

_FOLD = 256  # divides the published vocabularies; a row is searched fold by fold, not number by number


def _folds(values_CV: Tensor) -> Tensor | None:
    """The row in folds [C, folds, width], as a view; None where it is short or does not divide."""
    vocabulary = values_CV.shape[1]
    return torch.unflatten(values_CV, 1, (-1, _FOLD)) if vocabulary > 4 * _FOLD and vocabulary % _FOLD == 0 else None


def largest(values_CV: Tensor) -> Tensor:
    """The first index [C] of the largest value of each row."""
    folds_CBW = _folds(values_CV)
    if folds_CBW is None:
        return values_CV.argmax(1)
    fold_C = folds_CBW.amax(2).argmax(1)
    within_CW = folds_CBW[torch.arange(len(fold_C), device=fold_C.device), fold_C]
    return fold_C * _FOLD + within_CW.argmax(1)


def inverse_cdf(weight_CV: Tensor, uniform_CZ: Tensor) -> Tensor:
    """Tokens [C, Z] whose cumulative share of the non-negative weights is the first above the uniforms, in float64."""
    folds_CBW = _folds(weight_CV)
    if folds_CBW is None:
        return _first_above(weight_CV.double().cumsum(1), uniform_CZ)[0]
    fold_CZ, rest_CZ = _first_above(folds_CBW.sum(2, dtype=torch.float64).cumsum(1), uniform_CZ)
    row_C1 = torch.arange(len(fold_CZ), device=fold_CZ.device)[:, None]
    within_CZ, _ = _first_above(folds_CBW[row_C1, fold_CZ].double().cumsum(2), rest_CZ[..., None])
    return fold_CZ * _FOLD + within_CZ[..., 0]


def _first_above(cdf: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Places whose cumulative weight is the first above the uniforms' share, and the uniforms within those places."""
    total = cdf[..., -1:]
    # The product may round up to the total, beyond every token.
    level = torch.minimum(uniform * total, total * (1 - 1e-15))
    place = torch.searchsorted(cdf, level.contiguous(), right=True)
    below = torch.where(place > 0, cdf.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, (level - below) / (cdf.gather(-1, place) - below)


@dataclass(frozen=True, kw_only=True)
class Propose:
    """The answer of sampling: Z tokens a position, their log-probs at the temperature, confidences of the proposals.

    The proposals are the tokens 0, `stride`, 2 `stride`..., the others further guesses. The mask token is never drawn,
    but it keeps its part of the normaliser: what is recorded equals what scoring gives. Without uniforms: greedy.
    """

    uses_up_logits: ClassVar[bool] = True
    temperature: float
    mask_id: int
    measure: Measure
    uniform_QZ: Tensor | None
    draws: int = 1  # Z
    stride: int = 1
    workspace: Workspace = field(default_factory=Workspace)

    def __call__(self, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        logits_CV = logits_CV.float()
        weight_CV = self.workspace.floats("weights", logits_CV, logits_CV.device)
        torch.softmax(logits_CV, 1, out=weight_CV)
        normaliser_C, total_C1 = None, torch.ones_like(logits_CV[:, :1])
        if self.temperature not in (0.0, 1.0):
            normaliser_C = logits_CV.amax(1) - weight_CV.amax(1).log()
            torch.div(logits_CV, self.temperature, out=weight_CV)
            weight_CV.sub_(weight_CV.amax(1, keepdim=True)).exp_()
            total_C1 = weight_CV.sum(1, keepdim=True)
        if self.uniform_QZ is None:
            tokens_CZ = self._greedy(logits_CV)[:, None].expand(-1, self.draws)
        else:
            weight_CV[:, self.mask_id] = 0.0
            tokens_CZ = inverse_cdf(weight_CV, self.uniform_QZ[chunk])
        logp_CZ = (weight_CV.gather(1, tokens_CZ) / total_C1).log()
        proposal_CK = tokens_CZ[:, :: self.stride]
        if normaliser_C is None:
            normaliser_C = logits_CV.gather(1, proposal_CK[:, :1])[:, 0] - logp_CZ[:, 0]
        return tokens_CZ, logp_CZ, self.measure(logits_CV, normaliser_C, proposal_CK)

    def _greedy(self, logits_CV: Tensor) -> Tensor:
        mask_C = logits_CV[:, self.mask_id].clone()
        logits_CV[:, self.mask_id] = -float("inf")  # in place: logits of a large vocabulary are slow to copy
        tokens_C = largest(logits_CV)
        logits_CV[:, self.mask_id] = mask_C
        return tokens_C
