"""What a denoising step proposes: tokens drawn by keyed uniforms, their log-probs, confidences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.unmasking import Measure


def inverse_cdf(scaled_CV: Tensor, uniform_CZ: Tensor) -> Tensor:
    """Tokens [C, Z] with cumulative probability under softmax(scaled) first above the uniforms, in float64."""
    cdf_CV = (scaled_CV.double() - scaled_CV.amax(1, keepdim=True).double()).exp().cumsum(1)
    total_C1 = cdf_CV[:, -1:]
    # The product may round up to the total, beyond every token.
    level_CZ = torch.minimum(uniform_CZ * total_C1, total_C1 * (1 - 1e-15))
    return torch.searchsorted(cdf_CV, level_CZ, right=True)


@dataclass(frozen=True, kw_only=True)
class Propose:
    """The answer of sampling: proposed tokens, their log-probs at the temperature, confidences, and Z further guesses.

    The mask token is never drawn, but it keeps its part of the normaliser: what is recorded equals what scoring gives.
    """

    temperature: float
    mask_id: int
    measure: Measure
    uniform_QZ: Tensor  # column 0 draws the proposal

    def __call__(self, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        logits_CV = logits_CV.float()
        temperature = self.temperature or 1.0
        normaliser_C = logits_CV.logsumexp(1)
        scaled_CV, scaled_normaliser_C = logits_CV, normaliser_C
        if temperature != 1:
            scaled_CV = logits_CV / temperature
            scaled_normaliser_C = scaled_CV.logsumexp(1)
        mask_C = scaled_CV[:, self.mask_id].clone()
        scaled_CV[:, self.mask_id] = -float("inf")  # in place: logits of a large vocabulary are slow to copy
        if self.temperature == 0:
            tokens_CZ = scaled_CV.argmax(1, keepdim=True).expand(-1, self.uniform_QZ.shape[1])
        else:
            tokens_CZ = inverse_cdf(scaled_CV, self.uniform_QZ[chunk])
        scaled_CV[:, self.mask_id] = mask_C
        logp_CZ = scaled_CV.gather(1, tokens_CZ) - scaled_normaliser_C[:, None]
        return tokens_CZ, logp_CZ, self.measure(logits_CV, normaliser_C, tokens_CZ[:, 0])
