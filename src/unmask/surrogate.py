"""Surrogates: what is minimised.

Pure; the normaliser is an argument, so that accumulation and ranks equal one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClippedToken:
    """-sum_uk w min(rho A, clip(rho, 1 ± epsilon) A) / normaliser, rho = exp(now - old) (PPO 1707.06347)."""

    epsilon: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        old_UK: Float[Tensor, "U K"],
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        credit_U1 = credit_U[:, None]
        ratio_UK = (now_UK - old_UK).exp()
        clipped_UK = ratio_UK.clamp(1 - self.epsilon, 1 + self.epsilon)
        gain_UK = torch.minimum(ratio_UK * credit_U1, clipped_UK * credit_U1)
        return -(weight_UK * gain_UK).sum() / normaliser

    def clipped(
        self, now_UK: Float[Tensor, "U K"], old_UK: Float[Tensor, "U K"], credit_U: Float[Tensor, "U"]
    ) -> Tensor:
        """Where the gradient is cut off: [U, K] bool."""
        ratio_UK, credit_U1 = (now_UK - old_UK).exp(), credit_U[:, None]
        return ((ratio_UK > 1 + self.epsilon) & (credit_U1 > 0)) | ((ratio_UK < 1 - self.epsilon) & (credit_U1 < 0))


Divergence = Callable[[Tensor, Tensor], Tensor]


def k2(now_UK: Float[Tensor, "U K"], other_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate (other - now)² / 2 (Schulman 2020)."""
    return (other_UK - now_UK).square() / 2


def k3(now_UK: Float[Tensor, "U K"], other_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate exp(other - now) - (other - now) - 1 (Schulman 2020)."""
    return (other_UK - now_UK).exp() - (other_UK - now_UK) - 1


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """coefficient · sum_uk w estimate(now, reference) / normaliser."""

    estimate: Divergence
    coefficient: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        reference_UK: Float[Tensor, "U K"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return self.coefficient * (weight_UK * self.estimate(now_UK, reference_UK)).sum() / normaliser
