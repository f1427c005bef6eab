"""LFPO (arXiv 2603.01563). Provenance: reconstructed from the paper's equations; no code was found.

    logits of pi+ = (1-b) old + b now, of pi- = (1+b) old - b now
    L = mean over samples and rows of [ r CE(o, pi+) + (1-r) CE(o, pi-) ],  CE mean over the masked tokens
    r = 1/2 + 1/2 clip(z-score, -1, 1);  ratios t stratified in (0, 1], random masks of o

On policy both distributions are now's: the gradient is that of clip(z) CE. The only method that keeps the old weights.
Reconstructed: that logits are mixed, not probabilities; the number of rows; one token at least is masked.
Option: `recorded_states` in place of random masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class LFPO(Method):
    """Contrast of the final tokens under logits pulled towards now and mirrored away from it."""

    name: ClassVar[str] = "lfpo"
    paper: ClassVar[str] = "2603.01563"
    provenance: ClassVar[str] = "reconstructed"
    num_masks: int = setting(4, "rows a sample", was="views", low=1)
    blend: float = setting(1.0, "b")
    recorded_states: bool = setting(False, "states of the sample's own trajectory instead of random masks")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(
                    distribution=(masks.RecordedTimes if self.recorded_states else masks.StratifiedTimes)(
                        count=self.num_masks
                    )
                ),
                advantage=advantages.bounded_z_score,
                likelihood=likelihood.masked_mean,
                surrogate=losses.Contrastive(),
                normalizer=likelihood.unit_count,
                blend=self.blend,
            ),
        )
