"""d2-StepMerge (arXiv 2509.21474). Provenance: third-party port.

    rows: `segments` equal segments of the denoising steps; revealed from its start on: masked; revealed in it: scored
    L = mean over samples of (1/L) sum over tokens of [ -min(rho A, clip(rho, 1 ± epsilon) A) + beta k3(reference) ]
    A = z-score over the group

One segment is the fully masked row; as many as steps, the exact trajectory of a sampler at temperature 1.
Reconstructed: epsilon and beta, assumed from d1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class StepMerge(Method):
    """Clipped policy gradient along the sampled trajectory, merged into a few segments."""

    name: ClassVar[str] = "d2"
    paper: ClassVar[str] = "2509.21474"
    provenance: ClassVar[str] = "port"
    segments: int = setting(8, "rows a sample", low=1)
    epsilon: float = setting(0.5, "clip range of the token ratio")
    beta: float = setting(0.04, "weight of k3 to the base model")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        return (
            Term(
                masking=masks.Segments(
                    grouping=masks.EqualSegments(count=self.segments), span=masks.through_eos, per_row=False
                ),
                advantage=advantages.z_score,
                likelihood=likelihood.per_token,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.unit_count,
                penalty=divergences.penalty(divergences.k3, self.beta),
            ),
        )
