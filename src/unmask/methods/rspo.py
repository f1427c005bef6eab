"""RSPO (arXiv 2605.10218). Provenance: port of the paper's Eq. 3.3.

    d = score - score of the reference, ELBO per token, masks shared;  dhat = d - mean of the batch (detached)
    L = -mean over samples of stopgrad(A - lambda dhat) dhat;  A = z-score over the group

The gradient of lambda/2 mean (dhat - A/lambda)²; no ratio, no clip, no other divergence.
Reconstructed: rows of l ~ U{1..len} masked tokens weighing len/l, so that no mask is empty. Option: `random_times`
masks each token w.p. t ~ U(0, 1] and weighs it 1/t (the port redraws empty masks; here they stay, which is unbiased).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class RSPO(Method):
    """Regression of centred log-ratios to the reference onto advantages."""

    name: ClassVar[str] = "rspo"
    paper: ClassVar[str] = "2605.10218"
    provenance: ClassVar[str] = "port"
    num_masks: int = setting(2, "rows a sample", was="views", low=1)
    random_times: bool = setting(False, "masks by a random ratio instead of a random count")
    strength: float = setting(0.01, "lambda: pull of the log-ratio towards A / lambda", low=1e-9)

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(
                    distribution=(masks.InverseTimes if self.random_times else masks.UniformCounts)(
                        count=self.num_masks
                    )
                ),
                advantage=advantages.z_score,
                likelihood=likelihood.elbo,
                surrogate=losses.CenteredRegression(strength=self.strength),
                normalizer=likelihood.unit_count,
            ),
        )
