"""wd1 and wd1-P (arXiv 2507.08838). Provenance: authors' code.

    logp_i as in diffu-GRPO: completion fully masked, prompt tokens masked w.p. 0.15
    L = mean over groups of sum over samples k of (-w+_k + w-_k) sum_i logp_ik;  w± = softmax(± A) over the group
    A = r - mean of the group.  wd1-P: w- = 0 (equal rewards then still train)

No ratio, no clip, no frozen policy.
Deviations: the softmax is over the group (published: over the local batch, which mixes prompts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class WD1(Method):
    """Log-likelihood weighted by a softmax of advantages, up for good samples and down for bad ones."""

    name: ClassVar[str] = "wd1"
    paper: ClassVar[str] = "2507.08838"
    provenance: ClassVar[str] = "code"
    prompt_mask_prob: float = setting(0.15, "probability that a prompt token is masked in the estimate", high=1)
    shared_prompt_mask: bool = setting(False, "one prompt mask a group: its samples share one forward")
    positive_only: bool = setting(False, "wd1-P: no negative weights")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.FullyMasked(prompt_mask_prob=self.prompt_mask_prob, shared=self.shared_prompt_mask),
                advantage=advantages.softmax_positive if self.positive_only else advantages.softmax_pair,
                likelihood=likelihood.weighted_sum,
                surrogate=losses.PolicyGradient(),
                normalizer=likelihood.unit_count,
            ),
        )
