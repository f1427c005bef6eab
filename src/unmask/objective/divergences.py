"""KL penalties: estimates of the divergence from the reference or the old policy, one a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

# (score_UK, other_score_UK) -> estimate_UK; elementwise: each estimate reads one score of each policy.
Divergence = Callable[[Tensor, Tensor], Tensor]


def k1(score_UK: Float[Tensor, "U K"], other_score_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate score - other (Schulman 2020)."""
    return score_UK - other_score_UK


def k2(score_UK: Float[Tensor, "U K"], other_score_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate (other - score)² / 2 (Schulman 2020)."""
    return (other_score_UK - score_UK).square() / 2


def k3(score_UK: Float[Tensor, "U K"], other_score_UK: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
    """KL estimate exp(other - score) - (other - score) - 1 (Schulman 2020)."""
    return (other_score_UK - score_UK).exp() - (other_score_UK - score_UK) - 1


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """coefficient · sum_uk w estimate(score, other score) / normalizer: the KL term of a loss.

    `against`: the policy of the other scores, "reference" or "old".
    `per_unit`: times the unit's length, for the divergence of whole sequences (ESPO) or rows (TraceRL) where the score
    or its weight is per token.
    """

    estimate: Divergence
    coefficient: float
    against: str = "reference"
    per_unit: bool = False

    def __call__(
        self,
        score_UK: Float[Tensor, "U K"],
        other_score_UK: Float[Tensor, "U K"],
        loss_weight_UK: Float[Tensor, "U K"],
        length_U: Int[Tensor, "U"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        if self.per_unit:
            loss_weight_UK = loss_weight_UK * length_U[:, None]
        return self.coefficient * (loss_weight_UK * self.estimate(score_UK, other_score_UK)).sum() / normalizer


def penalty(
    estimate: Divergence, coefficient: float, *, against: str = "reference", per_unit: bool = False
) -> Penalty | None:
    """The KL term of a loss; None where its coefficient is 0, so that no frozen policy makes a forward."""
    if not coefficient:
        return None
    return Penalty(estimate=estimate, coefficient=coefficient, against=against, per_unit=per_unit)
