"""UniGRPO (MMaDA, arXiv 2505.15809). Provenance: paper; the variant with independent ratios is a third-party port.

    t_1 ~ U(0, 1), t_n = t_1 + (n-1)/(mu-1) (1 - t_1): the last of mu updates is fully masked
    score = mean of logp over the completion tokens masked at t_n
    L = mean over samples of [ -min(rho A, clip(rho, 1 ± epsilon) A) + beta k3(reference) ],  rho = exp(score - old)
    A = z-score over the group

Deviations: none known to the paper. Reconstructed: beta; with one update t = t_1; one token at least is masked.
The port: `num_masks` rows a sample with t ~ U(0.1, 0.9) (35 there), beta 0.01 to the old policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import one_of, setting, where

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class UniGRPO(Method):
    """Clipped policy gradient on the mean log-prob of masked tokens, mask ratios spread over the updates."""

    name: ClassVar[str] = "unigrpo"
    paper: ClassVar[str] = "2505.15809"
    provenance: ClassVar[str] = "paper"
    num_masks: int = setting(
        0, "0: one row at the spaced ratio; else rows at independent ratios in (0.1, 0.9)", was="views"
    )
    epsilon: float = setting(0.2, "clip range of the sequence ratio")
    beta: float = setting(0.01, "weight of k3")
    divergence_to: str = setting("reference", "policy that k3 is to: reference or old", idle=where("beta", 0))

    def __post_init__(self) -> None:
        one_of("unigrpo divergence_to", self.divergence_to, ("reference", "old"))

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(
                    distribution=masks.RandomTimes(count=self.num_masks, low=0.1, high=0.9)
                    if self.num_masks
                    else masks.SpacedTime()
                ),
                advantage=advantages.z_score,
                likelihood=likelihood.masked_mean,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.unit_count,
                penalty=divergences.penalty(divergences.k3, self.beta, against=self.divergence_to),
            ),
        )
