"""MDPO (arXiv 2508.13148). Provenance: authors' code.

    r_s: reward of the full guess x0_s of step s;  S_s = r_s - r_{s-1} + mean_{u>s} r_u,  S_last = 2 r_last - r_{last-1}
    A_s = z-score of S_s over the group;  trained: the `steps` steps of largest sum of |A| over it;  lambda = L / |x_s|
    L = mean over units of sum_i c_i [ -lambda min(rho_i A, clip 0.2) + beta/2 (ref_i - logp_i)² ] / |x_s|

Deviations (published in brackets): steps chosen over the group (a process's samples, one); c_i a probability (RCR: the
running confidence, entropy's <= 0); old log-probs recorded (one update); steps averaged (summed under DDP: k times the
gradient); ranked at temperature 1 (tempered); schedule uniform (floor-linear); T = 0 scores at 1 (divides by eps)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.sampling.records import EveryStep
from unmask.validation import one_of, setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class MDPO(Method):
    """Clipped policy gradient at recorded denoising steps, each with the advantage of its own guess."""

    name: ClassVar[str] = "mdpo"
    paper: ClassVar[str] = "2508.13148"
    provenance: ClassVar[str] = "code"
    steps: int = setting(8, "denoising steps trained of each trajectory", low=1)
    advantage: str = setting("difference_and_future", "advantage of a step, before its z-score over the group")
    step_choice: str = setting("largest_advantages", "which steps are trained")
    positions: str = setting("all_masked", "which positions of a trained state are scored")
    length_weight: bool = setting(True, "lambda = L / |x_s|, else 1")
    confidence_weight: bool = setting(True, "weigh tokens by their probability when sampled")
    epsilon: float = setting(0.2, "clip range of the probability ratio")
    beta: float = setting(0.02, "weight of k2 to the base model")

    def __post_init__(self) -> None:
        scores = ("difference_and_future", "future_mean", "step_difference", "step_reward", "step_outcome")
        one_of("mdpo advantage", self.advantage, scores)
        one_of("mdpo step_choice", self.step_choice, ("largest_advantages", "random_steps", "spread_steps"))
        one_of("mdpo positions", self.positions, ("all_masked", "committed", "masked_through_eos"))

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        choose, where = masks.STEP_CHOICES[self.step_choice], masks.POSITIONS[self.positions]
        flags = {"confidence_weight": self.confidence_weight, "length_weight": self.length_weight}
        term = Term(
            record=EveryStep(),
            masking=masks.OwnGuesses(eos_id=eos_id, steps=self.steps, choose=choose, positions=where, **flags),
            advantage=advantages.ZScoreOf(score=advantages.STEP_SCORES[self.advantage]),
            likelihood=likelihood.per_token,
            surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
            normalizer=likelihood.unit_count,
            penalty=divergences.penalty(divergences.k2, self.beta),
        )
        return (term,)
