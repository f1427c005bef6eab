"""VRPO (LLaDA 1.5, arXiv 2505.19223). Provenance: paper, port.

    L = mean over pairs of -log sigmoid(beta [ (B(y+) - Bref(y+)) - (B(y-) - Bref(y-)) ])
    B = mean over `num_masks` draws of (len/l) sum of logp over l masked tokens, l ~ U{1..len}: the ELBO in nats

The same masks serve now and reference. Pairs: the best and the worst completion of each group; preference data are a
given rollout of groups of two with rewards 1 and 0. Groups of equal rewards have no pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class VRPO(Method):
    """Direct preference optimisation on ELBO margins."""

    name: ClassVar[str] = "vrpo"
    paper: ClassVar[str] = "2505.19223"
    provenance: ClassVar[str] = "paper, port"
    num_masks: int = setting(4, "rows a completion", was="views", low=1)
    beta: float = setting(0.2, "inverse temperature of the preference")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.BestAndWorst(
                    masks=masks.RandomMasks(distribution=masks.UniformCounts(count=self.num_masks))
                ),
                advantage=advantages.as_given,
                likelihood=likelihood.weighted_sum,
                surrogate=losses.Preference(beta=self.beta),
                normalizer=likelihood.unit_count,
            ),
        )
