"""Reducers of logits to a step's proposals: tokens drawn by keyed uniforms, their log-probs, confidences."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmask.denoisers.head.reducers import LogitsReducer
from unmask.denoisers.head.vocabulary import NEVER, GivenLogits, Logits, reduce_slices
from unmask.denoisers.head.workspace import Workspace
from unmask.sampling.unmasking import Measure


class Proposed(NamedTuple):
    """Tokens, their logits, and their log-probs at the temperature, [C, Z] each; log-normalizers [C] at temperature 1.

    The mask token, and ids unknown to the tokenizer, are never proposed, but keep their part of the normalizers:
    what is recorded equals what scoring gives.
    """

    tokens_CZ: Tensor
    logits_CZ: Tensor
    logp_CZ: Tensor
    normalizer_C: Tensor


def greedy(logits: Logits) -> Proposed:
    """The most probable tokens, the first among equals."""
    tokens, tops, sums = [], [], []
    for first, logits_CS in logits.slices():
        place_C1 = largest(logits_CS, logits.fold)[:, None]
        top_C1 = logits_CS.gather(1, place_C1)
        tokens.append(first + place_C1)
        tops.append(top_C1)
        sums.append(_below(logits, logits_CS, top_C1).exp_().sum(1, keepdim=True))
    top_CT = torch.cat(tops, 1)
    best_C1 = top_CT.argmax(1, keepdim=True)
    top_C1 = top_CT.gather(1, best_C1)
    normalizer_C1 = _log_sum(top_CT, torch.cat(sums, 1), logits.never_CU)
    return Proposed(torch.cat(tokens, 1).gather(1, best_C1), top_C1, top_C1 - normalizer_C1, normalizer_C1[:, 0])


def draw(logits: Logits, uniform_CZ: Tensor, temperature: float) -> Proposed:
    """Tokens by inverse CDF in float64, fold by fold: the first whose cumulative share is above the uniform."""
    folds, tops, sums, sums_at_1 = [], [], [], []
    for _, logits_CS in logits.slices():
        top_C1 = logits_CS.amax(1, keepdim=True)
        tops.append(top_C1)
        below_CS = _below(logits, logits_CS, top_C1)
        if temperature != 1:
            power_CS = logits.workspace.floats("powers", below_CS.shape, logits.device)
            sums_at_1.append(torch.exp(below_CS, out=power_CS).sum(1, keepdim=True))
            below_CS.div_(temperature)
        power_CS = below_CS.exp_()
        folds.append(power_CS if logits.fold == 1 else torch.unflatten(power_CS, 1, (-1, logits.fold)).sum(2))
        sums.append(folds[-1].sum(1, keepdim=True))
    top_CT = torch.cat(tops, 1)
    scale_CT = ((top_CT.double() - top_CT.amax(1, keepdim=True)) / temperature).exp()
    share_CB = torch.cat([fold_CB * scale_CT[:, place, None] for place, fold_CB in enumerate(folds)], 1)
    tokens_CZ, logits_CZ = _search(logits, share_CB, uniform_CZ, temperature)
    normalizer_C1 = scaled_C1 = _log_sum(top_CT / temperature, torch.cat(sums, 1), logits.never_CU / temperature)
    if temperature != 1:
        normalizer_C1 = _log_sum(top_CT, torch.cat(sums_at_1, 1), logits.never_CU)
    return Proposed(tokens_CZ, logits_CZ, logits_CZ / temperature - scaled_C1, normalizer_C1[:, 0])


def _search(logits: Logits, share_CB: Tensor, uniform_CZ: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens [C, Z] and their logits, given the folds' shares."""
    fold_CZ, rest_CZ = _first_above(share_CB.cumsum(1), uniform_CZ)
    logits_CZW = logits.of_folds(fold_CZ)
    if logits.fold == 1:
        return fold_CZ, logits_CZW[..., 0]
    share_CZW = (logits_CZW / temperature).double().softmax(2)
    within_CZ1, _ = _first_above(share_CZW.cumsum(2), rest_CZ[..., None])
    return fold_CZ * logits.fold + within_CZ1[..., 0], logits_CZW.gather(2, within_CZ1)[..., 0]


