"""ESPO (arXiv 2512.03759). Provenance: authors' code.

    pairs of rows: c of all L positions masked, c uniform on 0..L; the others masked
    score = mean over pairs of 1/2 [ (L+1)/c sum_S logp + (L+1)/(L-c) sum_rest logp ]: unbiased for the ELBO
    L = mean over samples of [ -min(rho A, clip(rho, 1 ± epsilon) A) + beta (score - reference)² / (2L) ]
    rho = exp((score - old) / L);  A = leave-one-out

Published beta: 1e-3 math, 3e-3 Countdown, 1e-2 Sudoku; its Countdown recipe has epsilon 0.
Deviations: c is stratified over the group (published: over the local batch); halves are rounded up (published: to even,
which favours even counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class ESPO(Method):
    """Clipped policy gradient on the sequence ELBO, by coupled masks."""

    name: ClassVar[str] = "espo"
    paper: ClassVar[str] = "2512.03759"
    provenance: ClassVar[str] = "code"
    pairs: int = setting(2, "pairs of complementary rows a sample", low=1)
    epsilon: float = setting(0.2, "clip range of the sequence ratio per token")
    beta: float = setting(1e-3, "weight of k2 to the base model")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, divergences, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(
                    distribution=masks.CoupledCounts(pairs=self.pairs), span=masks.all_completion
                ),
                advantage=advantages.leave_one_out,
                likelihood=likelihood.elbo,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.unit_count,
                penalty=divergences.penalty(divergences.k2, self.beta, per_unit=True),
            ),
        )
