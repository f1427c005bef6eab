"""JustGRPO and its Fast variant (arXiv 2601.15165). Provenance: authors' code, paper.

    the denoiser as an autoregressive policy: p(o_k | q, o_<k, M...M), exact; rollout left to right, one token a step
    L = sum over samples and all L positions of -min(rho A, clip(rho, 1 ± epsilon) A) / (L · samples with A != 0)
    A = z-score over the group.  Fast: only the 25 % positions of highest entropy (`fraction` 0.25)

L forwards a completion; `train.micro_batch` streams them. Scored at temperature 1: sample there for a ratio of 1.
Deviations: Fast divides by the positions scored; entropy is that of the sampler, when it revealed the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.errors import UserError
from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class JustGRPO(Method):
    """Policy gradient on exact left-to-right token probabilities."""

    name: ClassVar[str] = "just-grpo"
    paper: ClassVar[str] = "2601.15165"
    provenance: ClassVar[str] = "code, paper"
    unmasking: ClassVar[str | None] = "left_to_right"  # the likelihood is of what this rule samples
    fraction: float = setting(
        1.0, "share of the positions scored, those of highest entropy; 0.25 is Fast", low=0.001, high=1
    )
    epsilon: float = setting(0.2, "clip range of the token ratio")

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"just-grpo fraction is {self.fraction}: give a share above 0, at most 1")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.Prefixes(fraction=self.fraction),
                advantage=advantages.z_score,
                likelihood=likelihood.per_token,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.active_unit_count,
            ),
        )