def _first_above(cdf: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Places whose cumulative weight is the first above the uniforms' share, and the uniforms within those places."""
    total = cdf[..., -1:]
    # The product may round up to the total, beyond every token.
    level = torch.minimum(uniform * total, total * (1 - 1e-15))
    place = torch.searchsorted(cdf, level.contiguous(), right=True)
    # Of weights that are NaN no place is above: any will do, for the log-probs are NaN too, and that is told.
    place = torch.where(place < cdf.shape[-1], place, 0)
    below = torch.where(place > 0, cdf.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, (level - below) / (cdf.gather(-1, place) - below)


def largest(values_CS: Tensor, fold: int) -> Tensor:
    """The first index [C] of the largest value of each row; fold by fold, for long rows are slow to search."""
    if fold == 1:
        return values_CS.argmax(1)
    folds_CBW = torch.unflatten(values_CS, 1, (-1, fold))
    fold_C = folds_CBW.amax(2).argmax(1)
    within_CW = folds_CBW[torch.arange(len(fold_C), device=fold_C.device), fold_C]
    return fold_C * fold + within_CW.argmax(1)


def without_never_proposed(logits_CV: Tensor, mask_id: int, unspelt: Sequence[range]) -> Tensor:
    """The logits with those of what is never proposed at NEVER: the mask token, and ids that the tokenizer lacks."""
    kept_CV = logits_CV.clone()
    kept_CV[:, mask_id].fill_(NEVER)
    for run in unspelt:
        kept_CV[:, run.start : run.stop].fill_(NEVER)
    return kept_CV


def _below(logits: Logits, logits_CS: Tensor, top_C1: Tensor) -> Tensor:
    """How far logits are from the largest of their slice, in memory that the next slice uses again."""
    return torch.sub(logits_CS, top_C1, out=logits.workspace.floats("below", logits_CS.shape, logits.device))


def _log_sum(top_CT: Tensor, sum_CT: Tensor, never_CU: Tensor) -> Tensor:
    """log sum exp [C, 1] of all logits, by the largest of each slice and its sum of powers; also of those left out."""
    return torch.cat([top_CT + sum_CT.log(), never_CU], 1).double().logsumexp(1, keepdim=True).float()


@dataclass(frozen=True, kw_only=True)
class Propose(LogitsReducer):
    """The reducer of sampling: Z tokens a position, their log-probs at the temperature, confidences of the proposals.

    The proposals are the tokens 0, `stride`, 2 `stride`..., the others further guesses. Without uniforms: greedy, and
    log-probs at temperature 1.
    """

    temperature: float
    mask_id: int
    measure: Measure
    uniform_QZ: Tensor | None
    draws: int = 1  # Z
    stride: int = 1
    spelt: int | None = None  # ids from here on are never proposed; None: no other than the mask
    holes: tuple[range, ...] = ()  # runs of ids before `spelt` that are not either

    @property
    def _unspelt(self) -> tuple[range, ...]:
        return self.holes if self.spelt is None else (*self.holes, range(self.spelt, sys.maxsize))

    def from_logits(self, logits_CV: Tensor, chunk: slice, other_CV: Tensor | None = None) -> tuple[Tensor, ...]:
        """Tokens and log-probs [C, Z], confidences of the proposals [C, Z / stride], from whole logits."""
        proposed = self._propose(GivenLogits(logits_CV, self.mask_id, Workspace(), self._unspelt), chunk)
        kept_CV = logits_CV.float()
        if self.measure.reads_all_logits:
            kept_CV = without_never_proposed(kept_CV, self.mask_id, self._unspelt)
        confidence_CK = self.measure(kept_CV, proposed.normalizer_C, proposed.tokens_CZ[:, :: self.stride])
        return proposed.tokens_CZ, proposed.logp_CZ, confidence_CK

    def from_head(self, hidden_QD: Tensor, head: nn.Linear, workspace: Workspace) -> tuple[Tensor, ...]:
        """The same; slice by slice of the vocabulary where confidences need no logits but those of the proposals."""
        if self.measure.reads_all_logits:
            return super().from_head(hidden_QD, head, workspace)
        return reduce_slices(self._from_slices, hidden_QD, head.weight, self.mask_id, workspace, self._unspelt)

    def _from_slices(self, logits: Logits, chunk: slice) -> tuple[Tensor, ...]:
        proposed = self._propose(logits, chunk)
        logits_CK = proposed.logits_CZ[:, :: self.stride]
        place_CK = torch.arange(logits_CK.shape[1], device=logits_CK.device).expand_as(logits_CK)
        confidence_CK = self.measure(logits_CK, proposed.normalizer_C, place_CK)
        return proposed.tokens_CZ, proposed.logp_CZ, confidence_CK

    def _propose(self, logits: Logits, chunk: slice) -> Proposed:
        if self.uniform_QZ is not None:
            return draw(logits, self.uniform_QZ[chunk], self.temperature)
        best = greedy(logits)
        tokens_CZ, logits_CZ, logp_CZ = (each_C1.expand(-1, self.draws) for each_C1 in best[:3])
        return Proposed(tokens_CZ, logits_CZ, logp_CZ, best.normalizer_C)
