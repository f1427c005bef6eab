"""diffu-GRPO (d1, arXiv 2504.12216). Provenance: authors' code.

    logp_i = log p(o_i | q with tokens masked w.p. 0.15, M...M), all positions from one forward
    L = sum over scored tokens of [ -min(rho_i A, clip(rho_i, 1 ± epsilon) A) + beta k3(reference) ] / their number
    rho_i = exp(logp_i - old_i),  A = r - mean of the group

Deviations: the token mean is over the whole optimizer batch (published: each micro-batch); pads are never attended to;
any number of inner updates works with any beta (published: crashes at one update with beta > 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class DiffuGRPO(Method):
    """Clipped policy gradient on a one-step estimate of token log-probs."""

    name: ClassVar[str] = "diffu-grpo"
    paper: ClassVar[str] = "2504.12216"
    provenance: ClassVar[str] = "code"
    prompt_mask_prob: float = setting(0.15, "probability that a prompt token is masked in the estimate", high=1)
    shared_prompt_mask: bool = setting(False, "one prompt mask a group: its samples share one forward")
    epsilon: float = setting(0.5, "clip range of the probability ratio")
    beta: float = setting(0.04, "weight of k3 to the base model")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        return (
            Term(
                masking=masks.FullyMasked(prompt_mask_prob=self.prompt_mask_prob, shared=self.shared_prompt_mask),
                advantage=advantages.centered,
                likelihood=likelihood.per_token,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.token_count,
                penalty=divergences.penalty(divergences.k3, self.beta),
            ),
        )
