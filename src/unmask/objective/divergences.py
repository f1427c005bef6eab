"""Divergences that a loss pays for leaving the reference or the old policy: per-score KL estimates and their weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def k1(now_UK: Float[Tensor, "U K"], other_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate now - other (Schulman 2020)."""
    return now_UK - other_UK


def k2(now_UK: Float[Tensor, "U K"], other_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate (other - now)² / 2 (Schulman 2020)."""
    return (other_UK - now_UK).square() / 2


def k3(now_UK: Float[Tensor, "U K"], other_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate exp(other - now) - (other - now) - 1 (Schulman 2020)."""
    return (other_UK - now_UK).exp() - (other_UK - now_UK) - 1


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """coefficient · sum_uk w estimate(now, other) / normalizer; `against` the reference or the old policy.

    `per_unit`: times the unit's length, for the divergence of whole sequences (ESPO) or rows (TraceRL) where the score
    or its weight is per token.
    """

    estimate: Divergence
    coefficient: float
    against: str = "reference"
    per_unit: bool = False

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"],
        loss_weight_UK: Float[Tensor, "U K"],
        length_U: Int[Tensor, "U"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        if self.per_unit:
            loss_weight_UK = loss_weight_UK * length_U[:, None]
        return self.coefficient * (loss_weight_UK * self.estimate(now_UK, other_UK)).sum() / normalizer


def penalty(
    estimate: Divergence, coefficient: float, *, against: str = "reference", per_unit: bool = False
) -> Penalty | None:
    """The divergence to pay; None where its coefficient is 0, so that no frozen policy is asked."""
    if not coefficient:
        return None
    return Penalty(estimate=estimate, coefficient=coefficient, against=against, per_unit=per_unit)
