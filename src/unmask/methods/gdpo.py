"""GDPO (arXiv 2510.08554). Provenance: official port, paper page.

    score = sum_n w_n (1/t_n) sum_i 1[i masked] logp_i(x_n),  t_n, w_n of Gauss-Legendre on [0, 1]
    x_n: max(1, floor(t_n L)) of all L completion positions masked, without replacement
    L = mean over samples of -min(rho A, clip(rho, 1 ± epsilon) A),  rho = exp((score - old) / L);  A = r - mean

The quadrature is biased by design: exact only where the masked log-prob is a polynomial in t.
Options: `empirical` weights w_n L / count undo the floor; `through_eos` masks and divides up to the end of the sequence
(the NeMo-RL port) instead of over all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import one_of, setting

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class GDPO(Method):
    """Clipped policy gradient on a sequence ELBO by quadrature over the mask ratio."""

    name: ClassVar[str] = "gdpo"
    paper: ClassVar[str] = "2510.08554"
    provenance: ClassVar[str] = "port"
    nodes: int = setting(3, "quadrature nodes, 1 to 3")
    empirical: bool = setting(False, "weigh by the masked fraction itself instead of the node")
    through_eos: bool = setting(False, "mask and divide up to the end of the sequence instead of all positions")
    epsilon: float = setting(0.5, "clip range of the sequence ratio per token")

    def __post_init__(self) -> None:
        one_of("gdpo nodes", str(self.nodes), ("1", "2", "3"))

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.RandomMasks(
                    distribution=masks.QuadratureNodes(nodes=self.nodes, empirical=self.empirical),
                    span=masks.through_eos if self.through_eos else masks.all_completion,
                ),
                advantage=advantages.centered,
                likelihood=likelihood.elbo,
                surrogate=losses.ClippedSurrogate(epsilon=self.epsilon),
                normalizer=likelihood.unit_count,
            ),
        )
