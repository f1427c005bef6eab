"""TraceRL (arXiv 2509.06949). Provenance: authors' code.

    rows: `shrink` consecutive denoising steps; revealed at or after the first of them: masked; revealed in them: scored
    L = mean over rows of [ mean over tokens of -min(rho A, clip(rho, 1 ± epsilon) A) + beta sum over tokens k3(old) ]
    A = z-score (population std, no epsilon), 0 in groups whose mean reward is outside [lowest, highest]

Every token is scored in exactly one row. `eos_tokens`: how many end-of-sequence tokens are scored, -1 for all.
Deviations: the published rule that completions near the length limit count as wrong is left to the reward; samples
without advantage are no rows (with rewards 0 and 1 there are none in a group that is kept).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import LARGEST_COUNT, one_of, setting, where

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class TraceRL(Method):
    """Clipped policy gradient along the sampled trajectory, steps taken in groups."""

    name: ClassVar[str] = "tracerl"
    paper: ClassVar[str] = "2509.06949"
    provenance: ClassVar[str] = "code"
    shrink: int = setting(8, "denoising steps a row", low=1)
    eos_tokens: int = setting(0, "end-of-sequence tokens scored; -1: all", low=-1)
    epsilon: float = setting(0.2, "clip range of the token ratio")
    beta: float = setting(0.01, "weight of the divergence to the old policy")
    estimate: str = setting(
        "k3", "of that divergence: k3, or k1 as the authors' code has it too", idle=where("beta", 0)
    )
    lowest: float = setting(0.2, "groups of a lower mean reward are dropped", low=-LARGEST_COUNT)
    highest: float = setting(0.8, "groups of a higher mean reward are dropped", low=-LARGEST_COUNT)

    def __post_init__(self) -> None:
        one_of("tracerl estimate", self.estimate, ("k1", "k3"))

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        estimate = {"k1": divergences.k1, "k3": divergences.k3}[self.estimate]
        span = masks.all_completion if self.eos_tokens < 0 else masks.EosTokens(eos_id=eos_id, count=self.eos_tokens)
        return (
            Term(
                masking=masks.Segments(grouping=masks.ShrunkSteps(shrink=self.shrink), span=span, per_row=True),
                advantage=advantages.PopulationZScore(lowest=self.lowest, highest=self.highest),
                likelihood=likelihood.per_token,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.active_unit_count,
                penalty=divergences.penalty(estimate, self.beta, against="old", per_unit=True),
            ),
        )
