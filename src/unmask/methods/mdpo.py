"""MDPO (arXiv 2508.13148). Provenance: authors' code.

    every step s guesses a full completion x0_s with reward r_s
    S_s = (r_s - r_{s-1}) + mean_{u>s} r_u,  S_last = (r_last - r_{last-1}) + r_last
    A_s = z-score of S_s over the group;  trained: the `steps` steps with the largest sum of |A| over the group
    L = mean over units of sum_i c_i [ -lambda min(rho_i A, clip 0.2) + beta/2 (ref_i - logp_i)² ] / |x_s|
    lambda = L / |x_s|

Deviations: steps are chosen over the whole group (published: over the samples that a process holds, which is one); c_i
is the sampled token's probability under every unmasking rule (published: the running confidence under RCR, at most 0
for entropy); old log-probs are recorded, so several inner updates work (published: one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.choice import one_of
from unmask.records import EveryStep

if TYPE_CHECKING:
    from unmask.methods.base import Term

ADVANTAGES = ("difference_and_future", "future_mean", "step_difference", "step_reward", "step_outcome")
STEP_CHOICES = ("largest_advantages", "random_steps", "spread_steps")
POSITIONS = ("all_masked", "committed", "masked_through_eos")


@dataclass(frozen=True, kw_only=True)
class MDPO:
    """Clipped policy gradient at recorded denoising steps, each credited for its own guess."""

    name: ClassVar[str] = "mdpo"
    paper: ClassVar[str] = "2508.13148"
    provenance: ClassVar[str] = "code"
    steps: int = 8  # denoising steps trained of each trajectory
    advantage: str = "difference_and_future"  # credit of a step, before its z-score over the group
    step_choice: str = "largest_advantages"  # which steps are trained
    positions: str = "all_masked"  # which positions of a trained state are scored
    length_weight: bool = True  # lambda = L / |x_s|, else 1
    confidence_weight: bool = True  # weigh tokens by their probability when sampled
    epsilon: float = 0.2  # clip range of the probability ratio
    beta: float = 0.02  # weight of k2 to the base model

    def __post_init__(self) -> None:
        one_of("mdpo advantage", self.advantage, ADVANTAGES)
        one_of("mdpo step_choice", self.step_choice, STEP_CHOICES)
        one_of("mdpo positions", self.positions, POSITIONS)

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask import credit, likelihood, masking, surrogate
        from unmask.methods.base import Term

        step_score = getattr(credit, self.advantage)
        return (
            Term(
                record=EveryStep(),
                masking=masking.OwnGuesses(
                    eos_id=eos_id,
                    steps=self.steps,
                    choose=getattr(masking, self.step_choice),
                    positions=getattr(masking, self.positions),
                    confidence_weight=self.confidence_weight,
                    length_weight=self.length_weight,
                ),
                credit=lambda rewards_PGS: credit.z_score(step_score(rewards_PGS)),
                likelihood=likelihood.per_token,
                surrogate=surrogate.Clipped(epsilon=self.epsilon),
                normaliser=likelihood.unit_count,
                penalty=surrogate.penalty(surrogate.k2, self.beta),
            ),
        )
