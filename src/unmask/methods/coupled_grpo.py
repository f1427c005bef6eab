"""coupled-GRPO (DiffuCoder, arXiv 2506.20639). Provenance: authors' code.

    three rows: all masked; a subset S, each token w.p. t; its complement.  One t ~ U(0.2, 0.8) an update
    logp_i = (logp_i(all) + w_i logp_i(S or complement)) / 2,  w = 1/t on S, 1/(1-t) off S
    L = token mean of [ -min(rho_i A, clip(rho_i, 1 ± epsilon) A) + beta k3(reference) ];  A = leave-one-out

E[w] = 2, so a token weighs 3/2 in expectation: as published, not renormalized. The published reference is synced:
`train.ref_model_sync_steps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class CoupledGRPO(Method):
    """Clipped policy gradient on token log-probs averaged over complementary masks."""

    name: ClassVar[str] = "coupled-grpo"
    paper: ClassVar[str] = "2506.20639"
    provenance: ClassVar[str] = "code"
    epsilon: float = setting(0.5, "clip range of the token ratio")
    beta: float = setting(0.01, "weight of k3 to the reference")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(distribution=masks.FullAndPair()),
                advantage=advantages.leave_one_out,
                likelihood=likelihood.per_token_over_rows,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.token_count,
                penalty=divergences.penalty(divergences.k3, self.beta),
            ),
        )
